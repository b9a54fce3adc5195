"""Where raw data, preprocessed data and results lie, and finding a data set by number or name."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.names import quoted

_DATASET_NAME = re.compile(r"Dataset(?P<number>\d{3,})_(?P<name>.+)")


@dataclass(frozen=True)
class Roots:
    """The three root folders of raw data, preprocessed data and results; None where one is not known.

    Example:
        >>> usd.Roots(raw=None, preprocessed=Path("/data/preprocessed"), results=Path("/data/results")).require_raw()
        Traceback (most recent call last):
        unisegdiff_pipeline.core.errors.UsdError: no raw root is known; ...
    """

    raw: Path | None
    preprocessed: Path | None
    results: Path | None

    def __post_init__(self) -> None:
        for name in ("raw", "preprocessed", "results"):
            root = getattr(self, name)
            object.__setattr__(self, name, None if root is None else Path(root))  # text is natural in Python

    def require_raw(self) -> Path:
        """The raw root; it must exist, because nothing here creates raw data in passing."""
        root = _require(self.raw, "raw", "usd_raw")
        if not root.is_dir():
            problem = "is no folder" if root.exists() else "does not exist"
            raise UsdError(f"the raw root {root} {problem}; correct --raw or the variable usd_raw.")
        return root

    def require_preprocessed(self) -> Path:
        """The root of preprocessed data; it is created when something is written there."""
        return _require(self.preprocessed, "preprocessed", "usd_preprocessed")

    def preprocessed_dataset(self, id_or_name: str | int) -> Path:
        """Folder of a data set, by its number or name, in the preprocessed root; it must be there."""
        root = self.require_preprocessed()
        command = f"usd_plan_and_preprocess -d {quoted(id_or_name)}"
        remedy = f"Run {command} first, or check the number and the root folder."
        return root / find_dataset(root, id_or_name, remedy)

    def require_results(self) -> Path:
        """The root of trained models; it is created when something is written there."""
        return _require(self.results, "results", "usd_results")


def resolve_roots(
    raw: Path | str | None = None,
    preprocessed: Path | str | None = None,
    results: Path | str | None = None,
    environment: Mapping[str, str] | None = None,
) -> Roots:
    """Roots from flags, else from usd_raw, usd_preprocessed and usd_results; nnUNet_raw stands in for usd_raw."""
    variables = os.environ if environment is None else environment

    def choose(flag: Path | str | None, *names: str) -> Path | None:
        candidates = [flag, *(variables.get(name) for name in names)]
        text = next((str(c) for c in candidates if c), None)
        return None if text is None else Path(text).expanduser().absolute()

    return Roots(
        raw=choose(raw, "usd_raw", "nnUNet_raw"),
        preprocessed=choose(preprocessed, "usd_preprocessed"),
        results=choose(results, "usd_results"),
    )


def places_of(path: Path) -> tuple[Path, ...]:
    """Where a file or folder lies: as it is named, then, where that is a link, where it leads.

    A labelsTr that is linked into a data set has its dataset.json beside the link; a link to a whole labelsTr elsewhere
    has it there.
    """
    return tuple(dict.fromkeys((Path(os.path.abspath(path)), path.resolve())))  # noqa: PTH100  (keeps links)


def places_above(path: Path, levels: int) -> tuple[Path, ...]:
    """The places of a folder, each followed by so many folders above it."""
    return tuple(above for place in places_of(path) for above in (place, *place.parents[:levels]))


def files_below(folder: Path) -> Iterator[Path]:
    """All files of a folder and those below it, each folder's own first, sorted; folders that cannot be read have none.

    Links to folders are followed, as data are often brought together by them; one into a folder that is looked through
    anyway (`latest`, or one that leads back) is not, as its files would be there twice.
    """
    return _files_below(Path(folder), frozenset())


def _files_below(folder: Path, above: frozenset[Path]) -> Iterator[Path]:
    place = folder.resolve()
    if place in above:
        return
    above |= {place}
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return
    yield from (Path(entry.path) for entry in entries if not _is_folder(entry))
    for entry in filter(_is_folder, entries):
        path = Path(entry.path)
        if not (entry.is_symlink() and any(path.resolve().is_relative_to(other) for other in above)):
            yield from _files_below(path, above)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # as of a link to itself
        return False


def dataset_name(number: int, name: str) -> str:
    """Folder name of a data set, `dataset_name(4, "Hippocampus") == "Dataset004_Hippocampus"`."""
    return f"Dataset{number:03d}_{name}"


def new_dataset_folder(root: Path, number: int, name: str) -> Path:
    """The folder of a new data set in `root`, whose number no other data set there has; it may be there already.

    Raises:
        UsdError: another data set has the number, so that it would mean neither of them.
    """
    folder = root / dataset_name(number, name)
    for other in list_datasets(root):
        if other != folder.name and _means(str(number), other):
            raise UsdError(
                f"{folder.name} would have the number of {other}, which lies in {root} already; choose another number, "
                f"or remove that data set."
            )
    return folder


def find_dataset(root: Path, id_or_name: str | int, remedy: str = "Check the number and the root folder.") -> str:
    """Full name of the data set in `root` that a number (4, 004), a name or a full name means.

    Args:
        root: folder of folders DatasetXXX_Name.
        id_or_name: what a user gave.
        remedy: what to do where there is no such data set.

    Raises:
        UsdError: unknown or ambiguous; lists what is there.
    """
    text = str(id_or_name).strip()
    present = list_datasets(root)
    if text in present:
        return text
    matches = [name for name in present if _means(text, name)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise UsdError(f"data set {text!r} is ambiguous in {root}: {', '.join(matches)}; give the full name.")
    there = f"there are {', '.join(present)}" if present else "there is none"
    raise UsdError(f"no data set {text!r} in {root}; {there}. {remedy}")


def list_datasets(root: Path) -> list[str]:
    """Names of all folders DatasetXXX_Name in `root`, sorted; an absent root has none."""
    if not Path(root).is_dir():
        return []
    return sorted(p.name for p in Path(root).iterdir() if p.is_dir() and _DATASET_NAME.fullmatch(p.name))


def _means(text: str, full_name: str) -> bool:
    match = _DATASET_NAME.fullmatch(full_name)
    assert match is not None
    digits = re.fullmatch(r"(?:Dataset)?(\d+)", text)
    return int(digits[1]) == int(match["number"]) if digits else text == match["name"]


def _require(root: Path | None, flag: str, variable: str) -> Path:
    if root is None:
        also = " (nnUNet_raw works as well)" if flag == "raw" else ""
        if theirs := os.environ.get(f"nnUNet_{flag}"):  # set, but nnU-Net's files there are others than ours
            also = f"; nnUNet_{flag} ({theirs}) is nnU-Net's own, choose another folder"
        raise UsdError(f"no {flag} root is known; pass --{flag} FOLDER or set the variable {variable}{also}.")
    return root
