"""From the files of a published data set to a raw data set: what every converter shares.

A converter only finds files: it returns a `Conversion`, the cases with their images, masks and groups, and how masks
are read. `write_raw_dataset` copies or encodes them. It works in a hidden folder beside the target, which takes the
target's name when everything is there; after an interruption the same call goes on where it stopped.
"""

from __future__ import annotations

import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from dataset_conversion.copying import (
    Frame,
    Made,
    Source,
    copy_image,
    copy_labels,
    copy_spacing,
    files_of,
    path_of,
    save_frame,
    save_made,
    save_pixels,
)
from dataset_conversion.masks import AsLabelled, MaskReader
from unisegdiff_pipeline.core.csv_tables import write_csv
from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.files import atomic_path, remove_stale_temporaries, text_hash
from unisegdiff_pipeline.core.geometry import Volume, geometry_differences, on_grid_of
from unisegdiff_pipeline.core.locks import locked
from unisegdiff_pipeline.core.names import composed, require_name
from unisegdiff_pipeline.core.parallel import MappedCasesError, choose_workers, map_cases
from unisegdiff_pipeline.core.serialization import write_json
from unisegdiff_pipeline.io.endings import NIFTI_ENDINGS, is_picture_ending, label_ending
from unisegdiff_pipeline.io.images import files_read, read_header, spacing_known, write_labels
from unisegdiff_pipeline.io.integrity import label_values
from unisegdiff_pipeline.io.paths import new_dataset_folder

RGB = ("R", "G", "B")
LICENCE_FILE = "LICENCE.txt"
_KEY_FILE = "conversion.txt"  # in the hidden folder, what it is made from
PictureReader = Callable[[Path], np.ndarray]


@dataclass(frozen=True)
class Case:
    """One case: where its files are.

    Attributes:
        name: becomes the file name.
        images: a file (or a frame of one, or what is made of several) for each channel, or one colour picture.
        masks: joined into one label map, later ones over earlier ones; empty for a test case without reference.
        group: patient or sequence, None where it is not known.
        held_out: goes to imagesTs and labelsTs, because the owners hold it out.
        raters: masks of single raters, which go to ratersTr.
        agree: number of masks that must mark a voxel, for masks of one class; 1 joins them all.
    """

    name: str
    images: tuple[Source, ...]
    masks: tuple[Path | Made, ...] = ()
    group: str | None = None
    held_out: bool = False
    raters: tuple[Path | Made, ...] = ()
    agree: int = 1


@dataclass(frozen=True)
class Origin:
    """Where a data set comes from, for dataset.json and the note on its licence."""

    title: str
    url: str
    licence: str
    reference: str


@dataclass(frozen=True)
class Conversion:
    """All that is needed to write a raw data set.

    Attributes:
        number: of the data set, unless the user chooses another one.
        name: of the data set.
        channels: names in the order of `Case.images`; R, G, B for colour pictures.
        labels: name -> value, or values of a region, background included.
        file_ending: of the images to be written; files of another ending are encoded anew.
        cases: at least one.
        origin: see there; None for files of the user's own.
        read_mask: path -> label map.
        read_picture: path -> pixels (Y, X) or (Y, X, 3) of type uint8, where the files are no plain images.
        published: number of cases that the owners name, by part ("training", "test").
        more: further keys of dataset.json.
    """

    number: int
    name: str
    channels: tuple[str, ...]
    labels: Mapping[str, int | list[int]]
    file_ending: str
    cases: tuple[Case, ...]
    origin: Origin | None = None
    read_mask: MaskReader = field(default_factory=AsLabelled)
    read_picture: PictureReader | None = None
    published: Mapping[str, int] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)


def write_raw_dataset(conversion: Conversion, raw_root: Path) -> Path:
    """Write the raw data set and return its folder; the whole of it, or nothing that carries its name.

    After an error nothing is left. After an interruption a hidden folder keeps the finished cases, and the same call
    goes on with the others as long as the source files have not changed.

    Raises:
        UsdError: the folder is there already, or another of its number; two cases of one name, a file that cannot be
            read, a value that the data set does not know, or a mask on another grid than its image.
    """
    target = new_dataset_folder(Path(raw_root), conversion.number, require_name(conversion.name, "the data set"))
    if target.exists():
        raise UsdError(f"{target} is there already; remove it, or choose another number with --dataset-id.")
    cases = _named(conversion)
    _compare_with_published(conversion)
    work = target.with_name(f".converting-{target.name}")
    with locked(work.with_name(f"{work.name}.lock"), f"the conversion into {target}"):
        _prepare(work, _key(conversion))
        try:
            writer = _CaseWriter(conversion, work)
            memory_gb = 2.0 if conversion.file_ending in NIFTI_ENDINGS else 0.5
            map_cases(
                writer,
                cases,
                names=[case.name for case in cases],
                workers=choose_workers(memory_gb),
                description=f"Converting {conversion.name}",
                kind="threads",
            )
            _describe(conversion, work)
            (work / _KEY_FILE).unlink()
            work.rename(target)
        except Exception as error:
            shutil.rmtree(work, ignore_errors=True)
            if not isinstance(error, MappedCasesError):
                raise
            failed = f"{len(error.failures)} of {len(cases)} cases cannot be converted; nothing was written"
            reasons = (f"{name}: {reason}" for name, reason in error.failures.items())
            raise UsdError(f"{failed}. {' | '.join(reasons)}") from None
    return target


