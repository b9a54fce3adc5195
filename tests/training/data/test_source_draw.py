"""Batches of a unified data set: how often each source is drawn, what is hidden, and what carries loss."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.training.data.test_patches import BINARY, BOX, MemoryFolder, coded_case, plan
from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.planning.plans import ConfigurationPlan, SourcePlan, SourcesPlan
from unisegdiff_pipeline.training.data.loader import open_loader
from unisegdiff_pipeline.training.data.patches import Batch, PatchSource
from unisegdiff_pipeline.training.data.source_draw import SourceDraw, masked_channels

REGIONS = LabelScheme(("whole", "core"), ((1, 2), (2,)), "regions", (1, 2))
CASES = {name: coded_case((6, 12, 14), [(0, BOX, 1)]) for name in ("US__a", "US__b", "CT__c")}


def unified(num_images=(9, 1), annotated=((True,), (True,)), patch=(6, 8, 8), **fields) -> ConfigurationPlan:
    configuration = plan(patch, batch_size=2)
    plans = {
        name: SourcePlan("any", ("any",), ".nii.gz", True, configuration.preprocessing, flags, count)
        for name, flags, count in zip(("US", "CT"), annotated, num_images, strict=True)
    }
    return replace(configuration, sources=SourcesPlan(plans, **fields))


def source_of(configuration: ConfigurationPlan, scheme=BINARY, augment=False) -> PatchSource:
    return PatchSource(MemoryFolder(CASES, scheme), sorted(CASES), configuration, scheme, 0, augment)


def true_source(batch: Batch) -> torch.Tensor:
    return torch.tensor([1 if case.startswith("US") else 2 for case in batch.case_ids])


@pytest.mark.parametrize(("temperature", "expected"), [(0.0, 0.5), (0.5, 0.75), (1.0, 0.9)])
def test_sources_are_drawn_by_their_number_of_images_to_the_power_of_the_temperature(temperature, expected) -> None:
    configuration = unified(temperature=temperature)
    draw = SourceDraw.of(configuration, sorted(CASES), hiding=False)
    assert draw is not None
    rng = np.random.default_rng(0)
    drawn = Counter(len(draw.draw_cases(rng)) for _ in range(2000))
    assert drawn[2] / 2000 == pytest.approx(expected, abs=0.04)  # US has two cases, CT one
    patches = source_of(configuration)
    seen = [batch for i in range(100) for batch in patches.batch(i).case_ids]
    assert sum(case.startswith("US") for case in seen) / 200 == pytest.approx(expected, abs=0.1)


def test_a_batch_says_the_source_of_each_example_and_hides_a_part() -> None:
    patches = source_of(unified(unknown_fraction=0.3), augment=True)
    batches = [patches.batch(i) for i in range(150)]
    told, true = torch.cat([batch.source for batch in batches]), torch.cat([true_source(batch) for batch in batches])
    assert torch.equal(told[told > 0], true[told > 0])
    assert float((told == 0).float().mean()) == pytest.approx(0.3, abs=0.08)
    measuring = source_of(unified(unknown_fraction=1.0)).batch(0)
    assert torch.equal(measuring.source, true_source(measuring))
    chosen = batches[0].to("cpu").select(torch.tensor([1]))
    assert chosen.source.tolist() == batches[0].source[1:].tolist()


def test_batches_with_sources_are_the_same_from_workers() -> None:
    patches = source_of(unified(unknown_fraction=0.5), augment=True)
    with open_loader(patches, 0, 3, workers=1) as batches:
        for number, batch in enumerate(batches):
            expected = patches.batch(number)
            assert torch.equal(batch.image, expected.image)
            assert torch.equal(batch.source, expected.source)


def test_ordinary_batches_name_no_source() -> None:
    batch = source_of(plan((6, 8, 8))).batch(0)
    assert batch.source is None
    assert batch.valid.shape == (2, 1, 6, 8, 8)


def test_channels_that_a_source_does_not_annotate_carry_no_loss() -> None:
    patches = source_of(unified(annotated=((True, False), (True, True))), REGIONS)
    seen = set()
    for batch in map(patches.batch, range(20)):
        assert batch.valid.shape == (2, 2, 6, 8, 8)
        for valid, source in zip(batch.valid, true_source(batch).tolist(), strict=True):
            seen.add(source)
            assert valid.flatten(1).amin(dim=1).tolist() == valid.flatten(1).amax(dim=1).tolist()
            assert valid[:, 0, 0, 0].tolist() == ([1, 0] if source == 1 else [1, 1])
    assert seen == {1, 2}


def test_an_ignored_voxel_is_ignored_in_all_channels() -> None:
    draw = SourceDraw.of(unified(annotated=((True, False), (True, True))), ["US__a", "CT__c"], hiding=False)
    valid = np.array([[[True, False]]])
    assert draw.annotated_voxels(1, valid, (1, 2)).tolist() == [[[True, False]], [[False, False]]]
    assert draw.annotated_voxels(2, valid, (1, 2)).tolist() == [[[True, False]], [[True, False]]]


def test_masked_channels_are_repeated_as_the_channels_are() -> None:
    preprocessing = replace(plan((8, 8), channels=2).preprocessing, use_nonzero_mask=(True, False))
    assert masked_channels(preprocessing, 3) == [0, 2]


def test_a_case_of_an_unknown_source_is_refused() -> None:
    with pytest.raises(UsdError, match=r"'MR__x' is of a source 'MR' that the plan .* US, CT"):
        SourceDraw.of(unified(), ["MR__x"], hiding=False)
