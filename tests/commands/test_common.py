"""Strict flags, durations, and errors as one paragraph with an exit code."""

from __future__ import annotations

import argparse
import errno
import gc
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

from unisegdiff_pipeline.commands import common
from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.files import atomic_path


def parser() -> common.CommandParser:
    made = common.CommandParser("usd_test", "A command.")
    made.add_argument("--max-time", type=common.duration)
    made.add_argument("--epochs", type=common.whole_number(1))
    return made


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("15m", 900), ("2h", 7200), ("45", 45), ("1.5m", 90)])
def test_duration(text: str, seconds: float) -> None:
    assert common.duration(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "0s", "-5", "5 d", "1h30", "m", "nan", "1e3"])
def test_wrong_duration(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="15m"):
        common.duration(text)


def test_misspelt_flag_is_an_error_with_a_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parser().parse_args(["--max-tme", "5m"])
    assert stop.value.code == 2
    assert "unknown flag --max-tme; did you mean --max-time?" in capsys.readouterr().err


def test_flags_are_not_abbreviated(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parser().parse_args(["--epoch", "5"])
    assert stop.value.code == 2
    assert "did you mean --epochs?" in capsys.readouterr().err


def test_value_with_equals_sign_is_parsed() -> None:
    assert parser().parse_args(["--max-time=2m"]).max_time == 120


@pytest.mark.parametrize("text", ["0", "x", "1.5", "-1"])
def test_whole_number_names_the_bound(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="at least 1"):
        common.whole_number(1)(text)


@pytest.mark.parametrize("text", ["0", "8", "100000000000", "7.0"])
def test_whole_number_names_both_bounds(text: str) -> None:
    assert common.whole_number(1, 7)("7") == 7
    with pytest.raises(argparse.ArgumentTypeError, match="whole number from 1 to 7"):
        common.whole_number(1, 7)(text)


@pytest.mark.parametrize("text", ["0", "-2", "inf", "nan", "x"])
def test_positive_number(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="above zero"):
        common.positive_number(text)


def test_device_name() -> None:
    assert common.device_name("cuda:1") == "cuda:1"
    with pytest.raises(argparse.ArgumentTypeError, match="auto, cpu"):
        common.device_name("gpu")


def raising(error: BaseException) -> int:
    def body() -> None:
        raise error

    return common.run(body)


def test_user_errors_are_paragraphs_without_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert raising(UsdError("first problem.\nsecond problem.")) == 1
    assert capsys.readouterr().err == "error: first problem.\nerror: second problem.\n"


def test_interruption_and_success() -> None:
    assert raising(KeyboardInterrupt()) == 130
    assert common.run(lambda: None) == 0
    assert common.run(lambda: 1) == 1


def test_sigterm_removes_what_was_being_written(tmp_path: Path) -> None:
    def body() -> None:
        with atomic_path(tmp_path / "mask.png") as temporary:
            temporary.write_text("half")
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)

    before = signal.getsignal(signal.SIGTERM)
    assert common.run(body) == 143
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_interruption_waits_for_the_end_of_an_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slow_to_import.py").write_text("import signal; signal.raise_signal(signal.SIGTERM); WHOLE = True")
    monkeypatch.syspath_prepend(tmp_path)
    reached = []

    def body() -> None:
        import slow_to_import  # type: ignore[import-not-found]

        reached.append(slow_to_import.WHOLE)
        time.sleep(30)

    assert common.run(body) == common.EXIT_TERMINATED
    assert reached == [True]
    del sys.modules["slow_to_import"]


def test_full_disk_is_named_also_as_a_cause(capsys: pytest.CaptureFixture[str]) -> None:
    error = RuntimeError("cannot write")
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device", "/data/plans.json")
    assert raising(error) == 1
    message = capsys.readouterr().err.replace("\n", " ")
    assert "the disk is full (/data/plans.json): free some space" in message


def test_a_file_above_the_limit_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert raising(OSError(errno.EFBIG, "File too large", "/data/weights")) == 1
    message = " ".join(capsys.readouterr().err.split())
    assert "larger than this disk or the process allows (/data/weights): raise the limit (ulimit -f)" in message
    assert "Traceback" not in message


