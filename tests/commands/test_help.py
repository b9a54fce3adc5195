"""Every command is installed, answers --help without loading anything heavy, and refuses misspelt flags."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SETUP = (ROOT / "setup.py").read_text("utf-8")
COMMANDS = re.findall(r'^    "(\w+)",$', SETUP[SETUP.index("COMMANDS = (") : SETUP.index("setup(\n")], re.M)
HEAVY = {"torch", "numpy", "scipy", "SimpleITK", "nibabel", "matplotlib", "PIL", "blosc2", "skimage"}
HEAVY |= {"acvl_utils", "batchgenerators", "batchgeneratorsv2", "pandas", "sklearn"}


def test_setup_lists_every_command() -> None:
    modules = (ROOT / "unisegdiff_pipeline/commands").glob("[!_]*.py")
    with_main = {path.stem for path in modules if "\ndef main(" in path.read_text("utf-8")}
    assert with_main == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_names_the_command_and_loads_nothing_heavy(name: str) -> None:
    """What makes a command slow to answer is what it imports; how long it takes, the benchmarks measure."""
    code = (
        f"import atexit, sys; from unisegdiff_pipeline.commands.{name} import main; "
        f"atexit.register(lambda: print(sorted({HEAVY} & set(sys.modules)), file=sys.stderr)); main(['--help'])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert answer.returncode == 0
    assert answer.stdout.startswith(f"usage: usd_{name.rstrip('_')} ")
    assert answer.stderr.strip() == "[]"


@pytest.mark.parametrize("name", COMMANDS)
def test_misspelt_flag_ends_with_code_2(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    module = importlib.import_module(f"unisegdiff_pipeline.commands.{name}")
    with pytest.raises(SystemExit) as stop:
        module.main(["--hepl"])
    assert stop.value.code == 2
    assert "unknown flag --hepl; did you mean --help?" in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_version(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    module = importlib.import_module(f"unisegdiff_pipeline.commands.{name}")
    with pytest.raises(SystemExit) as stop:
        module.main(["--version"])
    assert stop.value.code == 0
    assert re.fullmatch(rf"usd_{name.rstrip('_')} \d+\.\d+\.\d+\n", capsys.readouterr().out)
