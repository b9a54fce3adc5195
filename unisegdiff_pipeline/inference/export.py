"""What prediction leaves in the output folder.

    OUT/CASE.ext                     the mask, in the grid and geometry of the image; nothing else of this kind here
    OUT/uncertainty/CASE.ext         normalised entropy in [0, 1]; 2D pictures as 16-bit PNG
    OUT/uncertainty/PART/CASE.ext    its parts, if asked for; see `uncertainty_parts`
    OUT/samples/CASE_sample00.ext    sampled masks, if asked for
    OUT/masks_lesions/  masks_inner/  masks_outer/
                                     masks that keep a guarantee, if asked for; see `guarantees`
    OUT/probabilities/CASE.npz       "probabilities" (K, Z, Y, X), half precision, if asked for
    OUT/lesions.csv  volumes.csv  cases.csv  manifest.json
                                     over all cases
    OUT/.prediction.json             what all of it is made of; see `output_folder`
    OUT/.cases/CASE.csv, volumes/CASE.csv, cases/CASE.csv, CASE.json
                                     the case's rows of the tables, and what was done; the record is written last of
                                     all, so it says that the case is complete

The four files over all cases are put together from the records, so an interrupted run continues and several runs that
share a folder end with the same files.
"""

from __future__ import annotations

import platform
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.files import atomic_path
from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.core.names import file_of
from unisegdiff_pipeline.core.scratch import Scratch
from unisegdiff_pipeline.core.serialization import read_dataclass, write_json
from unisegdiff_pipeline.core.version import __version__
from unisegdiff_pipeline.inference.case_table import join_rows, write_rows
from unisegdiff_pipeline.inference.cases import CaseSummary
from unisegdiff_pipeline.inference.ensemble import EnsemblePrediction
from unisegdiff_pipeline.inference.guarantees import Promises, promised_folders
from unisegdiff_pipeline.inference.label_fusion import Combination
from unisegdiff_pipeline.inference.lesions import PredictedLesion
from unisegdiff_pipeline.inference.measuring import measure
from unisegdiff_pipeline.inference.restoring import restore_masks, restore_uncertainty, restored_channels
from unisegdiff_pipeline.inference.uncertainty_parts import PARTS
from unisegdiff_pipeline.inference.volumes import ClassVolume
from unisegdiff_pipeline.io.images import label_ending, map_ending, write_labels, write_map
from unisegdiff_pipeline.io.prediction_files import CASES, LESIONS, MANIFEST, SUMMARY_FILES, VOLUMES
from unisegdiff_pipeline.preprocessing.lazy_rows import LazyRows
from unisegdiff_pipeline.preprocessing.properties import CaseProperties
from unisegdiff_pipeline.preprocessing.restore import restore_map

RECORDS = ".cases"
PICTURE_SCALE = 65535.0


@dataclass(frozen=True)
class OutputOptions:
    """What is written, and in which form."""

    file_ending: str
    spacing_known: bool
    save_samples: bool = False
    save_probabilities: bool = False
    save_uncertainty_parts: bool = False
    combine: Combination = "mean"
    promises: Promises | None = None


@dataclass(frozen=True)
class PredictionRecord:
    """One finished case.

    Attributes:
        request: hash of everything that the mask depends on besides the image; see `output_folder`.
        input_hashes: of the image; see `origin.input_hashes`.
        seconds: time of each step.
        facts: number of tiles and the like.
        file_ending: of the image, which the mask has too; empty in records of earlier versions.
    """

    case: str
    request: str
    inputs: tuple[str, ...]
    input_hashes: tuple[str, ...]
    seconds: dict[str, float]
    facts: dict[str, float]
    file_ending: str = ""


def mask_path(output: Path, case_id: str, file_ending: str) -> Path:
    """Where the mask of a case lies."""
    return file_of(output, case_id, label_ending(file_ending))


