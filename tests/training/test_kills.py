"""A training that is killed (SIGKILL) at any moment and continued ends with the same bits and the same log."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from unisegdiff_pipeline.commands import plan_and_preprocess
from unisegdiff_pipeline.core.files import file_hash
from unisegdiff_pipeline.inference.model_folder import WEIGHTS_NAME
from unisegdiff_pipeline.io.paths import Roots
from unisegdiff_pipeline.training.request import TrainRequest

KILLS = 2


def watch_writes(kill_at: int = 0) -> list[int]:
    """Count the files put in place and the entries logged; at number `kill_at` the process kills itself before it."""
    from unisegdiff_pipeline.training.log import RunLog
    from unisegdiff_pipeline.training.trainers import trainer

    count = [0]

    def counted(original):  # type: ignore[no-untyped-def]
        def wrapper(*args, **kwargs):  # type: ignore[no-untyped-def]
            count[0] += 1
            if count[0] == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        return wrapper

    trainer.LOG_EVERY_S = 0.0  # every iteration is logged
    Path.replace = counted(Path.replace)  # type: ignore[method-assign]
    Path.unlink = counted(Path.unlink)  # type: ignore[method-assign]
    RunLog.record = counted(RunLog.record)  # type: ignore[method-assign]
    return count


def request_in(prepared: Path, results: Path) -> TrainRequest:
    roots = Roots(raw=None, preprocessed=prepared, results=results)
    return TrainRequest(
        "902", "0", roots, iterations=6, batch_size=2, workers=0, device="cpu", seed=3, checkpoint_every_s=0.0
    )


def logged(folder: Path) -> list[tuple[object, ...]]:
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [(e["kind"], e["phase"], e["iteration"], e.get("loss")) for e in entries]


def in_process(prepared: Path, results: Path, kill_at: int = 0) -> Path:
    """Train in a process that kills itself before a write, or ends and notes how many there were; the fold's folder."""
    code = (
        "import sys; from pathlib import Path; from tests.training import test_kills as t\n"
        "from unisegdiff_pipeline.training.run import train\n"
        "prepared, results = map(Path, sys.argv[1:3]); count = t.watch_writes(int(sys.argv[3]))\n"
        "folder = train(t.request_in(prepared, results)).folds[0].folder\n"
        "(results / 'writes').write_text(str(count[0])); (results / 'folder').write_text(str(folder))"
    )
    command = [sys.executable, "-c", code, str(prepared), str(results), str(kill_at)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == (-signal.SIGKILL if kill_at else 0), ended.stderr[-2000:]
    return results if kill_at else Path((results / "folder").read_text())


@pytest.mark.slow
def test_kills_change_neither_weights_nor_log(phantom_2d: Path, tmp_path: Path) -> None:
    prepared = tmp_path / "preprocessed"
    arguments = ["-d", "902", "--raw", str(phantom_2d.parent), "--preprocessed", str(prepared), "--device", "cpu"]
    assert plan_and_preprocess.main([*arguments, "--memory-gb", "4", "--workers", "0"]) == 0

    # All in processes of their own: how many threads torch takes here depends on the tests before, and sums on that.
    straight = in_process(prepared, tmp_path / "straight")
    total = int((tmp_path / "straight" / "writes").read_text())
    generator, where = random.Random(7), []
    for kill in range(KILLS):
        # Every part of the training: an equal part of its writes each, from where it goes on.
        at = generator.randint(1, max(1, total // KILLS))
        in_process(prepared, tmp_path / "killed", at)
        where.append((kill, at))
    killed = in_process(prepared, tmp_path / "killed")
    assert file_hash(killed / WEIGHTS_NAME) == file_hash(straight / WEIGHTS_NAME), where
    assert logged(killed) == logged(straight), where
    names = {str(path.relative_to(straight)) for path in straight.rglob("*")}
    assert {str(path.relative_to(killed)) for path in killed.rglob("*")} == names
    assert {path.name for path in killed.parent.iterdir()} == {"fold_0", "plans.json", "dataset.json"}
