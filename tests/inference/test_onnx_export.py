"""Graphs in ONNX compute what the networks do, and the example samples the library's masks without torch."""

from __future__ import annotations

import json
import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.fields import smooth_field
from tests.inference.models import tiny_plans, write_model
from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.diffusion.coding import LogitCalibration, nested_probabilities, probabilities_from_logits
from unisegdiff_pipeline.diffusion.drawing import keep_certain
from unisegdiff_pipeline.diffusion.samplers import SamplerSettings, sample
from unisegdiff_pipeline.diffusion.schedule import NoiseLevel
from unisegdiff_pipeline.diffusion.targets import Estimate, final_probabilities, state_estimate
from unisegdiff_pipeline.inference import onnx_export
from unisegdiff_pipeline.inference.model_folder import load_fold, open_model_folder
from unisegdiff_pipeline.inference.onnx_export import export_onnx
from unisegdiff_pipeline.inference.onnx_graphs import Graph, MaskGraph
from unisegdiff_pipeline.inference.settings import InferenceSettings, read_settings, write_settings
from unisegdiff_pipeline.networks.staged_model import StagedModel
from unisegdiff_pipeline.planning.plans import PreprocessingPlan, SourcePlan, SourcesPlan

EXAMPLE = Path(__file__).resolve().parents[2] / "documentation/examples/onnx_masks.py"
BINARY = LabelScheme(("lesion",), ((1,),), "binary", (1,))
REGIONS = LabelScheme(("whole", "core"), ((1, 2), (2,)), "regions", (1, 2))
TWO_FIELDS = SamplerSettings(num_calls=3, draw=True, correlation_length_mm=6.0, surface_length_mm=1.5, lam_end=2.0)
HARD = SamplerSettings(method="hard", start="stage_a", num_calls=2, draw=True, correlation_length_mm=2.0, lam_end=1.0)
CALIBRATED = {"calibration": LogitCalibration(2.0, 1.5, 3.0), "denoiser_calibration": LogitCalibration(1.3, 1.2, 4.0)}


def make_model(root: Path, dims: int, labels: LabelScheme, denoiser: bool = True, **settings: Any) -> Path:
    spacing = (None if dims == 2 else 1.5, 1.0, 0.5)
    plan = PreprocessingPlan((0, 1, 2), spacing, ("zscore",), (False,), ())
    folder = write_model(root, tiny_plans(labels, plan, ("T1",), ".nii.gz", True), denoiser=denoiser)
    write_settings(folder / "fold_0", replace(read_settings(folder / "fold_0"), **CALIBRATED, **settings))
    return folder


