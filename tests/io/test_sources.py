"""Unified data sets: sources in dataset.json, their cases, and what their label values become."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.fingerprint import extract_fingerprint
from unisegdiff_pipeline.io.dataset_json import parse_description, parse_labels
from unisegdiff_pipeline.io.raw_dataset import open_raw_dataset
from unisegdiff_pipeline.io.sources import Source, repeated_channels, unified_labels, unified_values

LESION = parse_labels({"background": 0, "lesion": 1})
REGIONS = parse_labels({"background": 0, "whole": [1, 2], "core": [2]}, [1, 2])


def source(name: str = "A", dataset: str = "Dataset001_A", **label_map: str) -> Source:
    return Source(name, dataset, "US", label_map, "")


def write_source(root: Path, name: str, colour: bool, labels: dict[str, int], cases: int = 2) -> None:
    folder = root / name
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    for case in range(cases):
        pixels = np.full((16, 16, 3) if colour else (16, 16), 40 + case, np.uint8)
        pixels[2:6, 2:6] = 200
        mask = np.zeros((16, 16), np.uint8)
        mask[2:6, 2:6] = max(labels.values())
        Image.fromarray(pixels).save(folder / "imagesTr" / f"c{case}_0000.png")
        Image.fromarray(mask).save(folder / "labelsTr" / f"c{case}.png")
    channels = ["R", "G", "B"] if colour else ["US"]
    content = {"channel_names": dict(enumerate(channels)), "labels": labels, "file_ending": ".png"}
    (folder / "dataset.json").write_text(json.dumps(content))


def unified(root: Path, *sources: dict[str, Any]) -> Path:
    folder = root / "Dataset500_U"
    folder.mkdir(exist_ok=True)
    content = {
        "channel_names": {"0": "channel_0", "1": "channel_1", "2": "channel_2"},
        "labels": {"background": 0, "lesion": 1},
        "file_ending": ".png",
        "sources": list(sources),
    }
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def entry(name: str, dataset: str, label_map: dict[str, str], **more: Any) -> dict[str, Any]:
    return {"name": name, "dataset": dataset, "modality": "US", "label_map": label_map, "hash": "", **more}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_source(tmp_path, "Dataset001_A", False, {"background": 0, "tumour": 1})
    write_source(tmp_path, "Dataset002_B", True, {"background": 0, "organ": 1, "polyp": 2})
    return tmp_path


A = entry("A", "Dataset001_A", {"tumour": "lesion"})
B = entry("B", "Dataset002_B", {"organ": "background", "polyp": "lesion"})


def test_cases_of_all_sources_with_the_source_in_front(root: Path) -> None:
    raw = open_raw_dataset(unified(root, A, B | {"excluded": ["c1"]}))
    assert [case.case_id for case in raw.cases] == ["A__c0", "A__c1", "B__c0"]
    assert raw.description_of(raw.cases[2]).channel_names == ("R", "G", "B")
    assert [len(part.cases) for part in raw.parts()] == [2, 1]


def test_facts_hold_the_unified_classes_and_the_channels_of_each_source(root: Path) -> None:
    facts, report = extract_fingerprint(open_raw_dataset(unified(root, A, B)), workers=0)
    assert not report.problems
    assert [case.classes[0].voxels for case in facts.cases] == [16, 16, 16, 16]
    assert facts.sources["B"].channel_names == ("R", "G", "B")
    assert len(facts.intensities) == 3
    assert [case.source for case in facts.cases] == ["A", "A", "B", "B"]


@pytest.mark.parametrize(
    ("sources", "named"),
    [
        ([A, A], "more than once"),
        ([A, entry("B", "Dataset009_Gone", {})], "Dataset009_Gone"),
        ([A, B | {"label_map": {"polyp": "lesion"}}], "organ"),
        ([A, B | {"label_map": {"organ": "liver", "polyp": "lesion"}}], "liver"),
        ([A, B | {"excluded": ["c0", "c1"]}], "no case of the source B"),
        ([A | {"name": "A__x"}], "A__x"),
        ([A | {"dataset": "../A"}], "../A"),
        ("A", "sources"),
    ],
)
def test_what_cannot_be_is_refused_by_name(root: Path, sources: Any, named: str) -> None:
    with pytest.raises(UsdError, match=named.replace(".", r"\.")):
        open_raw_dataset(unified(root, *sources))


def test_a_unified_data_set_is_no_source(root: Path) -> None:
    folder = unified(root, A)
    folder.rename(root / "Dataset400_V")
    with pytest.raises(UsdError, match="unified data set itself"):
        open_raw_dataset(unified(root, entry("V", "Dataset400_V", {"lesion": "lesion"})))


def test_label_values_follow_the_map() -> None:
    two = parse_labels({"background": 0, "organ": 1, "lesion": 2})
    mapped = unified_labels(np.array([0, 1, 2]), source(organ="background", lesion="lesion"), two, LESION)
    assert mapped.tolist() == [0, 0, 1]


def test_regions_become_one_class_or_keep_their_nesting() -> None:
    assert unified_values(source(whole="lesion", core="lesion"), REGIONS, LESION) == {0: 0, 1: 1, 2: 1}
    assert unified_values(source(whole="whole", core="core"), REGIONS, REGIONS) == {0: 0, 1: 1, 2: 2}


def test_a_value_that_would_become_two_classes_is_refused() -> None:
    two = parse_labels({"background": 0, "a": 1, "b": 2})
    with pytest.raises(UsdError, match="the value 2"):
        unified_values(source(whole="a", core="b"), REGIONS, two)


def test_other_data_sets_have_no_sources() -> None:
    plain = {"channel_names": {"0": "US"}, "labels": {"background": 0, "lesion": 1}, "file_ending": ".png"}
    assert parse_description(plain).sources == ()


@pytest.mark.parametrize(
    ("channels", "width", "expected"),
    [(1, 3, [0, 0, 0]), (2, 3, [0, 1, 0]), (3, 4, [0, 1, 2, 0]), (4, 4, [0, 1, 2, 3])],  # RGB beside four sequences
)
def test_channels_are_repeated_up_to_the_width_of_the_network(channels: int, width: int, expected: list[int]) -> None:
    assert repeated_channels(channels, width).tolist() == expected
