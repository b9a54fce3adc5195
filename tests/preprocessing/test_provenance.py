"""When a stored case is current."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.core.serialization import read_dataclass, write_json
from unisegdiff_pipeline.io.raw_dataset import RawCase
from unisegdiff_pipeline.preprocessing.provenance import (
    CaseProvenance,
    current_source,
    grouped_as_identical,
    image_files,
    is_current,
    merge_identical,
    settings_hash,
)

SCHEME = LabelScheme(("lesion",), ((1,),), "binary", (1,))


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, ...]:
    for name in ("image", "label"):
        (tmp_path / name).write_text(name)
    return tmp_path / "image", tmp_path / "label"


def test_same_files_are_current(files: tuple[Path, ...], tmp_path: Path) -> None:
    source = replace(current_source(files), settings="s")
    assert is_current(source, files, "s")
    write_json(tmp_path / "source.json", source)
    assert is_current(read_dataclass(CaseProvenance, tmp_path / "source.json"), files, "s")


def test_what_makes_a_case_stale(files: tuple[Path, ...], tmp_path: Path) -> None:
    source = replace(current_source(files), settings="s")
    assert not is_current(None, files, "s")
    assert not is_current(source, files, "other settings")
    assert not is_current(source, files[:1], "s")  # a rater fewer
    assert not is_current(replace(source, format_version=0), files, "s")
    files[0].write_text("imagf")  # same size
    os.utime(files[0], ns=(7, 7))
    assert not is_current(source, files, "s")
    files[1].unlink()
    assert not is_current(source, files, "s")


def test_a_copied_data_set_is_current(files: tuple[Path, ...], tmp_path: Path) -> None:
    source = replace(current_source(files), settings="s")
    (tmp_path / "copy").mkdir()
    copies = tuple(tmp_path / "copy" / path.name for path in files)
    for path, copy in zip(files, copies, strict=True):
        copy.write_text(path.read_text())
        os.utime(copy, ns=(9, 9))
    assert is_current(source, copies, "s")


def test_settings_hold_the_meaning_of_the_labels() -> None:
    other = replace(SCHEME, ignore_value=2)
    assert settings_hash(SCHEME, "plan") == settings_hash(SCHEME, "plan")
    assert len({settings_hash(SCHEME, "plan"), settings_hash(SCHEME, "plan2"), settings_hash(other, "plan")}) == 3


def test_identical_images_join_their_groups() -> None:
    groups = {"a": "p1", "b": "p2", "c": "p2", "d": "p3", "e": "p4"}
    hashes = {"a": "x", "b": "x", "c": "y", "d": "y", "e": "z"}  # a = b, c = d, and b and c are one patient
    assert merge_identical(groups, hashes) == {"a": "p1", "b": "p1", "c": "p1", "d": "p1", "e": "p4"}
    assert merge_identical(groups, {}) == groups


def test_groups_of_identical_images_alone_are_told_from_those_that_are_named() -> None:
    """b and c are copies, d and e in a group that is named like d, f and g copies of which one has a group."""
    named = {"a": "a", "b": "b", "c": "c", "d": "d", "e": "d", "f": "f", "g": "site"}
    merged = merge_identical(named, {"b": "x", "c": "x", "f": "y", "g": "y"})
    assert grouped_as_identical(named, merged) == {"b", "c"}


def test_a_training_case_needs_a_label_file() -> None:
    with pytest.raises(UsdError, match="'x' has no label file"):
        image_files(RawCase("x", (Path("x_0000.png"),)))
