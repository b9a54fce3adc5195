"""Cross-validation folds and the inner hold-out: grouped, stratified by lesion presence and volume, seeded."""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.names import composed
from unisegdiff_pipeline.core.progress import counted, is_or_are
from unisegdiff_pipeline.core.serialization import from_jsonable, read_json, write_json
from unisegdiff_pipeline.core.words import listed
from unisegdiff_pipeline.io.dataset_json import listed_test_cases
from unisegdiff_pipeline.io.sources import cases_by_source, datasets_of_sources, in_turn
from unisegdiff_pipeline.preprocessing.reference import ReferenceRecord, read_cases

LOGGER = logging.getLogger(__name__)
SPLITS_FILE = "splits_final.json"
DATASET_FILE = "dataset.json"
NUM_FOLDS, SPLIT_SEED = 5, 12345  # as nnU-Net has them
FEWEST_EMPTY = 3  # groups with cases without foreground to hold out: fewer tell nothing of false alarms
Folds = Literal["default", "nnunet", "by-group"]


@dataclass(frozen=True)
class Split:
    """Case names of one fold; those of `test` are neither trained on nor validated."""

    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Group:
    cases: tuple[str, ...]
    mean_volume: float
    has_empty: bool  # a case without foreground


def make_splits(
    cases: Iterable[tuple[str, str, float]], num_folds: int = NUM_FOLDS, seed: int = SPLIT_SEED
) -> list[Split]:
    """Split cases into folds; a group lies in the validation part of exactly one of them.

    Groups are ordered by mean foreground volume (empty ones first) and dealt out in rounds of one group a fold, so that
    every fold gets its part of the empty cases and of each range of volumes. Within a round the group of most cases
    goes to the fold that has fewest.

    Args:
        cases: (case name, group, foreground volume) of each case.
        num_folds: number of folds, at least 2.
        seed: decides between equals.

    Raises:
        UsdError: where there are fewer groups than folds.
    """
    records = sorted(cases)
    groups = _gather_groups(records)
    if len(groups) < num_folds:
        raise UsdError(
            f"{counted(len(records), 'case')} in {counted(len(groups), 'group')} {is_or_are(len(records))} too few for "
            f"{num_folds} folds, each fold needs a group of its own; train with fold 'all', add cases, or put a "
            f"{SPLITS_FILE} into the raw data set."
        )
    rng = np.random.default_rng(seed)
    rounds = _rounds_by_volume(groups, num_folds, rng)
    rounds.sort(key=lambda part: -max(len(group.cases) for group in part))
    sizes, members = [0] * num_folds, [[] for _ in range(num_folds)]  # type: list[int], list[list[str]]
    for part in rounds:
        folds = sorted(rng.permutation(num_folds).tolist(), key=lambda fold: sizes[fold])
        by_size = sorted(part, key=lambda group: -len(group.cases))
        for group, fold in zip(by_size, folds, strict=False):
            members[fold].extend(group.cases)
            sizes[fold] += len(group.cases)
    names = [record[0] for record in records]
    return [Split(tuple(n for n in names if n not in held), tuple(sorted(held))) for held in map(set, members)]


def make_splits_by_source(
    cases: Iterable[tuple[str, str, float]], num_folds: int = NUM_FOLDS, seed: int = SPLIT_SEED
) -> list[Split]:
    """Split the cases of a unified data set: each source as `make_splits` splits it alone, the same folds put together.

    A source of fewer groups than folds is validated in as many folds as it has groups, and trained on in the others;
    one of a single group is trained on only. A group with cases of several sources, as identical images are, lies in
    the fold in which the first of them is validated, or in another one where a source would be validated whole there.
    """
    records = {case[0]: case for case in sorted(cases)}
    fold_of: dict[str, int] = {}  # group => fold that validates it
    groups_of: list[list[str]] = []  # of each source
    for source, names in cases_by_source(records).items():
        own = [records[name] for name in names]
        groups_of.append(sorted({group for _, group, _ in own}))
        possible = min(num_folds, len(groups_of[-1]))
        if possible < num_folds:
            LOGGER.warning(
                "the source %s has %s for %d folds: folds without one of them do not validate it",
                source,
                counted(possible, "group"),
                num_folds,
            )
        for fold, split in enumerate(make_splits(own, possible, seed) if possible > 1 else []):
            for name in split.val:
                fold_of.setdefault(records[name][1], fold)
    fold_of = _every_source_trained(fold_of, groups_of, num_folds)
    folds = {name: fold_of.get(group) for name, group, _ in records.values()}
    return [
        Split(
            tuple(name for name, validated in folds.items() if validated != fold),
            tuple(name for name, validated in folds.items() if validated == fold),
        )
        for fold in range(num_folds)
    ]


