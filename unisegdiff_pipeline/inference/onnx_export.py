"""Export of a fold to ONNX, with all that a runtime without this package needs to know.

    segmenter.onnx   image => logits, p_det and features, once a patch
    denoiser.onnx    a noised mask and its noise level => probabilities and the next state's x_0, once a call
    masks.onnx       probabilities and smooth fields => masks
    onnx.json        preprocessing, labels, and the numbers of the samplers

documentation/reference/onnx.md says what they mean.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.files import atomic_path, file_hash, require_writable
from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.core.serialization import write_json
from unisegdiff_pipeline.core.version import __version__
from unisegdiff_pipeline.diffusion.samplers import SamplerSettings, lam_schedule
from unisegdiff_pipeline.diffusion.schedule import StageEdges, alpha_sigma, channel_lam
from unisegdiff_pipeline.inference.lesion_filter import LesionFilter
from unisegdiff_pipeline.inference.model_folder import (
    WEIGHTS_NAME,
    ModelFolder,
    choose_folds,
    load_fold,
    open_model_folder,
    plan_hash,
)
from unisegdiff_pipeline.inference.model_inputs import ModelInputs
from unisegdiff_pipeline.inference.onnx_graphs import EXTRA, DenoiserGraph, Graph, MaskGraph, SegmenterGraph
from unisegdiff_pipeline.inference.settings import Decision, InferenceSettings
from unisegdiff_pipeline.inference.volume_sampler import can_sample
from unisegdiff_pipeline.networks.staged_model import StagedModel
from unisegdiff_pipeline.planning.plans import ConfigurationPlan, PreprocessingPlan
from unisegdiff_pipeline.preprocessing.source_inputs import common_image_size

FILE_NAME = "onnx.json"
SCHEMA_VERSION = 1
PACKAGES = ("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class CallNumbers:
    """A call of the denoiser; lists hold a number for each label channel.

    Attributes:
        lam: input of the graph; -inf (null in JSON) for pure noise.
        signal, noise: a and s, amplitudes of mask and noise in the state x_t of the call.
    """

    lam: float
    signal: tuple[float, ...]
    noise: tuple[float, ...]


@dataclass(frozen=True)
class FieldNumbers:
    """Smooth fields of a draw: how many channels, and standard deviation of the kernel along each axis in voxels."""

    channels: int
    length_voxels: tuple[float, ...]


@dataclass(frozen=True)
class SamplerNumbers:
    """A sampler as `diffusion.samplers` describes it.

    Attributes:
        method: "ddim", "renoise" or "hard".
        calls: of the denoiser, in order; none where masks are drawn from p_det.
        draw: whether a mask is drawn at the end.
        masks: name of the graph that draws, None where nothing is drawn.
        fields: that the graph takes, along their channels.
    """

    method: str
    calls: tuple[CallNumbers, ...]
    draw: bool
    masks: str | None
    fields: tuple[FieldNumbers, ...]


@dataclass(frozen=True)
class OnnxDescription:
    """onnx.json.

    Attributes:
        graphs: file of each graph that the model has, by its name.
        patch_size: of all graphs, (Y, X) or (Z, Y, X).
        preprocessing: how an image comes onto the network's grid, as in plans.json.
        image_size: edge in voxels of the square (of the cube, of a 3D model) that is as large as an image on the
            network's grid, where each image is brought to that size instead of to a spacing; else None.
        source: that the graphs were exported for; None for images of no known one.
        sampler: its mean is mixed with p_det: segmenter_weight * p_det + (1 - segmenter_weight) * mean.
        mask_sampler: that samples the masks, where it is another one.
        lesion_filter: what a lesion of the mask must have to stay.
        num_samples: that the model samples a case by default; 0 without a sampler.
    """

    schema_version: int
    version: str
    model: str
    fold: str
    weights_hash: str
    plan_hash: str
    graphs: dict[str, str]
    patch_size: tuple[int, ...]
    channel_names: tuple[str, ...]
    num_input_channels: int
    preprocessing: PreprocessingPlan
    image_size: float | None
    source: str | None
    labels: LabelScheme
    segmenter_weight: float
    decision: Decision
    lesion_filter: LesionFilter
    num_samples: int
    sampler: SamplerNumbers | None
    mask_sampler: SamplerNumbers | None


def export_onnx(
    model_folder: Path, output: Path, fold: str | int | None = None, source: str | None = None
) -> OnnxDescription:
    """Write the graphs of one fold and onnx.json into a new folder.

    Args:
        model_folder: RESULTS/DATASET/TRAINER__CONFIGURATION.
        output: folder that does not exist, or is empty.
        fold: "0", "1", ... or "all"; None where only one is finished.
        source: of a model of a unified data set, what all images will be like; None for no known one.

    Raises:
        UsdError: a cascade, no such fold or source, several finished folds and none named, a folder with something in
            it, a package that is not installed, or graphs that do not compute what the network does.
    """
    require_onnx()
    model = open_model_folder(Path(model_folder))
    if model.masks_from is not None:
        raise UsdError(
            f"{model.place} is a cascade: its inputs are masks of another model, brought to its grid, which no graph "
            f"holds. Export a model that is none, or share the cascade as an archive (without --onnx)."
        )
    name = _one_fold(model, fold)
    ModelInputs(model, source)  # refuses a source that the model does not have
    output = Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UsdError(f"{output} (--output) exists and is not empty; name a new folder, or remove it.")
    require_writable(output)
    network, settings = load_fold(model, name, torch.device("cpu"))
    sources = model.configuration.sources
    settings = settings.for_source(sources, source)
    row = 0 if sources is None else sources.index(source)
    graphs = _graphs(model.configuration, network, settings, row)
    description = _describe(model, name, source, settings, network, tuple(graphs))
    with atomic_path(output) as temporary:
        temporary.mkdir()
        for graph_name, graph in graphs.items():
            (temporary / description.graphs[graph_name]).write_bytes(graph.to_onnx())
        write_json(temporary / FILE_NAME, description)
    return description


def require_onnx() -> None:
    """Raise a UsdError where a package is missing that the export needs."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UsdError(f"export to ONNX needs {' and '.join(missing)}, not installed here; install it with {EXTRA}.")


