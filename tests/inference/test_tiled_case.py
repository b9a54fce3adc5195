"""A case cut into tiles: what each says, how often the segmenter runs, and how tiles are put together."""

from __future__ import annotations

import pytest
import torch

from tests.inference.test_volume_sampler import BINARY, REGIONS, ROOMY, TIGHT, tiny_model
from unisegdiff_pipeline.inference.tiled_case import TiledCase, batches, filled
from unisegdiff_pipeline.networks.denoiser import Condition
from unisegdiff_pipeline.networks.staged_model import StagedModel

PATCH = (8, 8)


@pytest.fixture
def model() -> StagedModel:
    return tiny_model(PATCH, BINARY)


@pytest.fixture
def segmented(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the batches that the segmenter has been given."""
    sizes: list[int] = []
    condition = StagedModel.condition

    def counted(self: StagedModel, images: torch.Tensor, source: torch.Tensor | None) -> Condition:
        sizes.append(len(images))
        return condition(self, images, source)

    monkeypatch.setattr(StagedModel, "condition", counted)
    return sizes


def image(width: int = 20) -> torch.Tensor:
    return torch.randn(1, 1, 8, width, generator=torch.Generator().manual_seed(1))


def test_sequences_are_cut_and_filled() -> None:
    assert list(batches(range(5), 2)) == [[0, 1], [2, 3], [4]]
    assert list(batches([7], 0)) == [[7]]
    assert list(batches([], 3)) == []
    assert filled([4, 5], 4) == [4, 5, 5, 5]
    assert filled([4, 5], 2) == [4, 5]


def test_an_image_without_its_slices_is_refused(model: StagedModel) -> None:
    with pytest.raises(ValueError, match=r"shape \(1, 8, 20\); expected \(C, Z, Y, X\), with Z = 1 for 2D"):
        TiledCase(torch.zeros(1, 8, 20), model, PATCH, ROOMY)


def test_tiles_are_parts_of_the_image_and_nothing_beyond_it(model: StagedModel) -> None:
    whole = image(width=6)  # a tile is 8 wide: one column is added before, one behind
    case = TiledCase(whole, model, PATCH, ROOMY)
    (tile,) = case.images([0])
    assert torch.equal(tile[:, :, 1:7], whole[0])
    assert tile[:, :, [0, 7]].abs().max() == 0
    wide = TiledCase(image(), model, PATCH, ROOMY)
    starts = [start[2] for start in wide.grid.starts]
    assert starts == [0, 4, 8, 12]
    for index, start in enumerate(starts):
        assert torch.equal(wide.images([index])[0], image()[0, :, :, start : start + 8])


def test_logits_of_one_tile_are_those_of_the_network(model: StagedModel) -> None:
    with torch.inference_mode():
        expected = model.condition(image(8)[:, 0][None]).det_logits[0]
    case = TiledCase(image(8), model, PATCH, ROOMY)
    assert torch.allclose(case.det_logits()[:, 0], expected, atol=1e-5)
    assert torch.allclose(case.det_probabilities()[:, 0], expected.sigmoid(), atol=1e-5)


def test_tiles_that_agree_are_blended_to_what_they_say(model: StagedModel) -> None:
    """Weights of a tile fall off towards its border, and must not show."""
    with torch.no_grad():
        model.segmenter.heads[0].weight.zero_()
        model.segmenter.heads[0].bias.fill_(0.7)
    assert torch.allclose(TiledCase(image(), model, PATCH, ROOMY).det_logits(), torch.tensor(0.7))


def test_regions_are_no_likelier_than_those_around_them() -> None:
    model = tiny_model(PATCH, REGIONS)
    with torch.no_grad():
        model.segmenter.heads[0].weight.zero_()
        model.segmenter.heads[0].bias.copy_(torch.tensor([0.0, 2.0]))
    whole, core = TiledCase(image(), model, PATCH, ROOMY).det_probabilities()
    assert torch.equal(core, whole)


def test_the_segmenter_runs_once_a_tile_whatever_is_asked(model: StagedModel, segmented: list[int]) -> None:
    case = TiledCase(image(), model, PATCH, ROOMY)
    p_det = case.det_probabilities()
    calls = len(segmented)
    together = case.conditions([2, 0])
    for place, tile in enumerate((2, 0)):
        alone = case.conditions([tile])
        assert torch.equal(together.det_logits[place], alone.det_logits[0])
        assert all(torch.equal(a[place], b[0]) for a, b in zip(together.features, alone.features, strict=True))
    assert torch.equal(case.det_probabilities(), p_det)
    assert len(segmented) == calls
    assert case.num_recomputed == 0


def test_conditions_are_the_same_wherever_they_come_from(model: StagedModel) -> None:
    roomy, tight = (TiledCase(image(), model, PATCH, limits) for limits in (ROOMY, TIGHT))
    tight.forget_except([])
    for case in (roomy, tight):
        case.det_probabilities()
    for _ in range(2):
        one, other = (case.conditions([1, 3]) for case in (roomy, tight))
        assert torch.equal(one.det_logits, other.det_logits)
        assert all(torch.equal(a, b) for a, b in zip(one.features, other.features, strict=True))
        assert all(f.dtype in (torch.float16, torch.bfloat16) for f in one.features)


def test_the_answer_of_a_mirrored_case_is_the_mean_over_flips(model: StagedModel) -> None:
    straight = TiledCase(image(8), model, PATCH, ROOMY).det_logits()
    turned = TiledCase(image(8).flip(3), model, PATCH, ROOMY).det_logits().flip(3)
    both = TiledCase(image(8), model, PATCH, ROOMY, mirror_axes=(1,)).det_logits()
    assert torch.allclose(both, (straight + turned) / 2, atol=1e-5)


def test_tiles_of_a_source_are_segmented_as_such(model: StagedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    condition, seen = StagedModel.condition, []

    def noted(self: StagedModel, images: torch.Tensor, source: torch.Tensor | None) -> Condition:
        seen.append(None if source is None else source.tolist())
        return condition(self, images, source)

    monkeypatch.setattr(StagedModel, "condition", noted)
    for limits in (ROOMY, TIGHT):  # kept in memory, and computed again
        case = TiledCase(image(), model, PATCH, limits, source=2)
        case.det_probabilities()
        found = case.conditions([0, 1]).source
        assert found is not None
        assert found.tolist() == [2]
        assert {tuple(source or ()) for source in seen} == {(2,)}
    seen.clear()
    unknown = TiledCase(image(), model, PATCH, ROOMY).conditions([0, 1])
    assert unknown.source is None
    assert seen[0] is None