# --------------------------------------------------------------------------------------------- before anything is read


def _named(conversion: Conversion) -> list[Case]:
    cases = list(conversion.cases)
    if not any(not case.held_out for case in cases):
        raise UsdError(f"{conversion.name}: no training case was found; check the folder.")
    for case in cases:
        require_name(case.name, f"the case of {path_of(case.images[0])}")
    folded = Counter(composed(case.name).casefold() for case in cases)  # some file systems know no case of letters
    for case in cases:
        if folded[composed(case.name).casefold()] > 1:
            twins = [str(path_of(c.images[0])) for c in cases if c.name.casefold() == case.name.casefold()]
            raise UsdError(f"{' and '.join(twins[:2])} would both become the case {case.name!r}; rename or remove one.")
    return cases


def _compare_with_published(conversion: Conversion) -> None:
    held_out = sum(case.held_out for case in conversion.cases)
    found = {"training": len(conversion.cases) - held_out, "test": held_out}
    for part, number in conversion.published.items():
        if found[part] != number:
            warnings.warn(
                f"{conversion.name}: {found[part]} {part} cases found, the owners publish {number}; look whether all "
                "of the download was unpacked.",
                stacklevel=3,
            )


def _key(conversion: Conversion) -> str:
    """Text that changes with anything the result is made from; files by size and time, for they may be large."""
    sources = [source for case in conversion.cases for source in (*case.images, *case.masks, *case.raters)]
    paths = files_read([path for source in sources for path in files_of(source)])
    for path in paths:
        if not path.is_file():
            raise UsdError(
                f"{path} does not exist; unpack the whole of the download, or name a folder without cases that lack it."
            )
    stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(paths)]
    readers = (repr(conversion.read_mask), getattr(conversion.read_picture, "__qualname__", None))
    facts = (conversion.number, conversion.name, conversion.channels, dict(conversion.labels), conversion.file_ending)
    return text_hash(repr((facts, readers, dict(conversion.more), conversion.cases, stats)))


def _prepare(work: Path, key: str) -> None:
    """The hidden folder, with the finished cases of an interrupted conversion of the very same files if there are."""
    known = work / _KEY_FILE
    if not known.is_file() or known.read_text("utf-8") != key:
        shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    with atomic_path(known) as temporary:
        temporary.write_text(key, "utf-8")
    remove_stale_temporaries(work, below=True)


def _describe(conversion: Conversion, work: Path) -> None:
    """dataset.json, groups.csv and the note on the licence."""
    training = [case for case in conversion.cases if not case.held_out]
    origin = conversion.origin
    about = {} if origin is None else {"reference": origin.reference, "licence": origin.licence, "url": origin.url}
    description = {
        "name": conversion.name,
        **about,
        **conversion.more,  # before what training reads, which it cannot replace
        "channel_names": {str(number): name for number, name in enumerate(conversion.channels)},
        "labels": dict(conversion.labels),
        "numTraining": len(training),
        "file_ending": conversion.file_ending,
    }
    write_json(work / "dataset.json", description)
    groups = [(case.name, case.group) for case in training if case.group is not None]
    if groups:
        write_csv(work / "groups.csv", ("case", "group"), groups, digits=6)
    if origin is not None:
        with atomic_path(work / LICENCE_FILE) as temporary:
            temporary.write_text(_licence_note(origin), "utf-8")


def _licence_note(origin: Origin) -> str:
    return (
        f"{origin.title}\nFrom: {origin.url}\nLicence: {origin.licence}\nCite: {origin.reference}\n\n"
        "This folder was converted by usd_convert from the files of the owners. Their terms hold for it; read them at "
        "the address above, they may have changed.\n"
    )


# ------------------------------------------------------------------------------------------------------- one case