def _one_fold(model: ModelFolder, fold: str | int | None) -> str:
    folds = model.folds if fold is None else choose_folds(model, fold)
    if len(folds) > 1:
        raise UsdError(
            f"{model.place} holds the finished folds {', '.join(folds)}, and an export is of one; name it with --fold "
            f"(fold)."
        )
    return folds[0]


def _graphs(
    configuration: ConfigurationPlan, network: StagedModel, settings: InferenceSettings, source: int
) -> dict[str, Graph]:
    """The graphs that a model has, with example inputs: any numbers, but of a batch of two."""
    patch, channels = configuration.network.patch_size, network.labels.num_channels
    generator = torch.Generator().manual_seed(0)

    def example(count: int) -> torch.Tensor:
        return torch.randn((2, count, *patch), generator=generator)

    image = example(configuration.network.num_input_channels)
    segmenter = SegmenterGraph(network, settings, source).eval()
    with torch.no_grad():
        logits, p_det, *features = segmenter(image)
    named = {f"features_{i}": value for i, value in enumerate(features)}
    graphs = {"segmenter": Graph(segmenter, {"image": image}, ("logits", "p_det", *named))}
    if network.denoiser is not None:
        inputs = {"x_t": example(channels), "lam": torch.tensor([settings.lam_a]), "logits": logits, **named}
        denoiser = DenoiserGraph(network, settings, source).eval()
        graphs["denoiser"] = Graph(denoiser, inputs, ("probabilities", "state"))
    for name, sampler in _mask_graphs(network, settings).items():
        fields = example(sum(field.channels for field in sampler.fields(network.labels)))
        reach = [int(n) for n in _in_voxels(sampler.reach_mm, configuration)]
        inputs = {"probabilities": p_det, "fields": fields, "reported": torch.zeros_like(p_det)}
        graphs[name] = Graph(MaskGraph(network.labels, sampler, reach).eval(), inputs, ("masks",))
    return graphs


