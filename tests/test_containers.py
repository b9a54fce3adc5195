"""The Dockerfile, and its constraints: no name, no home, no network, read-only code, next to no shared memory.

Docker is not needed: namespaces of the kernel give the same constraints to the same programs.
"""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

import unisegdiff_pipeline as usd
from tests.inference.test_predictor import GEOMETRY_3D, make_model
from unisegdiff_pipeline.io.images import write_map

ROOT = Path(__file__).resolve().parents[1]
ENTRY = ROOT / "documentation/examples/grand_challenge.py"
DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")
NOBODY = "65534"

# All that is seen lies in /mnt, which only this process has: package, libraries and interpreter read-only, and work.
CONTAINER = """
set -eu
mount -t tmpfs -o size=1m,mode=1777 tmpfs /dev/shm
mount -t tmpfs -o mode=755 tmpfs /mnt
for place in code="$1" libraries="$2" python="$3" work="$4"; do
    name=/mnt/${place%%=*}
    mkdir "$name"
    mount --bind "${place#*=}" "$name"
    [ "$name" = /mnt/work ] || mount -o remount,ro,bind "$name"
done
shift 4
cd /mnt/work
exec setpriv --reuid USER --regid USER --clear-groups --no-new-privs env -i PATH=/usr/bin:/bin \
    PYTHONPATH=/mnt/code:/mnt/work/site LD_LIBRARY_PATH=/mnt/python/lib MPLCONFIGDIR=/tmp/matplotlib-USER "$@"
""".replace("USER", NOBODY)


