"""Label files with values of their own: what a label_map makes of the labels, read and written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.core.serialization import read_json, to_jsonable, write_json
from unisegdiff_pipeline.evaluation.evaluate import evaluate_folders
from unisegdiff_pipeline.evaluation.meaning import find_meaning
from unisegdiff_pipeline.fingerprint import extract_fingerprint
from unisegdiff_pipeline.io.dataset_json import parse_description
from unisegdiff_pipeline.io.label_map import read_label_map
from unisegdiff_pipeline.io.raw_dataset import open_as_measured, open_raw_dataset
from unisegdiff_pipeline.io.unify import UnifyRequest, unify
from unisegdiff_pipeline.preprocessing.provenance import settings_hash

ONE = {"background": 0, "lesion": 1}


def described(labels: dict[str, Any], label_map: object, **more: Any) -> dict[str, Any]:
    content = {"channel_names": {"0": "x"}, "labels": labels, "file_ending": ".png", **more}
    return {**content, "label_map": label_map}


def scheme(labels: dict[str, Any], label_map: object, **more: Any) -> LabelScheme:
    return parse_description(described(labels, label_map, **more)).labels


@pytest.mark.parametrize("target", [1, "lesion"])
def test_masks_of_0_and_255(target: object) -> None:
    found = scheme(ONE, {"255": target})
    assert found == LabelScheme(("lesion",), ((255,),), "binary", (255,))
    assert found.allowed_values == {0, 255}
    assert found.encode(np.array([0, 255])).tolist() == [[0, 1]]
    assert found.decode(np.array([[0.2, 0.9]])).tolist() == [0, 255]


def test_values_with_gaps_in_another_order_and_several_of_one_class() -> None:
    """Of two values of a class the first is written."""
    found = scheme({"background": 0, "a": 1, "b": 2}, {"0": 0, "7": 2, "300": "a", "20": 1, "9": "background"})
    assert found.members == ((300, 20), (7,))
    assert found.write_values == (300, 7)
    assert found.allowed_values == {0, 7, 9, 20, 300}
    assert found.encode(np.array([0, 7, 9, 20, 300])).tolist() == [[1, 0, 1, 0, 0], [0, 0, 0, 1, 1], [0, 1, 0, 0, 0]]
    assert found.decode(np.eye(3)).tolist() == [0, 300, 7]


def test_regions_and_ignore() -> None:
    labels = {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}
    found = scheme(labels, {"50": 1, "60": "core", "255": "ignore"}, regions_class_order=[1, 2])
    assert (found.members, found.write_values, found.ignore_value) == (((50, 60), (60,)), (50, 60), 255)
    assert found.ignored(np.array([0, 60, 255])).tolist() == [False, False, True]


@pytest.mark.parametrize(
    ("labels", "label_map", "named"),
    [
        (ONE, {"255": 2}, r"label_map\.255 is 2; allowed are the values 0, 1 and the names background, lesion"),
        (ONE, {"255": "tumour"}, r"label_map\.255 is 'tumour'"),
        (ONE, {"255": True}, r"label_map\.255 is True"),
        (ONE, {"255": 1.0}, r"label_map\.255 is 1\.0"),
        (ONE, {"-1": 1}, "has the key '-1'"),
        (ONE, {"1.5": 1}, r"has the key '1\.5'"),
        (ONE, {"007": 1}, "has the key '007'"),
        (ONE, {"40000": 1}, "has the key '40000'"),
        (ONE, {"0": 1, "255": 0}, "0 is the background in every file"),
        (ONE, {"255": 0}, "no value for lesion"),
        (ONE, {}, "must map values"),
        (ONE, [255], "must map values"),
        ({"background": 0, "a": 1, "b": 2}, {"255": 1}, "no value for b"),
        ({"background": 0, "a": 1, "ignore": 2}, {"255": 1}, "no value for ignore"),
        ({"background": 0, "a": 1, "ignore": 2}, {"1": 1, "2": 2, "3": "ignore"}, "maps 2, 3 to ignore"),
    ],
)
def test_what_is_no_label_map_is_named(labels: dict[str, Any], label_map: object, named: str) -> None:
    with pytest.raises(UsdError, match=named):
        scheme(labels, label_map)


def test_gaps_without_a_map_are_refused_with_the_remedy() -> None:
    content = described({"background": 0, "lesion": 255}, None)
    del content["label_map"]
    with pytest.raises(UsdError, match="label_map"):
        parse_description(content)


def data_set(root: Path, label_map: object = None, values: tuple[int, ...] = (0, 255), number: int = 1) -> Path:
    """Two pictures of 8 x 8 whose masks have a square of each value beside 0."""
    folder = root / f"Dataset00{number}_Masks"
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    for case in "ab":
        image = np.arange(64, dtype=np.uint8).reshape(8, 8)
        mask = np.zeros((8, 8), np.uint8)
        for i, value in enumerate(values):
            mask[2 * i : 2 * i + 2, :2] = value
        Image.fromarray(image).save(folder / f"imagesTr/{case}_0000.png")
        Image.fromarray(mask).save(folder / f"labelsTr/{case}.png")
    content = described(ONE, label_map, numTraining=2)
    if label_map is None:
        del content["label_map"]
    write_json(folder / "dataset.json", content)
    return folder


def test_a_value_that_is_not_in_the_map_is_an_error_with_file_and_value(tmp_path: Path) -> None:
    raw = open_raw_dataset(data_set(tmp_path, {"255": 1}, (0, 255, 7)))
    named = r"labelsTr/a\.png: the label values 7 are not in dataset\.json, which has \[0, 255\]"
    with pytest.raises(UsdError, match=named):
        extract_fingerprint(raw, workers=0)[1].require_ok()


def test_files_are_measured_and_scored_in_their_own_values(tmp_path: Path) -> None:
    folder = data_set(tmp_path, {"255": "lesion"})
    facts, report = extract_fingerprint(open_raw_dataset(folder), workers=0)
    report.require_ok()
    assert facts.cases[0].classes[0].voxels == 4
    labels = folder / "labelsTr"
    evaluation = evaluate_folders(labels, labels, find_meaning(labels, labels))
    assert evaluation.cases[0].classes[0].overlap.dice == 1


def test_a_map_beside_the_data_set_takes_the_place_of_its_own(tmp_path: Path) -> None:
    folder = data_set(tmp_path)
    raw = open_raw_dataset(folder, {"255": 1})
    assert raw.description.labels.members == ((255,),)
    assert raw.description.raw["label_map"] == {"255": 1}  # as it is copied to the preprocessed data
    other = data_set(tmp_path / "other", {"255": 1})
    assert open_raw_dataset(other, {"255": 1}).description.labels.members == ((255,),)
    with pytest.raises(UsdError, match="has another label_map than --remap"):
        open_raw_dataset(other, {"7": 1})


@pytest.mark.parametrize("content", [{"255": None}, {"255": [1]}, {"a": 1}, {"255": True}])
def test_what_is_no_map_in_a_file_is_named(tmp_path: Path, content: object) -> None:
    write_json(tmp_path / "map.json", content)
    with pytest.raises(UsdError, match=r"map\.json: '(255|a)' is"):
        read_label_map(tmp_path / "map.json")
    write_json(tmp_path / "map.json", {"255": 1, "7": "lesion"})
    assert read_label_map(tmp_path / "map.json") == {"255": 1, "7": "lesion"}


def test_sources_of_a_unified_data_set_keep_their_own_values(tmp_path: Path) -> None:
    """One mechanism: what becomes of a source's classes goes by names, whatever values its files have."""
    data_set(tmp_path, {"255": 1}, number=1)
    data_set(tmp_path, {"7": 1}, (0, 7), number=2)
    folder = unify(tmp_path, UnifyRequest(5, "All", ("1", "2"), renamed={"1": "one", "2": "two"}))
    raw = open_raw_dataset(folder)
    assert raw.description.labels.members == ((1,),)
    facts, report = extract_fingerprint(raw, workers=0)
    report.require_ok()
    assert [case.classes[0].voxels for case in facts.cases] == [4, 4, 4, 4]
    content = {**read_json(folder / "dataset.json"), "label_map": {"255": 1}}
    with pytest.raises(UsdError, match="each source has a label_map of its own"):
        parse_description(content)


