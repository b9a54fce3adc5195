"""Masks of predicted DICOM series as DICOM-SEG.

    DIR/CASE_seg.dcm              a segment for each class, 0 or 1
    DIR/CASE_probability.dcm      the same segments with the mean probability over the samples, in steps of 1/255

Both refer to the series of the case's first channel, slice by slice, and are what the output folder of the prediction
holds. Their UIDs follow from the series and from what the prediction was made of: made again they are the same.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.files import atomic_path, require_writable
from unisegdiff_pipeline.core.geometry import geometry_differences
from unisegdiff_pipeline.core.npz import read_npz
from unisegdiff_pipeline.core.serialization import read_object
from unisegdiff_pipeline.core.version import __version__
from unisegdiff_pipeline.core.words import listed
from unisegdiff_pipeline.inference.dicom_input import series_in, series_of_cases
from unisegdiff_pipeline.inference.export import mask_path, read_record
from unisegdiff_pipeline.inference.model_folder import DATASET_NAME, ModelFolder
from unisegdiff_pipeline.io.class_codes import ClassCode, parse_class_codes
from unisegdiff_pipeline.io.dicom import Series, is_dicom_folder
from unisegdiff_pipeline.io.images import read_labels

LOGGER = logging.getLogger(__name__)
EXTRA = "pip install 'unisegdiff_pipeline[dicom]'"
LISTED = 10  # names in a message
LARGEST = 255
LONGEST_LABEL = 64
NEEDED = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID")
# What a file may leave open, but not leave out; files that were made anonymous often do.
MAY_BE_EMPTY = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "ReferringPhysicianName"),
    *("AccessionNumber", "StudyID", "StudyDate", "StudyTime"),
)


def require_dicom_seg(source: object, target: Path, model: ModelFolder) -> dict[str, Series]:
    """Refuse what cannot be written, before anything is predicted; returns what to write it on, by `series_of_cases`.

    Raises:
        UsdError: the package for it is missing, images are no DICOM series, or the target lies among them; or a series
            lacks the identifiers by which a DICOM-SEG refers to it.
    """
    if find_spec("highdicom") is None:
        raise UsdError(f"DICOM-SEG (--dicom-seg) needs the package highdicom; install it with {EXTRA}.")
    if not isinstance(source, Path) or not is_dicom_folder(source):
        raise UsdError(f"{source} is no folder of DICOM series, which DICOM-SEG (--dicom-seg) refers to; leave it out.")
    if Path(target).resolve().is_relative_to(source.resolve()):
        raise UsdError(f"{target} (--dicom-seg) lies in the folder of the images, {source}; choose another folder.")
    found = series_of_cases(series_in(source)[0], model)
    for series in found.values():
        header = _header(series.slices[0].path)
        if lacking := [name for name in NEEDED if not header.get(name)]:
            raise UsdError(
                f"no DICOM-SEG (--dicom-seg) can refer to the series in {series.folder}, which has no "
                f"{', '.join(lacking)}; complete its headers, or leave the flag out."
            )
    require_writable(Path(target))
    return found


def write_dicom_segs(prediction: Path, target: Path, found: Mapping[str, Series], model: ModelFolder) -> int:
    """Write what a prediction holds of the cases of a DICOM folder; returns of how many cases.

    Args:
        prediction: output folder of a prediction with probabilities.
        target: folder of the files.
        found: the series of each case, by `require_dicom_seg`.
        model: says what classes are and, by its dataset.json, what they are called.

    Raises:
        UsdError: a mask that does not lie on its series, or headers that contradict each other.
    """
    path, labels = model.folder / DATASET_NAME, model.plans.labels
    codes = parse_class_codes(read_object(path) if path.is_file() else {}, labels.names)
    left_out = []
    for case_id, series in found.items():
        record = read_record(prediction, case_id)
        if record is None:
            left_out.append(case_id)
            continue
        file = mask_path(prediction, case_id, record.file_ending or model.plans.file_ending)
        mask, (shape, geometry) = read_labels(file), series.header()
        if mask.array.shape[1:] != shape or geometry_differences(geometry, mask.geometry, shape):
            raise UsdError(f"{file} does not lie on the series in {series.folder}; predict again with --overwrite.")
        masks = np.stack([part for _, part in labels.class_masks(mask.array[0])], axis=-1)
        stored = _probabilities(prediction / "probabilities" / f"{case_id}.npz")
        probabilities = np.moveaxis(stored[labels.foreground_offset :], 0, -1).astype(np.float32).clip(0, 1)
        # Rounded here: highdicom looks for empty frames before it rounds, and fails where all become empty by that.
        steps = np.rint(probabilities * LARGEST) / LARGEST
        for name, pixels in (("seg", masks.astype(np.uint8)), ("probability", steps)):
            dataset = _segmentation(pixels, series, codes, (record.request, name))
            with atomic_path(Path(target) / f"{case_id}_{name}.dcm") as temporary:
                dataset.save_as(temporary)
    if left_out:
        text = f"{listed(left_out, LISTED)}, of which {prediction} holds no prediction"
        LOGGER.info("no DICOM-SEG of %s", text)  # with --num-parts, the cases of other parts
    return len(found) - len(left_out)


def _probabilities(path: Path) -> np.ndarray:
    remedy = "Predict again with --overwrite."
    return read_npz(path, ["probabilities"], remedy)["probabilities"]


def _header(path: Path) -> Any:
    """All of a file but its voxels."""
    import pydicom

    header = pydicom.dcmread(path, stop_before_pixels=True)
    for name in MAY_BE_EMPTY:
        if name not in header:
            setattr(header, name, "")
    return header


def _segmentation(pixels: np.ndarray, series: Series, codes: Mapping[str, ClassCode], made_of: tuple[str, str]) -> Any:
    """The object of pixels (Z, Y, X, classes), uint8 of 0 and 1, or float32 of probabilities."""
    import highdicom
    import pydicom
    from pydicom.sr.codedict import codes as known

    sources = [_header(path) for path in series.files()]
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name="unisegdiff_pipeline", version=__version__, family=known.DCM.ArtificialIntelligence
    )
    segments = [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=name[:LONGEST_LABEL],
            segmented_property_category=known.SCT.MorphologicallyAbnormalStructure,
            segmented_property_type=highdicom.sr.CodedConcept(code.value, code.scheme, code.meaning),
            algorithm_type="AUTOMATIC",
            algorithm_identification=algorithm,
        )
        for number, (name, code) in enumerate(codes.items(), start=1)
    ]
    is_mask = pixels.dtype == np.uint8
    start = [str(sources[0].SeriesInstanceUID), *made_of]
    try:
        return highdicom.seg.Segmentation(
            source_images=sources,
            pixel_array=pixels,
            segmentation_type="BINARY" if is_mask else "FRACTIONAL",
            fractional_type="PROBABILITY",
            max_fractional_value=LARGEST,
            segment_descriptions=segments,
            series_instance_uid=pydicom.uid.generate_uid(entropy_srcs=[*start, "series"]),
            sop_instance_uid=pydicom.uid.generate_uid(entropy_srcs=[*start, "instance"]),
            series_number=900 if is_mask else 901,
            instance_number=1,
            manufacturer="unisegdiff_pipeline",
            manufacturer_model_name="unisegdiff_pipeline",
            software_versions=__version__,
            device_serial_number="1",
            omit_empty_frames=bool(pixels.any()),  # of an empty mask none can be left out
        )
    except (AttributeError, KeyError, ValueError) as error:
        raise UsdError(
            f"no DICOM-SEG can be made of the series in {series.folder} ({error}); correct its headers, or leave "
            f"--dicom-seg out."
        ) from error