@pytest.fixture(scope="module", params=["2d", "3d"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model folder and its export: regions that are scaled and drawn by two fields in 2D, one class in 3D."""
    for name in onnx_export.PACKAGES:
        pytest.importorskip(name, reason="the extra onnx is not installed")
    root = tmp_path_factory.mktemp(request.param)
    if request.param == "2d":
        sampler = SamplerSettings(start="stage_a", num_calls=0)
        settings = {"input_scale": (0.8, 1.25), "sampler": sampler, "mask_sampler": TWO_FIELDS}
        model = make_model(root, 2, REGIONS, **settings)
    else:
        model = make_model(root, 3, BINARY, sampler=HARD)
    export_onnx(model, root / "onnx")
    return model, root / "onnx"


def network_of(model: Path) -> tuple[StagedModel, InferenceSettings]:
    return load_fold(open_model_folder(model), "0", torch.device("cpu"))


def session(folder: Path, name: str) -> Any:
    import onnxruntime

    return onnxruntime.InferenceSession(folder / f"{name}.onnx")


@pytest.mark.parametrize("batch", [1, 3])
@torch.inference_mode()
def test_graphs_agree_with_the_network(exported: tuple[Path, Path], batch: int) -> None:
    network, settings = network_of(exported[0])
    about = json.loads((exported[1] / "onnx.json").read_text())
    generator = torch.Generator().manual_seed(batch)
    image = 3 * torch.randn((batch, 1, *about["patch_size"]), generator=generator)
    condition = network.condition(image)
    logits, p_det, *features = session(exported[1], "segmenter").run(None, {"image": image.numpy()})
    assert np.abs(logits - condition.det_logits.numpy()).max() < 1e-3
    assert np.abs(features[0] - condition.features[0].numpy()).max() < 1e-3
    if network.labels == REGIONS:
        assert (p_det[:, 1] <= p_det[:, 0]).all()
    x_t = torch.randn(condition.det_logits.shape, generator=generator)
    denoiser = session(exported[1], "denoiser")
    for lam in (-np.inf, -1.0, 3.0):  # of each stage
        level = NoiseLevel.of(torch.tensor([lam]), settings.edges)
        found = network.denoise(x_t, level, condition, settings.denoiser_calibration)
        inputs = {"x_t": x_t.numpy(), "lam": np.float32([lam]), "logits": logits, "features_0": features[0]}
        p, state = denoiser.run(None, inputs)
        of_sample = final_probabilities(torch.tensor([lam]), found, settings.edges, network.coding)
        of_sample = nested_probabilities(of_sample, network.labels.nesting)
        assert np.abs(p - of_sample.numpy()).max() < 1e-3
        assert np.abs(state - state_estimate(torch.tensor([lam]), found, settings.edges).numpy()).max() < 1e-3


@torch.inference_mode()
def library_masks(model: Path, image: torch.Tensor, samples: int, normal: Any, about: Any) -> np.ndarray:
    """Masks of the library's samplers with the noise of the example."""
    network, settings = network_of(model)
    condition = network.condition(image[None])
    p_det = network.det_probabilities(condition, settings.calibration)
    shape = (samples, *p_det.shape[1:])
    condition = condition.each(lambda v: v.expand(samples, *v.shape[1:]))

    def estimate(x_t: torch.Tensor, lam: float) -> Estimate:
        level = NoiseLevel.of(torch.tensor([lam]), settings.edges)
        return network.denoise(x_t, level, condition, settings.denoiser_calibration)

    def noise(index: int) -> torch.Tensor:
        return torch.from_numpy(normal(index, 0, shape)).float()

    def field(index: int) -> torch.Tensor:
        parts = []
        for part, numbers in enumerate((about["mask_sampler"] or about["sampler"])["fields"], start=1):
            lengths = numbers["length_voxels"]
            margin = [n + 2 * int(np.ceil(3.5 * v)) for n, v in zip(shape[2:], lengths, strict=True)]
            white = normal(index, part, (samples, numbers["channels"], *margin))
            parts.append(np.stack([smooth_field(w, lengths) for w in white]))
        return torch.from_numpy(np.concatenate(parts, axis=1)).float()

    p_det, labels = nested_probabilities(p_det, network.labels.nesting), network.labels
    reach = tuple(int(settings.drawn_by.reach_mm / mm) for mm in (1.5, 1.0, 0.5)[-len(about["patch_size"]) :])
    drawn = sample(estimate, noise, field, p_det, settings.edges, settings.drawn_by, labels, reach)
    if settings.drawn_by.surface_length_mm is None:
        return drawn.masks.numpy()
    mean = sample(estimate, noise, None, p_det, settings.edges, replace(settings.sampler, draw=False), labels)
    w = settings.segmenter_weight
    reported = w * p_det + (1 - w) * mean.probabilities
    return keep_certain(drawn.masks, reported, labels, settings.drawn_by.certain).numpy()


def test_the_example_samples_the_masks_of_the_library(exported: tuple[Path, Path], tmp_path: Path) -> None:
    model, folder = exported
    about = json.loads((folder / "onnx.json").read_text())
    image = np.random.default_rng(0).normal(size=(1, *about["patch_size"])).astype(np.float32)
    np.save(tmp_path / "image.npy", image)
    example = runpy.run_path(str(EXAMPLE))
    example["main"](folder, tmp_path / "image.npy", tmp_path / "masks.npy", 3)
    masks = np.load(tmp_path / "masks.npy")
    expected = library_masks(model, torch.from_numpy(image), 3, example["normal"], about)
    assert masks.shape == expected.shape
    assert set(np.unique(masks)) == {0, 1}
    assert 0.02 < masks.mean() < 0.98
    assert (masks != expected).mean() < 0.002  # a probability may lie within rounding of its threshold


@pytest.mark.parametrize(
    "labels",
    [
        LabelScheme(("a", "b", "c"), ((1,), (2,), (3,)), "softmax", (1, 2, 3)),
        LabelScheme(("a", "b", "both"), ((1, 2), (2, 3), (2,)), "regions", (1, 3, 2)),
    ],
    ids=["classes", "regions that overlap"],
)
def test_onnxruntime_draws_one_of_several_classes(labels: LabelScheme) -> None:
    """`to_onnx` compares the graph with the library."""
    for name in onnx_export.PACKAGES:
        pytest.importorskip(name, reason="the extra onnx is not installed")
    generator = torch.Generator().manual_seed(0)
    fields = sum(field.channels for field in TWO_FIELDS.fields(labels))
    channels = dict.fromkeys(("probabilities", "fields", "reported"), labels.num_channels) | {"fields": fields}
    inputs = {name: torch.randn((2, count, 8, 8), generator=generator) for name, count in channels.items()}
    for name in ("probabilities", "reported"):
        inputs[name] = probabilities_from_logits(inputs[name], labels.coding)
    assert Graph(MaskGraph(labels, TWO_FIELDS, (2, 2)).eval(), inputs, ("masks",)).to_onnx()


def test_the_example_needs_neither_torch_nor_this_package() -> None:
    text = EXAMPLE.read_text("utf-8")
    assert "torch" not in text
    assert "import unisegdiff" not in text
    assert sum(bool(line.strip()) for line in text.splitlines()) <= 60


def test_the_description_says_what_a_runtime_needs(exported: tuple[Path, Path]) -> None:
    about = json.loads((exported[1] / "onnx.json").read_text())
    assert about["preprocessing"]["normalization"] == ["zscore"]
    assert about["lesion_filter"] == {"rules": {}, "unit": "ml"}  # none was chosen
    if len(about["patch_size"]) == 2:
        sampler = about["mask_sampler"]
        assert about["sampler"]["calls"] == [{"lam": None, "signal": [0.0, 0.0], "noise": [1.0, 1.0]}]
        # 6 mm and 1.5 mm in pixels of 1.0 x 0.5 mm, for each of two levels of nesting
        assert [f["length_voxels"] for f in sampler["fields"]] == [[6, 12], [1.5, 3], [6, 12], [1.5, 3]]
        # lam of the channel is -3 + 2 ln 0.8: a^2 = 1 / (1 + e^3 / 0.64)
        assert sampler["calls"][0]["signal"][0] == pytest.approx((1 / (1 + np.exp(3) / 0.64)) ** 0.5, rel=1e-5)
    else:
        assert about["mask_sampler"] is None
        assert [call["lam"] for call in about["sampler"]["calls"]] == [None, -3.0, 1.5]
        assert about["sampler"]["fields"] == [{"channels": 1, "length_voxels": [2 / 1.5, 2.0, 4.0]}]


@pytest.mark.parametrize(("source", "target", "size"), [("US", [None, 2.0, 2.0], None), (None, [None, 1.0, 1.0], 24.0)])
def test_of_a_unified_model_the_description_is_that_of_one_source_or_of_none(
    tmp_path: Path, source: str | None, target: list[float | None], size: float | None, caplog: pytest.LogCaptureFixture
) -> None:
    """By the target spacing alone, images of no known source would reach the network at another size than they have in
    `usd_predict`, which brings them to the size of the median image."""
    for name in onnx_export.PACKAGES:
        pytest.importorskip(name, reason="the extra onnx is not installed")
    plan = PreprocessingPlan((0, 1, 2), (None, 1.0, 1.0), ("zscore",) * 3, (False,) * 3, ())
    grey = PreprocessingPlan((0, 1, 2), (None, 2.0, 2.0), ("zscore",), (False,), ())
    plans = tiny_plans(BINARY, plan, ("R", "G", "B"), ".png", False)
    known = SourcesPlan({"US": SourcePlan("US", ("US",), ".png", False, grey, (True,), 10)})
    configuration = replace(plans.configurations["tiny"], sources=known, median_shape=(1, 16, 36))
    model = write_model(tmp_path, replace(plans, configurations={"tiny": configuration}), denoiser=False)
    export_onnx(model, tmp_path / "onnx", source=source)
    about = json.loads((tmp_path / "onnx/onnx.json").read_text())
    assert (about["source"], about["preprocessing"]["target_spacing_mm"], about["image_size"]) == (source, target, size)
    image = torch.randn((1, 3, *about["patch_size"]), generator=torch.Generator().manual_seed(0))
    logits = session(tmp_path / "onnx", "segmenter").run(["logits"], {"image": image.numpy()})[0]
    network, row = network_of(model)[0], known.index(source)
    with torch.no_grad():
        own, other = (network.condition(image, torch.tensor([i])).det_logits for i in (row, 1 - row))
    assert np.abs(logits - own.numpy()).max() < 1e-4 < np.abs(logits - other.numpy()).max()
    assert not [record for record in caplog.records if record.name.startswith("onnxscript") and record.levelno > 20]


def test_nothing_is_written_where_the_export_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(tmp_path, 2, BINARY)
    monkeypatch.setattr(onnx_export, "PACKAGES", ("json", "no_such_package"))
    with pytest.raises(UsdError, match=r"needs no_such_package, not installed here; install it with pip install"):
        export_onnx(model, tmp_path / "out")
    monkeypatch.setattr(onnx_export, "PACKAGES", ())
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("mine")
    with pytest.raises(UsdError, match=r"full \(--output\) exists and is not empty"):
        export_onnx(model, tmp_path / "full")
    with pytest.raises(UsdError, match=r"fold 3 of .* is not there"):
        export_onnx(model, tmp_path / "out", fold=3)
    with pytest.raises(UsdError, match=r"--source is A, but .* has no sources"):
        export_onnx(model, tmp_path / "out", source="A")
    (model / "fold_1").mkdir()
    for path in (model / "fold_0").iterdir():
        (model / "fold_1" / path.name).write_bytes(path.read_bytes())
    with pytest.raises(UsdError, match=r"finished folds 0, 1, and an export is of one; name it with --fold"):
        export_onnx(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()