def expected_files(output: Path, case_id: str, options: OutputOptions, num_folds: int, num_samples: int) -> list[Path]:
    """What a finished case has in the output folder, tables and record apart."""
    mask, uncertainty = mask_path(output, case_id, options.file_ending), output / "uncertainty"
    name = f"{case_id}{map_ending(options.file_ending)}"
    files = [mask, uncertainty / name]
    if options.save_samples:
        files += [sample_path(output, case_id, index, options.file_ending) for index in range(num_samples)]
    if options.save_probabilities:
        files.append(file_of(output / "probabilities", case_id, ".npz"))
    if options.save_uncertainty_parts:
        there = {"between_folds": num_folds > 1, "within_samples": num_samples > 0}
        files += [uncertainty / part / name for part in PARTS if there.get(part, True)]
    if options.promises is not None:
        files += [mask_path(output / place, case_id, options.file_ending) for _, place, _ in options.promises.masks()]
    return files


def output_folders(output: Path) -> tuple[Path, ...]:
    """All folders that prediction writes into."""
    uncertainty = output / "uncertainty"
    records = output / RECORDS
    others = (output / "samples", output / "probabilities", records, records / "volumes", records / "cases")
    return (output, uncertainty, *(uncertainty / part for part in PARTS), *others, *promised_folders(output))


def uncertainty_scale(file_ending: str) -> float | None:
    """Units of the 16-bit PNGs in uncertainty/ per unit of entropy; None where maps are written as real numbers."""
    return PICTURE_SCALE if map_ending(file_ending).lower() == ".png" else None


def write_prediction(
    output: Path,
    found: EnsemblePrediction,
    properties: CaseProperties,
    scheme: LabelScheme,
    options: OutputOptions,
) -> int:
    """Bring a prediction back to the image's grid and write it; the mask last. Returns the number of lesions."""
    case_id, geometry, scratch = properties.case_id, properties.geometry, found.scratch
    labels, sampled_masks = restore_masks(found, properties, scheme, options.combine)

    def written() -> Iterator[np.ndarray]:
        for index, drawn in enumerate(sampled_masks):
            if options.save_samples:
                write_labels(sample_path(output, case_id, index, options.file_ending), drawn, geometry)
            yield drawn

    measured = measure(found, properties, scheme, options.spacing_known, labels, written(), options.promises)
    scale = uncertainty_scale(options.file_ending)

    def write_uncertainty(name: str, values: np.ndarray) -> None:
        path = file_of(output / "uncertainty" / name, case_id, map_ending(options.file_ending))
        write_map(path, values, geometry, scale, scratch.release)

    write_uncertainty("", restore_uncertainty(found, properties, scheme.coding))
    if options.save_uncertainty_parts:
        for name, part in found.uncertainty_parts(scheme.coding).items():
            write_uncertainty(name, restore_map(part, properties, scratch=scratch))
    if options.save_probabilities:
        path = file_of(output / "probabilities", case_id, ".npz")
        write_probabilities(path, found.probabilities, properties, scheme, scratch)
    if options.promises is not None:
        _write_promised(output, found, properties, options.promises, scheme.foreground_offset, options.file_ending)
    write_rows(lesions_path(output, case_id), PredictedLesion, measured.lesions)
    write_rows(volumes_path(output, case_id), ClassVolume, measured.volumes)
    write_rows(summary_path(output, case_id), CaseSummary, [measured.case])
    write_labels(mask_path(output, case_id, options.file_ending), labels, geometry)
    return len(measured.lesions)


def _write_promised(
    output: Path,
    found: EnsemblePrediction,
    properties: CaseProperties,
    promises: Promises,
    first_channel: int,
    file_ending: str,
) -> None:
    """Write the masks of guarantees; probabilities are compared in half precision, as when they were calibrated."""
    for number, place, threshold in promises.masks():
        channel = number + first_channel
        p = restore_map(found.probabilities[channel : channel + 1], properties, scratch=found.scratch)[0]
        mask = np.stack([threshold.mask(row.astype(np.float16)) for row in p]).astype(np.uint8)
        write_labels(mask_path(output / place, properties.case_id, file_ending), mask, properties.geometry)
        found.scratch.release()


