"""usd_unify: what it writes, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.io.test_sources import write_source
from unisegdiff_pipeline.commands.unify import main
from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.serialization import write_json
from unisegdiff_pipeline.fingerprint import extract_fingerprint, read_fingerprint, write_fingerprint
from unisegdiff_pipeline.io.raw_dataset import open_raw_dataset
from unisegdiff_pipeline.io.sources import annotated_classes, unified_values
from unisegdiff_pipeline.io.unify import UnifyRequest, read_label_maps
from unisegdiff_pipeline.io.unify import unify as write_unified


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_source(tmp_path, "Dataset001_A", False, {"background": 0, "tumour": 1})
    write_source(tmp_path, "Dataset002_B", True, {"background": 0, "organ": 1, "polyp": 2})
    return tmp_path


def unify(root: Path, number: int, name: str, datasets: list[str | int], **more: Any) -> Path:
    return write_unified(root, UnifyRequest(number, name, tuple(datasets), **more))


def content_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "dataset.json").read_text())
    return found


def test_every_foreground_class_becomes_lesion(root: Path) -> None:
    content = content_of(unify(root, 500, "U", ["1", "B"]))
    assert content["labels"] == {"background": 0, "lesion": 1}
    assert [source["label_map"] for source in content["sources"]] == [
        {"tumour": "lesion"},
        {"organ": "lesion", "polyp": "lesion"},
    ]
    assert len(content["channel_names"]) == 3
    assert [source["modality"] for source in content["sources"]] == ["US", "RGB"]


def test_a_class_that_a_source_does_not_annotate_gets_a_channel_of_its_own(root: Path) -> None:
    maps = {"A": {"tumour": "tumour"}, "Dataset002_B": {"organ": "organ", "polyp": "tumour"}}
    folder = unify(root, 500, "U", [1, 2], label_maps=maps)
    assert open_raw_dataset(folder).description.labels.coding == "regions"
    facts, _ = extract_fingerprint(open_raw_dataset(folder), workers=0)
    assert [case.classes[0].voxels for case in facts.cases] == [16, 16, 16, 16]


def test_classes_may_lie_within_one_another_as_regions_of_a_source_do(root: Path) -> None:
    """Of the value 2, core and whole, both become a class; A knows the outer one alone, of which its value 255 is."""
    write_source(root, "Dataset003_C", False, {"background": 0, "whole": 1, "core": 2})
    path = root / "Dataset003_C/dataset.json"
    regions = {"labels": {"background": 0, "whole": [1, 2], "core": [2]}, "regions_class_order": [1, 2]}
    write_json(path, json.loads(path.read_text()) | regions)
    maps = {"C": {"core": "core", "whole": "lesion"}}
    folder = unify(root, 500, "U", [3, 1], label_maps=maps)
    content = content_of(folder)
    assert content["labels"] == {"background": 0, "lesion": [1, 2], "core": [2]}
    assert content["regions_class_order"] == [1, 2]
    raw = open_raw_dataset(folder)
    for part, source in zip(raw.parts(), raw.description.sources, strict=True):
        found = unified_values(source, part.description.labels, raw.description.labels)
        assert found == ({0: 0, 1: 1, 2: 2} if source.name == "C" else {0: 0, 1: 1})
    write_source(root, "Dataset004_D", False, {"background": 0, "middle": 1})
    with pytest.raises(UsdError, match="the value 2 of Dataset003_C would become core and lesion at once"):
        unify(root, 501, "V", [3, 4], label_maps={**maps, "D": {"middle": "core"}})  # a core in no lesion is no value


def test_cases_that_a_source_holds_out_are_held_out_of_the_unified_model(root: Path) -> None:
    path = root / "Dataset001_A" / "dataset.json"
    write_json(path, json.loads(path.read_text()) | {"test": ["c1", "./imagesTs/c9.png"]})
    assert content_of(unify(root, 500, "U", [1, 2]))["test"] == ["A__c1"]
    assert "test" not in content_of(unify(root, 501, "V", [1, 2], excluded=("A/c1",)))


def test_cases_are_left_out_and_sources_renamed(root: Path) -> None:
    raw = open_raw_dataset(unify(root, 500, "U", [1, 2], excluded=("Breast/c0",), renamed={"1": "Breast"}))
    assert [case.case_id for case in raw.cases] == ["B__c0", "B__c1", "Breast__c1"]


def test_modalities_are_those_of_the_channels_or_what_is_said(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = content_of(unify(root, 500, "U", [1, 2], modalities={"Dataset001_A": "MR"}))
    assert [source["modality"] for source in content["sources"]] == ["MR", "RGB"]
    arguments = ["501", "--name", "V", "-d", "1", "2", "--raw", str(root)]
    assert main([*arguments, "--modality", "B=endoscopy"]) == 0
    assert [source["modality"] for source in content_of(root / "Dataset501_V")["sources"]] == ["US", "endoscopy"]
    assert main([*arguments, "--overwrite", "--modality", "B=a", "B=b"]) != 0
    assert "two values, a and b" in capsys.readouterr().err


def test_cases_stand_once_in_the_file_of_facts(root: Path) -> None:
    facts, _ = extract_fingerprint(open_raw_dataset(unify(root, 500, "U", [1, 2])), workers=0)
    path = root / "fingerprint.json"
    write_fingerprint(path, facts)
    assert path.read_text().count('"A__c0"') == 1
    assert read_fingerprint(path) == facts
    write_json(path, facts)  # as earlier versions did
    assert path.read_text().count('"A__c0"') == 2
    assert read_fingerprint(path) == facts


def test_a_source_without_foreground_is_said_to_teach_its_background_and_no_more(root: Path) -> None:
    for path in (root / "Dataset001_A/labelsTr").iterdir():
        Image.fromarray(np.zeros((16, 16), np.uint8)).save(path)
    folder = unify(root, 500, "U", [1, 2])
    for raw, learned in (
        (folder, "from this source only how images without a lesion look"),
        (root / "Dataset001_A", "to answer background alone"),
    ):
        warnings = extract_fingerprint(open_raw_dataset(raw), workers=0)[1].warnings
        (found,) = (warning for warning in warnings if "foreground" in warning.message)
        assert found.message == f"none of the 2 label maps holds any foreground, so training learns {learned}"
        assert found.file == str(root / "Dataset001_A/labelsTr")


def test_a_class_that_a_source_merges_with_others_may_be_in_none_of_its_label_maps(root: Path) -> None:
    for path in (root / "Dataset002_B/labelsTr").iterdir():
        labels = np.zeros((16, 16), np.uint8)
        labels[4:8, 4:8] = 2
        Image.fromarray(labels).save(path)
    found = extract_fingerprint(open_raw_dataset(root / "Dataset002_B"), workers=0)[1].warnings
    assert any("holds any organ, which cannot be learned" in warning.message for warning in found)
    unified = extract_fingerprint(open_raw_dataset(unify(root, 500, "U", [1, 2])), workers=0)[1].warnings
    assert not any("cannot be learned" in warning.message for warning in unified)


def test_a_source_that_is_left_without_a_class_is_refused_and_its_images_without_lesions_can_be_taken(
    root: Path,
) -> None:
    for target in ("background", "ignore"):
        maps = {"A": {"tumour": target}}
        with pytest.raises(UsdError, match=rf"the source A \(tumour: {target}\) leaves it no class .*would be learned"):
            unify(root, 500, "U", [1, 2], label_maps=maps)
    assert not (root / "Dataset500_U").exists()
    path = root / "Dataset001_A/dataset.json"  # what the message says
    content = json.loads(path.read_text())
    write_json(path, content | {"labels": {**content["labels"], "lesion": 2}})
    raw = open_raw_dataset(
        unify(root, 500, "U", [1, 2], label_maps={"A": {"tumour": "background", "lesion": "lesion"}})
    )
    assert annotated_classes(raw.description.sources[0], raw.description.labels) == (True,)
    assert [case.classes[0].voxels for case in extract_fingerprint(raw, workers=0)[0].cases] == [0, 0, 16, 16]


def test_a_source_that_changes_is_noticed(root: Path) -> None:
    folder = unify(root, 500, "U", [1, 2])
    (root / "Dataset001_A/imagesTr/.DS_Store").write_bytes(b"of a file manager that looked into the folder")
    assert not any(
        "source A" in w.message for w in extract_fingerprint(open_raw_dataset(folder), workers=0)[1].warnings
    )
    mask = root / "Dataset001_A/labelsTr/c0.png"
    mask.write_bytes(mask.read_bytes() + b" ")
    warnings = extract_fingerprint(open_raw_dataset(folder), workers=0)[1].warnings
    assert any("source A" in warning.message for warning in warnings)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"datasets": [1, 1]}, "Dataset001_A and Dataset001_A"),
        ({"renamed": {"2": "A"}}, "would both be the source A"),
        ({"renamed": {"2": "a"}}, "Dataset001_A and Dataset002_B would both be the source A"),
        ({"label_maps": {"A": {"tumour": "Lesion"}}}, "lead to Lesion and lesion, which would be two classes"),
        ({"renamed": {"2": "B_"}}, "a source is named 'B_'"),  # of which B___c1 would be the case _c1 of B
        ({"renamed": {"2": "A__B"}}, "a source is named 'A__B'"),
        ({"renamed": {"3": "C"}}, "Dataset003|no data set"),
        ({"datasets": [1, 7]}, "7"),
        ({"label_maps": {"B": {"polyp": "lesion"}}}, "says nothing of organ"),
        ({"label_maps": {"B": {"polyp": "lesion", "organ": "x", "more": "x"}}}, "names more"),
        ({"label_maps": {"C": {}}}, "names C"),
        ({"label_maps": {"A": {"tumour": "lesion"}, "Dataset001_A": {"tumour": "x"}}}, "A and Dataset001_A, which are"),
        ({"label_maps": {"A": {"tumour": "x\ny"}}}, "x.ny"),
        ({"modalities": {"C": "US"}}, "--modality names C; sources are A, B"),
        ({"excluded": ("A/*",)}, "no case of the source A"),
        ({"excluded": ("A/c7",)}, "fits no case"),
        ({"excluded": ("c1",)}, "SOURCE/CASE"),
        ({"excluded": ("A",)}, "--exclude is 'A'; it must be SOURCE/CASE, with a source out of A, B"),
        ({"label_maps": {"A": {"tumour": "background"}, "B": {"polyp": "background", "organ": "background"}}}, "leave"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_written(root: Path, arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(UsdError, match=named):
        unify(root, 500, "U", **{"datasets": [1, 2], **arguments})
    assert not (root / "Dataset500_U").exists()


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_number_that_another_data_set_has_is_refused_and_nothing_written(root: Path, overwrite: bool) -> None:
    unify(root, 500, "U", [1, 2])
    for number, other in ((500, "Dataset500_U"), (1, "Dataset001_A")):
        with pytest.raises(UsdError, match=rf"Dataset{number:03d}_V would have the number of {other}"):
            unify(root, number, "V", [1, 2], overwrite=overwrite)
    assert not list(root.glob("*_V"))


@pytest.mark.parametrize("name", ["../U", "x/../../U", "", "a\nb"])
def test_a_name_that_leads_out_of_the_root_is_refused_and_nothing_written(root: Path, name: str) -> None:
    before = sorted(root.parent.rglob("*"))
    with pytest.raises(UsdError, match=r"the data set is named .* a name that becomes a file must not"):
        unify(root, 500, name, [1, 2])
    assert sorted(root.parent.rglob("*")) == before


def test_a_source_without_an_image_is_named_and_nothing_written(root: Path) -> None:
    for image in (root / "Dataset002_B/imagesTr").iterdir():
        image.unlink()
    with pytest.raises(UsdError, match=r"Dataset002_B.imagesTr holds no training image"):
        unify(root, 500, "U", [1, 2])
    assert not (root / "Dataset500_U").exists()


def test_a_source_that_is_no_longer_there_is_named_with_the_remedy(root: Path) -> None:
    folder = unify(root, 500, "U", [1, 2])
    (root / "Dataset002_B").rename(root / "gone")
    with pytest.raises(UsdError, match=r"the source B is .*Dataset002_B, which is not there; put the data set back"):
        open_raw_dataset(folder)


def test_a_file_that_was_edited_into_what_cannot_be_is_refused(root: Path) -> None:
    folder = unify(root, 500, "U", [1, 2])
    content = content_of(folder)
    (folder / "dataset.json").write_text(json.dumps({**content, "channel_names": {"0": "US"}}))
    with pytest.raises(UsdError, match=r"channel_names has 1 channel, but the source B has 3 \(R, G, B\)"):
        open_raw_dataset(folder)
    content["sources"][0]["dataset"] = "Dataset500_U"
    (folder / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(UsdError, match=r"the source A is .*Dataset500_U, a unified data set itself"):
        open_raw_dataset(folder)


def test_sources_of_very_different_size_are_named_with_the_rule(
    root: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unisegdiff_pipeline.io.unify.MUCH_LARGER", 2)
    unify(root, 500, "U", [1, 2])
    assert not caplog.messages
    unify(root, 501, "V", [1, 2], excluded=("A/c0",))
    (warning,) = caplog.messages
    assert "2 times and more (A 1, B 2); training draws them by the square root of their number of images" in warning


def test_an_existing_data_set_is_replaced_only_where_it_is_unified_and_asked_for(root: Path) -> None:
    unify(root, 500, "U", [1, 2])
    with pytest.raises(UsdError, match="--overwrite"):
        unify(root, 500, "U", [1])
    assert len(content_of(unify(root, 500, "U", [1], overwrite=True))["sources"]) == 1
    with pytest.raises(UsdError, match="no unified data set"):
        unify(root, 1, "A", [2], overwrite=True)


def test_what_a_user_put_beside_the_file_of_a_unified_data_set_stays(root: Path) -> None:
    folder = unify(root, 500, "U", [1, 2])
    for name in ("splits_final.json", ".DS_Store"):
        (folder / name).write_text("[]")
    with pytest.raises(UsdError, match="make it again with --overwrite"):
        unify(root, 500, "U", [1])
    assert len(content_of(unify(root, 500, "U", [1], overwrite=True))["sources"]) == 1
    assert sorted(path.name for path in folder.iterdir()) == [".DS_Store", "dataset.json", "splits_final.json"]
    (folder / "dataset.json").unlink()  # what the rest is of, nobody knows
    with pytest.raises(UsdError, match="no unified data set"):
        unify(root, 500, "U", [1], overwrite=True)


@pytest.mark.parametrize("name", ["map.json", "map.yaml", "map.YML"])
def test_a_label_map_is_json_or_yaml(tmp_path: Path, name: str) -> None:
    texts = {".json": '{"A": {"tumour": "no"}, "B": {"organ": "background"}}'}
    path = tmp_path / name
    path.write_text(texts.get(path.suffix, "A:\n  tumour: no\nB: {organ: background}\n"))
    assert read_label_maps(path) == {"A": {"tumour": "no"}, "B": {"organ": "background"}}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("A: lesion\n", "A is 'lesion'; it must map each class of the source"),
        ("A:\n", "A is ''; it must map"),
        ("A: {}\n", "A is {}; it must map"),
        ("A: {tumour: [a, b]}\n", r"the class tumour of A is mapped to \['a', 'b'\]; allowed are the name of a class"),
        ("A: {tumour: }\n", "the class tumour of A is mapped to ''; allowed are"),
    ],
)
def test_a_label_map_that_is_none_names_source_and_class(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "map.yaml").write_text(text)
    with pytest.raises(UsdError, match=problem):
        read_label_maps(tmp_path / "map.yaml")


def test_partial_labels_by_yaml_through_the_command(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "map.yaml").write_text("A:\n  tumour: tumour\nB:\n  organ: organ\n  polyp: tumour\n")
    arguments = ["500", "--name", "U", "-d", "1", "2", "--label-map", str(root / "map.yaml"), "--raw", str(root)]
    assert main(arguments) == 0
    assert "tumour -> tumour; does not annotate organ" in capsys.readouterr().out
    assert content_of(root / "Dataset500_U")["labels"] == {"background": 0, "tumour": [1], "organ": [2]}


def test_the_command_says_what_became_of_each_source(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "map.json").write_text(json.dumps({"B": {"organ": "background", "polyp": "lesion"}}))
    arguments = ["500", "--name", "U", "-d", "1", "2", "--label-map", str(root / "map.json"), "--raw", str(root)]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "B: 2 cases; channels R, G, B; organ -> background, polyp -> lesion" in said
    assert f"Next: usd_plan_and_preprocess -d Dataset500_U --raw {root}\n" in said
    assert main(["501", "--name", "my lesions", "-d", "1", "--exclude", "A/c1", "--raw", str(root)]) == 0
    said = capsys.readouterr().out
    assert "A: 1 case, 1 left out" in said
    assert f"Next: usd_plan_and_preprocess -d 'Dataset501_my lesions' --raw {root}\n" in said
