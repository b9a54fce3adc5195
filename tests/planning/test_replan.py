"""Plans of public data sets do not change unseen: plan again from the stored facts and compare.

A wanted change is accepted by running `python plans/regenerate.py` and reviewing the difference.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from unisegdiff_pipeline.core.serialization import read_dataclass, to_jsonable
from unisegdiff_pipeline.fingerprint import Fingerprint, extract_fingerprint
from unisegdiff_pipeline.io.dataset_json import DatasetDescription
from unisegdiff_pipeline.io.raw_dataset import open_raw_dataset
from unisegdiff_pipeline.planning.planner import plan_dataset
from unisegdiff_pipeline.planning.plans import Plans

PLANS = sorted((Path(__file__).resolve().parents[2] / "plans").glob("*/plans_*.json"))


def differences(stored: Any, new: Any, path: str = "") -> Iterator[str]:
    """Paths at which two parsed JSON documents differ, with both values."""
    if isinstance(stored, dict) and isinstance(new, dict):
        for key in sorted({*stored, *new}):
            yield from differences(stored.get(key), new.get(key), f"{path}.{key}")
    elif stored != new:
        yield f"{path}: {stored!r} -> {new!r}"


def test_there_are_plans_of_eight_data_sets_for_two_budgets() -> None:
    assert len(PLANS) == 16


@pytest.mark.parametrize("file", PLANS, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_planning_again_gives_the_stored_plan(file: Path) -> None:
    stored = read_dataclass(Plans, file)
    fingerprint = read_dataclass(Fingerprint, file.with_name("fingerprint.json"))
    description = DatasetDescription(
        stored.channel_names, stored.labels, stored.file_ending, stored.spacing_known, None, None, {}
    )
    again = plan_dataset(fingerprint, description, stored.budget)
    assert list(differences(to_jsonable(stored), to_jsonable(again))) == []


def test_fingerprint_of_real_data_is_the_stored_one(raw_data: Path) -> None:
    folder = raw_data / "Dataset103_CovidCT"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    fingerprint, report = extract_fingerprint(open_raw_dataset(folder))
    stored = read_dataclass(Fingerprint, PLANS[0].parents[1] / folder.name / "fingerprint.json")
    assert report.problems == ()
    assert list(differences(to_jsonable(stored), to_jsonable(fingerprint))) == []
