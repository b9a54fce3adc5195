"""Job arrays: scripts that bash takes, that go on when they are queued again, and parts that SLURM names."""

from __future__ import annotations

import json
import shlex
import subprocess
import time
from pathlib import Path

import pytest

from tests.inference.test_predictor import make_model, make_pictures
from unisegdiff_pipeline.commands import predict, train
from unisegdiff_pipeline.commands.slurm import JobArray, array_part
from unisegdiff_pipeline.core.errors import UsdError

REQUEUE = 'scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"'


def checked(script: str) -> str:
    """The script, whose syntax bash accepts."""
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    return script


def write_splits(root: Path, num_folds: int) -> None:
    folder = root / "Dataset004_X"
    folder.mkdir(parents=True)
    names = [f"c{i}" for i in range(num_folds)]
    records = [{"case_id": n, "group": n, "num_raters": 0, "volumes_mm3": {}, "foreground_mm3": 1.0} for n in names]
    (folder / "cases.json").write_text(json.dumps(records))
    splits = [{"train": [other for other in names if other != name], "val": [name]} for name in names]
    (folder / "splits_final.json").write_text(json.dumps(splits))


def print_jobs(root: Path, *flags: str) -> int:
    """Exit code of `usd_train 4 cv ... --print-jobs slurm` on a data set of two folds."""
    write_splits(root, 2)
    roots = ["--preprocessed", str(root), "--results", str(root)]
    return train.main(["4", "cv", *roots, *flags, "--print-jobs", "slurm"])


def test_a_task_for_each_fold_with_the_flags_that_were_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("usd_results", str(tmp_path))
    root = tmp_path / "it's here"
    write_splits(root, 3)
    flags = ["--preprocessed", str(root), "-c", "2d", "--max-time", "9h", "--tensorboard", "--lr", "0.0004"]
    flags += ["--no-compile"]
    assert train.main(["4", "cv", *flags, "--print-jobs", "slurm"]) == 0
    script = checked(capsys.readouterr().out)
    assert "#SBATCH --array=0-2\n#SBATCH --gres=gpu:1\n" in script
    assert "#SBATCH --requeue\n" in script
    assert REQUEUE in script
    (line,) = (line for line in script.splitlines() if line.startswith("usd_train"))
    assert line.startswith('usd_train 4 "$SLURM_ARRAY_TASK_ID" --configuration 2d --max-time 32400 --lr 0.0004')
    assert f"--preprocessed {shlex.quote(str(root))}" in line
    assert "--tensorboard" in line
    assert "--no-compile" in line
    assert "--print-jobs" not in line
    assert "# Once all tasks have ended: usd_train 4 cv --configuration 2d" in script
    assert train.main(["4", "cv", *flags, "--device", "cpu", "--print-jobs", "slurm"]) == 0
    assert "gpu" not in capsys.readouterr().out
    assert train.main(["4", "0", *flags, "--print-jobs", "slurm"]) == 1
    assert "FOLD is 0; write cv" in capsys.readouterr().err


def test_numbers_of_a_task_are_those_that_were_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert print_jobs(tmp_path, "--max-time", "400h", "--lr", "0.0001234567") == 0
    (line,) = (line for line in checked(capsys.readouterr().out).splitlines() if line.startswith("usd_train"))
    assert "--max-time 1440000 " in line
    flags = shlex.split(line.removesuffix(" &"))[3:]
    asked = train.build_parser().parse_args(["4", "0", *flags])
    assert (asked.max_time, asked.lr) == (1_440_000, 0.0001234567)


def test_a_task_that_is_queued_again_never_begins_its_fold_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert print_jobs(tmp_path, "--restart") == 1
    said = capsys.readouterr()
    assert "#SBATCH" not in said.out
    assert "--restart" in said.err
    assert "--run NAME" in said.err


def test_validation_of_all_folds_is_gathered_and_not_repeated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert print_jobs(tmp_path, "--val") == 0
    lines = checked(capsys.readouterr().out).splitlines()
    (task,) = (line for line in lines if line.startswith("usd_train"))
    (afterwards,) = (line for line in lines if line.startswith("# Once all tasks have ended: "))
    assert "--val" in task
    assert "--val" not in afterwards


