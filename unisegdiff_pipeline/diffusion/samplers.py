"""Samplers: from noise to the probabilities of one sampled mask.

Each is a function of the noise levels that yields the steps of its loop: calls of the network, coherent samples and
fresh noise. Its caller holds the state and carries them out: `sample` on tensors, `inference.box_sampler` on a volume
that does not fit into memory, slab by slab.

A sampler ends with probabilities. Where little of the mask was decided on the way, as after few calls, they are as soft
as the segmenter's, and a threshold of 0.5 would give the same mask again and again; a coherent sample at the end gives
every voxel its probability back and keeps neighbours together. Without any call this is a coherent sample of p_det, the
cheapest sampler there is and the one to beat.

The state lives in fp32 on the grid of the whole patch or volume.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Literal, NamedTuple

import torch
from torch import Tensor

from unisegdiff_pipeline.core.bounds import LogSignalToNoise, Range
from unisegdiff_pipeline.core.labels import Coding, LabelScheme
from unisegdiff_pipeline.diffusion.coding import mask_to_x, nested_probabilities
from unisegdiff_pipeline.diffusion.drawing import draw_objects, field_parts, first_smallest, is_channel, near_certain
from unisegdiff_pipeline.diffusion.schedule import (
    PURE_NOISE,
    StageEdges,
    alpha_sigma,
    channel_lam,
    expand_to,
    noise_mask,
)
from unisegdiff_pipeline.diffusion.targets import (
    Estimate,
    correction_weight,
    final_probabilities,
    state_estimate,
    takes_state,
)

LengthMm = Annotated[float, Range(0, 1e6)]  # 64 of the largest voxels
EstimateFunction = Callable[[Tensor, float], Estimate]
NoiseFunction = Callable[[int], Tensor]
Leave = Callable[[Tensor, Estimate], Tensor]

CERTAIN = 0.95
LENGTH_PER_REACH = 4.0  # the correlation length is planned as four radii of an object, so that this is one


class SmoothField(NamedTuple):
    """A field of a draw: the end of its name, and whether it counts only where something certain is near."""

    name: str
    length_mm: float
    channels: int
    near_certain_only: bool


@dataclass(frozen=True, kw_only=True)
class SamplerSettings:
    """How masks are sampled.

    Attributes:
        method: "ddim" moves on deterministically; "renoise" adds fresh noise to the mean; "hard" draws a coherent
            mask between calls and adds fresh noise to it.
        start: "stage_a" makes one call at pure noise and goes on from its answer; "det" goes on from p_det.
        num_calls: network calls from lam_a on; the call of stage A comes on top. 0 with "det" calls no network.
        lam_end: offset of the last call from lam_c.
        correlation_length_mm: of the smooth field that coherent samples are made with, as the standard deviation of its
            Gaussian kernel: voxels twice as far apart correlate by 1/e. 0 draws every voxel on its own.
        draw: whether each sample ends in a coherent sample from its last probabilities instead of a threshold at 0.5.
        surface_length_mm: of the field that draws where surfaces run, while that of `correlation_length_mm` draws
            whether objects are there (`drawing.draw_objects`). None: one field draws both, as in earlier versions.
        certain: with two fields, the probability from which on a voxel is in every draw.
    """

    method: Literal["ddim", "renoise", "hard"] = "ddim"
    start: Literal["stage_a", "det"] = "det"
    num_calls: Annotated[int, Range(0, 1000)] = 4
    lam_end: LogSignalToNoise = 2.0
    correlation_length_mm: LengthMm = 0.0
    draw: bool = False
    surface_length_mm: LengthMm | None = None
    certain: Annotated[float, Range(0.5, 1, low_open=True)] = CERTAIN

    def __post_init__(self) -> None:
        if self.num_calls < 0:
            raise ValueError(f"num_calls is {self.num_calls}; it must be 0 or more")
        if self.correlation_length_mm < 0:
            raise ValueError(f"correlation_length_mm is {self.correlation_length_mm}; it must be 0 or more")
        if self.surface_length_mm is not None and self.surface_length_mm < 0:
            raise ValueError(f"surface_length_mm is {self.surface_length_mm}; it must be 0 or more, or null")
        if not 0.5 < self.certain <= 1:
            raise ValueError(f"certain is {self.certain}; allowed is a probability above 0.5, up to 1")
        if self.num_calls == 0 and self.start == "det" and not self.draw:
            raise ValueError("num_calls 0 with start 'det' and without draw gives p_det every time; set draw to true")

    @property
    def reach_mm(self) -> float:
        """How far what is likely counts as the same object; 0 where one field draws all."""
        return 0.0 if self.surface_length_mm is None else self.correlation_length_mm / LENGTH_PER_REACH

    def fields(self, labels: LabelScheme) -> list[SmoothField]:
        """The smooth fields of a draw, in the order of their channels."""
        if self.surface_length_mm is None:
            return [SmoothField("", self.correlation_length_mm, labels.num_channels, False)]
        lengths_mm = {"whole": self.correlation_length_mm, "surface": self.surface_length_mm}
        parts = field_parts(labels)
        # The first has the name that the only field had, so that masks in which nothing is certain stay as they were.
        names = ["", *(f"_{part.name}" for part in parts[1:])]
        return [
            SmoothField(name, lengths_mm[part.length], part.channels, part.length == "surface")
            for name, part in zip(names, parts, strict=True)
        ]

    @property
    def total_calls(self) -> int:
        """Network calls a sample costs, that of stage A included."""
        return self.num_calls + (self.start == "stage_a")

    def describe(self, length_unit: str = "mm") -> str:
        """In words, for logs and reports; lengths are in the unit of the data set (`core.units`)."""
        if self.total_calls == 0:
            return f"coherent samples of {self.correlation_length_mm:g} {length_unit} from the segmenter"
        start = "pure noise" if self.start == "stage_a" else "the segmenter"
        last = {0: "", 1: " to lam_a"}.get(self.num_calls, f" to lam_c + {self.lam_end:g}")
        end = f", ending in coherent samples of {self.correlation_length_mm:g} {length_unit}" if self.draw else ""
        calls = "1 call" if self.total_calls == 1 else f"{self.total_calls} calls"
        return f"{self.method}, {calls} from {start}{last}{end}"


class Drawn(NamedTuple):
    """Samples: the probabilities that each ends with, and the masks drawn from them (the same where none is drawn).

    Means are taken over the probabilities: a draw only adds noise to them.
    """

    probabilities: Tensor
    masks: Tensor


def lam_schedule(edges: StageEdges, settings: SamplerSettings) -> tuple[float, ...]:
    """The lam of every call, in order; -inf first where a stage A call opens."""
    opening = (PURE_NOISE,) if settings.start == "stage_a" else ()
    last = edges.lam_c + settings.lam_end
    steps = max(settings.num_calls - 1, 1)
    return opening + tuple(edges.lam_a + (last - edges.lam_a) * i / steps for i in range(settings.num_calls))


@dataclass(frozen=True)
class Call:
    """A call of the network.

    Attributes:
        lam: noise level of the state x_t that it is made with.
        leave: (x_t, the network's estimate) => what it leaves at each voxel (N, C, *spatial), whatever the neighbours
            say: the next state, the mean of the mask, or its probabilities.
        reads_correction: whether that depends on the estimate's correction of the noise; in stage A, and where it is
            the mask alone, it does not.
    """

    lam: float
    leave: Leave
    reads_correction: bool
    reads_state: bool = False


@dataclass(frozen=True)
class Draw:
    """Probabilities => a mask in {-1, +1} that a coherent sample makes of them; `index` names its fields."""

    index: int


@dataclass(frozen=True)
class AddNoise:
    """A mask, or the mean of masks, in [-1, 1] => x_t of q(x_t | x_0) at `lam`; `index` names the noise."""

    index: int
    lam: float


Step = Call | Draw | AddNoise
Sampler = Callable[[Sequence[float], StageEdges, LabelScheme], Iterator[Step]]


def ddim(lams: Sequence[float], edges: StageEdges, labels: LabelScheme) -> Iterator[Step]:
    """Move on deterministically (Song et al. 2021, "DDIM", algorithm of eq. 12 at eta = 0)."""
    for lam, lam_next in pairwise(lams):
        yield move_on(lam, lam_next, edges)
    yield read_probabilities(lams[-1], edges, labels)


def renoise(lams: Sequence[float], edges: StageEdges, labels: LabelScheme) -> Iterator[Step]:
    """Go back from the mean of the mask with fresh noise."""
    for index, (lam, lam_next) in enumerate(pairwise(lams)):
        yield read_mean(lam, edges)
        yield AddNoise(index + 1, lam_next)
    yield read_probabilities(lams[-1], edges, labels)


def hard(lams: Sequence[float], edges: StageEdges, labels: LabelScheme) -> Iterator[Step]:
    """Go back from a mask that a coherent sample makes, with fresh noise."""
    for index, (lam, lam_next) in enumerate(pairwise(lams)):
        yield read_probabilities(lam, edges, labels)
        yield Draw(index)
        yield AddNoise(index + 1, lam_next)
    yield read_probabilities(lams[-1], edges, labels)


SAMPLERS: dict[str, Sampler] = {"ddim": ddim, "renoise": renoise, "hard": hard}


def sampler_steps(edges: StageEdges, settings: SamplerSettings, labels: LabelScheme) -> list[Step]:
    """The steps of a sampler, in order; none where it makes no call."""
    lams = lam_schedule(edges, settings)
    return list(SAMPLERS[settings.method](lams, edges, labels)) if lams else []


def sample(
    estimate: EstimateFunction,
    noise: NoiseFunction,
    field: NoiseFunction | None,
    p_det: Tensor,
    edges: StageEdges,
    settings: SamplerSettings,
    labels: LabelScheme,
    reach: Sequence[int] = (),
) -> Drawn:
    """Sample masks; both results are (N, C, *spatial).

    Args:
        estimate: (x_t (N, C, *spatial), lam) => Estimate.
        noise: index of a draw => standard normal (N, C, *spatial); index 0 is the start.
        field: index of a draw => smooth standard normal fields, those of `SamplerSettings.fields` along the channels
            (N, F, *spatial), needed by "hard" and `draw` only.
        p_det: the segmenter's probabilities, broadcastable to (N, C, *spatial).
        labels: what the channels are; regions within others are drawn within them.
        reach: `SamplerSettings.reach_mm` in voxels along each axis; () for 0.
    """

    def drawn_from(p: Tensor, index: int) -> Tensor:
        near = near_certain(p, labels, settings.certain, reach) if settings.reach_mm else None
        return sample_masks(p, near, _require(field)(index), settings, labels)

    steps = sampler_steps(edges, settings, labels)
    lams = lam_schedule(edges, settings)
    x = first_state(noise(0), p_det, lams[0], edges) if lams else nested_probabilities(p_det, labels.nesting)
    for step in steps:
        match step:
            case Call():
                x = step.leave(x, estimate(x, step.lam))
            case Draw():
                x = mask_to_x(drawn_from(x, step.index))
            case AddNoise():
                x = noised(x, noise(step.index), step.lam, edges)
    if not settings.draw:
        return Drawn(x, x)
    masks = drawn_from(x, settings.total_calls)
    return Drawn(x.expand_as(masks), masks)


def sample_masks(
    p: Tensor, near: Tensor | None, fields: Tensor, settings: SamplerSettings, labels: LabelScheme
) -> Tensor:
    """Masks {0, 1} (N, C, *spatial) from probabilities, voxel by voxel.

    Args:
        p: (N or 1, C, *spatial).
        near: `drawing.near_certain` within reach; None: at the voxel itself.
        fields: those of `SamplerSettings.fields` (N, F, *spatial).
        settings, labels: how, and what the channels are.
    """
    if settings.surface_length_mm is None:
        return coherent_sample(p, fields, labels.coding)
    near = near_certain(p, labels, settings.certain) if near is None else near
    return draw_objects(p, near, fields, labels, settings.certain)


def first_state(noise: Tensor, p_det: Tensor, lam: float, edges: StageEdges) -> Tensor:
    """What the first call is made with: pure noise, or p_det with noise."""
    return noise if lam == PURE_NOISE else noised(mask_to_x(p_det), noise, lam, edges)


def noised(x0: Tensor, noise: Tensor, lam: float, edges: StageEdges) -> Tensor:
    """x_t of a mask, or of the mean of masks, in [-1, 1]; both are (N, C, *spatial)."""
    return noise_mask(x0, channel_lam(_lam_tensor(lam, noise), edges), noise)


def move_on(lam: float, lam_next: float, edges: StageEdges) -> Call:
    """A call that leaves the state of the next, without new noise."""

    def leave(x_t: Tensor, found: Estimate) -> Tensor:
        level, following = _lam_tensor(lam, x_t), _lam_tensor(lam_next, x_t)
        x0 = state_estimate(level, found, edges)
        return ddim_step(x_t, x0, channel_lam(level, edges), channel_lam(following, edges))

    return Call(lam, leave, _corrects(lam, edges), reads_state=True)


def read_mean(lam: float, edges: StageEdges) -> Call:
    """A call that leaves the mean of the mask, in [-1, 1]."""

    def leave(x_t: Tensor, found: Estimate) -> Tensor:
        return state_estimate(_lam_tensor(lam, x_t), found, edges)

    return Call(lam, leave, _corrects(lam, edges))


def read_probabilities(lam: float, edges: StageEdges, labels: LabelScheme) -> Call:
    """A call that leaves the probabilities of the mask; regions are no likelier than those around them."""

    def leave(x_t: Tensor, found: Estimate) -> Tensor:
        p = final_probabilities(_lam_tensor(lam, x_t), found, edges, labels.coding)
        return nested_probabilities(p, labels.nesting)

    return Call(lam, leave, bool(takes_state(torch.tensor([lam]), edges).any()))


def ddim_step(x_t: Tensor, x0: Tensor, lam: Tensor, lam_next: Tensor) -> Tensor:
    """x_next = a' x_0 + s' e with e = (x_t - a x_0) / s (Song et al. 2021, "DDIM", eq. 12 at eta = 0)."""
    (a, s), (a_next, s_next) = alpha_sigma(lam), alpha_sigma(lam_next)
    kept = expand_to(s_next / s, x_t.ndim)
    moved = expand_to(a_next - a * s_next / s, x_t.ndim)
    return torch.addcmul(kept * x_t, x0, moved)


def coherent_sample(p: Tensor, field: Tensor, coding: Coding) -> Tensor:
    """A hard mask with exact marginals p whose neighbouring voxels agree, {0, 1} (N, C, *spatial).

    Sigmoid channels: [p > u] with u = Phi(field); one field serves all regions of a sample, so that regions whose
    probabilities are nested (`nested_probabilities`) are drawn nested. Softmax: argmin of -log Phi(field_c) / p_c, a
    race of exponential clocks (the Gumbel-max trick, without its outer logarithms) with correlated fields.

    Args:
        field: standard normal at every voxel, correlated between neighbours, (N, C, *spatial).
    """
    u = torch.special.ndtr(field).clamp(1e-7, 1 - 1e-7)
    if coding != "softmax":
        return (p > u[:, :1]).to(p.dtype)
    clocks = u.log_().neg_() / p.clamp_min(1e-12)
    return is_channel(first_smallest(clocks), clocks.shape[1]).to(p.dtype)


def _corrects(lam: float, edges: StageEdges) -> bool:
    """Whether the state moves by the correction of the noise."""
    return bool(correction_weight(torch.tensor([lam]), edges).any())


def _require(field: NoiseFunction | None) -> NoiseFunction:
    if field is None:
        raise ValueError('method "hard" and draw need a field; pass one, or use "ddim" without draw')
    return field


def _lam_tensor(lam: float, like: Tensor) -> Tensor:
    assert not math.isnan(lam)
    return torch.full((1,), lam, dtype=torch.float32, device=like.device)  # of all samples, to broadcast
