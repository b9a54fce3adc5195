"""The cases to predict where images may be of any kind: endings and numbers of channels differ from case to case."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.names import composed
from unisegdiff_pipeline.io.endings import SUPPORTED_ENDINGS, split_ending, unread_images
from unisegdiff_pipeline.io.raw_dataset import CHANNEL_SUFFIX, RawCase, require_image_file, require_input_name


def find_mixed_cases(source: Path | Sequence[Path]) -> tuple[RawCase, ...]:
    """List the cases of a folder, a file or a list of files, whatever supported endings they have.

    Images are named CASE_0000.ext, CASE_0001.ext, ..., one file a channel; a file that holds all channels of its case
    may leave the suffix out. The files of a case have one ending, which its mask gets too. How many channels a case
    has is looked at when it is read, so that one that does not fit costs itself alone.

    Args:
        source: folder, file, or files; of a case of several files any of them may be named.

    Raises:
        UsdError: nothing found, a name that cannot be a case's, or two inputs that would be one case.
    """
    if isinstance(source, (str, Path)):
        source = Path(source)
        files = _images_of(source) if source.is_dir() else _with_siblings([source])
        if not files:
            raise UsdError(
                f"{source} holds no image; supported endings are {', '.join(SUPPORTED_ENDINGS)}. Check the folder."
            )
    else:
        files = _with_siblings([Path(path) for path in source])
        if not files:
            raise UsdError("the list of input files is empty; name at least one file.")
    found: dict[str, dict[int | None, Path]] = {}
    for path in files:
        case_id, channel = _case_and_channel(path)
        of_case = found.setdefault(case_id, {})
        first = next(iter(of_case.values()), path)
        same_kind = ending_of((first,)) == ending_of((path,)) and first.parent == path.parent
        if channel in of_case or None in of_case or (channel is None and of_case) or not same_kind:
            raise UsdError(f"two inputs would both be case {case_id!r}: {first} and {path}; rename or remove one.")
        of_case[channel] = path
    for case_id, of_case in found.items():
        require_input_name(case_id, ending_of(tuple(of_case.values())))
    return tuple(
        RawCase(case_id, tuple(path for _, path in sorted(found[case_id].items(), key=lambda item: item[0] or 0)))
        for case_id in sorted(found)
    )


def ending_of(paths: Sequence[Path]) -> str:
    """Ending of the files of a case."""
    return split_ending(paths[0].name)[1]


def num_channels_to_read(paths: Sequence[Path]) -> int | None:
    """Channels that the files of a case must hold: one each of several; of a single one as many as it has, None.

    Raises:
        UsdError: the numbers of several files have a gap, so that one is missing.
    """
    if len(paths) == 1 and _case_and_channel(paths[0])[1] in (None, 0):
        return None
    numbers = [_case_and_channel(path)[1] for path in paths]
    if numbers != list(range(len(paths))):
        names = ", ".join(path.name for path in paths)
        expected = ", ".join(f"_{number:04d}" for number in range(len(paths)))
        raise UsdError(f"its files are {names}, expected are the suffixes {expected}; add what is missing, or rename.")
    return len(paths)


def _case_and_channel(path: Path) -> tuple[str, int | None]:
    stem = composed(split_ending(path.name)[0])
    match = CHANNEL_SUFFIX.fullmatch(stem)
    return (match["case"], int(match["channel"])) if match else (stem, None)


def _images_of(folder: Path) -> list[Path]:
    names = sorted(entry.name for entry in os.scandir(folder) if not entry.name.startswith("."))
    found = [folder / name for name in names if split_ending(name)[1]]
    if unread := unread_images(names):
        raise UsdError(
            f"{folder / unread[0]} is of a format that is not read, and would be left out; convert it to one of "
            f"{', '.join(SUPPORTED_ENDINGS)}, or move it away."
        )
    for path in found:
        if not path.is_file():
            raise UsdError(
                f"{path} is {'a folder' if path.is_dir() else 'no file, or a link to one that does not exist'}; put "
                f"the image there, or move it away."
            )
    return found


def _with_siblings(paths: Iterable[Path]) -> list[Path]:
    """The files, and the other channels of the same cases beside them; each once."""
    found: dict[Path, None] = {}
    listed: dict[tuple[Path, str], dict[str, list[Path]]] = {}
    for path in paths:
        require_image_file(path)
        if not split_ending(path.name)[1]:
            raise UsdError(f"{path} has no known ending; supported are {', '.join(SUPPORTED_ENDINGS)}. Convert it.")
        case_id, channel = _case_and_channel(path)
        if channel is None:
            found[path] = None
            continue
        place = path.parent, split_ending(path.name)[1]
        if place not in listed:
            listed[place] = _channel_files(*place)
        found.update(dict.fromkeys(listed[place].get(case_id, ())))
    return list(found)


def _channel_files(folder: Path, ending: str) -> dict[str, list[Path]]:
    """The files of a folder with an ending that are named as a channel of a case, by case."""
    found: dict[str, list[Path]] = {}
    for name in sorted(entry.name for entry in os.scandir(folder)):
        case_id, channel = _case_and_channel(folder / name)
        if channel is not None and split_ending(name)[1] == ending and not name.startswith("."):
            found.setdefault(case_id, []).append(folder / name)
    return found
