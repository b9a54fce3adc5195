"""nnU-Net's flags and order of arguments, understood where their meaning is clear.

Each command that has a counterpart in nnU-Net has a table: what a flag is called here, or why it is not needed, or why
it cannot be had and what to do instead. What was understood is said in our own words, so that nobody has to guess it.
"""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

FOLD = re.compile(r"\d+|all|cv")


class NotUnderstoodError(ValueError):
    """Arguments of nnU-Net that have no counterpart; the message says why and what to do instead."""


@dataclass(frozen=True)
class Translation:
    """What a flag of nnU-Net and its values are here: our arguments for them, or why they are not needed."""

    ours: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Flag:
    """A flag of nnU-Net: how many values it takes ("0", "1" or "+") and what it means with them."""

    takes: str
    meaning: Callable[[Sequence[str]], Translation]


@dataclass(frozen=True)
class Understood:
    """Our arguments for those given.

    Attributes:
        arguments: in our words.
        notes: what was left out, and why.
        is_foreign: whether anything was nnU-Net's.
    """

    arguments: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    is_foreign: bool = False

    def text(self, command: str) -> str:
        """What was understood, for people."""
        notes = "".join(f" {note}." for note in self.notes)
        return f"understood as: {command} {shlex.join(self.arguments)}{notes}"


def understand(parser: argparse.ArgumentParser, flags: Mapping[str, Flag], given: Sequence[str]) -> Understood:
    """Arguments that may be nnU-Net's, ours or mixed, as ours.

    Args:
        parser: our parser of the command.
        flags: nnU-Net's flags for it that ours does not have, or understands otherwise.
        given: arguments of the command line.

    Raises:
        NotUnderstoodError: a flag has no counterpart here.
    """
    found, is_foreign = Understood(), False
    positional: list[str] = []
    ended = False  # by "--", after which nothing is a flag
    for name, values in _split(parser, flags, given):
        if name is None:
            ended = ended or values[0] == "--"
            positional += values[1:] if values[0] == "--" else values
            continue
        if name not in flags:
            found.arguments.extend((name, *values))
            continue
        try:
            meaning = flags[name].meaning(values)
        except NotUnderstoodError as error:
            raise NotUnderstoodError(f"{name} is a flag of nnU-Net: {error}") from None
        if meaning.ours and not _is_flag(meaning.ours[0]):
            is_foreign, positional = True, [*positional, *meaning.ours]
            continue
        if meaning.ours and meaning.ours[0] not in parser._option_string_actions:
            raise NotUnderstoodError(f"{name} of nnU-Net would be {meaning.ours[0]} here, which this command has not")
        found.arguments.extend(meaning.ours)
        is_foreign = is_foreign or tuple(meaning.ours) != (name, *values)
        if meaning.note:
            found.notes.append(f"{name} is not needed: {meaning.note}")
    if parser.prog == "usd_train" and len(positional) == 3 and FOLD.fullmatch(positional[2]):
        dataset, configuration, fold = positional  # nnU-Net's order
        if not FOLD.fullmatch(configuration):
            is_foreign, positional = True, [dataset, fold]
            found.arguments[:0] = ["-c", configuration]
    found.arguments[:] = [*found.arguments, "--", *positional] if ended else [*positional, *found.arguments]
    return Understood(found.arguments, found.notes, is_foreign)


def _split(
    parser: argparse.ArgumentParser, flags: Mapping[str, Flag], given: Sequence[str]
) -> list[tuple[str | None, list[str]]]:
    """The arguments as (flag, its values), in order; positional ones have no flag."""
    pieces: list[tuple[str | None, list[str]]] = []
    rest = list(given)
    while rest:
        token = rest.pop(0)
        if token == "--":
            pieces.append((None, [token, *rest]))
            break
        if not _is_flag(token):
            pieces.append((None, [token]))
            continue
        takes = flags[token].takes if token in flags else _takes(parser._option_string_actions.get(token))
        values: list[str] = []
        while rest and not _is_flag(rest[0]) and (takes == "+" or (takes == "1" and not values)):
            values.append(rest.pop(0))
        pieces.append((token, values))
    return pieces


