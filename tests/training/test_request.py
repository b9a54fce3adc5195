"""What a fold was asked: continued without the flag, refused with another value, and kept beside others by a name."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.io.paths import Roots
from unisegdiff_pipeline.training.request import TrainRequest
from unisegdiff_pipeline.training.resume import as_asked, like_the_others, read_request, taken_over

ROOTS = Roots(None, None, None)
PLANNED = {"num_epochs": 250, "learning_rate": 0.002, "batch_size": 4}
Folder = Callable[..., Path]


@pytest.fixture
def fold(tmp_path: Path) -> Folder:
    """Makes a fold's folder that was asked what is given."""

    def make(**asked: Any) -> Path:
        open_ = dict.fromkeys(("max_time_s", "epochs", "iterations", "batch_size", "learning_rate", "phase_1_from"))
        cases: dict[str, Any] = {f"{part}_cases": [] for part in ("train", "holdout", "validation")}
        training = PLANNED | {name: asked[name] for name in ("learning_rate", "batch_size") if asked.get(name)}
        request = {**open_, **cases, "seed": 0, "training": training, **asked}
        (tmp_path / "request.json").write_text(json.dumps(request))
        return tmp_path

    return make


def ask(**flags: Any) -> TrainRequest:
    return TrainRequest("4", "0", ROOTS, **flags)


@pytest.mark.parametrize(
    "asked",
    [
        {"max_time_s": 900.0},
        {"epochs": 3},
        {"iterations": 20, "batch_size": 7},
        {"learning_rate": 0.001, "seed": 5, "augmentation": "nnunet"},
        {"phase_1_from": "/models/fold_0"},
    ],
)
def test_the_command_without_its_flags_is_the_command_with_them(fold: Folder, asked: dict[str, Any]) -> None:
    folder = fold(**asked)
    paths = {"phase_1_from": Path(asked["phase_1_from"])} if "phase_1_from" in asked else {}
    with_flags = as_asked(ask(**{**asked, **paths}), folder)
    assert as_asked(ask(), folder) == with_flags
    assert {name: getattr(with_flags, name) for name in asked} == {**asked, **paths}


def test_what_is_kept_of_validation_cases_is_asked_once_and_may_change(fold: Folder) -> None:
    """It changes no weights."""
    folder = fold(save_validation="all")
    assert as_asked(ask(), folder).save_validation == "all"
    assert as_asked(ask(save_validation="masks"), folder).save_validation == "masks"
    assert as_asked(ask(), fold()).save_validation is None  # a request of an earlier version
    with pytest.raises(UsdError, match=r"request\.json: save_validation"):
        as_asked(ask(), fold(save_validation="some"))


def test_the_other_folds_keep_of_validation_cases_what_the_first_keep() -> None:
    every, masks = ask(save_validation="all"), ask(save_validation="masks")
    assert like_the_others(ask(), {"0": every, "1": every}).save_validation == "all"
    assert like_the_others(ask(), {"0": every, "1": masks}).save_validation is None
    assert like_the_others(masks, {"0": every}).save_validation == "masks"


def test_what_was_never_asked_is_the_plan_s(fold: Folder, tmp_path: Path) -> None:
    new = as_asked(ask(learning_rate=0.1), tmp_path)
    assert (new.learning_rate, new.seed, new.batch_size, new.epochs) == (0.1, 0, None, None)
    # Values that the plan has anyway are no other request, nor is what trainings did before it could be asked for.
    assert as_asked(ask(augmentation="default"), fold()).augmentation is None
    assert as_asked(ask(learning_rate=0.002, epochs=250, batch_size=4, seed=0), fold()).learning_rate is None


