"""Sampling over volumes with tiny random networks: results must not depend on how the work is cut."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from unisegdiff_pipeline.core import scratch as scratch_module
from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.core.scratch import Scratch
from unisegdiff_pipeline.diffusion import samplers
from unisegdiff_pipeline.diffusion.coding import LogitCalibration
from unisegdiff_pipeline.diffusion.noise import NamedNoise
from unisegdiff_pipeline.diffusion.samplers import SamplerSettings
from unisegdiff_pipeline.diffusion.schedule import PURE_NOISE, NoiseLevel
from unisegdiff_pipeline.diffusion.targets import Estimate
from unisegdiff_pipeline.inference import box_masks, sampling_box, tiled_case
from unisegdiff_pipeline.inference.case_prediction import CasePrediction
from unisegdiff_pipeline.inference.limits import Limits
from unisegdiff_pipeline.inference.settings import InferenceSettings
from unisegdiff_pipeline.inference.tiled_case import TiledCase
from unisegdiff_pipeline.inference.volume_sampler import sample_case
from unisegdiff_pipeline.networks import precision
from unisegdiff_pipeline.networks.denoiser import Condition
from unisegdiff_pipeline.networks.layout import to_device
from unisegdiff_pipeline.networks.staged_model import StagedModel, build_model
from unisegdiff_pipeline.networks.unet import SegmentationUNet, SegmenterOutput
from unisegdiff_pipeline.planning.plans import (
    ConfigurationPlan,
    DenoiserPlan,
    LevelPlan,
    NetworkPlan,
    PreprocessingPlan,
    TrainingPlan,
)

SETTINGS = InferenceSettings(lam_a=-3.0, lam_c=0.5, sampler=SamplerSettings(num_calls=3), segmenter_weight=0.25)
ROOMY = Limits(1.0, 1.0)
TIGHT = Limits(0.0, 1e-9)  # nothing cached, one sample at a time


BINARY = LabelScheme(("lesion",), ((1,),), "binary", (1,))
SOFTMAX = LabelScheme(("edge", "core"), ((1,), (2,)), "softmax", (1, 2))
REGIONS = LabelScheme(("whole", "core"), ((1, 2), (2,)), "regions", (1, 2))


def tiny_model(patch: tuple[int, ...], labels: LabelScheme, denoiser: bool = True) -> StagedModel:
    dims = len(patch)
    levels = tuple(LevelPlan(f, (1 if i == 0 else 2,) * dims, (3,) * dims, 1) for i, f in enumerate((4, 6, 8)))
    configuration = ConfigurationPlan(
        "tiny",
        PreprocessingPlan((0, 1, 2), (1.0, 1.0, 1.0), ("zscore",), (False,), ()),
        (1, 1, 1),
        NetworkPlan(dims, patch, 1, levels),
        DenoiserPlan((4, 6)),
        TrainingPlan(2),
    )
    torch.manual_seed(0)
    model = build_model(configuration, labels, denoiser)
    with torch.no_grad():
        for parameter in model.parameters():  # the heads start at zero, which would make every sample p_det
            parameter.copy_(0.3 * torch.randn_like(parameter))
    return model.eval()


def predict(model: StagedModel, image: torch.Tensor, patch: tuple[int, ...], **changes: object) -> CasePrediction:
    arguments: dict = {"case_id": "case", "seed": 5, "sample_ids": range(3), **changes}
    settings, limits = arguments.pop("settings", SETTINGS), arguments.pop("limits", ROOMY)
    mirror_axes, scratch = arguments.pop("mirror_axes", ()), arguments.pop("scratch", None)
    return sample_case(TiledCase(image, model, patch, limits, mirror_axes, scratch), settings, **arguments)


@pytest.fixture(scope="module")
def volume() -> tuple[StagedModel, torch.Tensor, tuple[int, int, int]]:
    generator = torch.Generator().manual_seed(1)
    # more than twice the patch along each axis, so that it is tiled along all of them
    return tiny_model((8, 12, 12), SOFTMAX), torch.randn(1, 18, 27, 26, generator=generator), (8, 12, 12)


def same(a: CasePrediction, b: CasePrediction, tolerance: float = 1e-4) -> bool:
    return bool((a.p_det - b.p_det).abs().max() < tolerance and (a.mean - b.mean).abs().max() < tolerance)


def test_shapes_and_the_weighted_mean(volume) -> None:
    found = predict(volume[0], volume[1], volume[2])
    assert found.p_det.shape == (3, 18, 27, 26)
    assert torch.allclose(found.p_det.sum(0), torch.ones(18, 27, 26), atol=1e-5)
    stacked = torch.stack([found.sample(i) for i in range(3)])
    assert (stacked.mean(0) - found.mean).abs().max() < 1e-3  # samples are kept in fp16
    assert torch.allclose(found.probabilities(), 0.25 * found.p_det + 0.75 * found.mean, atol=1e-6)
    assert torch.equal(found.probabilities(segmenter_weight=1.0), found.p_det)
    with pytest.raises(IndexError, match="sample 3"):
        found.sample(3)


def test_samples_differ_and_seeds_and_cases_matter(volume) -> None:
    found = predict(volume[0], volume[1], volume[2])
    assert (found.sample(0) - found.sample(1)).abs().max() > 1e-2
    assert not same(found, predict(volume[0], volume[1], volume[2], seed=6), 1e-3)
    assert not same(found, predict(volume[0], volume[1], volume[2], case_id="other"), 1e-3)
    assert same(found, predict(volume[0], volume[1], volume[2]), 1e-7)


SURFACES = SamplerSettings(
    method="hard",
    start="stage_a",
    num_calls=1,
    correlation_length_mm=24.0,
    draw=True,
    surface_length_mm=3.0,
    certain=0.55,
)
SAMPLERS = [
    SamplerSettings(method="ddim", start="det", num_calls=3),
    SamplerSettings(method="renoise", start="stage_a", num_calls=2),
    SamplerSettings(method="hard", start="stage_a", num_calls=2, correlation_length_mm=2.0),
    SamplerSettings(method="hard", start="det", num_calls=1, correlation_length_mm=9.0, draw=True),
    SamplerSettings(method="ddim", start="det", num_calls=0, correlation_length_mm=5.0, draw=True),
    SURFACES,
]


def equal(a: CasePrediction, b: CasePrediction) -> bool:
    """To the last digit."""
    same_samples = all(torch.equal(a.sample(i), b.sample(i)) for i in range(a.num_samples))
    return torch.equal(a.p_det, b.p_det) and torch.equal(a.probabilities(), b.probabilities()) and same_samples


@pytest.mark.parametrize(("sampler", "bf16"), [*((sampler, False) for sampler in SAMPLERS), (SAMPLERS[-1], True)])
def test_memory_changes_no_digit(volume, tmp_path, monkeypatch: pytest.MonkeyPatch, sampler, bf16: bool) -> None:
    """Whatever is cached, on disk, or drawn in turns: the same seed gives the same masks."""
    monkeypatch.setattr(precision, "bf16_in_hardware", lambda device_type: bf16)
    monkeypatch.setattr(scratch_module, "SMALL_BYTES", 0)
    monkeypatch.setattr(sampling_box, "PIECE_VOXELS", 1500)  # so that slabs are cut
    settings = dataclasses.replace(SETTINGS, sampler=sampler)
    if sampler.method == "hard":
        mean = SamplerSettings(method="ddim", start="stage_a", num_calls=1)
        settings = dataclasses.replace(SETTINGS, sampler=mean, mask_sampler=sampler)
    model, image, patch = volume
    found = predict(model, image, patch, settings=settings)
    assert (found.mean - found.p_det).abs().max() > 1e-3 or sampler.total_calls == 0
    with Scratch(tmp_path, 0) as scratch:
        assert equal(found, predict(model, image, patch, settings=settings, limits=TIGHT, scratch=scratch))
    assert not list(tmp_path.iterdir())
    # Nor do the other samples: each is named by its number.
    alone = predict(model, image, patch, settings=settings, sample_ids=[2])
    assert torch.equal(alone.sample(0), found.sample(2))
    reverse = predict(model, image, patch, settings=settings, sample_ids=[2, 1, 0])
    assert all(torch.equal(reverse.sample(i), found.sample(2 - i)) for i in range(3))


def bytes_of_files() -> int:
    """Of all files that are mapped, libraries too, what is in memory."""
    return 1024 * int(re.findall(r"^RssFile:\s+(\d+)", Path("/proc/self/status").read_text(), re.M)[0])


class WatchedScratch(Scratch):
    """Looks, whenever memory is given back, at how much of files is in it."""

    peak_bytes = 0

    def release(self) -> None:
        self.peak_bytes = max(self.peak_bytes, bytes_of_files())
        super().release()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc/self/status")
def test_a_long_volume_takes_no_more_memory_than_a_part_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling_box, "SLAB_VOXELS", 1 << 15)
    sampler = SamplerSettings(method="ddim", start="det", num_calls=0, correlation_length_mm=5.0, draw=True)
    settings = dataclasses.replace(SETTINGS, sampler=sampler)
    model, patch = tiny_model((8, 16, 16), BINARY), (8, 16, 16)
    image = torch.randn(1, 3000, 16, 16, generator=torch.Generator().manual_seed(1))
    predict(model, image[:, :20], patch, settings=settings)  # what is imported counts for nothing
    with WatchedScratch(tmp_path, 0) as scratch:
        before = bytes_of_files()
        predict(model, image, patch, settings=settings, limits=TIGHT, scratch=scratch)
    # There are five arrays of the size of the image, or larger.
    assert 0 < scratch.peak_bytes - before < image.nbytes / 2


def test_conditions_beyond_the_memory_are_read_from_a_disk_and_not_computed_again(
    volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, image, patch = volume
    with Scratch(tmp_path, 0) as scratch:
        assert predict(model, image, patch, limits=TIGHT, scratch=scratch).facts.num_recomputed == 0
    tiles = predict(model, image, patch).facts.num_active_tiles
    # Without a disk once a tile in each of the three calls of each of the three samples, drawn in turns.
    assert predict(model, image, patch, limits=TIGHT).facts.num_recomputed == 9 * tiles
    # Together: once a tile in each call, whatever the number of samples.
    assert predict(model, image, patch, limits=Limits(0.0, 1.0)).facts.num_recomputed == 3 * tiles
    monkeypatch.setattr(Scratch, "on_disk", _full_disk)
    with Scratch(tmp_path) as scratch:
        assert predict(model, image, patch, limits=TIGHT, scratch=scratch).facts.num_recomputed == 9 * tiles


def _full_disk(*_: object) -> None:
    raise UsdError("no room")


def test_objects_reach_over_the_slabs_that_are_drawn_at_once(volume, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = dataclasses.replace(SETTINGS, sampler=SAMPLERS[-1])
    monkeypatch.setattr(sampling_box, "PIECE_VOXELS", 1)  # a row, of which slabs hold whole numbers
    whole = predict(volume[0], volume[1], volume[2], settings=settings)
    monkeypatch.setattr(sampling_box, "SLAB_VOXELS", 1)
    monkeypatch.setattr(sampling_box, "LEAST_ROWS", 1)
    assert equal(whole, predict(volume[0], volume[1], volume[2], settings=settings))


def test_no_draw_leaves_out_what_the_reported_probability_is_certain_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first call is sure of everything; the last one, which has seen a mask, is made to doubt everything."""

    def doubting(lam: torch.Tensor, found: Estimate, *_: object) -> torch.Tensor:
        return torch.full_like(found.probabilities, 0.9 if lam.item() == PURE_NOISE else 1e-5)

    monkeypatch.setattr(samplers, "final_probabilities", doubting)
    model, patch = tiny_model((8, 16, 16), BINARY), (8, 16, 16)
    image = torch.randn(1, *patch, generator=torch.Generator().manual_seed(2))
    certain = 0.25 * float(predict(model, image, patch, sample_ids=[]).p_det.median()) + 0.75 * 0.9
    masks = dataclasses.replace(SURFACES, certain=certain)
    mean = SamplerSettings(method="ddim", start="stage_a", num_calls=0)
    settings = dataclasses.replace(SETTINGS, sampler=mean, mask_sampler=masks)
    found = predict(model, image, patch, settings=settings)
    p, inside = found.probabilities(), found.boxes[0].inside
    for i in range(found.num_samples):
        assert (found.sample(i)[(p > certain + 1e-5) & inside] == 1).all()
        assert found.sample(i)[(p < certain - 1e-5) & inside].mean() < 0.1


