"""Preprocessed cases on disk: compressed arrays of which a patch can be read alone.

The layout below a data set's folder:

    preprocessed/DatasetXXX_Name/
        plans.json, cases.json, ...
        reference/CASE_reference.b2nd            label maps (R, Z, Y, X) on the grid of the label file
        <configuration>/manifest.json            what each case was made from, for all cases
        <configuration>/images/CASE.b2nd         image (C, Z, Y, X) float32
        <configuration>/labels/CASE.b2nd         labels (R, Z, Y, X); row 0 = labelsTr, rows 1.. = raters
        <configuration>/components/CASE.npz      components with sampled voxels
        <configuration>/cases/CASE.json          source, properties and the hash of each of the three files; written
                                                 last: a case without it is not there

Each kind of file has a folder of its own, so that no case's name can be that of another case's file. The hashes are
compared when preprocessing or training begins: compressed arrays carry none, and a flipped byte would be trained on.
Hashing a file takes about as long as reading eight patches from it (37 against 35 ms for 31 MB), once a run.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.files import atomic_path, file_hash
from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.core.names import file_of, quoted
from unisegdiff_pipeline.core.parallel import usable_cores
from unisegdiff_pipeline.core.progress import progress
from unisegdiff_pipeline.core.serialization import read_dataclass, write_json
from unisegdiff_pipeline.core.words import listed
from unisegdiff_pipeline.planning.plans import ConfigurationPlan, plan_of_folder, plans_file
from unisegdiff_pipeline.preprocessing.components import ComponentTable
from unisegdiff_pipeline.preprocessing.properties import CaseProperties
from unisegdiff_pipeline.preprocessing.provenance import FORMAT_VERSION, CaseProvenance, case_settings

__all__ = ["CaseProperties", "ComponentTable", "PreprocessedFolder", "StoredCase"]

MANIFEST = "manifest.json"
REFERENCE_FOLDER = "reference"
IMAGES, LABELS, COMPONENTS, CASES = "images", "labels", "components", "cases"
ENDINGS = {IMAGES: ".b2nd", LABELS: ".b2nd", COMPONENTS: ".npz", CASES: ".json"}
ARRAYS = (IMAGES, LABELS, COMPONENTS)
KEPT_CASE_FILES = 4096  # parsed ones, of a few kilobytes each
# A block is what is decompressed at once and should stay in a core's cache; a chunk is what is read at once.
MAX_BLOCK_BYTES = 128 * 1024
MAX_CHUNK_BYTES = 6 * 1024 * 1024


class Sliceable(Protocol):
    """What image and labels offer, whether they lie in memory or on disk; indexing gives a numpy array."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> Any: ...

    def __getitem__(self, key: Any) -> np.ndarray: ...


@dataclass(frozen=True)
class StoredCase:
    """One preprocessed case, opened.

    Attributes:
        folder: folder of the configuration.
        case_id: name of the case.
        image: (C, Z, Y, X) float32.
        labels: (R, Z, Y, X) uint8 or int16; row 0 = labelsTr, rows 1.. = raters.
        properties: the way to the original grid.
        mask: of a cascade, the label map (1, Z, Y, X) of the other network on the same grid.
    """

    folder: Path
    case_id: str
    image: Sliceable
    labels: Sliceable
    properties: CaseProperties
    mask: Sliceable | None = None

    @property
    def group(self) -> str:
        """What the case belongs to (a patient, say); its own name where no group is known."""
        return self.properties.group or self.case_id

    @property
    def num_rows(self) -> int:
        """Label rows: one, and one more for each rater."""
        return int(self.labels.shape[0])

    @property
    def num_bytes(self) -> int:
        """Memory that image, labels and mask take when they are loaded."""
        arrays = (self.image, self.labels, *(() if self.mask is None else (self.mask,)))
        return sum(math.prod(a.shape) * np.dtype(a.dtype).itemsize for a in arrays)

    @cached_property
    def components(self) -> ComponentTable:
        """Components of all rows; read when first asked for."""
        return ComponentTable.load(case_path(self.folder, COMPONENTS, self.case_id))

    def reference(self) -> np.ndarray:
        """Label maps (R, Z, Y, X) on the grid of the label file, in its own axis order."""
        return read_array(reference_path(self.folder.parent, self.case_id))

    def load(self, in_memory: bool = True) -> StoredCase:
        """The same case with its arrays decompressed into memory; itself when `in_memory` is False."""
        if not in_memory:
            return self
        image, labels = np.asarray(self.image[...]), np.asarray(self.labels[...])
        return replace(self, image=image, labels=labels, mask=None if self.mask is None else np.asarray(self.mask[...]))

    def within(self, box: tuple[slice, ...]) -> StoredCase:
        """The case with image and mask in a box (Z, Y, X) alone."""
        inside = (slice(None), *box)
        return replace(self, image=self.image[inside], mask=None if self.mask is None else self.mask[inside])


