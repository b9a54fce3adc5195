"""Roots and finding data sets."""

from __future__ import annotations

from pathlib import Path

import pytest

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.io.paths import Roots, dataset_name, files_below, find_dataset, list_datasets, resolve_roots


def test_flags_win_over_variables_and_nnunet_raw_stands_in(tmp_path):
    variables = {"usd_raw": "/a", "nnUNet_raw": "/b", "usd_results": "/c"}
    roots = resolve_roots(raw=tmp_path, environment=variables)
    assert roots.raw == tmp_path
    assert roots.results == Path("/c")
    assert roots.preprocessed is None
    assert resolve_roots(environment=variables).raw == Path("/a")
    assert resolve_roots(environment={"nnUNet_raw": "/b", "usd_raw": ""}).raw == Path("/b")


def test_variables_are_read_when_asked_for(monkeypatch, tmp_path):
    monkeypatch.setenv("usd_preprocessed", str(tmp_path))
    assert resolve_roots().require_preprocessed() == tmp_path


def test_missing_roots_name_flag_and_variable(tmp_path):
    roots = resolve_roots(environment={})
    for require, words in [
        (roots.require_raw, ("--raw", "usd_raw", "nnUNet_raw")),
        (roots.require_preprocessed, ("--preprocessed", "usd_preprocessed")),
        (roots.require_results, ("--results", "usd_results")),
    ]:
        with pytest.raises(UsdError) as caught:
            require()
        assert all(word in str(caught.value) for word in words)
    with pytest.raises(UsdError, match="does not exist"):
        resolve_roots(raw=tmp_path / "absent", environment={}).require_raw()


def test_folders_of_nnunet_are_not_taken_and_this_is_said(monkeypatch):
    monkeypatch.setenv("nnUNet_preprocessed", "/theirs")
    with pytest.raises(UsdError, match=r"usd_preprocessed; nnUNet_preprocessed \(/theirs\) is nnU-Net's own"):
        resolve_roots(environment={}).require_preprocessed()


@pytest.fixture
def root(tmp_path):
    for name in ("Dataset004_Hippocampus", "Dataset040_Liver", "Dataset101_BUSI", "Dataset104_BUSI", "notes"):
        (tmp_path / name).mkdir()
    (tmp_path / "Dataset005_File").write_text("no folder")
    return tmp_path


def test_list(root):
    assert list_datasets(root) == ["Dataset004_Hippocampus", "Dataset040_Liver", "Dataset101_BUSI", "Dataset104_BUSI"]
    assert list_datasets(root / "absent") == []
    assert dataset_name(4, "Hippocampus") == "Dataset004_Hippocampus"


@pytest.mark.parametrize("text", ["4", "004", 4, "Dataset004", "Hippocampus", "Dataset004_Hippocampus"])
def test_ways_to_name_a_data_set(root, text):
    assert find_dataset(root, text) == "Dataset004_Hippocampus"


def test_unknown_and_ambiguous(root):
    with pytest.raises(UsdError, match=r"'7'.*Dataset040_Liver"):
        find_dataset(root, "7")
    with pytest.raises(UsdError, match=r"ambiguous.*Dataset101_BUSI, Dataset104_BUSI"):
        find_dataset(root, "BUSI")
    with pytest.raises(UsdError, match="there is none"):
        find_dataset(root / "absent", "4")


def test_names_in_suggested_commands_are_quoted(tmp_path):
    with pytest.raises(UsdError, match=r"Run usd_plan_and_preprocess -d 'Dataset004_my lesions' first"):
        Roots(None, tmp_path, None).preprocessed_dataset("Dataset004_my lesions")


def test_files_below_a_folder_are_there_once_whatever_links_lead_to_them(tmp_path):
    (tmp_path / "store/b").mkdir(parents=True)
    (tmp_path / "in/a/scan").mkdir(parents=True)
    links = {
        "in/b": "store/b",
        "in/a/latest": "in/a/scan",
        "in/other": "in/a",
        "store/b/up": "store",
        "store/b/in": "in",
    }
    for link, target in links.items():
        (tmp_path / link).symlink_to(tmp_path / target)
    (tmp_path / "in/itself").symlink_to("itself")
    for name in ("in/z", "in/a/scan/1", "store/b/2", "store/3"):
        (tmp_path / name).write_text("")
    found = [path.relative_to(tmp_path / "in").as_posix() for path in files_below(tmp_path / "in")]
    assert found == ["itself", "z", "a/scan/1", "b/2", "b/up/3"]
