"""The report names what is set and what will not work."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from unisegdiff_pipeline.commands import doctor


@pytest.fixture
def unset(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in doctor.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def findings() -> dict[str, doctor.Finding]:
    return {finding.topic: finding for finding in doctor.check_folders()}


def test_unset_variables_are_named_with_the_flag_instead(unset: pytest.MonkeyPatch) -> None:
    found = findings()
    assert "--results" in found["usd_results"].trouble
    assert found["nnUNet_raw"].trouble == ""


def test_raw_folder_of_nnunet_stands_in(unset: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "Dataset004_X").mkdir()
    unset.setenv("nnUNet_raw", str(tmp_path))
    found = findings()
    assert found["usd_raw"].trouble == ""
    assert "1 data sets" in found["nnUNet_raw"].value


def test_missing_raw_folder_is_trouble_and_a_missing_results_folder_is_not(
    unset: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    unset.setenv("usd_raw", str(tmp_path / "none"))
    unset.setenv("usd_results", str(tmp_path / "later"))
    found = findings()
    assert "does not exist" in found["usd_raw"].trouble
    assert found["usd_results"].trouble == ""


def test_little_room_is_trouble(unset: pytest.MonkeyPatch, tmp_path: Path) -> None:
    unset.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=0.2e9))
    unset.setenv("usd_results", str(tmp_path))
    assert "0.2 GB free" in findings()["usd_results"].trouble


def test_missing_package_is_fatal(unset: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    unset.setattr("importlib.metadata.requires", lambda _: ["torch>=2", "no-such-package>=1", 'x; extra == "test"'])
    found = {finding.topic: finding for finding in doctor.check_packages()}
    assert found["no-such-package"].fatal
    assert "x" not in found
    unset.setattr(doctor, "CHECKS", (doctor.check_packages,))
    assert doctor.main([]) == 1
    assert "no-such-package: install it" in capsys.readouterr().out


def test_a_driver_without_a_cuda_build_is_explained(unset: pytest.MonkeyPatch) -> None:
    unset.setattr("shutil.which", lambda _: "/usr/bin/nvidia-smi")
    assert "CPU build" in doctor.why_no_gpu(None)
    assert "driver" in doctor.why_no_gpu("12.8")
    unset.setattr("shutil.which", lambda _: None)
    assert doctor.why_no_gpu(None) == ""
