"""Names of model folders: what they say, and what may be one."""

from __future__ import annotations

import pytest

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.inference.model_name import ModelName, parse_model_name, require_part


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("T__2d", ModelName("T", "2d")),
        ("T__3d_fullres__low_rate", ModelName("T", "3d_fullres", run="low_rate")),
        ("T__2d__plans_big", ModelName("T", "2d", plans="big")),
        ("T__2d__plans_big__1e-4", ModelName("T", "2d", plans="big", run="1e-4")),
    ],
)
def test_names_are_read_as_they_are_written(folder: str, name: ModelName) -> None:
    assert name.folder == folder
    assert parse_model_name(folder) == name


@pytest.mark.parametrize("folder", ["T", "T__", "__2d", "T__2d__a__b", "T__2d__plans_a__b__c", "T____2d"])
def test_other_folders_are_no_models(folder: str) -> None:
    assert parse_model_name(folder) is None


@pytest.mark.parametrize("name", ["a", "A1", "low.rate", "1e-4", "x" * 60, "a+b", "fold"])
def test_names_that_may_be(name: str) -> None:
    assert require_part("--run", name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "a/b",
        "/a",
        "a\\b",
        "a b",
        "-a",
        "_a",
        "a_",
        "a.",
        "a__b",
        "plans_a",
        "fold_0",
        "x" * 61,
        "\u00e4",
        "a\n",
        "a:b",
        "$x",
        "con",
        "nul.x",
    ],
)
def test_names_that_may_not(name: str) -> None:
    with pytest.raises(UsdError, match=r"--run .* cannot be part of a folder's name"):
        require_part("--run", name)