@dataclass(frozen=True)
class CaseFile:
    """Content of CASE.json.

    Attributes:
        source: what the case was made from.
        image_hash: of the voxels as read, the same for copies of an image.
        properties: the way to the original grid.
        hashes: of the stored files, by kind; `write_case` fills them in.
    """

    source: CaseProvenance
    image_hash: str
    properties: CaseProperties
    hashes: dict[str, str] = field(default_factory=dict)


class PreprocessedFolder:
    """The cases of one configuration."""

    def __init__(self, folder: Path, masks: Path | None = None) -> None:
        """Open `folder` (preprocessed/DatasetXXX_Name/<configuration>).

        Args:
            folder: of the configuration.
            masks: of a cascade, folder of the other network's masks.

        Raises:
            UsdError: where it does not exist.
        """
        self.folder, self.masks = Path(folder), masks
        if not self.folder.is_dir():
            configuration, plans_name = plan_of_folder(self.folder.name)
            of_plan, flag = "", ""
            if plans_name is not None:
                of_plan, flag = f" of {plans_file(plans_name)}", f" --plans {quoted(plans_name)}"
            raise UsdError(
                f"{self.folder} does not exist: configuration {configuration!r}{of_plan} has not been preprocessed; "
                f"run usd_preprocess -d {quoted(self.folder.parent.name)} -c {configuration}{flag} first."
            )

    @cached_property
    def case_ids(self) -> tuple[str, ...]:
        """Names of all complete cases, sorted."""
        found = (self.folder / CASES).glob("*.json")
        return tuple(sorted(p.name.removesuffix(".json") for p in found if not p.name.startswith(".tmp-")))

    def require_current(self, case_ids: Sequence[str], scheme: LabelScheme, plan: ConfigurationPlan) -> None:
        """Raise a UsdError that names a case which is not there, or was preprocessed otherwise than it would be now."""
        settings = case_settings(scheme, plan)
        file = plans_file(plan_of_folder(self.folder.name)[1])
        for case_id in dict.fromkeys(case_ids):
            stored = self._file(case_id)
            if stored.source.settings != settings.get(stored.properties.source):
                raise UsdError(
                    f"case {case_id!r} in {self.folder} was preprocessed by another plan than {file} is now; run "
                    f"usd_preprocess again (only what changed is redone), or restore the former {file}."
                )
            if is_outdated(stored):
                raise UsdError(
                    f"case {case_id!r} in {self.folder} was preprocessed by an earlier version, which moved the image "
                    f"along its axis of thick slices or did not interpolate there; run usd_preprocess again (only such "
                    f"cases are redone)."
                )

    def require_undamaged(self, case_ids: Sequence[str]) -> None:
        """Compare the files of these cases with the hashes taken when they were written; every file is read once.

        Raises:
            UsdError: names the damaged files.
        """
        wanted = list(dict.fromkeys(case_ids))
        with ThreadPoolExecutor(usable_cores()) as pool:  # hashing leaves Python's lock
            found = pool.map(lambda case_id: damaged_files(self.folder, case_id, self._file(case_id)), wanted)
            damaged = [path for paths in progress(found, len(wanted), "checking preprocessed files") for path in paths]
        if damaged:
            raise UsdError(damage_message(damaged))

    def open(self, case_id: str) -> StoredCase:
        """Open a case; arrays stay on disk until they are indexed.

        Raises:
            UsdError: where the case is not there.
        """
        properties = self._file(case_id).properties
        image = open_array(case_path(self.folder, IMAGES, case_id))
        labels = open_array(case_path(self.folder, LABELS, case_id))
        mask = None if self.masks is None else open_array(mask_path(self.masks, case_id))
        return StoredCase(self.folder, case_id, image, labels, properties, mask)

    def properties(self, case_id: str) -> CaseProperties:
        """The way of a case to its original grid; its arrays are not opened."""
        return self._file(case_id).properties

    def provenance(self, case_id: str) -> CaseProvenance:
        """What a case was made from; its arrays are not opened."""
        return self._file(case_id).source

    def _file(self, case_id: str) -> CaseFile:
        path = case_path(self.folder, CASES, case_id)
        if not path.is_file():
            raise UsdError(
                f"case {case_id!r} is not in {self.folder}; it was not preprocessed or was removed from the raw data "
                f"set: run usd_preprocess again, or take the case out of splits_final.json."
            )
        found = path.stat()
        return _unchanged_case_file(path, (found.st_ino, found.st_mtime_ns, found.st_size))