def in_container(work: Path, script: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a shell script under the constraints; `work` is its folder, and `$python` the interpreter."""
    if os.getuid() != 0 or shutil.which("setpriv") is None or shutil.which("unshare") is None:
        pytest.skip("needs unshare and setpriv, as root")
    if subprocess.run(["unshare", "-n", "-m", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], check=False).returncode:
        pytest.skip("namespaces are not permitted here")
    work.chmod(0o755)  # pytest keeps its folders to itself
    (work / "site").mkdir()  # behind the standard library, as site-packages are: one of them is named like a part of it
    (work / "site/sitecustomize.py").write_text("import sys\nsys.path.append('/mnt/libraries')\n")
    places = [str(ROOT), sysconfig.get_paths()["purelib"], sys.base_prefix, str(work)]
    python = f"python=/mnt/python/bin/{Path(sys.executable).resolve().name}"
    words = [f"{name}={value}" for name, value in variables.items()]
    return subprocess.run(
        ["unshare", "-n", "-m", "sh", "-c", CONTAINER, "sh", *places, python, *words, "sh", "-euc", script],
        capture_output=True,
        text=True,
        check=False,
    )


def command(name: str) -> str:
    code = f"import sys; from unisegdiff_pipeline.commands.{name} import main; sys.exit(main(sys.argv[1:]))"
    return f'"$python" -c "{code}"'


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A folder with a model, a scan as grand-challenge.org mounts it, and folders that anyone may write into."""
    make_model(tmp_path / "model", 3)
    values = np.random.default_rng(3).normal(size=(9, 18, 14)).astype(np.float32)
    write_map(tmp_path / "scans/scan.nii.gz", values, GEOMETRY_3D)
    (tmp_path / "input/images/t1").mkdir(parents=True)
    sitk.WriteImage(sitk.ReadImage(str(tmp_path / "scans/scan.nii.gz")), str(tmp_path / "input/images/t1/scan.mha"))
    for name in ("output", "masks"):
        (tmp_path / name).mkdir()
        (tmp_path / name).chmod(0o777)
    return tmp_path


def test_commands_and_the_entry_point_work_under_the_constraints_of_a_container(work: Path) -> None:
    script = f"""
    ! touch /mnt/code/x 2> /dev/null
    [ "$(id -u)" = {NOBODY} ]
    [ -z "${{HOME:-}}" ]
    {command("predict")} -i scans -o masks -m model/StagedDiffusionTrainer__tiny
    "$python" /mnt/code/documentation/examples/grand_challenge.py input output
    """
    model = "/mnt/work/model/StagedDiffusionTrainer__tiny"
    result = in_container(work, script, USD_MODEL=model, USD_UNCERTAINTY_SLUG="uncertainty")
    assert result.returncode == 0, result.stderr
    warned = [line for line in result.stderr.splitlines() if "warning" in line.lower()]
    assert all("names no orientation" in line for line in warned), result.stderr  # which is the tiny model's
    predicted = sitk.ReadImage(str(work / "masks/scan.nii.gz"))
    mask = sitk.ReadImage(str(work / "output/images/segmentation/scan.mha"))
    assert np.array_equal(sitk.GetArrayFromImage(mask), sitk.GetArrayFromImage(predicted))
    assert np.allclose(mask.GetDirection(), predicted.GetDirection(), atol=1e-6)
    uncertainty = sitk.GetArrayFromImage(sitk.ReadImage(str(work / "output/images/uncertainty/scan.mha")))
    assert 0 <= uncertainty.min() < uncertainty.max() <= 1
    (case,) = json.loads((work / "output/results.json").read_text())
    assert case["case"] == "scan"
    assert sum(lesion["voxels"] for lesion in case["lesions"]) == np.count_nonzero(sitk.GetArrayFromImage(mask))


@pytest.mark.slow
def test_training_works_under_the_constraints_of_a_container(prepared: Path, phantom_2d: Path, tmp_path: Path) -> None:
    shutil.copytree(prepared, tmp_path / "preprocessed")
    shutil.copytree(phantom_2d, tmp_path / "raw" / phantom_2d.name)
    (tmp_path / "results").mkdir()
    for path in (p for p in tmp_path.rglob("*") if p.is_dir()):
        path.chmod(0o777)
    places = "--raw raw --preprocessed preprocessed --results results"
    script = f"{command('train')} 902 0 --iterations 4 --workers 2 --device cpu {places}"
    result = in_container(tmp_path, script)
    assert result.returncode == 0, result.stderr
    assert list(tmp_path.glob("results/*/*/fold_0/weights.safetensors"))


# --------------------------------------------------------------------------------------------- grand-challenge.org


@pytest.fixture
def entry(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.delenv("USD_CHANNELS", raising=False)
    return runpy.run_path(str(ENTRY))


def test_sockets_are_channels_in_the_order_that_is_set(
    entry: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for slug, name in (("adc", "x.mha"), ("t2", "y.mha")):
        (tmp_path / "images" / slug).mkdir(parents=True)
        (tmp_path / "images" / slug / name).touch()
    with pytest.raises(usd.UsdError, match="has adc, t2; set USD_CHANNELS to their order"):
        entry["find_cases"](tmp_path, [])
    monkeypatch.setenv("USD_CHANNELS", "t2,adc")
    assert entry["find_cases"](tmp_path, ["t2", "adc"]) == {
        "y": [tmp_path / "images/t2/y.mha", tmp_path / "images/adc/x.mha"]
    }
    with pytest.raises(usd.UsdError, match="holds t2: 1, flair: 0 images; give one of each channel"):
        entry["find_cases"](tmp_path, ["t2", "flair"])
    (tmp_path / "images/t2/z.tif").touch()
    with pytest.raises(usd.UsdError, match="t2: 2, adc: 1"):
        entry["find_cases"](tmp_path, ["t2", "adc"])
    assert set(entry["find_cases"](tmp_path, ["t2"])) == {"y", "z"}
    with pytest.raises(usd.UsdError, match="no socket"):
        entry["find_cases"](tmp_path / "nowhere", [])


def test_the_one_model_is_found(entry: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(usd.UsdError, match="hold none, not one model; set USD_MODEL"):
        entry["find_model"]((tmp_path,))
    model = make_model(tmp_path / "a", 2)
    assert entry["find_model"]((tmp_path, tmp_path / "nowhere")) == model
    (tmp_path / "b.zip").touch()
    with pytest.raises(usd.UsdError, match="not one model"):
        entry["find_model"]((tmp_path,))


def test_what_cannot_be_predicted_ends_with_its_reason(
    entry: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("USD_MODEL", str(make_model(tmp_path / "a", 3)))
    assert entry["main"](str(tmp_path / "input"), str(tmp_path / "output")) == 1
    assert "no socket" in capsys.readouterr().err
    assert not (tmp_path / "output").exists()


# ------------------------------------------------------------------------------------------------------- the Dockerfile


def test_the_dockerfile_copies_what_is_there_and_runs_as_nobody_in_particular() -> None:
    joined = DOCKERFILE.replace("\\\n", " ")
    assert re.findall(r"^ARG (\w+)=", joined, re.M) == ["BASE", "TORCH_INDEX"]
    assert re.search(r"^FROM \$\{BASE\} AS commands$", joined, re.M)
    (user,) = re.findall(r"^USER (\d+):\d+$", joined, re.M)
    assert int(user) > 0
    assert "HOME" not in joined.replace("MPLCONFIGDIR", "")
    assert joined.index("USER") < joined.index("AS grand-challenge")  # which is built on it
    for name in re.findall(r"/opt/source/([\w/.]+)", joined):
        assert (ROOT / name).exists(), name
    kept = re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text("utf-8"), re.M)
    assert {name for name in kept if not (ROOT / name).exists()} == {"model"}  # the user's
    setup = (ROOT / "setup.py").read_text("utf-8")
    for name in ("README.md", "LICENSE", "unisegdiff_pipeline", "dataset_conversion"):
        assert name in setup
        assert name in kept