@pytest.mark.parametrize(
    ("asked", "now", "message"),
    [
        ({}, {"learning_rate": 0.001}, r"with --lr 0\.002 and is now asked for --lr 0\.001"),
        ({"learning_rate": 0.01}, {"learning_rate": 0.001}, r"with --lr 0\.01 and is now asked for --lr 0\.001"),
        ({"max_time_s": 900.0}, {"iterations": 5}, r"with --max-time 900s and is now asked for --iterations 5"),
        ({"max_time_s": 900.0}, {"max_time_s": 60.0}, r"with --max-time 900s and is now asked for --max-time 60s"),
        ({}, {"max_time_s": 60.0}, r"with --epochs 250 and is now asked for --max-time 60s"),
        ({"seed": 3}, {"seed": 0}, r"with --seed 3 and is now asked for --seed 0"),
        ({}, {"batch_size": 2, "seed": 1}, r"--batch-size 4 and .* --batch-size 2, with --seed 0 and .* --seed 1"),
        ({}, {"augmentation": "nnunet"}, r"with --augmentation default and is now asked for --augmentation nnunet"),
        ({"augmentation": "nnunet"}, {"augmentation": "default"}, r"--augmentation nnunet and .* default"),
        ({}, {"phase_1_from": Path("/m/fold_0")}, r"no --phase-1-from and is now asked for --phase-1-from /m/fold_0"),
    ],
)
def test_another_request_is_refused_with_both_values_and_the_ways_out(
    fold: Folder, asked: dict[str, Any], now: dict[str, Any], message: str
) -> None:
    folder = fold(**asked)
    with pytest.raises(UsdError, match=rf"{message}.*Leave the flag out.*--run NAME.*--restart"):
        as_asked(ask(**now), folder)
    assert as_asked(ask(**now, restart=True), folder).restart


def test_what_changes_no_training_may_differ(fold: Folder) -> None:
    folder = fold(iterations=5)
    other = as_asked(ask(workers=3, device="cuda:1", checkpoint_every_s=1.0, tensorboard=True), folder)
    assert (other.workers, other.device, other.iterations) == (3, "cuda:1", 5)


def test_numbers_that_earlier_versions_called_otherwise_are_compared_by_their_present_names(fold: Folder) -> None:
    folder = fold()
    stored = json.loads((folder / "request.json").read_text())
    stored["training"] |= {"foreground_share": 0.5, "phase_1_share": 0.6}
    (folder / "request.json").write_text(json.dumps(stored))
    request = read_request(folder)
    assert request is not None
    training = request["training"]
    assert (training["foreground_fraction"], training["phase_1_fraction"]) == (0.5, 0.6)
    assert not any(name.endswith("_share") for name in training)


def test_folders_of_earlier_versions_know_their_batch_size_and_learning_rate(fold: Folder) -> None:
    folder = fold()
    stored = json.loads((folder / "request.json").read_text())
    for name in ("batch_size", "learning_rate"):
        del stored[name]
    stored["training"]["learning_rate"] = 0.5  # by a flag or by a plan of then, which is not known
    (folder / "request.json").write_text(json.dumps(stored))
    assert as_asked(ask(), folder).learning_rate == 0.5
    with pytest.raises(UsdError, match=r"--lr 0\.5 and is now asked for --lr 0\.1"):
        as_asked(ask(learning_rate=0.1), folder)


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"training": 3}', '{"training": {}, "iterations": "5"}', '{"training": {}, "seed": 1}']
)
def test_a_damaged_request_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "request.json").write_text(content)
    with pytest.raises(UsdError, match=r"request\.json.*--restart"):
        read_request(tmp_path)
    assert as_asked(ask(restart=True), tmp_path).seed == 0


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("max_time_s", -1, "above 0"),
        ("epochs", 0, "from 1"),
        ("iterations", -3, "from 1"),
        ("iterations", 2.5, "a whole number"),
        ("batch_size", 0, "from 1"),
        ("learning_rate", 1e9, "above 0 to 10"),
        ("seed", -1, "from 0"),
        ("seed", "x", "a whole number"),
        ("phase_1_from", 3, "a text"),
        ("train_cases", [1], "a text"),
        ("training", [], "an object"),
    ],
)
def test_hand_edits_of_a_request_name_key_and_what_is_allowed(fold: Folder, key: str, value: Any, allowed: str) -> None:
    folder = fold(**{key: value})
    with pytest.raises(UsdError, match=rf"request\.json: {key}.*{re.escape(allowed)}"):
        read_request(folder)


def test_a_cross_validation_goes_on_as_its_first_folds_were_asked() -> None:
    begun = {"0": ask(max_time_s=60.0, seed=1), "1": ask(max_time_s=60.0, seed=1)}
    new = like_the_others(ask(workers=2), begun)
    assert (new.max_time_s, new.seed, new.workers) == (60.0, 1, 2)
    assert like_the_others(ask(), {}) == ask()
    assert taken_over(ask(), new) == "--max-time 60s, --seed 1"


def test_folds_that_were_asked_different_things_leave_the_next_one_open() -> None:
    begun = {"0": ask(max_time_s=60.0), "1": ask(iterations=9)}
    with pytest.raises(UsdError, match=r"fold 0: --max-time 60s, fold 1: --iterations 9"):
        like_the_others(ask(), begun)
    assert dataclasses.asdict(like_the_others(ask(epochs=2, seed=0), begun))["epochs"] == 2