@lru_cache(maxsize=KEPT_CASE_FILES)
def _unchanged_case_file(path: Path, stamp: tuple[int, ...]) -> CaseFile:
    """CASE.json, parsed once: a training checks its plan and its hashes, then opens the case again and again.

    `stamp` is another one when the file has been written again.
    """
    return read_dataclass(CaseFile, path)


def write_case(
    folder: Path,
    image: np.ndarray,
    labels: np.ndarray,
    components: ComponentTable,
    content: CaseFile,
    patch_size: Sequence[int],
) -> None:
    """Write one case; its JSON disappears first and comes last, so that a killed run leaves no half case."""
    properties = content.properties
    case_id = properties.case_id
    case_path(folder, CASES, case_id).unlink(missing_ok=True)
    paths = {kind: case_path(folder, kind, case_id) for kind in ARRAYS}
    resampled = properties.shape != properties.shape_cropped
    write_array(paths[IMAGES], image, patch_size, smooth=resampled)
    write_array(paths[LABELS], labels, patch_size)
    components.save(paths[COMPONENTS])
    write_case_file(folder, replace(content, hashes={kind: file_hash(path) for kind, path in paths.items()}))


def write_case_file(folder: Path, content: CaseFile) -> None:
    """Write CASE.json, which makes a case complete."""
    write_json(case_path(folder, CASES, content.properties.case_id), content)


def stored_case_file(folder: Path, case_id: str) -> CaseFile | None:
    """CASE.json of a case; None where the case is incomplete or was written by another version."""
    if not all(case_path(folder, kind, case_id).is_file() for kind in ENDINGS):
        return None
    try:
        return read_dataclass(CaseFile, case_path(folder, CASES, case_id))
    except UsdError:
        return None


def is_outdated(content: CaseFile) -> bool:
    """Whether an earlier version stored the case otherwise than it would be stored now.

    Version 2 resampled the second and third axis by the nearest voxel also within 2D slices, and moved what lay there
    where the axis lost half of its voxels or more.
    """
    properties, axis = content.properties, content.properties.separate_axis
    if content.source.format_version >= FORMAT_VERSION or axis not in (1, 2):
        return False
    return properties.shape[axis] != properties.shape_cropped[axis]


def damaged_files(folder: Path, case_id: str, content: CaseFile) -> list[Path]:
    """Files of a case that are missing or are not what was written."""
    paths = {kind: case_path(folder, kind, case_id) for kind in ARRAYS}
    return [path for kind, path in paths.items() if not is_undamaged(path, content.hashes.get(kind, ""))]


def is_undamaged(path: Path, expected_hash: str) -> bool:
    """Whether a file is there and has the hash that it had when it was written."""
    try:
        return file_hash(path) == expected_hash
    except OSError:
        return False


def damage_message(damaged: Sequence[Path]) -> str:
    """The message for files that are not what was written."""
    return (
        f"{listed(damaged, 5)}: damaged or changed since preprocessing wrote it; run usd_preprocess again, it redoes "
        f"only the damaged cases. Should it happen again, check the disk."
    )


def remove_case(folder: Path, case_id: str) -> None:
    """Remove a case from a configuration."""
    for kind in (CASES, *ARRAYS):
        case_path(folder, kind, case_id).unlink(missing_ok=True)


def remove_former_layout(folder: Path) -> None:
    """Remove the cases of versions that kept all kinds of files in the configuration's folder itself."""
    for labels in folder.glob("*_labels.b2nd"):
        stem = labels.name.removesuffix("_labels.b2nd")
        for ending in (".json", ".b2nd", "_components.npz", "_labels.b2nd"):
            (folder / f"{stem}{ending}").unlink(missing_ok=True)


def case_folders(folder: Path) -> tuple[Path, ...]:
    """The folders that a configuration's files lie in."""
    return tuple(folder / kind for kind in ENDINGS)


def case_path(folder: Path, kind: str, case_id: str) -> Path:
    """File of one kind of a case."""
    return file_of(folder / kind, case_id, ENDINGS[kind])


def reference_path(dataset_folder: Path, case_id: str) -> Path:
    """File of the label maps on the original grid."""
    return file_of(dataset_folder / REFERENCE_FOLDER, case_id, "_reference.b2nd")