def test_fields_of_classes_are_made_only_where_they_decide(volume, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same masks as with the fields of every class everywhere."""
    model, image, patch = volume
    settings = dataclasses.replace(SETTINGS, sampler=SURFACES)
    sparse = predict(model, image, patch, settings=settings)
    monkeypatch.setattr(box_masks, "_apart", lambda way, labels: (way.fields(labels), []))
    assert equal(sparse, predict(model, image, patch, settings=settings))
    assert 0 < sum(float(sparse.sample(i)[2].mean()) for i in range(3)) < 3  # either class is drawn somewhere


def test_where_nothing_is_certain_masks_are_those_of_one_field() -> None:
    image = torch.randn(1, 18, 20, 27, generator=torch.Generator().manual_seed(3))
    two = SAMPLERS[-1]
    one = dataclasses.replace(two, surface_length_mm=None)
    two = dataclasses.replace(two, certain=1.0)
    settings = [dataclasses.replace(SETTINGS, sampler=sampler) for sampler in (one, two)]
    model = tiny_model((8, 16, 16), BINARY)
    assert equal(*(predict(model, image, (8, 16, 16), settings=s) for s in settings))


def test_rows_are_those_of_the_whole(volume) -> None:
    found = predict(volume[0], volume[1], volume[2])
    for first, last in ((0, 5), (5, 18), (17, 18)):
        part = found.rows(first, last)
        assert torch.equal(part.probabilities(), found.probabilities()[:, first:last])
        assert torch.equal(part.sample(1), found.sample(1)[:, first:last])


def test_threads_change_nothing(volume) -> None:
    one = predict(volume[0], volume[1], volume[2])
    torch.set_num_threads(2)
    assert same(one, predict(volume[0], volume[1], volume[2]))


@pytest.mark.parametrize("bf16", [False, True])
def test_order_of_tiles_changes_no_digit(volume, monkeypatch: pytest.MonkeyPatch, bf16: bool) -> None:
    monkeypatch.setattr(precision, "bf16_in_hardware", lambda device_type: bf16)
    model, image, patch = volume
    found = predict(model, image, patch)
    plan = tiled_case.plan_tiles

    def backwards(*arguments):
        grid = plan(*arguments)
        return dataclasses.replace(grid, starts=grid.starts[::-1])

    monkeypatch.setattr(tiled_case, "plan_tiles", backwards)
    assert equal(found, predict(model, image, patch))


def test_network_calls_are_of_one_size(volume, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the size is not 1, as on a GPU: 27 tiles and 3 samples are no multiple of it."""
    model, image, patch = volume
    found = predict(model, image, patch)
    monkeypatch.setattr(tiled_case, "call_size", lambda *_: 4)
    sizes = set()
    condition, denoise = StagedModel.condition, StagedModel.denoise_guided

    def condition_of(self, images, source):
        sizes.add(len(images))
        return condition(self, images, source)

    def denoised(self, x_t, *rest):
        sizes.add(len(x_t))
        return denoise(self, x_t, *rest)

    monkeypatch.setattr(StagedModel, "condition", condition_of)
    monkeypatch.setattr(StagedModel, "denoise_guided", denoised)
    assert same(found, predict(model, image, patch))
    assert same(found, predict(model, image, patch, limits=TIGHT))
    assert sizes == {4}


@pytest.mark.parametrize("length_mm", [3.0, 12.0])
def test_masks_may_come_of_another_sampler_than_the_mean(volume, length_mm: float) -> None:
    model, image, patch = volume
    drawing = SamplerSettings(
        method="ddim", start="det", num_calls=0, lam_end=0.0, correlation_length_mm=length_mm, draw=True
    )
    calling = SamplerSettings(
        method="hard", start="det", num_calls=2, lam_end=0.0, correlation_length_mm=length_mm, draw=True
    )
    both = predict(model, image, patch, settings=dataclasses.replace(SETTINGS, sampler=calling, mask_sampler=drawing))
    means = predict(model, image, patch, settings=dataclasses.replace(SETTINGS, sampler=calling))
    masks = predict(model, image, patch, settings=dataclasses.replace(SETTINGS, sampler=drawing))
    assert same(both, means)
    assert not torch.equal(both.sample(0), means.sample(0))
    for i in range(both.num_samples):
        assert torch.equal(both.sample(i), masks.sample(i))


def test_a_first_call_at_pure_noise_serves_all_samples_mean_and_masks(volume, monkeypatch: pytest.MonkeyPatch) -> None:
    model, image, patch = volume
    mean = SamplerSettings(method="ddim", start="stage_a", num_calls=0, lam_end=0.0)
    drawing = SamplerSettings(
        method="hard", start="stage_a", num_calls=1, lam_end=0.0, correlation_length_mm=6.0, draw=True
    )
    levels: list[float] = []
    denoise = StagedModel.denoise_guided

    def counted(self: StagedModel, x_t: torch.Tensor, level: NoiseLevel, *rest: Any) -> Estimate:
        levels.append(level.lam.item())
        return denoise(self, x_t, level, *rest)

    monkeypatch.setattr(StagedModel, "denoise_guided", counted)
    one = predict(model, image, patch, settings=dataclasses.replace(SETTINGS, sampler=mean), sample_ids=[0])
    once = len(levels)  # for each of the tiles
    assert once > 0
    alone = [predict(model, image, patch, settings=dataclasses.replace(SETTINGS, sampler=s)) for s in (mean, drawing)]
    assert same(one, alone[0])
    many = predict(model, image, patch, settings=dataclasses.replace(SETTINGS, sampler=mean), sample_ids=range(11))
    assert torch.equal(one.mean, many.mean)  # 11 equal numbers, whose sum is rounded
    levels.clear()
    both = predict(model, image, patch, settings=dataclasses.replace(SETTINGS, sampler=mean, mask_sampler=drawing))
    assert levels == [PURE_NOISE] * once + [SETTINGS.lam_a] * (once * both.num_samples)
    assert same(both, alone[0])
    for i in range(both.num_samples):
        assert torch.equal(both.sample(i), alone[1].sample(i))


def test_a_case_of_one_tile_equals_the_bare_network() -> None:
    """No blending, no tiling: the sampler on the model itself must give the same."""
    from unisegdiff_pipeline.diffusion.samplers import sample
    from unisegdiff_pipeline.inference.volume_noise import noise_in_box

    model = tiny_model((8, 16, 16), BINARY)
    image = torch.randn(1, 8, 16, 16, generator=torch.Generator().manual_seed(2))
    found = predict(model, image, (8, 16, 16))
    assert found.facts.num_tiles == 1
    with torch.inference_mode():
        condition = model.condition(image[None])
        halved = Condition(condition.det_logits, tuple(f.half() for f in condition.features))
        p_det = model.det_probabilities(condition)
        expected = sample(
            lambda x, lam: model.denoise(x, NoiseLevel.of(torch.full((3,), lam), SETTINGS.edges), halved),
            lambda draw: torch.stack(
                [noise_in_box(NamedNoise(5, "case", i, f"noise{draw}"), [0], (0, 0, 0), (8, 16, 16)) for i in range(3)]
            ),
            None,
            p_det,
            SETTINGS.edges,
            SETTINGS.sampler,
            BINARY,
        )
    assert torch.allclose(found.p_det, p_det[0])
    for i in range(3):
        inside = found.boxes[0].inside
        assert (found.sample(i) - expected.masks[i])[0, inside].abs().max() < 1e-3


def test_small_image_is_padded_and_cropped() -> None:
    model = tiny_model((16, 16), BINARY)
    found = predict(model, torch.randn(1, 1, 9, 13), (16, 16))
    assert found.p_det.shape == found.mean.shape == (1, 1, 9, 13)


def test_an_image_little_larger_than_a_patch_is_one_tile() -> None:
    model = tiny_model((8, 16, 16), BINARY)
    image = torch.randn(1, 11, 20, 27, generator=torch.Generator().manual_seed(6))
    found = predict(model, image, (8, 16, 16), sample_ids=[])
    assert found.facts.num_tiles == 1
    whole = torch.nn.functional.pad(image, (0, 1, 0, 0, 0, 1))  # 27 => 28 and 11 => 12, which divide by 4
    with torch.inference_mode():
        expected = model.condition(whole[None]).det_logits.sigmoid()[0, :, :11, :, :27]
    assert torch.allclose(found.p_det, expected, atol=1e-5)


@pytest.mark.parametrize("labels", [BINARY, SOFTMAX])
def test_a_temperature_changes_no_decision_where_tiles_disagree(labels: LabelScheme) -> None:
    model = tiny_model((8, 12, 12), labels, denoiser=False)
    image = 3 * torch.randn(1, 18, 27, 26, generator=torch.Generator().manual_seed(7))
    cold = predict(model, image, (8, 12, 12)).p_det
    settings = dataclasses.replace(SETTINGS, calibration=LogitCalibration(4.0, 0.7))
    warm = predict(model, image, (8, 12, 12), settings=settings).p_det
    assert not torch.allclose(cold, warm, atol=0.02)
    assert torch.equal(cold > 0.5, warm > 0.5) if labels is BINARY else torch.equal(cold.argmax(0), warm.argmax(0))


def test_slices_of_a_volume_under_a_2d_network() -> None:
    model = tiny_model((16, 16), REGIONS)
    image = torch.randn(1, 5, 36, 18, generator=torch.Generator().manual_seed(3))
    found = predict(model, image, (16, 16))
    assert found.p_det.shape == (2, 5, 36, 18)
    assert same(found, predict(model, image, (16, 16), limits=TIGHT))
    alone = predict(model, image[:, 2:3], (16, 16))
    assert torch.allclose(alone.p_det[:, 0], found.p_det[:, 2], atol=1e-5)


def test_masks_of_regions_that_overlap_hold_what_label_values_have() -> None:
    labels = LabelScheme(("a", "b", "both"), ((1, 2), (2, 3), (2,)), "regions", (1, 3, 2))
    model = tiny_model((16, 16), labels)
    image = torch.randn(1, 5, 36, 18, generator=torch.Generator().manual_seed(3))
    sampler = SamplerSettings(num_calls=1, draw=True, correlation_length_mm=8.0, surface_length_mm=2.0)
    settings = dataclasses.replace(SETTINGS, sampler=sampler)
    found = predict(model, image, (16, 16), settings=settings)
    assert same(found, predict(model, image, (16, 16), settings=settings, limits=TIGHT))
    a, b, both = found.sample(0) > 0.5
    assert (a & b).any()
    assert torch.equal(a & b, both)


def test_nothing_active_means_samples_equal_p_det(volume) -> None:
    _, image, patch = volume
    quiet = tiny_model(patch, SOFTMAX)
    with torch.no_grad():
        quiet.segmenter.heads[0].weight.zero_()
        quiet.segmenter.heads[0].bias.copy_(torch.tensor([9.0, -9.0, -9.0]))
    found = predict(quiet, image, patch)
    assert found.facts.num_active_tiles == 0
    assert found.boxes == ()
    assert found.num_samples == 3
    assert torch.equal(found.sample(1), found.p_det)
    assert torch.equal(found.mean, found.p_det)


def test_samples_stay_p_det_outside_the_active_region() -> None:
    model = tiny_model((8, 8), BINARY)
    image = torch.zeros(1, 1, 8, 64)
    image[..., 4:8] = 5.0
    _make_p_det_follow_brightness(model)
    found = predict(model, image, (8, 8))
    assert 0 < found.facts.num_active_tiles < found.facts.num_tiles
    assert (found.sample(0) - found.sample(1))[..., :8].abs().max() > 1e-3
    assert torch.equal(found.sample(0)[..., 40:], found.p_det[..., 40:])


def _make_p_det_follow_brightness(model: StagedModel) -> None:
    def forward(image: torch.Tensor, source: torch.Tensor | None = None) -> SegmenterOutput:
        return SegmenterOutput((4 * image - 10,), SegmentationUNet.forward(model.segmenter, image).features)

    model.segmenter.forward = forward  # type: ignore[method-assign]


def test_far_lesions_are_sampled_in_boxes_of_their_own() -> None:
    model = tiny_model((8, 8), BINARY)
    _make_p_det_follow_brightness(model)
    image = torch.zeros(1, 1, 48, 48)
    image[..., 2:6, 2:6] = image[..., 40:44, 40:44] = image[..., 2:6, 40:44] = 2.6
    found = predict(model, image, (8, 8))
    assert len(found.boxes) == 3
    image[..., 2:6, 40:44] = 0
    fewer = predict(model, image, (8, 8))
    assert len(fewer.boxes) == 2
    assert torch.equal(fewer.sample(0)[..., :16, :16], found.sample(0)[..., :16, :16])


def test_plain_segmenter() -> None:
    model = tiny_model((8, 16, 16), SOFTMAX, denoiser=False)
    found = predict(model, torch.randn(1, 9, 20, 16), (8, 16, 16))
    assert found.num_samples == 0
    assert found.boxes == ()
    assert torch.equal(found.probabilities(), found.p_det)


def test_mirroring_makes_p_det_follow_flips() -> None:
    model = tiny_model((16, 16), BINARY)
    image = torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(4))
    plain, flipped = (predict(model, i, (16, 16), sample_ids=[]).p_det for i in (image, image.flip(3)))
    assert not torch.allclose(plain, flipped.flip(3), atol=1e-3)
    plain, flipped = (
        predict(model, i, (16, 16), sample_ids=[], mirror_axes=(0, 1)).p_det for i in (image, image.flip(3))
    )
    assert torch.allclose(plain, flipped.flip(3), atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(("patch", "shape"), [((12, 12), (1, 27, 26)), ((8, 12, 12), (18, 27, 26))])
@pytest.mark.parametrize("method", ["ddim", "hard"])
def test_a_gpu_draws_the_samples_of_a_cpu(patch, shape, method, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # products of ten bits
    model = tiny_model(patch, SOFTMAX)
    image = torch.randn(1, *shape, generator=torch.Generator().manual_seed(1))
    settings = dataclasses.replace(
        SETTINGS,
        sampler=SamplerSettings(
            method=method, start="stage_a", num_calls=3, lam_end=0.0, correlation_length_mm=2.0, draw=method == "hard"
        ),
    )
    expected = predict(model, image, patch, settings=settings)
    model = to_device(model, torch.device("cuda"))
    for limits in (ROOMY, TIGHT):
        other = predict(model, image, patch, settings=settings, limits=limits)
        assert (expected.p_det - other.p_det).abs().max() < 1e-3
        for i in range(3):
            difference = (expected.sample(i) - other.sample(i)).abs()
            # A hard draw may turn where a probability lies at the threshold, and changes what follows.
            assert difference.mean() < 0.02 if method == "hard" else difference.max() < 2e-3