def _is_flag(token: str) -> bool:
    return token.startswith("-") and len(token) > 1 and not re.match(r"-\.?\d", token)


def _takes(action: argparse.Action | None) -> str:
    if action is None or action.nargs == 0:
        return "0"
    return "1" if action.nargs is None else "+"


# ------------------------------------------------------------------------------------------------- meanings of one flag


def renamed(flag: str, takes: str = "1") -> Flag:
    """The same under another name."""
    return Flag(takes, lambda values: Translation((flag, *values)))


def needless(note: str, takes: str = "0") -> Flag:
    """A flag that asks for what happens anyway."""
    return Flag(takes, lambda values: Translation(note=note))


def refused(why: str, takes: str = "1") -> Flag:
    """A flag that asks for what is not to be had; `why` ends with what to do instead."""

    def meaning(values: Sequence[str]) -> Translation:
        raise NotUnderstoodError(why)

    return Flag(takes, meaning)


def needless_if(allowed: Sequence[str], note: str, why: str) -> Flag:
    """A flag of which some values ask for what happens anyway, and all others for what is not to be had."""

    def meaning(values: Sequence[str]) -> Translation:
        if list(values[:1]) not in [[value] for value in allowed]:
            raise NotUnderstoodError(why)
        return Translation(note=note)

    return Flag("1", meaning)


def _plans(values: Sequence[str]) -> Translation:
    return (
        Translation(note="that is the default plan")
        if list(values) == ["nnUNetPlans"]
        else Translation(("--plans", *values))
    )


def _trainer(values: Sequence[str]) -> Translation:
    if list(values) == ["nnUNetTrainer"]:
        return Translation(note="the default trainer is taken")
    if values and values[0].startswith("nnUNetTrainer"):
        raise NotUnderstoodError(
            f"{values[0]} is not here. Leave -tr out for the default, or name a trainer with --trainer; a length is a "
            f"flag: --epochs N, --iterations N or --max-time TIME"
        )
    return Translation(("--trainer", *values))


def _workers(values: Sequence[str]) -> Translation:
    if len(values) != 1:
        raise NotUnderstoodError("one number of processes serves all configurations here: --workers N")
    return Translation(("--workers", *values))


_PRESETS = ("nnUNetPlannerResEncM", "nnUNetPlannerResEncL", "nnUNetPlannerResEncXL")


def _planner(values: Sequence[str]) -> Translation:
    if list(values) in (["ExperimentPlanner"], ["nnUNetPlanner"]):
        return Translation(note="there is one planner")
    if len(values) == 1 and values[0] in _PRESETS:
        return Translation(("--preset", values[0].removeprefix("nnUNetPlannerResEnc")))
    raise NotUnderstoodError(
        "there is one planner here; choose a residual encoder with --preset M, L or XL, give it more memory with "
        "--memory-gb GB, or edit plans.json"
    )


def _evaluation_output(values: Sequence[str]) -> Translation:
    if values and values[0].endswith(".json"):
        raise NotUnderstoodError("-o names a folder here, in which summary.json is one of the files: -o DIR")
    return Translation(("-o", *values))


_QUIET = needless("there is nothing to switch off")
_DEVICE = renamed("--device")
_TRAINER = Flag("1", _trainer)
_PLANS = Flag("1", _plans)

TRAIN = {
    "-tr": _TRAINER,
    "-p": _PLANS,
    "-device": _DEVICE,
    "--c": renamed("--continue", "0"),
    "--npz": Flag("0", lambda values: Translation(("--save-validation", "all"))),
    "--val_best": refused("a fold has one set of weights; predict by it with --val", "0"),
    "-num_gpus": needless_if(
        ("1",),
        "this process trains on one device",
        "several GPUs train one fold as torchrun --nproc-per-node N -- $(which usd_train) DATASET FOLD, or several "
        "folds at once, each with a device of its own: --device cuda:1",
    ),
    "-pretrained_weights": renamed("--pretrained"),
    "--disable_checkpointing": refused("make checkpoints rare instead: --checkpoint-every 24h", "0"),
    "--use_compressed": needless("preprocessed cases are always compressed"),
}

