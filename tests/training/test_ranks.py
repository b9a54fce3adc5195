"""Several processes train one fold as a single one does: the same losses, one checkpoint, any number of processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.diffusion.losses import soft_dice
from unisegdiff_pipeline.inference.model_folder import WEIGHTS_NAME
from unisegdiff_pipeline.io.paths import Roots
from unisegdiff_pipeline.training.checkpoint import CHECKPOINT_NAME
from unisegdiff_pipeline.training.data.loader import default_workers
from unisegdiff_pipeline.training.data.patches import Batch, Part, drawn
from unisegdiff_pipeline.training.interrupt import StopRequest
from unisegdiff_pipeline.training.ranks import ALONE, Ranks, StepOrder, joined, local_device
from unisegdiff_pipeline.training.request import TrainRequest
from unisegdiff_pipeline.training.run import train
from unisegdiff_pipeline.training.trainers import diffusion, trainer
from unisegdiff_pipeline.training.trainers.segmentation import dice_pooling


@pytest.mark.parametrize(
    ("batch_size", "expected"), [(4, [[0, 1], [2, 3]]), (3, [[0], [1, 2]]), (2, [[0], [1]]), (5, [[0, 1], [2, 3, 4]])]
)
def test_each_item_of_a_batch_has_one_process(batch_size: int, expected: list[list[int]]) -> None:
    assert [list(Ranks(rank, 2).items(batch_size)) for rank in range(2)] == expected


def test_a_process_without_an_item_is_refused() -> None:
    with pytest.raises(UsdError, match=r"a batch of 2 cannot be shared by 3 processes: give --batch-size 3 or more"):
        Ranks(0, 3).items(2)


def test_a_part_keeps_its_rows_of_what_the_whole_batch_draws() -> None:
    part = Part(3, torch.tensor([0, 2]))
    assert part.fraction == pytest.approx(2 / 3)
    assert part.repeated(2).rows.tolist() == [0, 1, 4, 5]
    assert drawn(part.repeated(2), 4, torch.arange).tolist() == [0, 1, 4, 5]
    assert drawn(None, 4, torch.arange).tolist() == [0, 1, 2, 3]


def test_examples_are_found_by_their_place_in_the_whole_batch() -> None:
    image = torch.arange(2.0).reshape(2, 1, 1, 1)
    batch = Batch(image, image, image, ("c", "d"), None, Part(4, torch.tensor([2, 3])))
    indices, part = batch.find(torch.tensor([3, 0, 2]))
    assert indices.tolist() == [1, 0]
    assert part is not None
    assert (part.total, part.rows.tolist()) == (3, [0, 2])
    assert batch.select(indices).case_ids == ("d", "c")
    assert batch.select(indices).part is None


def test_batch_dice_is_of_the_sums_over_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    # Here one voxel of two is overlap; the other process, with row 0, has three more in its mask and its label.
    ranks, part = Ranks(1, 2), Part(2, torch.tensor([1]))
    there = torch.tensor([[[0.0], [3.0]], [[0.0], [0.0]]])  # (rows, overlap and size, channels)
    monkeypatch.setattr(Ranks, "sum_", lambda self, values: values + there)
    p, t = torch.ones(1, 1, 2), torch.tensor([[[1.0, 0.0]]])
    configuration: Any = SimpleNamespace(training=SimpleNamespace(batch_dice=True), sources=None)
    batch = Batch(p, t, torch.ones(1, 1, 2), ("a",), None, part)
    dice = soft_dice(p, t, batch.valid, "binary", dice_pooling(batch, configuration, ranks))
    assert dice.item() == pytest.approx(2 * 1 / (3 + 3), abs=1e-4)


def test_batch_dice_of_sources_is_of_the_sums_over_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    # As above, with another example here, of the source of row 0: it alone shares sums with that.
    ranks, part = Ranks(1, 2), Part(3, torch.tensor([1, 2]))
    there = iter([torch.tensor([1, 0, 0]), torch.tensor([[[0.0], [3.0]], [[0.0], [0.0]], [[0.0], [0.0]]])])
    monkeypatch.setattr(Ranks, "sum_", lambda self, values: values + next(there))
    p, t = torch.ones(2, 1, 2), torch.tensor([[[1.0, 0.0]], [[1.0, 1.0]]])
    configuration: Any = SimpleNamespace(
        training=SimpleNamespace(batch_dice=True), sources=SimpleNamespace(plans={"CT": 0, "US": 1})
    )
    batch = Batch(p, t, torch.ones(2, 1, 2), ("CT__a", "US__b"), None, part)
    dice = soft_dice(p, t, batch.valid, "binary", dice_pooling(batch, configuration, ranks))
    assert dice.tolist() == pytest.approx([2 * 1 / 3, 2 * 2 / (4 + 3)], abs=1e-4)


def test_without_torchrun_a_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")  # of another launcher
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    with joined("cpu") as ranks:
        assert ranks is ALONE
    numbers = {"loss": torch.tensor(1.0)}
    assert ALONE.sum_step([], numbers, StopRequest()) is numbers
    values = torch.ones(2)
    assert ALONE.gather(values, None) is values


def test_each_process_takes_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [local_device("auto", rank, 2) for rank in range(2)] == [torch.device("cuda", 0), torch.device("cuda", 1)]
    assert local_device("cuda:1", 0, 1) == torch.device("cuda", 1)
    assert local_device("cpu", 1, 2) == torch.device("cpu")
    with pytest.raises(UsdError, match="--device cuda:1 is one device, but torchrun started 2 processes"):
        local_device("cuda:1", 0, 2)
    with pytest.raises(UsdError, match="which has 2 CUDA devices; give --nproc-per-node 2"):
        local_device("auto", 3, 4)


def test_workers_are_shared_by_the_processes_of_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unisegdiff_pipeline.training.data.loader.usable_cores", lambda: 16)
    assert [default_workers(processes) for processes in (1, 2, 4, 16)] == [12, 7, 3, 1]


# Whole trainings ------------------------------------------------------------------------------------------------------


def request_in(prepared: Path, results: Path) -> TrainRequest:
    roots = Roots(raw=None, preprocessed=prepared, results=results)
    return TrainRequest("902", "all", roots, iterations=8, batch_size=3, workers=0, device="cpu", seed=3)


def log_every_iteration() -> None:
    """Also measure each, and noise two patches of a batch, so that a process may have none of them."""
    trainer.LOG_EVERY_S, diffusion.MOST_EXAMPLES, diffusion.MEASURE_EVERY = -1.0, 12, 1  # type: ignore[misc]


def signal_at(rank: int, phase: int, iteration: int, number: int) -> None:
    """Let one process send itself a signal as it begins an iteration."""
    original = trainer.Trainer.take_step

    def take_step(self: trainer.Trainer, step: StepOrder, batch: Batch) -> dict[str, torch.Tensor]:
        if (int(os.environ["RANK"]), self.phase, step.iteration) == (rank, phase, iteration):
            os.kill(os.getpid(), number)
        return original(self, step, batch)

    trainer.Trainer.take_step = take_step  # type: ignore[method-assign]


PROGRAM = """
import sys
from pathlib import Path
from tests.training import test_ranks as t
from unisegdiff_pipeline.commands import train
prepared, results, at, *more = sys.argv[1:]
t.log_every_iteration()
if at:
    t.signal_at(*map(int, at.split()))