def write_probabilities(
    path: Path, probabilities: LazyRows, properties: CaseProperties, scheme: LabelScheme, scratch: Scratch
) -> None:
    """Write `restore_probabilities` as `np.savez_compressed` does, row by row."""
    shape = (probabilities.shape[0], *properties.shape_original)
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.float16)), "fortran_order": False, "shape": shape}
    with (
        atomic_path(path) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("probabilities.npy", "w", force_zip64=True) as stream,
    ):
        np.lib.format.write_array_header_1_0(stream, header)
        for channel in restored_channels(probabilities, properties, scheme, scratch):
            for row in scratch.rows(len(channel)):
                stream.write(channel[row].astype(np.float16).tobytes())
            scratch.release()


def write_record(output: Path, record: PredictionRecord) -> None:
    """Write the record of a case; from then on it counts as finished."""
    write_json(record_path(output, record.case), record)


def read_record(output: Path, case_id: str) -> PredictionRecord | None:
    """The record of a finished case; None where there is none or it cannot be read, so that the case is done again."""
    path = record_path(output, case_id)
    if not path.is_file():
        return None
    try:
        return read_dataclass(PredictionRecord, path)
    except UsdError:
        return None


def write_summary(output: Path, run: Mapping[str, Any]) -> None:
    """Write lesions.csv, volumes.csv, cases.csv and manifest.json from the records of all finished cases.

    Where several runs share the folder and end at the same time, the last of them to write has all their cases.

    Args:
        run: what holds for the whole run: model, folds, settings, seed, options.
    """
    while True:
        before = _written(output)
        _write_summary_once(output, run)
        if _written(output) == before:  # no record was written while the records were read
            return


def _write_summary_once(output: Path, run: Mapping[str, Any]) -> None:
    records = list(_records(output))
    join_rows(output / LESIONS, PredictedLesion, [lesions_path(output, r.case) for r in records])
    join_rows(output / VOLUMES, ClassVolume, [volumes_path(output, r.case) for r in records])
    join_rows(output / CASES, CaseSummary, [summary_path(output, r.case) for r in records])
    cases = {
        r.case: {
            "inputs": r.inputs,
            "input_hashes": r.input_hashes,
            "seconds": {name: round(value, 4) for name, value in r.seconds.items()},
            **r.facts,
            "current": r.request == run.get("request"),
        }
        for r in records
    }
    write_json(output / MANIFEST, {**run, "versions": versions(), "cases": cases})


def endings_there(output: Path, file_ending: str) -> set[str]:
    """Endings of the images of all finished cases; that of records that do not say it, or of no case, is given."""
    return {record.file_ending or file_ending for record in _records(output)} or {file_ending}


def remove_summary(output: Path) -> None:
    """Remove what `write_summary` wrote, where no case is kept any more that it could be of."""
    for name in SUMMARY_FILES:
        (output / name).unlink(missing_ok=True)


def versions() -> dict[str, str]:
    """Versions that a result may depend on."""
    return {
        "unisegdiff_pipeline": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
    }


def _records(output: Path) -> Iterator[PredictionRecord]:
    for path in _record_files(output):
        record = read_record(output, path.name.removesuffix(".json"))
        if record is not None:
            yield record


def _record_files(output: Path) -> list[Path]:
    return sorted((output / RECORDS).glob("*.json"))


def _written(output: Path) -> list[tuple[Path, int, int]]:
    """Which records there are, and which file each of them is."""
    found = []
    for path in _record_files(output):
        with suppress(FileNotFoundError):  # of a case that another run begins anew
            status = path.stat()
            found.append((path, status.st_ino, status.st_mtime_ns))
    return found


def sample_path(output: Path, case_id: str, index: int, file_ending: str) -> Path:
    """Where a sampled mask of a case lies; `index` counts from 0."""
    return file_of(output / "samples", case_id, f"_sample{index:02d}{label_ending(file_ending)}")


def record_path(output: Path, case_id: str) -> Path:
    """Where the record of a case lies."""
    return file_of(output / RECORDS, case_id, ".json")


def lesions_path(output: Path, case_id: str) -> Path:
    """Where the lesions of a case lie."""
    return file_of(output / RECORDS, case_id, ".csv")


def volumes_path(output: Path, case_id: str) -> Path:
    """Where the volumes of a case lie."""
    return file_of(output / RECORDS / "volumes", case_id, ".csv")


def summary_path(output: Path, case_id: str) -> Path:
    """Where the case's row of cases.csv lies."""
    return file_of(output / RECORDS / "cases", case_id, ".csv")
