"""Limits of the system that are found before libraries fail of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

resource = pytest.importorskip("resource")
if not sys.platform.startswith("linux"):
    pytest.skip("other systems do not hold a process to its address space", allow_module_level=True)

MAIN = "import sys; from unisegdiff_pipeline.commands.{} import main; sys.exit(main())"
ARGUMENTS = {
    "convert": ["NAME", "SRC"],
    "demo": [],
    "doctor": [],
    "evaluate": ["REF", "PRED"],
    "fingerprint": ["-d", "1"],
    "plan": ["-d", "1"],
    "plan_and_preprocess": ["-d", "1"],
    "predict": ["-i", "IN", "-o", "OUT", "-m", "MODEL"],
    "preprocess": ["-d", "1"],
    "train": ["1", "0"],
}


def said(command: str, limit_bytes: int, folder: Path, *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command that may address so many bytes."""
    found = subprocess.run(
        [sys.executable, "-c", MAIN.format(command), *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, limit_bytes)),
        check=False,
    )
    return found.returncode, found.stdout, " ".join(found.stderr.split())


@pytest.mark.parametrize("command", ARGUMENTS)
def test_too_small_an_address_space_is_said_before_libraries_abort(command: str, tmp_path: Path) -> None:
    code, _, error = said(command, 500_000 * 1024, tmp_path, *ARGUMENTS[command])
    assert code == 1
    assert error.startswith("error: this process may address 0.51 GB of memory (ulimit -v 500000), and needs")
    assert "ulimit -v unlimited" in error
    assert not list(tmp_path.iterdir())


def test_a_network_needs_more_than_the_rest(tmp_path: Path) -> None:
    assert "needs 2 GB" in said("train", 1_500_000_000, tmp_path, "1", "0")[2]
    assert "may address" not in said("fingerprint", 1_500_000_000, tmp_path, "-d", "1", "--raw", str(tmp_path))[2]


def test_help_is_there_all_the_same(tmp_path: Path) -> None:
    code, text, _ = said("train", 500_000 * 1024, tmp_path, "--help")
    assert code == 0
    assert text.startswith("usage: usd_train")
