"""Samplers as functions of (estimate, noise, schedule): from noise to the probabilities of one drawn mask.

A sampler ends with probabilities. Where little of the mask was decided on the way, as after few calls, they are as soft
as the segmenter's, and cutting each at 0.5 would give the same mask again and again; a coherent draw at the end gives
every voxel its probability back and keeps neighbours together. Without any call this is a coherent draw of p_det, the
cheapest sampler there is and the one to beat.

`estimate(x_t, lam)` is any callable that says what x_t holds; over a whole volume it tiles, calls the network and
blends, so the same sampler serves a patch and a volume. The state lives in fp32 on the grid of the whole volume.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import torch
from torch import Tensor

from unisegdiff_pipeline.core.bounds import LogSignalToNoise, Range
from unisegdiff_pipeline.core.labels import Coding, LabelScheme
from unisegdiff_pipeline.diffusion.coding import mask_to_x, nested_probabilities
from unisegdiff_pipeline.diffusion.drawing import draw_objects, field_parts, near_certain
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

LengthMm = Annotated[float, Range(0, 1000)]
EstimateFunction = Callable[[Tensor, float], Estimate]
NoiseFunction = Callable[[int], Tensor]

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
    """How masks are drawn.

    Attributes:
        method: "ddim" moves on deterministically; "renoise" adds fresh noise to the mean; "hard" draws a coherent
            mask between calls and adds fresh noise to it.
        start: "stage_a" makes one call at pure noise and goes on from its answer; "det" goes on from p_det.
        num_calls: network calls from lam_a on; the call of stage A comes on top. 0 with "det" calls no network.
        lam_end: offset of the last call from lam_c.
        correlation_length_mm: of the smooth field that coherent draws are made with, as the standard deviation of its
            Gaussian kernel: voxels twice as far apart correlate by 1/e. 0 draws every voxel on its own.
        draw: whether each sample ends in a coherent draw from its last probabilities instead of a cut at 0.5.
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
        """In words, for logs and reports; lengths are in the unit of the data set (`io.units`)."""
        if self.total_calls == 0:
            return f"coherent draws of {self.correlation_length_mm:g} {length_unit} from the segmenter"
        start = "pure noise" if self.start == "stage_a" else "the segmenter"
        last = {0: "", 1: " to lam_a"}.get(self.num_calls, f" to lam_c + {self.lam_end:g}")
        end = f", ending in coherent draws of {self.correlation_length_mm:g} {length_unit}" if self.draw else ""
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
    """Draw masks; both results are (N, C, *spatial).

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
        return draw_masks(p, near, _require(field)(index), settings, labels)

    lams = lam_schedule(edges, settings)
    if lams:
        p = first_state(noise(0), p_det, lams[0], edges, settings)
        for call, lam in enumerate(lams):
            p = take_call(call, p, estimate(p, lam), edges, settings, labels)
            if call < len(lams) - 1:
                drawn = drawn_from(p, call) if settings.method == "hard" else p
                p = next_state(call, drawn, None if settings.method == "ddim" else noise(call + 1), edges, settings)
    else:
        p = nested_probabilities(p_det, labels.nesting)
    if not settings.draw:
        return Drawn(p, p)
    masks = drawn_from(p, settings.total_calls)
    return Drawn(p.expand_as(masks), masks)


def draw_masks(
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
        return coherent_draw(p, fields, labels.coding)
    near = near_certain(p, labels, settings.certain) if near is None else near
    return draw_objects(p, near, fields, labels, settings.certain)


def first_state(noise: Tensor, p_det: Tensor, lam: float, edges: StageEdges, settings: SamplerSettings) -> Tensor:
    """What the first call is made with: pure noise, or p_det with noise."""
    if settings.start == "stage_a":
        return noise
    return noise_mask(mask_to_x(p_det), channel_lam(_lam_tensor(lam, noise), edges), noise)


def take_call(
    call: int, x: Tensor, found: Estimate, edges: StageEdges, settings: SamplerSettings, labels: LabelScheme
) -> Tensor:
    """What a call leaves at each voxel (N, C, *spatial), whatever its neighbours say.

    The last call leaves probabilities; before it "ddim" leaves the next state, "renoise" the mean that noise comes to,
    and "hard" the probabilities that a mask is drawn from.

    Args:
        x: that the call was made with.
        found: its answer.
    """
    lams = lam_schedule(edges, settings)
    lam = _lam_tensor(lams[call], x)
    if call == len(lams) - 1 or settings.method == "hard":
        return nested_probabilities(final_probabilities(lam, found, edges, labels.coding), labels.nesting)
    x0 = state_estimate(lam, found, edges)
    if settings.method == "renoise":
        return x0
    return ddim_step(x, x0, channel_lam(lam, edges), channel_lam(_lam_tensor(lams[call + 1], x), edges))


def reads_correction(call: int, edges: StageEdges, settings: SamplerSettings) -> bool:
    """Whether `take_call` reads the correction of the noise: in stage A, and where it takes the mask alone, not."""
    lams = lam_schedule(edges, settings)
    lam = torch.tensor([lams[call]])
    if call == len(lams) - 1 or settings.method == "hard":
        return bool(takes_state(lam, edges).any())
    return bool(correction_weight(lam, edges).any())


def next_state(call: int, left: Tensor, noise: Tensor | None, edges: StageEdges, settings: SamplerSettings) -> Tensor:
    """The state of the next call from what `take_call` left; with "hard" from the mask that was drawn from it."""
    if noise is None:  # "ddim" needs none
        return left
    lam_next = channel_lam(_lam_tensor(lam_schedule(edges, settings)[call + 1], left), edges)
    return noise_mask(mask_to_x(left) if settings.method == "hard" else left, lam_next, noise)


def ddim_step(x_t: Tensor, x0: Tensor, lam: Tensor, lam_next: Tensor) -> Tensor:
    """x_next = a' x_0 + s' e with e = (x_t - a x_0) / s (Song et al. 2021, "DDIM", eq. 12 at eta = 0)."""
    (a, s), (a_next, s_next) = alpha_sigma(lam), alpha_sigma(lam_next)
    kept = expand_to(s_next / s, x_t.ndim)
    moved = expand_to(a_next - a * s_next / s, x_t.ndim)
    return torch.addcmul(kept * x_t, x0, moved)


def coherent_draw(p: Tensor, field: Tensor, coding: Coding) -> Tensor:
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
    first, winner = clocks[:, :1], torch.zeros_like(clocks[:, :1], dtype=torch.int16)
    for channel in range(1, clocks.shape[1]):  # argmin over so few channels takes ten times as long on a CPU
        clock = clocks[:, channel : channel + 1]
        winner = torch.where(clock < first, channel, winner)
        first = torch.minimum(first, clock)
    return (winner == torch.arange(clocks.shape[1], device=p.device).reshape(-1, *(1,) * (p.ndim - 2))).to(p.dtype)


def _require(field: NoiseFunction | None) -> NoiseFunction:
    if field is None:
        raise ValueError('method "hard" and draw need a field; pass one, or use "ddim" without draw')
    return field


def _lam_tensor(lam: float, like: Tensor) -> Tensor:
    assert not math.isnan(lam)
    return torch.full((1,), lam, dtype=torch.float32, device=like.device)  # of all samples, to broadcast
