"""Finding the files of a published data set: folders, images by name, and the mask of each image."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dataset_conversion.raw_writer import RGB, Conversion
from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.names import composed
from unisegdiff_pipeline.io.endings import SUPPORTED_ENDINGS, TIFF_ENDINGS, split_ending
from unisegdiff_pipeline.io.images import read_header

_OF_MACOS = "__MACOSX"  # a folder in archives made there, with a hidden copy ._NAME of each file


@dataclass(frozen=True)
class Request:
    """What the user asks a converter for; what is None or empty is left to the converter.

    Attributes:
        sources: folders of the data set.
        number: of the new data set.
        name: of the new data set.
        channels: names of the channels; of BIDS data the suffixes of their files.
        threshold: masks are lesion where they are larger.
        group_pattern: regular expression whose first group, in the name of a case, is the case's group.
        mask: pattern of the names of mask files, without ending.
    """

    sources: tuple[Path, ...]
    number: int | None = None
    name: str | None = None
    channels: tuple[str, ...] = ()
    threshold: float | None = None
    group_pattern: str | None = None
    mask: str | None = None


Finder = Callable[[Request], Conversion]


def folder_of(request: Request, name: str, sign: str) -> Path:
    """The folder of a data set: the source itself or a folder `name` in it, whichever holds `sign`.

    Args:
        request: its only source is looked at.
        name: of the folder that the owners' archive makes, as a pattern.
        sign: a file or folder that must lie in it, as a pattern.

    Raises:
        UsdError: neither holds it.
    """
    (source,) = request.sources
    for folder in (source, *sorted(source.glob(name))):
        if folder.is_dir() and next(folder.glob(sign), None) is not None:
            return folder
    raise UsdError(f"{source} holds no {sign}, nor does {source / name}; name the folder that {name} was unpacked to.")


def images_in(folder: Path, endings: Iterable[str] = SUPPORTED_ENDINGS) -> dict[str, Path]:
    """Stem -> file of all images of a folder, hidden ones left out, in the order of their numbers.

    Raises:
        UsdError: no folder, no image in it, two images of one stem, or a link to nothing.
    """
    if not folder.is_dir():
        raise UsdError(f"{folder} is no folder; check the path, and unpack the whole of the download.")
    result: dict[str, Path] = {}
    for entry in sorted(os.scandir(folder), key=lambda entry: natural(entry.name)):
        stem, ending = split_ending(entry.name)
        if entry.name.startswith(".") or ending.lower() not in tuple(endings):
            continue
        if entry.is_symlink() and not Path(entry.path).exists():  # as of data that were not downloaded
            raise UsdError(f"{entry.path} is a link to a file that does not exist; get the file, or remove the link.")
        if not entry.is_file():
            continue
        if result.setdefault(composed(stem), Path(entry.path)) != Path(entry.path):
            raise UsdError(f"{result[composed(stem)]} and {entry.path} have one name; keep one of them.")
    if not result:
        raise UsdError(f"{folder} holds no image ({', '.join(endings)}); check the path.")
    return result


def pairs(images: Mapping[str, Path], masks: Mapping[str, Path]) -> dict[str, tuple[Path, Path]]:
    """Name -> (image, mask), where every image has a mask and every mask an image.

    Raises:
        UsdError: names up to five files without the other.
    """
    lonely = [images[name] for name in images.keys() - masks.keys()]
    lonely += [masks[name] for name in masks.keys() - images.keys()]
    if lonely:
        named = ", ".join(str(path) for path in sorted(lonely)[:5])
        raise UsdError(
            f"{len(lonely)} file(s) are an image without mask or a mask without image, among them {named}; add what is "
            "missing, or move them away."
        )
    return {name: (path, masks[name]) for name, path in images.items()}


def volume(folder: Path, stem: str) -> Path:
    """The NIfTI file of that stem in a folder, compressed or not; where there is none, the name that is expected."""
    plain = folder / f"{stem}.nii"
    return plain if plain.is_file() else folder / f"{stem}.nii.gz"


def unique(found: Iterable[tuple[str, Path]], source: Path, what: str) -> dict[str, Path]:
    """Name -> file, in the order of their numbers.

    Args:
        found: names and files.
        source: where they were looked for.
        what: what they are, with the pattern of their names, for messages.

    Raises:
        UsdError: none was found, or two of one name.
    """
    files: dict[str, Path] = {}
    for name, path in sorted(found, key=lambda item: natural(item[0])):
        if path.name.startswith(".") or _OF_MACOS in path.parts:
            continue
        if files.setdefault(name, path) != path:
            raise UsdError(f"{files[name]} and {path} are both {name}; name a folder that holds one of them.")
    if not files:
        raise UsdError(f"{source} holds no {what}; check the path, and unpack the whole of the download.")
    return files


def picture_ending(paths: Sequence[Path], channels: Sequence[str]) -> str:
    """Ending for a set of pictures: their own where they can all be copied, else .png."""
    endings = {split_ending(path.name)[1].lower() for path in paths}
    (ending, *others) = endings
    wanted = 3 if tuple(channels) == RGB else 1
    if not others and ending not in TIFF_ENDINGS and all(read_header(path)[0][0] == wanted for path in paths):
        return ending
    return ".png"


def natural(text: str) -> list[tuple[int, str]]:
    """Sorting key under which 2 comes before 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", text)]


def group_by(pattern: str | None, name: str) -> str | None:
    """The group of a case by the user's pattern; None without one.

    Raises:
        UsdError: the pattern is none, has no group, or does not fit the name.
    """
    if pattern is None:
        return None
    try:
        match = re.search(pattern, name, re.ASCII)
    except re.error as error:
        raise UsdError(f"--group-pattern {pattern!r} is no regular expression ({error}); correct it.") from None
    if match is None or not match.groups() or not match[1]:
        raise UsdError(
            f"--group-pattern {pattern!r} finds no group in the case {name!r}; it must hold one pair of brackets "
            "around the group and fit every name, such as '^(p[0-9]+)_'."
        )
    return match[1]