sys.exit(train.main([*t.arguments(prepared, results), *more]))
"""


def arguments(prepared: str, results: str) -> list[str]:
    """What `request_in` asks, for the command."""
    roots = ["--preprocessed", prepared, "--results", results]
    return ["902", "all", "--batch-size", "3", "--workers", "0", "--device", "cpu", "--seed", "3", *roots]


def start(
    size: int, prepared: Path, results: Path, at: tuple[int, ...] = (), length: tuple[str, ...] = ("--iterations", "8")
) -> list[subprocess.Popen[str]]:
    """Processes with the variables that torchrun sets; `at` as for `signal_at`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"TORCHELASTIC_RUN_ID": "test", "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PROGRAM, str(prepared), str(results), " ".join(map(str, at)), *length]
    return [
        subprocess.Popen(
            command,
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]


def ended(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """Exit code, what was said and complained of, of each; none hangs."""
    found = []
    try:
        for process in processes:
            out, err = process.communicate(timeout=300)
            found.append((process.returncode, out, err))
    finally:
        for process in processes:
            process.kill()
    return found


def entries(folder: Path, kind: str) -> list[dict[str, Any]]:
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [entry for entry in map(json.loads, lines) if entry["kind"] == kind]


def fold_in(results: Path) -> Path:
    (folder,) = results.glob("*/*/fold_all")
    return folder


@pytest.fixture(scope="module")
def one(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fold as a single process trains it."""
    with pytest.MonkeyPatch.context() as patch:
        for module, name in ((trainer, "LOG_EVERY_S"), (diffusion, "MOST_EXAMPLES"), (diffusion, "MEASURE_EVERY")):
            patch.setattr(module, name, getattr(module, name))  # put back at the end
        log_every_iteration()
        return train(request_in(prepared, tmp_path_factory.mktemp("one"))).folds[0].folder


NUMBERS = ("loss", "loss_a", "loss_b", "loss_c", "loss_segmenter", "loss_full_resolution", "learning_rate")


def assert_same_training(one: Path, other: Path) -> None:
    """Losses of every iteration to 1e-5, what is measured by band of lam, and about the same weights."""
    pairs = list(zip(entries(one, "train"), entries(other, "train"), strict=True))
    assert {(a["phase"], a["iteration"]) for a, _ in pairs} >= {(1, 1), (1, 2), (2, 1), (2, 2)}
    for a, b in pairs:
        assert (a.keys(), a["phase"], a["iteration"]) == (b.keys(), b["phase"], b["iteration"])
        for name in a.keys() & {*NUMBERS}:
            assert b[name] == pytest.approx(a[name], abs=1e-5), (name, a["phase"], a["iteration"])
        assert b["gradient_norm"] == pytest.approx(a["gradient_norm"], rel=1e-4)
    for a, b in zip(entries(one, "bands"), entries(other, "bands"), strict=True):
        assert a["num_examples"] == b["num_examples"]
        for name in ("loss", "gradient_norm", "dice"):
            assert b[name] == pytest.approx(a[name], abs=1e-4, nan_ok=True)
    weights, others = load_file(one / WEIGHTS_NAME), load_file(other / WEIGHTS_NAME)
    assert all(torch.allclose(weights[name], others[name], atol=1e-3) for name in weights)
    assert sorted(p.name for p in one.iterdir()) == sorted(p.name for p in other.iterdir())


def test_two_processes_have_the_losses_of_one(prepared: Path, one: Path, tmp_path: Path) -> None:
    leader, follower = ended(start(2, prepared, tmp_path))
    assert leader[0] == 0, leader[2]
    assert "2 processes share each batch of 3; this one leads" in leader[1]
    assert follower == (0, "", "")  # the leader alone speaks
    assert_same_training(one, fold_in(tmp_path))


def test_a_signal_to_any_process_saves_one_checkpoint_that_one_process_continues(
    prepared: Path, one: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leader, follower = ended(start(2, prepared, tmp_path, at=(1, 1, 2, signal.SIGTERM)))
    assert (leader[0], follower) == (128 + signal.SIGTERM, (0, "", ""))
    assert "stopped by SIGTERM; what has been trained is saved" in " ".join(leader[2].split())
    state = torch.load(fold_in(tmp_path) / CHECKPOINT_NAME, weights_only=True)
    assert (state["phase"], state["iteration"]) == (1, 3)  # all ended the iteration together
    for module, name in ((trainer, "LOG_EVERY_S"), (diffusion, "MOST_EXAMPLES"), (diffusion, "MEASURE_EVERY")):
        monkeypatch.setattr(module, name, getattr(module, name))
    log_every_iteration()
    train(request_in(prepared, tmp_path))
    losses = [[(e["phase"], e["iteration"], e["loss"]) for e in entries(f, "train")] for f in (one, fold_in(tmp_path))]
    known = {row[:2]: row[2] for row in losses[1]}
    assert known.keys() >= {(1, 1), (1, 2), (1, 4), (2, 2)}
    for phase, iteration, loss in losses[0]:
        if (phase, iteration) != (1, 3):  # saved before it was logged
            assert known[phase, iteration] == pytest.approx(loss, abs=1e-5)


@pytest.mark.parametrize("killed", [0, 1])
def test_where_a_process_dies_the_others_end_with_one_error(prepared: Path, tmp_path: Path, killed: int) -> None:
    results = ended(start(2, prepared, tmp_path, at=(killed, 1, 2, signal.SIGKILL)))
    code, _, complaint = results[1 - killed]
    assert results[killed][0] == -signal.SIGKILL
    assert code == 1
    who = "another process" if killed else "process 0, which leads,"
    assert f"error: {who} of this training has ended or does not answer" in " ".join(complaint.split())
    assert "Traceback" not in complaint
    if killed == 1:
        assert torch.load(fold_in(tmp_path) / CHECKPOINT_NAME, weights_only=True)["iteration"] == 2


def test_torchrun_starts_the_command_and_the_clock_of_the_first_process_ends_it(prepared: Path, tmp_path: Path) -> None:
    script = tmp_path / "usd_train"
    script.write_text("import sys; from unisegdiff_pipeline.commands.train import main; sys.exit(main())")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--"]
    command += [str(script), *arguments(str(prepared), str(tmp_path / "results")), "--max-time", "5s", "--run", "two"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("fold trained in") == 1
    fold = fold_in(tmp_path / "results")
    assert (fold / WEIGHTS_NAME).is_file()
    # An iteration that no longer fits is not begun, so that the training ends shortly before its time or behind it.
    assert entries(fold, "finished")[0]["seconds"] > 2.5
    (last,) = [e for e in entries(fold, "train") if e["phase"] == 2][-1:]
    assert last["progress"] == 1