def test_a_task_for_each_part(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["-i", "a_0000.png", "b c_0000.png", "-o", "out", "-d", "4", "--num-parts", "4"]
    assert predict.main([*flags, "--print-jobs", "slurm"]) == 0
    script = checked(capsys.readouterr().out)
    assert "#SBATCH --array=0-3\n" in script
    (line,) = (line for line in script.splitlines() if line.startswith("usd_predict"))
    assert "--input a_0000.png 'b c_0000.png' --output out --dataset 4" in line
    assert '--num-parts 4 --part-id "$SLURM_ARRAY_TASK_ID"' in line
    with pytest.raises(SystemExit):
        predict.main([*flags[:-2], "--print-jobs", "slurm"])
    assert "--print-jobs needs --num-parts N" in capsys.readouterr().err


@pytest.mark.parametrize(("code", "queued"), [(0, False), (1, False), (143, True)])
def test_a_task_is_queued_again_where_it_was_terminated(tmp_path: Path, code: int, queued: bool) -> None:
    (tmp_path / "scontrol").write_text(f'#!/bin/bash\necho "$@" > {tmp_path}/called\n')
    (tmp_path / "scontrol").chmod(0o755)
    script = JobArray("x", 2, f'(test "$SLURM_ARRAY_TASK_ID" = 1 && exit {code})', with_gpu=False).script()
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "1"}
    assert subprocess.run(["bash", "-c", checked(script)], env=environment, check=False).returncode == code
    assert (tmp_path / "called").exists() is queued
    if queued:
        assert (tmp_path / "called").read_text() == "requeue 7_1\n"


@pytest.mark.parametrize("signals", [1, 3])
def test_a_signal_reaches_the_task_and_is_waited_for(tmp_path: Path, signals: int) -> None:
    (tmp_path / "scontrol").write_text(f"#!/bin/bash\ntouch {tmp_path}/called\n")
    (tmp_path / "scontrol").chmod(0o755)
    saving = f"sleep 1; echo saved > {tmp_path}/saved; exit 143"
    task = f"bash -c 'trap \"{saving}\" TERM; touch {tmp_path}/begun; while :; do sleep 0.05; done'"
    script = JobArray("x", 1, task, with_gpu=False).script()
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "0"}
    with subprocess.Popen(["bash", "-c", script], env=environment) as job:
        while not (tmp_path / "begun").exists():
            time.sleep(0.02)
        for _ in range(signals):  # at the warning, at the time limit, by whoever preempts it
            job.terminate()
            time.sleep(0.2)
        assert job.wait(60) == 143
    assert (tmp_path / "saved").read_text() == "saved\n"
    assert (tmp_path / "called").exists()


def test_parts_that_slurm_names() -> None:
    array = {"SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_ID": "3"}
    assert array_part(None, None, {}) == (1, 0, "")
    assert array_part(5, 2, {}) == (5, 2, "part 2 of 5")
    assert array_part(5, 2, array) == (5, 2, "part 2 of 5")
    assert array_part(None, None, array)[:2] == (4, 3)
    assert array_part(None, None, array)[2].startswith("part 3 of 4, by the SLURM job array")
    assert array_part(1, 0, array) == (1, 0, "")
    assert array_part(1, None, array) == (1, 0, "")
    assert array_part(8, None, array)[:2] == (8, 3)
    with pytest.raises(UsdError, match=r"this is task 4 of a SLURM array of 4.*--array=0-3.*--num-parts 1"):
        array_part(None, None, {**array, "SLURM_ARRAY_TASK_ID": "4"})


def test_the_note_and_the_part_of_a_prediction(capsys: pytest.CaptureFixture[str], monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "2")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    assert predict.main(["-i", str(tmp_path), "-o", str(tmp_path / "out"), "-m", str(tmp_path / "nowhere")]) == 1
    assert "note: part 1 of 2, by the SLURM job array" in " ".join(capsys.readouterr().err.split())


def test_parts_that_nobody_numbers_are_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("COUNT", "ID"):
        monkeypatch.delenv(f"SLURM_ARRAY_TASK_{name}", raising=False)
    words = ["-i", str(tmp_path), "-o", str(tmp_path / "out"), "-m", str(tmp_path / "nowhere"), "--num-parts"]
    with pytest.raises(SystemExit) as stop:
        predict.main([*words, "4"])
    assert stop.value.code == 2
    assert "--num-parts 4 needs --part-id K" in capsys.readouterr().err
    for one in ("1", "4 --part-id 2"):  # are no error of the command line
        assert predict.main([*words, *one.split()]) == 1
    assert "note: part 2 of 4." in capsys.readouterr().err


def test_a_task_whose_part_is_empty_fails_and_names_the_way_out(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "10")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    model, images, out = make_model(tmp_path, 2), make_pictures(tmp_path / "patient_3", 1), tmp_path / "out"
    words = ["-i", str(images), "-o", str(out), "-m", str(model), "--device", "cpu"]
    assert predict.main(words) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "part 3 of 10 holds no case, there is 1 case in all" in said
    assert "--num-parts 1" in said
    assert not out.exists()
    assert predict.main([*words, "--num-parts", "1"]) == 0
    assert (out / "case0.png").is_file()