PREDICT = {
    "-tr": _TRAINER,
    "-p": _PLANS,
    "-device": _DEVICE,
    "-chk": needless_if(
        ("checkpoint_final.pth", "checkpoint_final"),
        "a fold has one set of weights",
        "a fold has one set of weights, for which training has compared the last with the best on held-out cases; "
        "leave -chk out",
    ),
    "-step_size": needless_if(("0.5", ".5"), "windows overlap by half", "windows always overlap by half; leave it out"),
    "--disable_tta": needless("images are mirrored only with --mirror"),
    "--save_probabilities": renamed("--save-probabilities", "0"),
    "--continue_prediction": needless("a prediction continues by itself"),
    "-npp": needless("images are read and masks are written beside the network by themselves", "1"),
    "-nps": needless("images are read and masks are written beside the network by themselves", "1"),
    "-num_parts": renamed("--num-parts"),
    "-part_id": renamed("--part-id"),
    "-prev_stage_predictions": needless("the model of 3d_lowres goes with the cascade and predicts first", "1"),
    "--not_on_device": needless("memory is looked at by itself"),
    "--disable_progress_bar": _QUIET,
    "--verbose": _QUIET,
}

PLAN_AND_PREPROCESS = {
    "--verify_dataset_integrity": needless("every data set is checked"),
    "-np": Flag("+", _workers),
    "-npfp": needless("--workers serves all steps", "1"),
    "-gpu_memory_target": renamed("--memory-gb"),
    "-pl": Flag("1", _planner),
    "-p": _PLANS,
    "-plans_name": _PLANS,
    "-overwrite_plans_name": _PLANS,
    "-overwrite_target_spacing": refused(
        "edit target_spacing_mm in plans.json, then usd_preprocess; usd_plan --plans NAME keeps the default plan", "+"
    ),
    "-preprocessor_name": refused("there is one way to preprocess; leave it out"),
    "-fpe": refused("there is one way to collect facts; leave it out"),
    "--no_pp": refused("run the steps singly: usd_fingerprint, then usd_plan", "0"),
    "--clean": needless("facts are collected anew each time"),
    "--verbose": _QUIET,
    "--no_pbar": _QUIET,
}

EVALUATE = {
    "-djfile": renamed("--dataset-json"),
    "-pfile": needless("no plan is needed", "1"),
    "-o": Flag("1", _evaluation_output),
    "-np": Flag("1", _workers),
    "--chill": renamed("--subset", "0"),
    "-l": renamed("--labels", "+"),
    "-il": refused("give a dataset.json that names the value under labels as ignore: --dataset-json FILE"),
}

ENSEMBLE = {
    "-i": Flag("+", lambda values: Translation(tuple(values))),
    "-np": needless("cases are averaged one after the other", "1"),
    "--save_npz": renamed("--save-probabilities", "0"),
}

_ALL_COMPARED = "all models and folds of the data set that are finished are compared; leave it out"

FIND_BEST = {
    "-c": refused(_ALL_COMPARED, "+"),
    "-p": refused(_ALL_COMPARED, "+"),
    "-tr": refused(_ALL_COMPARED, "+"),
    "-f": refused(_ALL_COMPARED, "+"),
    "-np": Flag("1", _workers),
    "--disable_ensembling": refused("a pair is taken only where it is significantly better; leave it out", "0"),
    "--no_overwrite": renamed("--dry-run", "0"),
}

EXPORT = {
    "-tr": _TRAINER,
    "-p": _PLANS,
    "-chk": PREDICT["-chk"],
    "--not_strict": needless("an archive holds the folds that are finished"),
    "--exp_cv_preds": refused(
        "masks of patients stay where they are; --with-case-scores takes their scores along", "0"
    ),
}
