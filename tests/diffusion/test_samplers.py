"""Samplers against an exact denoiser, whose answers are known in closed form."""

from __future__ import annotations

from typing import get_args, get_type_hints

import pytest
import torch
from torch import Tensor

from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.diffusion.samplers import (
    SAMPLERS,
    AddNoise,
    Call,
    Draw,
    SamplerSettings,
    Step,
    coherent_sample,
    lam_schedule,
    sample,
)
from unisegdiff_pipeline.diffusion.schedule import PURE_NOISE, StageEdges, alpha_sigma, expand_to
from unisegdiff_pipeline.diffusion.targets import Estimate

BINARY = LabelScheme(("lesion",), ((1,),), "binary", (1,))
REGIONS = LabelScheme(("core", "whole", "other"), ((2,), (1, 2), (3,)), "regions", (2, 1, 3))
EDGES = StageEdges(-4.0, 2.0)
PRIOR = 0.3


def exact_estimate(x_t: Tensor, lam: float) -> Estimate:
    """Posterior of one coin (+1 with PRIOR) that all voxels of a sample share: the denoiser that cannot be improved."""
    level = torch.full((len(x_t),), lam)
    a, s = (expand_to(v, x_t.ndim) for v in alpha_sigma(level))
    evidence = (2 * a / s**2 * x_t).flatten(1).sum(1)
    odds = torch.tensor(PRIOR / (1 - PRIOR)).log()
    p = expand_to(torch.sigmoid(evidence + odds), x_t.ndim) * torch.ones_like(x_t)
    return Estimate(p, torch.zeros_like(p))