def _describe(
    model: ModelFolder,
    fold: str,
    source: str | None,
    settings: InferenceSettings,
    network: StagedModel,
    graphs: Sequence[str],
) -> OnnxDescription:
    configuration, labels, sources = model.configuration, network.labels, model.configuration.sources
    of_source = None if sources is None or source is None else sources.plans[source]
    names = {sampler: name for name, sampler in _mask_graphs(network, settings).items()}
    numbers = [
        None if sampler is None else _numbers(sampler, names.get(sampler), settings.edges, labels, configuration)
        for sampler in _samplers(network, settings)
    ]
    return OnnxDescription(
        schema_version=SCHEMA_VERSION,
        version=__version__,
        model=f"{model.plans.dataset_name}/{model.folder.absolute().name}",
        fold=fold,
        weights_hash=file_hash(model.fold_folder(fold) / WEIGHTS_NAME),
        plan_hash=plan_hash(configuration),
        graphs={name: f"{name}.onnx" for name in graphs},
        patch_size=tuple(configuration.network.patch_size),
        channel_names=tuple(model.plans.channel_names if of_source is None else of_source.channel_names),
        num_input_channels=configuration.network.num_input_channels,
        preprocessing=configuration.preprocessing if of_source is None else of_source.preprocessing,
        image_size=common_image_size(configuration, source),
        source=source,
        labels=labels,
        segmenter_weight=settings.segmenter_weight,
        decision=settings.decision,
        lesion_filter=settings.lesion_filter,
        num_samples=0 if numbers[0] is None else settings.num_samples,
        sampler=numbers[0],
        mask_sampler=numbers[1],
    )


def _samplers(
    network: StagedModel, settings: InferenceSettings
) -> tuple[SamplerSettings | None, SamplerSettings | None]:
    """What makes the mean, and what samples the masks where that is another; beside the latter the former ends in no
    mask (as in `box_sampler`).
    """
    if not can_sample(network, settings):
        return None, None
    sampler, other = settings.sampler, settings.mask_sampler
    if other is not None and sampler.total_calls:
        sampler = replace(sampler, draw=False)
    return sampler, other


def _mask_graphs(network: StagedModel, settings: InferenceSettings) -> dict[str, SamplerSettings]:
    """Name of each graph that draws, and the sampler that it is for."""
    sampler, other = _samplers(network, settings)
    named = {"masks": sampler} if other is None else {"masks": other, "mean_masks": sampler}
    return {name: s for name, s in named.items() if s is not None and _draws(s)}


def _numbers(
    sampler: SamplerSettings,
    masks: str | None,
    edges: StageEdges,
    labels: LabelScheme,
    configuration: ConfigurationPlan,
) -> SamplerNumbers:
    fields = tuple(
        FieldNumbers(field.channels, tuple(_in_voxels(field.length_mm, configuration)))
        for field in (() if masks is None else sampler.fields(labels))
    )
    calls = tuple(_call_numbers(lam, edges, labels.num_channels) for lam in lam_schedule(edges, sampler))
    return SamplerNumbers(sampler.method, calls, sampler.draw, masks, fields)


def _call_numbers(lam: float, edges: StageEdges, channels: int) -> CallNumbers:
    signal, noise = (
        tuple(value.reshape(-1).expand(channels).tolist())
        for value in alpha_sigma(channel_lam(torch.tensor([lam]), edges))
    )
    return CallNumbers(lam, signal, noise)


def _draws(sampler: SamplerSettings) -> bool:
    """Whether a mask is drawn at the end, or between calls."""
    return sampler.draw or (sampler.method == "hard" and sampler.total_calls > 1)


def _in_voxels(length_mm: float, configuration: ConfigurationPlan) -> list[float]:
    """A length along each axis of the patch."""
    spacing = configuration.preprocessing.target_spacing_mm[-configuration.network.dims :]
    assert None not in spacing, "only slices of 2D networks keep the spacing of the image"
    return [length_mm / mm for mm in spacing if mm is not None]