def _every_source_trained(
    fold_of: dict[str, int], groups_of: Sequence[Sequence[str]], num_folds: int
) -> dict[str, int]:
    """The fold of each group, where no fold validates all of a source that has several: groups that are shared move.

    Args:
        fold_of: group => fold.
        groups_of: the groups of each source.
        num_folds: number of folds.
    """

    def whole(folds: Mapping[str, int]) -> list[Sequence[str]]:
        return [groups for groups in groups_of if len(groups) > 1 and len({folds[group] for group in groups}) == 1]

    movable = [group for groups in whole(fold_of) for group in groups]
    for group, fold in product(movable, range(num_folds)):
        if len(whole(moved := fold_of | {group: fold})) < len(whole(fold_of)):
            fold_of = moved
    return fold_of


def nnunet_splits(groups: Mapping[str, str]) -> list[Split]:
    """The folds that nnU-Net makes of these cases, by its own library: shuffled and dealt out case by case.

    Args:
        groups: group of each case.

    Raises:
        UsdError: a group has several cases, which may come into different folds; fewer cases than folds.
    """
    name, count = Counter(groups.values()).most_common(1)[0]
    if count > 1:
        raise UsdError(
            f"nnU-Net's folds know no groups, but groups.csv or identical images put {count} cases into group "
            f"{name!r}, so that scores would come from patients that were trained on; leave --splits nnunet out for "
            f"folds that keep groups together, or put a {SPLITS_FILE} of your own into the raw data set."
        )
    if len(groups) < NUM_FOLDS:
        raise UsdError(
            f"{counted(len(groups), 'case')} {is_or_are(len(groups))} too few for the {NUM_FOLDS} folds of --splits "
            f"nnunet; train with fold 'all', or add cases."
        )
    from batchgenerators.utilities.data_splitting import get_split_deterministic

    folds = (get_split_deterministic(list(groups), fold, NUM_FOLDS, SPLIT_SEED) for fold in range(NUM_FOLDS))
    return [Split(tuple(map(str, train)), tuple(map(str, val))) for train, val in folds]


def group_splits(groups: Mapping[str, str], identical: Collection[str] = ()) -> list[Split]:
    """Leave one group out: a fold for each group, in the order of their names, that is validated on this group.

    Args:
        groups: group of each case.
        identical: cases whose group is one of identical images alone, which is no group to leave out.

    Raises:
        UsdError: no groups, or fewer than three: one is validated, one held out to choose settings, one trained on.
    """
    members: dict[str, list[str]] = {}
    for case, group in sorted(groups.items()):
        members.setdefault(group, []).append(case)
    if all(case == group or case in identical for case, group in groups.items()):
        copies = " (identical images are one group, but are none to leave out)" if identical else ""
        raise UsdError(
            f"--by-group leaves out one group after the other, but groups.csv names none{copies}; say there which "
            f"cases belong together (a site, a scanner, a patient)."
        )
    if len(members) < 3:
        raise UsdError(
            f"--by-group needs three groups, one to validate, one to choose settings on and one to train on; "
            f"groups.csv and identical images make {len(members)}: {', '.join(members)}. Leave the flag out, or divide "
            f"the groups."
        )
    return [
        Split(tuple(case for case, group in sorted(groups.items()) if group != name), tuple(cases))
        for name, cases in sorted(members.items())
    ]


def wanted_splits(groups: Mapping[str, str], folds: Folds, identical: Collection[str] = ()) -> list[Split] | None:
    """The folds that are asked for by name; None for "default", which leaves them open.

    Args:
        groups: group of each case that is no test case.
        folds: what is asked for.
        identical: as of `group_splits`.

    Raises:
        UsdError: no case; also as `nnunet_splits` and `group_splits`.
    """
    if folds == "default":
        return None
    if not groups:
        raise UsdError(
            f"--splits {folds} has no case to make folds of: `test` of {DATASET_FILE} lists all of them; take cases "
            f"out of this list."
        )
    return nnunet_splits(groups) if folds == "nnunet" else group_splits(groups, identical)