def normal(seed: int, shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_schedule_opens_with_pure_noise_and_ends_behind_lam_c() -> None:
    lams = lam_schedule(EDGES, SamplerSettings(start="stage_a", num_calls=3, lam_end=1.0))
    assert lams == (PURE_NOISE, -4.0, -0.5, 3.0)
    assert lam_schedule(EDGES, SamplerSettings(num_calls=2, start="det")) == (-4.0, 4.0)
    assert lam_schedule(EDGES, SamplerSettings(num_calls=0, start="det", draw=True)) == ()


def test_every_method_has_its_loop() -> None:
    assert set(SAMPLERS) == set(get_args(get_type_hints(SamplerSettings)["method"]))
    edges, lams = StageEdges(-4.0, 2.0), (PURE_NOISE, -4.0, 3.0)
    between: dict[str, list[list[Step]]] = {
        "ddim": [[], []],
        "renoise": [[AddNoise(1, -4.0)], [AddNoise(2, 3.0)]],
        "hard": [[Draw(0), AddNoise(1, -4.0)], [Draw(1), AddNoise(2, 3.0)]],
    }
    for name, sampler in SAMPLERS.items():
        steps = list(sampler(lams, edges, BINARY))
        calls = [step for step in steps if isinstance(step, Call)]
        assert tuple(call.lam for call in calls) == lams
        first, second = between[name]
        assert steps == [calls[0], *first, calls[1], *second, calls[2]]


def test_only_what_reads_the_correction_of_the_noise_asks_for_it() -> None:
    """In stage A no sampler does, in B the states of "ddim" and "renoise", in C also the last probabilities."""
    lams = (PURE_NOISE, 0.0, 3.0)
    reads = {
        name: [step.reads_correction for step in sampler(lams, StageEdges(-4.0, 2.0), BINARY) if isinstance(step, Call)]
        for name, sampler in SAMPLERS.items()
    }
    assert reads == {"ddim": [False, True, True], "renoise": [False, True, True], "hard": [False, False, True]}


@pytest.mark.parametrize("method", ["ddim", "hard"])
def test_share_of_samples_is_the_prior(method: str) -> None:
    """With an exact denoiser both must draw heads as often as the coin shows them ("renoise" is known not to)."""
    shape = (2000, 1, 4, 4)
    settings = SamplerSettings(method=method, num_calls=12)  # type: ignore[arg-type]
    p = sample(
        exact_estimate,
        lambda i: normal(i, shape),
        lambda i: normal(100 + i, (2000, 1, 1, 1)).expand(shape),
        torch.full((1, 1, 4, 4), PRIOR),
        EDGES,
        settings,
        BINARY,
    ).probabilities
    assert p.mean().item() == pytest.approx(PRIOR, abs=0.05)
    assert ((p < 0.1) | (p > 0.9)).float().mean() > 0.9  # decided, not the mean


def test_one_call_of_stage_a_is_the_mean() -> None:
    p = sample(
        exact_estimate,
        lambda i: normal(i, (50, 1, 4, 4)),
        None,
        torch.full((1, 1, 4, 4), PRIOR),
        EDGES,
        SamplerSettings(start="stage_a", num_calls=0),
        BINARY,
    ).probabilities
    assert torch.allclose(p, torch.full_like(p, PRIOR), atol=1e-5)


def test_no_calls_at_all_is_an_error() -> None:
    with pytest.raises(ValueError, match="p_det every time"):
        SamplerSettings(num_calls=0, start="det")


def test_coherent_draws_have_exact_marginals() -> None:
    field = normal(0, (20_000, 3, 1))
    p = torch.tensor([0.2, 0.5, 0.3]).reshape(1, 3, 1).expand(20_000, 3, 1)
    drawn = coherent_sample(p, field, "softmax")
    assert (drawn.sum(1) == 1).all()
    assert drawn.mean((0, 2)).tolist() == pytest.approx([0.2, 0.5, 0.3], abs=0.015)
    drawn = coherent_sample(p, field, "regions")
    assert drawn.mean((0, 2)).tolist() == pytest.approx([0.2, 0.5, 0.3], abs=0.015)
    assert (drawn[:, 0] <= drawn[:, 2]).all()
    assert (drawn[:, 2] <= drawn[:, 1]).all()


def test_without_any_call_masks_are_drawn_from_the_segmenter() -> None:
    def refuse(x_t: Tensor, lam: float) -> Estimate:
        raise AssertionError("no call was asked for")

    p_det = torch.tensor([0.2, 0.7]).reshape(1, 1, 2, 1)
    settings = SamplerSettings(num_calls=0, draw=True)
    shape = (4000, 1, 2, 1)
    drawn = sample(refuse, lambda i: normal(i, shape), lambda i: normal(9 + i, shape), p_det, EDGES, settings, BINARY)
    assert torch.equal(drawn.probabilities, p_det.expand(shape))
    assert set(drawn.masks.unique().tolist()) == {0.0, 1.0}
    assert drawn.masks.mean((0, 1, 3)).tolist() == pytest.approx([0.2, 0.7], abs=0.03)


def test_a_draw_at_the_end_gives_back_what_one_call_leaves_open() -> None:
    """One call of a coin that shows heads for all voxels at once: thresholded at 0.5 every mask is the same, sampled
    they are heads as often as the coin, and all voxels together."""
    shape = (3000, 1, 3, 3)
    settings = SamplerSettings(start="stage_a", num_calls=0, draw=True)
    p_det = torch.full((1, 1, 3, 3), PRIOR)

    def whole(index: int) -> Tensor:
        return normal(50 + index, (3000, 1, 1, 1)).expand(shape)

    drawn = sample(exact_estimate, lambda i: normal(i, shape), whole, p_det, EDGES, settings, BINARY)
    assert drawn.masks.flatten(1).float().std(dim=1).max() == 0
    assert drawn.masks.mean().item() == pytest.approx(PRIOR, abs=0.03)
    assert len((drawn.probabilities > 0.5).unique()) == 1


def test_regions_are_drawn_within_those_around_them() -> None:
    """A core likelier than its whole, as two sigmoids may have it, is drawn as often as the whole."""
    shape = (4000, 3, 1, 1)
    p_det = torch.tensor([0.8, 0.4, 0.6]).reshape(1, 3, 1, 1)
    settings = SamplerSettings(num_calls=0, draw=True)
    drawn = sample(
        exact_estimate, lambda i: normal(i, shape), lambda i: normal(i, shape), p_det, EDGES, settings, REGIONS
    )
    assert (drawn.masks[:, 0] <= drawn.masks[:, 1]).all()
    assert drawn.masks.mean((0, 2, 3)).tolist() == pytest.approx([0.4, 0.4, 0.6], abs=0.03)
    assert drawn.probabilities[0].flatten().tolist() == pytest.approx([0.4, 0.4, 0.6])


def test_hard_draws_between_calls_are_nested_too() -> None:
    shape = (500, 3, 1, 1)
    p = torch.tensor([0.8, 0.4, 0.6]).reshape(1, 3, 1, 1).expand(shape)
    seen = []

    def spy(x_t: Tensor, lam: float) -> Estimate:
        seen.append(x_t)
        return Estimate(p, torch.zeros_like(p))

    settings = SamplerSettings(method="hard", start="stage_a", num_calls=1, correlation_length_mm=1.0)
    no_noise = torch.zeros(shape)
    sample(spy, lambda _: no_noise, lambda i: normal(i, shape), p[:1], EDGES, settings, REGIONS)
    drawn = seen[1] > 0  # a (2 x - 1), x the mask that was drawn behind the first call
    assert (drawn[:, 0] <= drawn[:, 1]).all()
    assert drawn.float().mean((0, 2, 3)).tolist() == pytest.approx([0.4, 0.4, 0.6], abs=0.07)


def test_what_needs_a_field_says_so() -> None:
    noise = normal(0, (1, 1, 2, 2))
    for settings in (SamplerSettings(draw=True), SamplerSettings(method="hard", num_calls=2)):
        with pytest.raises(ValueError, match="need a field"):
            sample(exact_estimate, lambda i: noise, None, torch.full((1, 1, 2, 2), 0.5), EDGES, settings, BINARY)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            SamplerSettings(num_calls=0, draw=True, correlation_length_mm=4),
            "coherent samples of 4 mm from the segmenter",
        ),
        (
            SamplerSettings(method="hard", start="det", num_calls=2, lam_end=0.0, correlation_length_mm=8.0, draw=True),
            "2 calls from the segmenter to lam_c + 0, ending in",
        ),
        (SamplerSettings(start="stage_a"), "ddim, 5 calls from pure noise to lam_c + 2"),
        (
            SamplerSettings(
                method="hard", start="stage_a", num_calls=1, lam_end=0.0, correlation_length_mm=8.0, draw=True
            ),
            "hard, 2 calls from pure noise to lam_a, ending in",
        ),
        (SamplerSettings(method="ddim", start="stage_a", num_calls=0, lam_end=0.0), "ddim, 1 call from pure noise"),
    ],
)
def test_settings_in_words(settings: SamplerSettings, words: str) -> None:
    assert words in settings.describe()
