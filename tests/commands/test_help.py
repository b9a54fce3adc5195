"""Every command is installed, answers --help at once, and refuses misspelt flags."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SETUP = (ROOT / "setup.py").read_text("utf-8")
COMMANDS = re.findall(r'^    "(\w+)",$', SETUP[SETUP.index("COMMANDS = (") : SETUP.index("setup(\n")], re.M)
HELP_SECONDS = 0.3


def call(name: str, *flags: str) -> subprocess.CompletedProcess[str]:
    code = f"import sys; from unisegdiff_pipeline.commands.{name} import main; sys.exit(main(sys.argv[1:]))"
    return subprocess.run([sys.executable, "-c", code, *flags], capture_output=True, text=True, cwd=ROOT, check=False)


def test_setup_lists_every_command() -> None:
    modules = (ROOT / "unisegdiff_pipeline/commands").glob("[!_]*.py")
    with_main = {path.stem for path in modules if "\ndef main(" in path.read_text("utf-8")}
    assert with_main == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_quick_and_names_the_command(name: str) -> None:
    seconds = []
    for _ in range(5):  # the machine may be busy: one quick answer of five shows that it can be quick
        start = time.perf_counter()
        answer = call(name, "--help")
        seconds.append(time.perf_counter() - start)
        if seconds[-1] < HELP_SECONDS:
            break
    assert answer.returncode == 0
    assert answer.stdout.startswith(f"usage: usd_{name} ")
    assert min(seconds) < HELP_SECONDS


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
    assert re.fullmatch(rf"usd_{name} \d+\.\d+\.\d+\n", capsys.readouterr().out)
