"""dataset.json: codings, and an error with key and remedy for each thing that can be wrong."""

from __future__ import annotations

import json

import pytest

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.io.dataset_json import parse_description, read_dataset_json

GOOD = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "lesion": 1}, "file_ending": ".nii.gz"}


def test_one_class_is_binary():
    description = parse_description(GOOD)
    assert description.labels.coding == "binary"
    assert description.labels.names == ("lesion",)
    assert description.labels.members == ((1,),)
    assert description.labels.num_channels == 1
    assert description.channel_names == ("CT",)
    assert description.spacing_known
    assert description.entries is None


def test_several_classes_are_softmax_in_order_of_their_values():
    labels = parse_description(GOOD | {"labels": {"b": 2, "background": 0, "a": 1}}).labels
    assert (labels.coding, labels.names, labels.write_values) == ("softmax", ("a", "b"), (1, 2))


def test_regions_keep_the_order_of_the_file():
    raw = GOOD | {
        "labels": {"background": 0, "whole": [1, 2, 3], "core": [1, 3], "enhancing": 3, "ignore": 4},
        "regions_class_order": [2, 1, 3],
    }
    labels = parse_description(raw).labels
    assert labels.coding == "regions"
    assert labels.names == ("whole", "core", "enhancing")
    assert labels.members == ((1, 2, 3), (1, 3), (3,))
    assert labels.write_values == (2, 1, 3)
    assert labels.ignore_value == 4
    assert labels.allowed_values == {0, 1, 2, 3, 4}


def test_a_single_list_makes_regions():
    raw = GOOD | {"labels": {"background": 0, "lesion": [1, 2]}, "regions_class_order": [1]}
    assert parse_description(raw).labels.coding == "regions"


def test_spacing_of_pictures_is_unknown_unless_said():
    assert not parse_description(GOOD | {"file_ending": ".png"}).spacing_known
    assert parse_description(GOOD | {"file_ending": ".png", "spacing_known": True}).spacing_known
    assert not parse_description(GOOD | {"spacing_known": False}).spacing_known


def test_entries():
    raw = GOOD | {"dataset": {"c1": {"images": ["$X/a.nii.gz"], "label": "b.nii.gz"}, "c2": {"images": ["d.nii.gz"]}}}
    entries = parse_description(raw).entries
    assert entries is not None
    assert entries["c1"].images == ("$X/a.nii.gz",)
    assert entries["c2"].label is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"labels": None}, ["labels is missing", '"background": 0']),
        ({"labels": {"lesion": 1}}, ["no background"]),
        ({"labels": {"background": 1, "lesion": 0}}, ["labels.background", "must be 0"]),
        ({"labels": {"background": 0}}, ["no foreground"]),
        ({"labels": {"background": 0, "a": 1, "b": 3}}, ["leaves out [2]", "consecutive"]),
        ({"labels": {"background": 0, "a": 1, "b": 1}}, ["labels.b and labels.a are both 1"]),
        ({"labels": {"background": 0, "a": "1"}}, ["labels.a is '1'", "whole number"]),
        ({"labels": {"background": 0, "a": True}}, ["labels.a is True"]),
        ({"labels": {"background": 0, "a": -1}}, ["labels.a is -1"]),
        ({"labels": {"background": 0, "a": 2_000_000_000}}, ["labels.a is 2000000000", "0 to 32767"]),
        ({"labels": {"background": 0, "a": 30_000}}, ["leaves out [1]"]),
        ({"allow_unmatched": 1}, ["allow_unmatched is 1, allowed is true or false"]),
        ({"labels": {"0": "background", "1": "lesion"}}, ["swap them"]),
        ({"labels": {"background": 0, "ignore": 1, "a": 2}}, ["labels.ignore", "highest value of all, here 3"]),
        ({"labels": {"background": 0, "a": 1, "ignore": 5}}, ["here 2"]),
        ({"labels": {"background": 0, "a": 1, "Ignore": 2}}, ["the name 'Ignore'", "write it as 'ignore'"]),
        ({"labels": {"Background": 0, "a": 1}}, ["the name 'Background'", "write it as 'background'"]),
        ({"labels": {"background": 0, "a": [1, 2], "b": 2}}, ["regions_class_order is missing", "a, b"]),
        ({"labels": {"background": 0, "a": [0, 1]}, "regions_class_order": [1]}, ["labels.a holds the value 0"]),
        ({"labels": {"background": 0, "a": [1, 2]}, "regions_class_order": [1, 2]}, ["2 values for the 1 regions"]),
        ({"labels": {"background": 0, "a": [1, 2]}, "regions_class_order": [3]}, ["holds [3]"]),
        (
            {"labels": {"background": 0, "a": [1, 2], "b": 1}, "regions_class_order": [1, 2]},
            ["regions_class_order is [1, 2]", "value 1, which is in a, b, would be written as 2", "[2, 1] would keep"],
        ),
        ({"channel_names": {"CT": "0"}}, ["channel_names", "swapped"]),
        ({"channel_names": {"1": "CT"}}, ['must be "0" to "0"']),
        ({"channel_names": {"0": ""}}, ["channel_names.0"]),
        ({"channel_names": None}, ["channel_names is missing"]),
        ({"file_ending": ".dcm"}, ["file_ending is '.dcm'", ".nii.gz"]),
        ({"file_ending": None}, ["file_ending is missing"]),
        ({"spacing_known": "no"}, ["spacing_known is 'no'"]),
        ({"dataset": {"c": {"images": []}}}, ["dataset.c.images"]),
    ],
)
def test_errors_name_the_file_the_key_and_the_remedy(tmp_path, change, words):
    path = tmp_path / "dataset.json"
    raw = {key: value for key, value in (GOOD | change).items() if value is not None}
    path.write_text(json.dumps(raw))
    with pytest.raises(UsdError) as caught:
        read_dataset_json(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    for word in words:
        assert word in message
    assert "\n" not in message


def test_absent_and_broken_files(tmp_path):
    with pytest.raises(UsdError, match="does not exist"):
        read_dataset_json(tmp_path / "dataset.json")
    (tmp_path / "dataset.json").write_text('{"labels": {\n,}')
    with pytest.raises(UsdError, match="line 2"):
        read_dataset_json(tmp_path / "dataset.json")
    (tmp_path / "dataset.json").write_text("[]")
    with pytest.raises(UsdError, match="object"):
        read_dataset_json(tmp_path / "dataset.json")


def test_real_files(raw_data):
    read = {path.parent.name: read_dataset_json(path) for path in raw_data.glob("Dataset*/dataset.json")}
    assert read["Dataset004_Hippocampus"].labels.names == ("anterior", "posterior")
    assert read["Dataset102_Polyp"].channel_names == ("R", "G", "B")
    assert read["Dataset104_Glioma"].labels.members == ((1, 2, 3), (1, 3), (3,))
    assert not read["Dataset106_EMIDEC"].spacing_known
