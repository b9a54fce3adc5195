"""Reading of run logs."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.reports.training_log import of_kind, read_log, thinned, value


def test_a_line_cut_off_by_a_kill_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    assert read_log(path) == []
    path.write_text('{"kind": "train", "phase": 1}\n{"kind": "tra')
    assert read_log(path) == [{"kind": "train", "phase": 1}]


@pytest.mark.parametrize(
    "entry", ["{}", '{"kind": 3}', '{"kind": "train", "phase": "x"}', '{"kind": "a", "seconds": []}']
)
def test_an_entry_of_another_shape_is_named(tmp_path: Path, entry: str) -> None:
    (tmp_path / "log.jsonl").write_text('{"kind": "train"}\n' + entry + "\n")
    with pytest.raises(UsdError, match=r"log\.jsonl: .* of entry 2 is .*delete that line"):
        read_log(tmp_path / "log.jsonl")


def test_entries_are_told_apart_by_kind_and_phase() -> None:
    entries = [{"kind": "train", "phase": 1}, {"kind": "train", "phase": 2}, {"kind": "finished", "phase": 3}]
    assert of_kind(entries, "train") == entries[:2]
    assert of_kind(entries, "train", 2) == entries[1:2]


def test_missing_and_undefined_numbers_are_nan() -> None:
    assert value({"kind": "train", "loss": 2}, "loss") == 2.0
    assert math.isnan(value({"kind": "train", "loss": None}, "loss"))
    assert math.isnan(value({"kind": "train"}, "loss"))


def test_thinning_keeps_both_ends() -> None:
    entries = [{"kind": "train", "iteration": i} for i in range(1000)]
    kept = [e["iteration"] for e in thinned(entries, 5)]
    assert kept == [0, 250, 500, 749, 999]
    assert thinned(entries[:3], 5) == entries[:3]