@pytest.mark.parametrize("name", ["file/below", "file", "n" * 300])
def test_a_path_that_cannot_be_a_folder_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    (tmp_path / "file").touch()
    assert common.run(lambda: (tmp_path / name).mkdir(parents=True, exist_ok=True)) == common.EXIT_ERROR
    said = capsys.readouterr().err
    assert f"nothing can be made or opened here ({tmp_path / name})" in " ".join(said.split())
    assert "Traceback" not in said


def test_faults_of_the_program_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        raising(ZeroDivisionError())


def test_warnings_are_lines(capsys: pytest.CaptureFixture[str]) -> None:
    common.run(lambda: warnings.warn("CT_8bit is not ct", stacklevel=1))
    assert capsys.readouterr().err == "warning: CT_8bit is not ct\n"


@pytest.mark.parametrize(
    ("cause", "message"),
    [
        (OSError(errno.EMFILE, "Too many open files", "/data/a.npz"), "ulimit -n 4096"),
        (RuntimeError("received 0 items of ancdata"), "ulimit -n 4096"),
        (RuntimeError("unable to open shared memory object: Too many open files (24)"), "ulimit -n 4096"),
        (MemoryError(), "memory ran out: end other programs"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "memory ran out"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"),
            "smaller --batch-size",
        ),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "memory ran out (CUDA out of memory."),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), "memory ran out"),
        (RuntimeError("can't start new thread"), "ulimit -u and -v"),
        (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), "ulimit -u and -v"),
    ],
)
def test_what_has_run_out_is_named_whatever_failed_for_it(
    cause: Exception, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def body() -> None:
        raise cause

    assert common.run(body) == 1
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_fault_under_a_limit_of_memory_says_that_there_is_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def body() -> None:
        raise RuntimeError("could not create a primitive")

    monkeypatch.setattr(common, "soft_limit", lambda name: {"AS": 3_072_000_000}[name])
    with pytest.raises(RuntimeError, match="primitive"):
        common.run(body)
    assert "note: this process may address 3.07 GB of memory (ulimit -v 3000000)" in capsys.readouterr().err


def test_a_file_is_not_called_damaged_that_could_not_be_opened(capsys: pytest.CaptureFixture[str]) -> None:
    def body(code: int) -> None:
        try:
            raise OSError(code, "why", "/data/a.npz")
        except OSError as error:
            raise UsdError("/data/a.npz is truncated or damaged; preprocess again.") from error

    assert common.run(lambda: body(errno.EMFILE)) == 1
    said = capsys.readouterr().err
    assert "ulimit -n 4096" in said
    assert "damaged" not in said
    assert common.run(lambda: body(errno.EIO)) == 1
    assert "damaged" in capsys.readouterr().err


def test_what_comes_with_torch_is_no_work_for_the_garbage_collector() -> None:
    code = (
        "import gc, sys\n"
        "from unisegdiff_pipeline.commands.common import import_with_torch\n"
        "assert 'torch' not in sys.modules\n"
        "import_with_torch('unisegdiff_pipeline.diffusion.coding')\n"
        "at_rest = gc.get_freeze_count()\n"
        "import_with_torch('unisegdiff_pipeline.training.run')\n"
        "print(gc.isenabled(), at_rest > 100_000, gc.get_freeze_count() == at_rest)\n"
        "print(len(gc.get_objects()) < at_rest / 100)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["True"] * 4, done.stderr


def test_the_garbage_collector_goes_on_where_an_import_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    with pytest.raises(ModuleNotFoundError):
        common.import_with_torch("unisegdiff_pipeline.missing")
    assert gc.isenabled()


def test_output_that_nobody_reads_ends_a_command_without_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)  # what is buffered is printed at the end, too
    body = "[print('line', flush=True) or time.sleep(0.01) for _ in range(1000)]"
    code = f"import sys, time; from unisegdiff_pipeline.commands import common; sys.exit(common.run(lambda: {body}))"
    command = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert command.stdout is not None
    assert command.stderr is not None
    assert command.stdout.readline() == "line\n"
    command.stdout.close()
    assert command.stderr.read() == ""
    assert command.wait(60) == common.EXIT_OUTPUT_CLOSED


def test_a_broken_pipe_of_another_kind_keeps_its_traceback() -> None:
    def body() -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        common.run(body)
