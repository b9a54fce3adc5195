"""Ctrl-C and SIGTERM at many moments of a command's life: one paragraph, the signal's exit code, nothing broken."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

MOMENTS_OF_ALL = 20  # spread over the time that a command takes, a little beyond its end
FEW = (3, 11)  # of these in the default run
COMMANDS = ("plan_and_preprocess", "train", "predict", "evaluate")
LIMIT_S = 300.0
ENTERING_S = 0.05  # until a command that has begun takes signals itself; before that Python answers with a traceback
# Says when the command begins: what comes before is Python's own start.
START = "import sys; from unisegdiff_pipeline.commands.{} import main; print('begins', flush=True); sys.exit(main())"


def start(command: str, arguments: list[str], log: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", START.format(command), *arguments],
        stdout=subprocess.PIPE,
        stderr=log.open("w"),
        text=True,
        start_new_session=True,  # a group of its own, which gets the signal as that of a terminal would
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begins\n"
    return process


@pytest.fixture(scope="module")
def ready(phantom_2d: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    """A root where every command has been run once, and the seconds that each took."""
    root = tmp_path_factory.mktemp("ready")
    seconds = {}
    for command in COMMANDS:
        began = time.monotonic()
        process = start(command, arguments_of(command, phantom_2d, root, root), root / f"{command}.log")
        process.communicate(timeout=LIMIT_S)
        assert process.returncode == 0, (root / f"{command}.log").read_text()
        seconds[command] = time.monotonic() - began
    return root, seconds


def arguments_of(command: str, phantoms: Path, ready: Path, output: Path) -> list[str]:
    """Flags that read what `ready` holds and write into `output`."""
    raw, preprocessed, results = phantoms.parent, ready / "preprocessed", ready / "results"
    model = results / phantoms.name / "StagedDiffusionTrainer__2d"
    of: dict[str, list[object]] = {
        "plan_and_preprocess": ["-d", 902, "--raw", raw, "--preprocessed", output / "preprocessed", "--device", "cpu"],
        "train": [
            *(902, 0, "--preprocessed", preprocessed, "--results", output / "results", "--iterations", 4),
            *("--batch-size", 2, "--workers", 1, "--device", "cpu", "--save-validation", "all"),
        ],
        "predict": ["-i", phantoms / "imagesTs", "-o", output / "masks", "-m", model, "--device", "cpu"],
        "evaluate": [
            *(phantoms / "labelsTs", ready / "masks", "-o", output / "scores", "--workers", 2),
            *("--dataset-json", phantoms / "dataset.json"),
        ],
    }
    return list(map(str, of[command]))


def interrupt(
    command: str, moment: int, number: signal.Signals, ready: tuple[Path, dict[str, float]], phantoms: Path, to: Path
) -> None:
    root, seconds = ready
    log = to / "stderr"
    process = start(command, arguments_of(command, phantoms, root, to), log)
    time.sleep(ENTERING_S + moment / (MOMENTS_OF_ALL - 2) * seconds[command])
    finished = process.poll() is not None
    if not finished:
        os.killpg(process.pid, number)
    process.communicate(timeout=LIMIT_S)
    said = log.read_text()
    assert "Traceback" not in said, said
    assert "leaked" not in said, said
    # -number: before the command or behind its end, while Python starts or leaves; a shell says 128 + number of both.
    assert process.returncode in (0, 128 + number, -number), said
    if process.returncode == 128 + number:
        paragraphs = [line for line in said.splitlines() if line.startswith(("interrupted", "terminated"))]
        assert len(paragraphs) == 1, said
    assert not list(to.rglob(".tmp-*"))


@pytest.mark.parametrize("command", COMMANDS)
def test_ctrl_c_at_a_few_moments(
    command: str, ready: tuple[Path, dict[str, float]], phantom_2d: Path, tmp_path: Path
) -> None:
    for moment, number in zip(FEW, (signal.SIGINT, signal.SIGTERM), strict=True):
        output = tmp_path / str(moment)
        output.mkdir()
        interrupt(command, moment, number, ready, phantom_2d, output)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("command", COMMANDS)
def test_signals_at_many_moments(
    command: str, number: signal.Signals, ready: tuple[Path, dict[str, float]], phantom_2d: Path, tmp_path: Path
) -> None:
    for moment in range(MOMENTS_OF_ALL):
        output = tmp_path / str(moment)
        output.mkdir()
        interrupt(command, moment, number, ready, phantom_2d, output)
        process = start(command, arguments_of(command, phantom_2d, ready[0], output), output / "again")
        process.communicate(timeout=LIMIT_S)
        assert process.returncode == 0, (output / "again").read_text()  # and it goes on from there