def inner_holdout(
    train: Sequence[str],
    groups: Mapping[str, str],
    fraction: float = 0.15,
    seed: int = 0,
    volumes: Mapping[str, float] | None = None,
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Split a fold's training cases into (kept for training, held out), whole groups at a time.

    Args:
        train: the training cases.
        groups: group of each case; a case that is not named is its own group.
        fraction: of the groups to hold out, at least one group.
        seed: chooses them.
        volumes: foreground volume of each case; the groups held out are then spread over the range of volumes, and
            some have cases without foreground where the training cases have them (`FEWEST_EMPTY`).

    Raises:
        UsdError: where there is only one group, which cannot be both trained on and held out.
    """
    known = volumes or {}
    gathered = _gather_groups([(case, groups.get(case, case), known.get(case, 0.0)) for case in sorted(train)])
    if len(gathered) < 2:
        raise UsdError(
            f"the {len(train)} training cases form {len(gathered)} group, but choosing settings needs one group held "
            f"out beside those trained on; add cases of another group, or correct groups.csv."
        )
    rng = np.random.default_rng(seed)
    num_held = min(max(1, round(fraction * len(gathered))), len(gathered) - 1)
    ordered = _by_volume(gathered, rng)
    edges = np.linspace(0, len(ordered), num_held + 1).round().astype(int)
    chosen = [ordered[rng.integers(a, b)] for a, b in pairwise(edges)]
    if volumes:
        chosen = _with_empty_cases(chosen, [ordered[a:b] for a, b in pairwise(edges)], rng)
    held = {case for group in chosen for case in group.cases}
    return tuple(c for c in sorted(train) if c not in held), tuple(sorted(held))


def inner_holdout_by_source(
    train: Sequence[str],
    groups: Mapping[str, str],
    fraction: float = 0.15,
    seed: int = 0,
    volumes: Mapping[str, float] | None = None,
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """As `inner_holdout` for a unified data set: some of every source that has two groups or more, of none the whole.

    Returns:
        The cases to train on, sorted; the cases held out, one of each source after the other, so that a look at the
        first ones sees several sources.
    """
    sources = list(cases_by_source(sorted(train)).values())
    groups_of = [{groups.get(case, case) for case in cases} for cases in sources]
    held_groups: set[str] = set()
    for cases, own in zip(sources, groups_of, strict=True):
        if len(own) < 2 or not own.isdisjoint(held_groups):  # images of another source may be held out already
            continue
        chosen = {groups.get(case, case) for case in inner_holdout(cases, groups, fraction, seed, volumes)[1]}
        wanted = len(held_groups) + len(chosen)
        for group in [*sorted(chosen), *sorted(own - chosen)]:
            if len(held_groups) < wanted and not any(other <= held_groups | {group} for other in groups_of):
                held_groups.add(group)
    held = [[case for case in cases if groups.get(case, case) in held_groups] for cases in sources]
    if not held_groups:  # no source can spare a group: hold out a whole source, or say why that is impossible, too
        return inner_holdout(train, groups, fraction, seed, volumes)
    mixed = in_turn(np.random.default_rng(seed).permutation(cases).tolist() for cases in held)
    return tuple(sorted(set(train) - set(mixed))), mixed


def load_or_create_splits(
    preprocessed_folder: Path,
    raw_folder: Path | None = None,
    num_folds: int = NUM_FOLDS,
    *,
    writing: bool = True,
    folds: Folds = "default",
) -> list[Split]:
    """Splits of a preprocessed data set: an existing splits_final.json is honoured, else one is made and written.

    Args:
        preprocessed_folder: preprocessed/DatasetXXX_Name, with cases.json.
        raw_folder: a splits_final.json there is taken over, as in nnU-Net.
        num_folds: for new splits.
        writing: off to look only.
        folds: "default" takes the file that is there, or deals out groups; "nnunet" makes the folds of `nnunet_splits`,
            and "by-group" those of `group_splits`, and a file that is there must hold these.

    Test cases (see `find_test_cases`), also those that the raw dataset.json names since, are in no fold.

    Raises:
        UsdError: a damaged file, cases that do not exist, a case in two parts of a fold, a fold with a test case, or
            two files that differ; also what `wanted_splits` raises, and then a file with other folds.
    """
    if folds not in get_args(Folds):
        raise UsdError(f"splits is {folds!r}; allowed are {' and '.join(get_args(Folds))}.")
    path = Path(preprocessed_folder) / SPLITS_FILE
    given = Path(raw_folder) / SPLITS_FILE if raw_folder is not None else None
    records = read_cases(preprocessed_folder)
    test = _test_cases(preprocessed_folder, raw_folder, [record.case_id for record in records])
    records = tuple(record for record in records if record.case_id not in test)
    identical = {record.case_id for record in records if record.identical}
    wanted = wanted_splits({r.case_id: r.group for r in records}, folds, identical)
    if given is not None and given.is_file():
        splits = _read_splits(given, records, test)
        _require_folds(given, splits, wanted, folds)
        if path.is_file() and _parse_splits(path) != splits:
            raise UsdError(f"{given} and {path} differ; delete the one that is not meant, the other is then used.")
        if writing:
            _write_splits(path, splits)
    elif path.is_file():
        splits = _read_splits(path, records, test)
        _require_folds(path, splits, wanted, folds)
    else:
        cases = [(r.case_id, r.group, r.foreground_mm3) for r in records]
        unified = datasets_of_sources(preprocessed_folder / DATASET_FILE)
        splits = wanted or (make_splits_by_source if unified else make_splits)(cases, num_folds)
        if writing:
            _write_splits(path, splits)
    return splits


def find_test_cases(dataset_json: Path, case_ids: Iterable[str]) -> frozenset[str]:
    """The training cases that `test` of a dataset.json holds out from every training, see `listed_test_cases`.

    Raises:
        UsdError: no list of names, or a name that is no case.
    """
    names = listed_test_cases(dataset_json)
    if unknown := sorted(names - set(case_ids)):
        raise UsdError(
            f"{dataset_json}: test names {_listed(unknown)}, which are no cases of the data set; correct the names "
            f"(without ending), or preprocess again after adding the cases."
        )
    return names


def _test_cases(preprocessed_folder: Path, raw_folder: Path | None, case_ids: Collection[str]) -> frozenset[str]:
    """As `find_test_cases`, with those that the raw data set names since it was preprocessed."""
    named = frozenset() if raw_folder is None else listed_test_cases(Path(raw_folder) / DATASET_FILE)
    return find_test_cases(preprocessed_folder / DATASET_FILE, case_ids) | (named & set(case_ids))


def trainable_cases(preprocessed_folder: Path, raw_folder: Path | None, case_ids: Iterable[str]) -> tuple[str, ...]:
    """The cases that a model on all cases is trained on: without those that dataset.json or a fold names as test.

    Raises:
        UsdError: no case is left, or a damaged file.
    """
    cases = sorted(case_ids)
    test = set(_test_cases(preprocessed_folder, raw_folder, cases))
    for folder in (preprocessed_folder, raw_folder):
        if folder is not None and (Path(folder) / SPLITS_FILE).is_file():
            test.update(case for split in _parse_splits(Path(folder) / SPLITS_FILE) for case in split.test)
    kept = tuple(case for case in cases if case not in test)
    if not kept:
        raise UsdError(
            f"all {len(cases)} cases are test cases of some fold; no case is left that fold all may train on."
        )
    return kept


def _write_splits(path: Path, splits: Sequence[Split]) -> None:
    """As nnU-Net writes the file; test cases stand in it where there are any."""
    folds = [
        {"train": split.train, "val": split.val} | ({"test": split.test} if split.test else {}) for split in splits
    ]
    write_json(path, folds)


def _require_folds(path: Path, splits: Sequence[Split], wanted: Sequence[Split] | None, folds: Folds) -> None:
    """Raise a UsdError where a file holds other folds than those wanted; the order of the cases plays no part."""
    if wanted is None:
        return
    found, expected = ([(set(s.train), set(s.val)) for s in part] for part in (splits, wanted))
    if found != expected:
        raise UsdError(
            f"{path} holds other folds than --splits {folds} would make; leave the flag out to use them, or delete the "
            f"file, after which trainings on its folds cannot be continued."
        )


def select_split(splits: Sequence[Split], fold: int) -> Split:
    """The split of one fold.

    Raises:
        UsdError: where there is no such fold.
    """
    if not 0 <= fold < len(splits):
        raise UsdError(
            f"fold {fold} does not exist, {SPLITS_FILE} has folds 0 to {len(splits) - 1}; choose one of these."
        )
    return splits[fold]


def shared_groups(train: Iterable[str], val: Iterable[str], groups: Mapping[str, str]) -> tuple[str, ...]:
    """Groups (patients) with cases in both parts, sorted; a case that `groups` does not name is its own group."""
    known, own = ({groups.get(case, case) for case in part} for part in (train, val))
    return tuple(sorted(known & own))


def _gather_groups(records: Iterable[tuple[str, str, float]]) -> list[_Group]:
    cases: dict[str, list[str]] = {}
    volumes: dict[str, list[float]] = {}
    for case_id, group, volume in records:
        cases.setdefault(group, []).append(case_id)
        volumes.setdefault(group, []).append(volume)
    return [_Group(tuple(cases[name]), float(np.mean(volumes[name])), not all(volumes[name])) for name in sorted(cases)]


def _with_empty_cases(
    chosen: Sequence[_Group], parts: Sequence[Sequence[_Group]], rng: np.random.Generator
) -> list[_Group]:
    """The groups held out, one of each part, some of them exchanged for others of their part that have empty cases.

    No more are exchanged than it takes to hold out FEWEST_EMPTY groups with empty cases, or a third of all there are.
    """
    wanted = min(FEWEST_EMPTY, sum(group.has_empty for part in parts for group in part) // 3)
    result = list(chosen)
    for number, part in enumerate(parts):
        others = [group for group in part if group.has_empty]
        if sum(group.has_empty for group in result) < wanted and others and not result[number].has_empty:
            result[number] = others[rng.integers(len(others))]
    return result


def _by_volume(groups: Sequence[_Group], rng: np.random.Generator) -> list[_Group]:
    """Groups by rising volume, equal ones in random order."""
    shuffled = [groups[i] for i in rng.permutation(len(groups))]
    return sorted(shuffled, key=lambda group: group.mean_volume)


def _rounds_by_volume(groups: Sequence[_Group], size: int, rng: np.random.Generator) -> list[list[_Group]]:
    ordered = _by_volume(groups, rng)
    return [ordered[i : i + size] for i in range(0, len(ordered), size)]


def _parse_splits(path: Path) -> list[Split]:
    """The folds of a file, names in composed form; whether the cases are there is not looked at."""
    content = read_json(path)
    try:
        read = from_jsonable(tuple[Split, ...], content)
    except UsdError as error:
        raise UsdError(f"{path}: {error}") from None
    return [Split(*(tuple(map(composed, part)) for part in (split.train, split.val, split.test))) for split in read]


def _read_splits(path: Path, records: Sequence[ReferenceRecord], test: Collection[str] = ()) -> list[Split]:
    splits = _parse_splits(path)
    for fold, split in enumerate(splits):
        if used := sorted({*split.train, *split.val} & {*test, *split.test}):
            raise UsdError(
                f"{path}: fold {fold} trains on or validates {_listed(used)}, which are test cases (test of "
                f"dataset.json or of the fold); take them out of one of the two."
            )
    if not splits:
        raise UsdError(f"{path} holds no fold; fill it, or delete it for new splits.")
    known = {record.case_id for record in records}
    missing = sorted({c for split in splits for c in (*split.train, *split.val)} - known)
    if missing:
        raise UsdError(
            f"{path} names {counted(len(missing), 'case')} that {is_or_are(len(missing))} not preprocessed "
            f"({_listed(missing)}); add what is missing to the raw data set and preprocess again, or take "
            f"it out of the file."
        )
    for fold, split in enumerate(splits):
        for part, cases in (("train", split.train), ("val", split.val)):
            repeated = sorted(case for case, count in Counter(cases).items() if count > 1)
            if repeated:
                raise UsdError(
                    f"{path}: fold {fold} names {_listed(repeated)} more than once in {part}; keep each case once."
                )
        twice = sorted(set(split.train) & set(split.val))
        if twice:
            raise UsdError(
                f"{path}: fold {fold} has {_listed(twice)} in both train and val; take it out of one of them."
            )
        if not split.train:
            raise UsdError(f"{path}: fold {fold} has no training case; fill train, or delete the file for new splits.")
    _warn_of_surprises(path, splits, records)
    return splits


def _listed(cases: Sequence[str]) -> str:
    return listed((f"{case[:80]!r}" for case in cases), 5)


def _warn_of_surprises(path: Path, splits: Sequence[Split], records: Sequence[ReferenceRecord]) -> None:
    """Existing splits are honoured, but what their author may not have seen is said."""
    group_of = {record.case_id: record.group for record in records}
    unused = set(group_of) - {c for split in splits for c in (*split.train, *split.val, *split.test)}
    if unused:
        warnings.warn(
            f"{path} leaves out {len(unused)} of {len(group_of)} cases ({_listed(sorted(unused))}); delete it for new "
            f"splits over all cases.",
            stacklevel=3,
        )
    for fold, split in enumerate(splits):
        shared = shared_groups(split.train, split.val, group_of)
        if shared:
            count = Counter(group_of[c] for c in split.val)[shared[0]]
            warnings.warn(
                f"{path}: fold {fold} validates on {count} cases of group {shared[0]!r} that it also "
                f"trains on; its scores will be too good.",
                stacklevel=3,
            )
