"""Work over cases: order, failures by name, killed workers, and what the machine offers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import types
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from unisegdiff_pipeline.core import parallel
from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.parallel import available_memory_gb, choose_workers, map_cases, usable_cores
from unisegdiff_pipeline.core.progress import telling

NAMES = ["a", "b", "c", "d"]


def _square(x: int) -> int:
    time.sleep(0.01 * (4 - x))  # later items finish first
    return x * x


def _fail_on_odd(x: int) -> int:
    if x == 1:
        raise UsdError("file b is cut; copy it again.")
    if x == 3:
        raise KeyError("three")
    return x


def _die_on_two(x: int) -> int:
    if x == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.05)
    return x


def _crash_on_two(x: int) -> int:
    if x == 2:
        os.kill(os.getpid(), signal.SIGSEGV)
    return x


class _ManyArguments(Exception):
    """Cannot be rebuilt from its message, as errors of some libraries cannot, and so not be sent to another process."""

    def __init__(self, path: str, line: int) -> None:
        super().__init__(f"{path}, line {line}")


def _raise_unsendable(x: int) -> int:
    if x == 1:
        raise _ManyArguments("header", 3)
    return x


def _threads_of_worker(_: int) -> str | None:
    return os.environ.get("OMP_NUM_THREADS")


def _blas_threads(_: int) -> set[int]:
    np.eye(2) @ np.eye(2)
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


def _run(function, **options):
    items = list(range(4))
    return map_cases(function, items, names=NAMES, description="Testing", **options)


@pytest.mark.parametrize("options", [{"workers": 0}, {"workers": 2}, {"workers": 3, "kind": "threads"}])
def test_results_come_in_the_order_of_the_items(options):
    results = _run(_square, **options)
    assert [result.value for result in results] == [0, 1, 4, 9]
    assert [result.name for result in results] == NAMES
    assert results[0].seconds >= 0.04


@pytest.mark.parametrize("options", [{"workers": 0}, {"workers": 2}, {"workers": 2, "kind": "threads"}])
def test_every_failure_is_named_and_the_others_finish(options):
    with pytest.raises(UsdError) as caught:
        _run(_fail_on_odd, **options)
    message = str(caught.value)
    assert "2 of 4 cases failed, the others are done" in message
    assert "b: file b is cut; copy it again." in message
    assert "d: KeyError: 'three'" in message


@pytest.mark.parametrize("options", [{"workers": 2, "preload": ["numpy"]}, {"workers": 2, "kind": "threads"}])
def test_workers_multiply_matrices_with_one_thread_each(options):
    with threadpool_limits(2, user_api="blas"):
        assert [result.value for result in _run(_blas_threads, **options)] == [{1}] * 4
        assert _blas_threads(0) == {2}


def test_others_finish_even_after_a_failure():
    done = []

    def work(x: int) -> None:
        if x == 0:
            raise UsdError("no")
        done.append(x)

    with pytest.raises(UsdError):
        _run(work, workers=0)
    assert done == [1, 2, 3]


def test_a_killed_worker_is_named_and_the_others_finish():
    with pytest.raises(UsdError) as caught:
        _run(_die_on_two, workers=2)
    message = str(caught.value)
    assert "1 of 4 cases failed" in message
    assert "c: its worker process was killed" in message
    assert "fewer workers" in message


@pytest.mark.parametrize("workers", [1, 2])
def test_a_crash_of_native_code_is_named_and_the_others_finish(workers):
    with pytest.raises(UsdError) as caught:
        _run(_crash_on_two, workers=workers, kind="native")
    message = str(caught.value)
    assert "1 of 4 cases failed" in message
    assert "c: its worker process crashed (SIGSEGV) in the native code of a library; a file of the case" in message


def test_a_single_case_that_fails_is_named_unless_its_message_names_a_file():
    for function, item, message in (
        (_crash_on_two, 2, r"c: its worker process crashed \(SIGSEGV\) in the native code"),
        (_fail_on_odd, 3, r"c: KeyError: 'three'"),
        (_fail_on_odd, 1, r"file b is cut; copy it again\."),
    ):
        with pytest.raises(UsdError, match=f"^{message}"):
            map_cases(function, [item], names=["c"], description="Testing", workers=1, kind="native")


@pytest.mark.parametrize("options", [{"workers": 0}, {"workers": 2}, {"workers": 2, "kind": "threads"}])
def test_an_error_of_any_type_is_named_with_its_place_and_without_a_traceback(options, capfd):
    place = r"b: _ManyArguments: header, line 3 \(test_parallel\.py:\d+ in _raise_unsendable\)"
    with pytest.raises(UsdError, match=place) as caught:
        _run(_raise_unsendable, **options)
    assert "1 of 4 cases failed" in str(caught.value)
    assert "Traceback" not in capfd.readouterr().err


def test_ctrl_c_ends_the_workers_at_once():
    def interrupted() -> None:
        with parallel.process_pool(1, ()) as pool:
            pool.submit(time.sleep, 60)
            raise KeyboardInterrupt

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert time.monotonic() - start < 30


def test_workers_use_one_thread_each(monkeypatch):
    assert [result.value for result in _run(_threads_of_worker, workers=2)] == ["1"] * 4


def test_the_main_module_comes_back_when_threads_hide_it_at_once():
    main = sys.modules["__main__"]
    one, other = parallel.main_module_hidden(), parallel.main_module_hidden()
    one.__enter__()
    other.__enter__()
    one.__exit__(None, None, None)
    assert sys.modules["__main__"] is not main
    other.__exit__(None, None, None)
    assert sys.modules["__main__"] is main


def test_nothing_to_do_and_wrong_names():
    assert map_cases(_square, [], names=[], workers=2, description="") == []
    with pytest.raises(ValueError, match="1 names for 2 items"):
        map_cases(_square, [1, 2], names=["a"], workers=0, description="")


def test_the_only_case_keeps_its_own_message():
    with pytest.raises(UsdError, match=r"^file b is cut"):
        map_cases(_fail_on_odd, [1], names=["b"], workers=0, description="Testing")


def test_dask_is_used_through_its_executor(monkeypatch):
    addresses = []

    class Client:
        def __init__(self, address: str) -> None:
            addresses.append(address)
            if address == "nowhere:1":
                raise OSError("timed out")

        def get_executor(self) -> ThreadPoolExecutor:
            return ThreadPoolExecutor(2)

        def close(self) -> None:
            addresses.append("closed")

    monkeypatch.setitem(sys.modules, "distributed", types.SimpleNamespace(Client=Client))
    assert [result.value for result in _run(_square, workers=0, scheduler="tcp://host:8786")] == [0, 1, 4, 9]
    assert addresses == ["tcp://host:8786", "closed"]
    with pytest.raises(UsdError, match="no Dask scheduler answers at nowhere:1"):
        _run(_square, workers=0, scheduler="nowhere:1")
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(UsdError, match="pip install"):
        _run(_square, workers=0, scheduler="tcp://host:8786")


def test_progress_is_told():
    heard = []
    with telling(heard.append):
        _run(_square, workers=0)
    assert (heard[-1].description, heard[-1].done, heard[-1].is_finished) == ("Testing", 4, True)


def test_choose_workers(monkeypatch):
    monkeypatch.setattr(parallel, "usable_cores", lambda: 16)
    monkeypatch.setattr(parallel, "available_memory_gb", lambda: 10.0)
    assert choose_workers(2.0) == 4  # 80 % of 10 GB hold four of 2 GB
    assert choose_workers(0.1) == 16
    assert choose_workers(50.0) == 1
    assert choose_workers(50.0, requested=3) == 3
    assert choose_workers(50.0, requested=0) == 0
    with pytest.raises(UsdError, match="--workers is -1"):
        choose_workers(1.0, requested=-1)


def test_this_machine_has_cores_and_memory():
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)
    assert 0.01 < available_memory_gb() < 1e5


def test_a_script_without_a_guard_is_not_run_by_its_workers(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import operator\n"
        "from unisegdiff_pipeline.core.parallel import map_cases\n"
        "print('begun')\n"
        "names = ['a', 'b', 'c', 'd']\n"
        "found = map_cases(operator.neg, [1, 2, 3, 4], names=names, workers=2, description='Testing')\n"
        "print([one.value for one in found])\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert done.stdout == "begun\n[-1, -2, -3, -4]\n"


def test_a_script_without_a_guard_is_not_run_by_the_worker_that_tries_a_case_again(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import os\n"
        "from unisegdiff_pipeline.core.errors import UsdError\n"
        "from unisegdiff_pipeline.core.parallel import map_cases\n"
        "print('begun')\n"
        "try:\n"
        "    map_cases(os._exit, [1, 2], names=['a', 'b'], workers=2, description='Testing')\n"
        "except UsdError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert done.stdout.count("begun") == 1
    assert "2 of 2 cases failed" in done.stdout
    assert "bootstrapping" not in done.stderr


def test_where_no_process_can_start_cases_are_worked_on_here(monkeypatch):
    def full():
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("multiprocessing.Lock", full)
    with pytest.warns(UserWarning, match=r"/dev/shm is full or missing \(No space left on device\); Testing works in"):
        assert [result.value for result in _run(_square, workers=2)] == [0, 1, 4, 9]