def mask_path(folder: Path, case_id: str) -> Path:
    """File of the mask that a cascade reads of a case."""
    return file_of(folder, case_id, ".b2nd")


def write_array(path: Path, array: np.ndarray, patch_size: Sequence[int], smooth: bool = False) -> None:
    """Write (C, Z, Y, X) compressed, atomically.

    LZ4HC at level 1 compresses MR images within a tenth of level 5 in a quarter of its time and is read equally fast.
    Byte shuffling pays for interpolated ("smooth") intensities and costs a third where values repeat.
    """
    import blosc2

    block, chunk = block_and_chunk(array.shape, patch_size, array.dtype.itemsize)
    cparams = {
        "codec": blosc2.Codec.LZ4HC,
        "clevel": 1,
        "nthreads": 1,
        "filters": [blosc2.Filter.SHUFFLE if smooth else blosc2.Filter.NOFILTER],
    }
    values = np.ascontiguousarray(array)
    try:
        with atomic_path(path) as temporary:
            blosc2.asarray(values, urlpath=str(temporary), mode="w", chunks=chunk, blocks=block, cparams=cparams)
    except (OSError, RuntimeError) as error:
        free_mb = shutil.disk_usage(path.parent).free // 2**20
        raise UsdError(
            f"{path} cannot be written ({error}); {free_mb} MB are free on that disk: make room or check the "
            f"permissions, then run the same command again, it goes on where it stopped."
        ) from error


@dataclass(frozen=True)
class StoredArray:
    """An array on disk; indexing decompresses the blocks that it touches, in the calling thread.

    Raises:
        UsdError: on indexing, where a block is damaged.
    """

    path: Path
    array: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """As of a numpy array."""
        return tuple(self.array.shape)

    @property
    def dtype(self) -> Any:
        """As of a numpy array."""
        return self.array.dtype

    def __getitem__(self, key: Any) -> np.ndarray:
        try:
            return np.asarray(self.array[key])
        except (RuntimeError, ValueError, OSError) as error:
            raise UsdError(damage_message([self.path])) from error


def open_array(path: Path) -> StoredArray:
    """Open an array without reading it.

    Raises:
        UsdError: missing, damaged, or something else than an array.
    """
    import blosc2

    # Memory mapping saves a copy; on Windows it forbids the replacement of the file.
    mapping = {} if os.name == "nt" else {"mmap_mode": "r"}
    try:
        # "safe": lazy expressions and functions that a file may hold are refused, not evaluated.
        array = blosc2.open(str(path), mode="r", dparams={"nthreads": 1}, deserialize="safe", **mapping)
    except Exception as error:  # of a damaged file, blosc2 raises whatever its parts meet first
        raise UsdError(f"{path} cannot be read ({error}). {damage_message([path])}") from error
    if not isinstance(array, blosc2.NDArray):
        raise UsdError(f"{path} holds no array but a {type(array).__name__}. {damage_message([path])}")
    return StoredArray(path, array)


def read_array(path: Path) -> np.ndarray:
    """Read a whole array."""
    return open_array(path)[...]


def block_and_chunk(
    shape: Sequence[int], patch_size: Sequence[int], itemsize: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Block and chunk of a (C, Z, Y, X) array from which patches of `patch_size` (two or three axes) are read.

    All channels lie together, because a patch needs them all. A block starts as the patch, and its longest axis is
    halved until MAX_BLOCK_BYTES; a chunk grows from it, the axis that covers least of the patch first, up to one and a
    half patches and MAX_CHUNK_BYTES.
    """
    channels, *spatial = shape
    wanted = [1] * (3 - len(patch_size)) + [int(p) for p in patch_size]
    block = [max(1, min(p, n)) for p, n in zip(wanted, spatial, strict=True)]
    while channels * math.prod(block) * itemsize > MAX_BLOCK_BYTES and max(block) > 1:
        axis = block.index(max(block))
        block[axis] = (block[axis] + 1) // 2
    limit = [min(n, math.ceil(1.5 * p)) for p, n in zip(wanted, spatial, strict=True)]
    chunk = list(block)
    while True:
        grown = [min(c + b, m) for c, b, m in zip(chunk, block, limit, strict=True)]
        fits = [
            axis
            for axis in range(3)
            if grown[axis] > chunk[axis]
            and channels * math.prod(chunk) // chunk[axis] * grown[axis] * itemsize <= MAX_CHUNK_BYTES
        ]
        if not fits:
            return (channels, *block), (channels, *chunk)
        axis = min(fits, key=lambda a: chunk[a] / limit[a])
        chunk[axis] = grown[axis]
