"""Images in a BIDS folder: files named sub-01[_ses-1][_run-1]_FLAIR.nii.gz below sub-01/[ses-1/]anat/.

An image is of a channel by its suffix, what follows the last underscore. The images of a session are one case;
where a session has several images of a channel, those that agree in all entities (run, acq, ...) are.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.progress import counted
from unisegdiff_pipeline.core.words import listed
from unisegdiff_pipeline.io.endings import NIFTI_ENDINGS, split_ending
from unisegdiff_pipeline.io.raw_dataset import RawCase

LOGGER = logging.getLogger(__name__)
DESCRIPTION_NAME = "dataset_description.json"
_IMAGES = ("sub-*/*/sub-*", "sub-*/ses-*/*/sub-*")  # raw ones; derivatives lie elsewhere
_LISTED = 5


@dataclass(frozen=True)
class BidsFile:
    """A NIfTI file by its name: entities such as {"sub": "01", "ses": "1"}, and the suffix after them."""

    path: Path
    entities: dict[str, str]
    suffix: str

    @property
    def session(self) -> str:
        """Subject and, where there is one, session: "sub-01_ses-1"."""
        return _name({key: value for key, value in self.entities.items() if key in ("sub", "ses")})


def parse_bids_name(path: Path) -> BidsFile | None:
    """A NIfTI file with a name of BIDS' form; None for all others."""
    stem, ending = split_ending(path.name)
    *parts, suffix = stem.split("_")
    if ending.lower() not in NIFTI_ENDINGS or not parts or not all("-" in part for part in parts):
        return None
    return BidsFile(path, dict(part.split("-", 1) for part in parts), suffix)


def is_bids_folder(source: Path) -> bool:
    """Whether a folder has BIDS' description, or images that lie and are named as BIDS has them."""
    return (source / DESCRIPTION_NAME).is_file() or next(_images(source), None) is not None


def find_bids_cases(source: Path, suffixes: Sequence[str], missing_channels: bool = False) -> tuple[RawCase, ...]:
    """The cases of a BIDS folder, sorted by name: the entities that all images of a case share.

    Args:
        source: with folders sub-*; below derivatives/ nothing is searched.
        suffixes: of the channels, in their order.
        missing_channels: whether a case may lack some of them. Sessions without any are then left out, and logged.

    Raises:
        UsdError: a suffix of two channels, no image of these suffixes, sessions that lack a channel or all of them, or
            several images that may be one channel.
    """
    if twice := [suffix for suffix in dict.fromkeys(suffixes) if suffixes.count(suffix) > 1]:
        raise UsdError(
            f"--suffixes names {', '.join(twice)} more than once ({' '.join(suffixes)}); give each channel a suffix of "
            f"its own."
        )
    files = list(_images(source))
    sessions: dict[str, list[BidsFile]] = {}
    for file in files:
        if file.suffix in suffixes:
            sessions.setdefault(file.session, []).append(file)
    if not sessions:
        there = ", ".join(sorted({file.suffix for file in files})) or "none"
        raise UsdError(
            f"{source} holds no image of the suffixes {', '.join(suffixes)}; there are {there}. Name the suffix of "
            f"each channel with --suffixes, in the order of channel_names in dataset.json."
        )
    empty = _sessions_without(source, files, suffixes)
    if empty and missing_channels:
        LOGGER.warning("%s: left out, without any of %s: %s", source, ", ".join(suffixes), ", ".join(empty))
    elif empty:
        raise UsdError(
            f"{source}: no image of the suffixes {', '.join(suffixes)} in {counted(len(empty), 'session')}: "
            f"{listed(empty, _LISTED)}. Add them, move these sessions away, or let cases lack channels: "
            f'"missing_channels": true in dataset.json before planning leaves them out.'
        )
    cases, lacking = [], []
    for found in sessions.values():
        for group in _groups(found):
            by_suffix = {file.suffix: file for file in group}
            name = _name({k: v for k, v in group[0].entities.items() if all(f.entities.get(k) == v for f in group)})
            channels = tuple(i for i, suffix in enumerate(suffixes) if suffix in by_suffix)
            if missing := [suffix for suffix in suffixes if suffix not in by_suffix]:
                lacking.append(f"{name} ({', '.join(missing)})")
            paths = tuple(by_suffix[suffixes[i]].path for i in channels)
            cases.append(RawCase(name, paths, channels=channels if missing else None))
    if lacking and not missing_channels:
        lack = "lack images" if len(lacking) > 1 else "lacks an image"
        raise UsdError(
            f"{source}: {counted(len(lacking), 'case')} {lack}: {listed(lacking, _LISTED)}. Add them, "
            f'or let cases lack channels: "missing_channels": true in dataset.json before planning.'
        )
    return tuple(sorted(cases, key=lambda case: case.case_id))


def _sessions_without(source: Path, files: Sequence[BidsFile], suffixes: Sequence[str]) -> list[str]:
    """The sessions that have no image of these suffixes, each with the suffixes that it has."""
    holding = {folder for file in files for folder in file.path.parents}
    found: dict[str, set[str]] = {
        "_".join(folder.relative_to(source).parts): set()
        for folder in sorted((*source.glob("sub-*/"), *source.glob("sub-*/ses-*/")))
        if folder.is_dir() and folder not in holding and not any(folder.glob("ses-*/"))
    }
    for file in files:
        found.setdefault(file.session, set()).add(file.suffix)
    return [
        f"{name} (has {', '.join(sorted(has)) or 'no image'})"
        for name, has in found.items()
        if has.isdisjoint(suffixes)
    ]


def _groups(files: Sequence[BidsFile]) -> Iterable[list[BidsFile]]:
    """The images of a session by case.

    Raises:
        UsdError: it is not known which images belong together.
    """
    if len({file.suffix for file in files}) == len(files):
        return [list(files)]
    groups: dict[str, list[BidsFile]] = {}
    for file in files:
        groups.setdefault(_name(file.entities), []).append(file)
    for group in groups.values():
        if len(group) < len({file.suffix for file in files}) or len({f.suffix for f in group}) < len(group):
            names = ", ".join(sorted(file.path.name for file in files))
            raise UsdError(
                f"{files[0].session} in {files[0].path.parent} has several images of a channel, and their names do not "
                f"say which belong together: {names}. Leave one of each, or give those of a case the same entities."
            )
    return groups.values()


def _images(source: Path) -> Iterator[BidsFile]:
    for pattern in _IMAGES:
        for path in sorted(source.glob(pattern)):
            # A link to nothing, as of data that were not downloaded, is an image that cannot be read, and not none.
            file = parse_bids_name(path) if path.is_file() or path.is_symlink() else None
            if file is not None and "sub" in file.entities:
                yield file


def _name(entities: dict[str, str]) -> str:
    return "_".join(f"{key}-{value}" for key, value in entities.items())