@dataclass(frozen=True)
class _CaseWriter:
    conversion: Conversion
    work: Path

    def __call__(self, case: Case) -> None:
        part = "Ts" if case.held_out else "Tr"
        ending = self.conversion.file_ending
        single = len(case.images) == 1
        images = [
            (source, self.work / f"images{part}" / f"{case.name}_{channel:04d}{ending}")
            for channel, source in enumerate(case.images)
        ]
        for source, target in images:
            if not target.exists():
                self._write_image(source, target, len(self.conversion.channels) if single else 1)
        self._check_channels(images)
        label = self.work / f"labels{part}" / f"{case.name}{label_ending(ending)}"
        if case.masks and not label.exists():
            self._write_masks(case.masks, label, images[0], case.agree)
        for number, mask in enumerate(case.raters, start=1):
            target = self.work / "ratersTr" / f"{case.name}_rater{number}{label_ending(ending)}"
            if not target.exists():
                self._write_masks((mask,), target, images[0])

    def _write_image(self, source: Source, target: Path, num_channels: int) -> None:
        if isinstance(source, Frame):
            save_frame(source, target)
        elif isinstance(source, Made):
            save_made(source, target)
        elif self.conversion.read_picture is not None:
            save_pixels(self.conversion.read_picture(source), target)
        else:
            copy_image(source, target, num_channels)

    def _check_channels(self, images: Sequence[tuple[Source, Path]]) -> None:
        (first, target), *others = images
        grid = _grid_of(target)
        for source, other in others:
            found = on_grid_of(_grid_of(other), grid)
            remedy = "Resample the images of a case onto one grid first, or leave a channel out."
            _require_on_grid(path_of(source), found, f"{path_of(first)} of the same case", grid, remedy)

    def _write_masks(
        self, masks: Sequence[Path | Made], target: Path, image: tuple[Source, Path], agree: int = 1
    ) -> None:
        """Join masks of an image, which is given by its source and the file made of it."""
        source, made = image
        grid = _grid_of(made)
        volumes = [self._read_mask(mask, path_of(source), grid) for mask in masks]
        copy_spacing(made, target)  # first: a label map that is there counts as finished after an interruption
        if len(masks) == 1 and isinstance(masks[0], Path) and isinstance(self.conversion.read_mask, AsLabelled):
            copy_labels(masks[0], target, volumes[0])
        else:
            write_labels(target, _joined([volume.array for volume in volumes], agree)[0], grid.geometry)

    def _read_mask(self, mask: Path | Made, image: Path, grid: Volume) -> Volume:
        """A mask on the grid of its image; where it lies is compared as the check of a raw data set does it."""
        path = path_of(mask)
        volume = on_grid_of(mask.make() if isinstance(mask, Made) else self.conversion.read_mask(mask), grid)
        if not spacing_known([path]) and is_picture_ending(self.conversion.file_ending):
            volume = replace(volume, geometry=grid.geometry)  # the image may have a JSON file with its spacing
        remedy = "Give it the image's geometry if the voxels do correspond; else resample it, or leave the case out."
        _require_on_grid(path, volume, f"its image {image}", grid, remedy)
        allowed = {0, *np.hstack([np.ravel(values) for values in self.conversion.labels.values()]).tolist()}
        unknown = sorted(label_values(volume.array) - allowed)
        if unknown:
            raise UsdError(
                f"{path} holds the values {unknown[:10]}, known are {sorted(allowed)}; use the file as published."
            )
        return volume


def _grid_of(path: Path) -> Volume:
    """Shape and geometry of an image file, as a volume that has no memory for its voxels."""
    shape, geometry = read_header(path)
    return Volume(np.broadcast_to(np.uint8(0), shape), geometry)


def _require_on_grid(path: Path, found: Volume, like: str, grid: Volume, remedy: str) -> None:
    """Raise a UsdError where a file of a case has another shape than the file that `like` names, or lies elsewhere."""
    shape, expected = found.array.shape[1:], grid.array.shape[1:]
    if shape != expected:
        raise UsdError(f"{path} has the shape {shape} (Z, Y, X), {like} has {expected}. {remedy}")
    if differences := geometry_differences(grid.geometry, found.geometry, expected):
        raise UsdError(f"{path} lies elsewhere than {like}: {'; '.join(differences)}. {remedy}")


def _joined(masks: Sequence[np.ndarray], agree: int) -> np.ndarray:
    """One label map: what at least `agree` masks mark, or all masks with later ones over earlier ones."""
    if agree > 1:
        return (np.sum([mask > 0 for mask in masks], axis=0) >= agree).astype(np.uint8)
    labels = masks[0]
    for mask in masks[1:]:
        labels = np.where(mask > 0, mask, labels)
    return labels