def test_hashes_of_schemes_without_other_background_stay() -> None:
    """Else every preprocessed case of earlier versions would be made again."""
    plain = LabelScheme(("lesion",), ((1,),), "binary", (1,))
    assert "background_values" not in plain.fields()
    assert to_jsonable(plain)["background_values"] == []
    other = LabelScheme(("lesion",), ((1,),), "binary", (1,), None, (2,))
    assert settings_hash(plain) != settings_hash(other)
    with pytest.raises(ValueError, match="mean something else"):
        LabelScheme(("lesion",), ((1,),), "binary", (1,), None, (1,))


def test_later_steps_keep_the_map_that_the_facts_were_collected_with(tmp_path: Path) -> None:
    """usd_plan and usd_preprocess by themselves, behind usd_plan_and_preprocess --remap: else no mask had a lesion."""
    folder, copy = data_set(tmp_path), tmp_path / "preprocessed"
    write_json(copy / "dataset.json", {**read_json(folder / "dataset.json"), "label_map": {"255": 1}})
    assert open_as_measured(folder, copy).description.labels.members == ((255,),)
    assert open_as_measured(folder, tmp_path / "nothing").description.labels.members == ((1,),)
    write_json(folder / "dataset.json", {**read_json(folder / "dataset.json"), "label_map": {"7": 1}})
    assert open_as_measured(folder, copy).description.labels.members == ((7,),)
