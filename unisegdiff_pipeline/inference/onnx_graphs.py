"""A fold's network as ONNX graphs: the segmenter, one call of the denoiser, and the draw of a mask.

What another runtime would have to rebuild voxel by voxel is inside the graphs: calibration, the scale of the mask's
channels, and where objects and surfaces are drawn. What is left outside is arithmetic with the few numbers that
`onnx_export` writes beside them.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.diffusion.coding import mask_to_x, nested_probabilities, x_to_probabilities
from unisegdiff_pipeline.diffusion.drawing import keep_certain, near_certain
from unisegdiff_pipeline.diffusion.samplers import SamplerSettings, sample_masks
from unisegdiff_pipeline.diffusion.schedule import NoiseLevel, expand_to
from unisegdiff_pipeline.diffusion.targets import correction_weight, takes_state
from unisegdiff_pipeline.inference.settings import InferenceSettings
from unisegdiff_pipeline.networks.denoiser import Condition
from unisegdiff_pipeline.networks.staged_model import StagedModel

TOLERANCE = 1e-3  # of a graph to the network it was made from
EXTRA = "pip install 'unisegdiff_pipeline[onnx]'"


class SegmenterGraph(nn.Module):
    """image (B, channels, *patch) => logits, p_det (B, C, *patch), and the features that the denoiser reads.

    Args:
        model: in eval mode, on the CPU.
        settings: whose calibration p_det has.
        source: row of a source in the network's tables (`SourcesPlan.index`); 0 for an unknown one.
    """

    def __init__(self, model: StagedModel, settings: InferenceSettings, source: int = 0) -> None:
        super().__init__()
        self.model, self.calibration = model, settings.calibration
        self.source = _source_row(source)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        condition = self.model.condition(image, self.source)
        p_det = self.model.det_probabilities(condition, self.calibration)
        return condition.det_logits, nested_probabilities(p_det, self.model.labels.nesting), *condition.features


class DenoiserGraph(nn.Module):
    """x_t (B, C, *patch), lam (1,), logits and features of the segmenter => probabilities and state (B, C, *patch).

    The probabilities are those that a sample would end with after this call, the state is the x_0 that a sampler moves
    towards (`targets.final_probabilities` and `state_estimate`).

    Args:
        model, source: as of `SegmenterGraph`.
        settings: whose stages, denoiser_calibration and input_scale count.
    """

    def __init__(self, model: StagedModel, settings: InferenceSettings, source: int = 0) -> None:
        super().__init__()
        self.model, self.settings = model, settings
        self.source = _source_row(source)

    def forward(self, x_t: Tensor, lam: Tensor, logits: Tensor, *features: Tensor) -> tuple[Tensor, Tensor]:
        """See the class. The stage is chosen inside the graph, so that both stages' answers are computed."""
        edges, labels = self.settings.edges, self.model.labels
        condition = Condition(logits, features, self.source)
        found = self.model.denoise(x_t, NoiseLevel.of(lam, edges), condition, self.settings.denoiser_calibration)
        weight = expand_to(correction_weight(lam, edges), x_t.ndim)
        state = (mask_to_x(found.probabilities) - weight * found.correction).clamp(-1, 1)
        from_state = expand_to(takes_state(lam, edges), x_t.ndim)
        p = torch.where(from_state, x_to_probabilities(state, labels.coding), found.probabilities)
        return nested_probabilities(p, labels.nesting), state


class MaskGraph(nn.Module):
    """Probabilities, smooth fields (B, F, *patch) and reported probabilities => masks of 0 and 1 (B, C, *patch).

    Args:
        labels: what the channels are.
        sampler: that draws.
        reach: `SamplerSettings.reach_mm` in voxels along each axis of the patch.
    """

    def __init__(self, labels: LabelScheme, sampler: SamplerSettings, reach: Sequence[int]) -> None:
        super().__init__()
        self.labels, self.sampler, self.reach = labels, sampler, tuple(reach)

    def forward(self, probabilities: Tensor, fields: Tensor, reported: Tensor) -> Tensor:
        """Masks hold what `reported` is certain of, as `keep_certain` says; zeros there keep nothing."""
        if self.sampler.surface_length_mm is None:
            return sample_masks(probabilities, None, fields, self.sampler, self.labels)
        near = near_certain(probabilities, self.labels, self.sampler.certain, self.reach)
        masks = sample_masks(probabilities, near, fields, self.sampler, self.labels)
        return keep_certain(masks, reported, self.labels, self.sampler.certain)


@dataclass(frozen=True)
class Graph:
    """A module and what its export needs.

    Attributes:
        module: in eval mode, on the CPU.
        inputs: an example of each, by name, with a batch of two.
        outputs: names.
    """

    module: nn.Module
    inputs: Mapping[str, Tensor]
    outputs: tuple[str, ...]

    def to_onnx(self) -> bytes:
        """The graph with its weights as the content of one file; the batch is free, all other sizes are fixed.

        Raises:
            UsdError: onnxruntime does not compute what the network computes.
        """
        batch = torch.export.Dim("batch", min=1)
        free = [None if name == "lam" else {0: batch} for name in self.inputs]
        num_named = 3 if isinstance(self.module, DenoiserGraph) else len(free)  # what follows is one argument, a tuple
        with _quiet():
            program = torch.onnx.export(
                self.module,
                tuple(self.inputs.values()),
                input_names=list(self.inputs),
                output_names=list(self.outputs),
                dynamic_shapes=(*free[:num_named], *([tuple(free[num_named:])] if free[num_named:] else [])),
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        assert program is not None
        content: bytes = program.model_proto.SerializeToString()
        self._require_agreement(content)
        return content

    @torch.inference_mode()
    def _require_agreement(self, content: bytes) -> None:
        """With another batch than the example's, so that a size that was fixed by mistake is found as well."""
        import onnxruntime

        inputs = {name: v if name == "lam" else torch.cat([v, v[:1]]) for name, v in self.inputs.items()}
        expected = self.module(*inputs.values())
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        results = session.run(None, {name: value.numpy() for name, value in inputs.items()})
        for name, result, tensor in zip(
            self.outputs, results, expected if isinstance(expected, tuple) else (expected,), strict=True
        ):
            difference = float(np.abs(result - tensor.numpy()).max())
            scale = max(1.0, float(tensor.abs().max()))
            if not difference <= TOLERANCE * scale:
                raise UsdError(
                    f"the ONNX graph's {name} differ by {difference:g} from the network's, allowed is "
                    f"{TOLERANCE * scale:g}; use the versions of torch, onnxscript and onnxruntime in constraints.txt."
                )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's notes on packages and names that no graph of ours needs."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _source_row(source: int) -> Tensor | None:
    return None if source == 0 else torch.tensor([source])
