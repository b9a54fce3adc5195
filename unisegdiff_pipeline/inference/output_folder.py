"""Whose an output folder is: one model with one set of settings, so that masks of two are never mixed.

`OUT/.prediction.json` says what the folder's predictions are made of. It is written before the first of them, and runs
that share a folder find each other's. A run that would make its masks in another way is refused, or, if it is to
overwrite, first removes all that earlier runs have written, cases that it will not predict included: left beside its
own masks they would be scored as one prediction.

What is written beside the masks (samples, probabilities) is no part of this: a case that lacks something is predicted
again.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unisegdiff_pipeline.core.errors import UsdError, describe_failure
from unisegdiff_pipeline.core.files import is_full_disk, remove_stale_temporaries
from unisegdiff_pipeline.core.locks import locked
from unisegdiff_pipeline.core.names import file_of
from unisegdiff_pipeline.core.progress import counted, is_or_are
from unisegdiff_pipeline.core.serialization import read_json, to_jsonable, write_json
from unisegdiff_pipeline.core.words import listed
from unisegdiff_pipeline.inference.export import (
    RECORDS,
    OutputOptions,
    PredictionRecord,
    expected_files,
    lesions_path,
    mask_path,
    output_folders,
    read_record,
    record_path,
    remove_summary,
    sample_path,
    summary_path,
    volumes_path,
)
from unisegdiff_pipeline.inference.guarantees import promised_folders
from unisegdiff_pipeline.io.images import map_ending, split_ending
from unisegdiff_pipeline.io.prediction_files import MANIFEST

OWNER = ".prediction.json"
LISTED = 3
IF_ASKED_FOR = ("lesion_filter", "promises")  # parts of `made_of` that only some predictions have
TRIED_SAMPLES = 100  # names of samples of a case to look for, whether there are any before or not
Hashes = Callable[[], tuple[str, ...]]


@dataclass(frozen=True)
class Owner:
    """What the predictions of a folder are made of.

    Attributes:
        request: hash of `made_of`.
        model: the model's folder, for messages; a model that was moved is the same.
        made_of: everything that a mask depends on besides the image and the device.
    """

    request: str
    model: str
    made_of: Mapping[str, Any]


class FolderTakenError(UsdError):
    """The output folder has become that of another prediction; whatever is written from now on would be mixed."""


def claim_folder(output: Path, owner: Owner, endings: Mapping[str, str], file_ending: str, *, overwrite: bool) -> None:
    """Make an output folder this run's own, or find that it is already.

    Args:
        owner: what this run's masks are made of.
        endings: cases that this run and those beside it may write, and the ending of the image of each.
        file_ending: of the images of former cases whose record does not say it.
        overwrite: remove what was made in another way, and take the place of other files of these cases.

    Raises:
        UsdError: the folder holds predictions of another model or settings, or files that no prediction wrote.
    """
    there = _owner_of(output)
    if there is None and not _records(output):
        _require_no_strangers(output, overwrite)
        if overwrite:
            for case_id, ending in endings.items():
                remove_case(output, case_id, ending)
    elif there is None or _differences(there.made_of, owner.made_of):
        if not overwrite:
            raise UsdError(_refusal(output, there, owner))
        for case_id, record in _records(output).items():
            if record is None or record.request != owner.request:  # that of a run beside this one stays
                known = (record and record.file_ending) or endings.get(case_id) or file_ending
                remove_case(output, case_id, known)
        remove_summary(output)  # of the masks that are gone; should this run be killed, it would stay beside others
        _write_owner(output, owner)
        return
    if there is None or there.request != owner.request or not (output / OWNER).is_file():
        _write_owner(output, owner)


@contextlib.contextmanager
def claimed(
    output: Path,
    owner: Owner,
    endings: Mapping[str, str],
    file_ending: str,
    *,
    overwrite: bool = False,
    part: tuple[int, int] = (0, 1),
) -> Iterator[None]:
    """Have an output folder, or a part of its cases, for this run alone, as its own and without what is half written.

    Args:
        endings, file_ending, overwrite: as for `claim_folder`.
        part: number of the part, and of how many.

    Raises:
        UsdError: another process has the part; or as `claim_folder`.
    """
    part_id, num_parts = part
    of = "" if num_parts == 1 else f"part {part_id} of {num_parts} of the predictions in "
    with locked(output / f".lock-part-{part_id}-of-{num_parts}", f"{of}{output}"):
        claim_folder(output, owner, endings, file_ending, overwrite=overwrite)
        for folder in output_folders(output):
            remove_stale_temporaries(folder)
        yield


def is_finished(
    output: Path, owner: Owner, case_id: str, options: OutputOptions, counts: tuple[int, int], hashes: Hashes
) -> bool:
    """Whether an output holds all that is wanted of a case, made of the same files in the same way.

    Args:
        options: what is wanted.
        counts: numbers of folds and of samples.
        hashes: gives those of the files that it would be made of now; not called where something is missing.
    """
    record = read_record(output, case_id)
    if record is None or record.request != owner.request or record.file_ending not in ("", options.file_ending):
        return False
    wanted = expected_files(output, case_id, options, *counts)
    return all(path.is_file() for path in wanted) and record.input_hashes == hashes()


@contextlib.contextmanager
def collected(failures: dict[str, str], case_id: str) -> Iterator[None]:
    """Keep the error of a case, in words, for the end; what would fail all others too ends the run."""
    try:
        yield
    except Exception as error:
        if is_full_disk(error) or isinstance(error, FolderTakenError):
            raise
        failures[case_id] = describe_failure(error)


def finished_in_words(num_cases: int, num_left: int) -> str:
    """What a run that goes on says of the cases that its output holds already."""
    finished = num_cases - num_left
    return (
        f"{finished} of {counted(num_cases, 'case')} {is_or_are(finished)} finished already; {num_left} "
        f"{is_or_are(num_left)} left"
    )


def require_for_ensemble(output: Path, *, overwrite: bool) -> None:
    """Refuse, before its members are predicted, an output that an ensemble could not be written into afterwards.

    Raises:
        UsdError: the folder holds a prediction by one model, or files that no prediction wrote.
    """
    there = _owner_of(output)
    if there is None and not _records(output):
        _require_no_strangers(output, overwrite)
    elif not overwrite and (there is None or "members" not in there.made_of):
        raise UsdError(_refusal(output, there, Owner("", "", {})))


def require_own(output: Path, owner: Owner) -> None:
    """Refuse to write a case into a folder that another run has made its own meanwhile.

    Raises:
        FolderTakenError: it has.
    """
    there = _owner_of(output)
    if there is None or there.request != owner.request:
        raise FolderTakenError(
            f"{output} was taken over by another prediction while this one ran; choose another folder for one of them."
        )


def remove_case(output: Path, case_id: str, file_ending: str) -> None:
    """Remove all that prediction wrote for a case; its record first, so that the rest never counts as complete."""
    for find in (record_path, lesions_path, volumes_path, summary_path):
        path = find(output, case_id)
        path.unlink(missing_ok=True)
    for path in _parts(output, case_id, file_ending):
        path.unlink(missing_ok=True)


def remove_former(output: Path, case_id: str, file_ending: str) -> None:
    """Remove a case that is predicted again, and what it left with another ending when its image had one."""
    record = read_record(output, case_id)
    if record is not None and record.file_ending not in ("", file_ending):
        remove_case(output, case_id, record.file_ending)
    remove_case(output, case_id, file_ending)


def _parts(output: Path, case_id: str, file_ending: str) -> Iterator[Path]:
    """Masks, maps, probabilities and samples of a case, with what a stack of TIFF slices has beside it."""
    maps = [folder for folder in output_folders(output) if "uncertainty" in folder.relative_to(output).parts]
    masks = (output, *promised_folders(output))
    files = [mask_path(folder, case_id, file_ending) for folder in masks]
    files += [file_of(folder, case_id, map_ending(file_ending)) for folder in maps]
    files += [file_of(output / "probabilities", case_id, ".npz"), *_samples(output, case_id, file_ending)]
    for path in files:
        yield path
        stem, ending = split_ending(path.name)
        if ending.lower() in (".tif", ".tiff"):
            yield path.with_name(f"{stem}.json")


def _samples(output: Path, case_id: str, file_ending: str) -> list[Path]:
    """Samples of a case that are there.

    Their names are tried, since listing the folder for each case would take the square of the number of cases. What an
    interrupted removal left may have gaps.
    """
    found: list[Path] = []
    for index in itertools.count() if (output / "samples").is_dir() else ():
        path = sample_path(output, case_id, index, file_ending)
        if path.exists():
            found.append(path)
        elif index >= TRIED_SAMPLES:
            break
    return found


def _owner_of(output: Path) -> Owner | None:
    """Who owns a folder; of one that an earlier version wrote, what its manifest says."""
    with contextlib.suppress(UsdError, KeyError, TypeError, AttributeError):
        if (output / OWNER).is_file():
            content = read_json(output / OWNER)
            return Owner(str(content["request"]), str(content["model"]), dict(content["made_of"]))
    with contextlib.suppress(UsdError, KeyError, TypeError, AttributeError):
        if (output / MANIFEST).is_file():
            content = read_json(output / MANIFEST)
            return Owner(str(content["request"]), str(content["model"]), dict(content))
    return None


def _write_owner(output: Path, owner: Owner) -> None:
    write_json(output / OWNER, {"request": owner.request, "model": owner.model, "made_of": owner.made_of})


def _records(output: Path) -> dict[str, PredictionRecord | None]:
    """Record of each case that has one, None where it cannot be read."""
    names = [path.name.removesuffix(".json") for path in sorted((output / RECORDS).glob("*.json"))]
    return {case_id: read_record(output, case_id) for case_id in names}


def _require_no_strangers(output: Path, overwrite: bool) -> None:
    """Refuse to write masks among files that are none of prediction's own."""
    apart = (output / "samples", output / "probabilities", output / "uncertainty")
    folders = (output, *apart, *promised_folders(output))
    strangers = [
        path
        for folder in folders
        if folder.is_dir()
        for path in sorted(folder.iterdir())
        if not path.name.startswith(".") and (split_ending(path.name)[1] or path.suffix == ".npz") and path.is_file()
    ]
    if strangers and not overwrite:
        raise UsdError(
            f"{output} holds {counted(len(strangers), 'file')} that no prediction of this program wrote "
            f"({listed((path.relative_to(output) for path in strangers), LISTED)}); masks among them would be taken "
            f"for one prediction. Choose another folder, or write there all the same with --overwrite "
            f"(overwrite=True), which replaces those of the predicted cases."
        )


def _refusal(output: Path, there: Owner | None, owner: Owner) -> str:
    if there is None:
        what = "a prediction that does not say what it was made with"
    else:
        model = f" by {there.model}" if there.model != owner.model else ""
        differences = listed(_differences(there.made_of, owner.made_of), LISTED)
        what = f"a prediction made otherwise{model}{f' ({differences})' if differences else ''}"
    return (
        f"{output} holds {what}; masks of both in one folder would be taken for one prediction. Choose another folder, "
        f"or replace what is there with --overwrite (overwrite=True), which removes all its cases first."
    )


def _differences(there: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """In words, where two predictions are made of different things."""
    old, new = dict(_flat(there)), dict(_flat(json.loads(json.dumps(to_jsonable(asked)))))
    keys = [*new, *(key for key in old if key not in new and key.split(".")[0] in {*asked, *IF_ASKED_FOR})]
    return [_difference(key, old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)]


def _difference(key: str, old: object, new: object) -> str:
    if key.startswith(("weights.", "plan_hash")):
        return f"other {key.replace('weights.', 'weights of fold ').replace('plan_hash', 'plan')}"
    return f"{key} {json.dumps(old)} there, {json.dumps(new)} asked for"


def _flat(value: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value
