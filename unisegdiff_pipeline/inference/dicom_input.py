"""DICOM series as input of a prediction: each becomes an image of the model's kind in a temporary folder."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.names import file_of
from unisegdiff_pipeline.core.parallel import map_cases
from unisegdiff_pipeline.core.progress import counted
from unisegdiff_pipeline.inference.model_folder import ModelFolder
from unisegdiff_pipeline.io.dicom import Series, is_dicom_folder
from unisegdiff_pipeline.io.endings import is_picture_ending
from unisegdiff_pipeline.io.images import write_map
from unisegdiff_pipeline.io.raw_dataset import CHANNEL_SUFFIX
from unisegdiff_pipeline.io.reading_process import ReadingProcess

LOGGER = logging.getLogger(__name__)
MIXED_ENDING = ".nii.gz"  # for a model that takes any


@dataclass(frozen=True)
class InputImages:
    """What is to be predicted.

    Attributes:
        source: folder, file or files.
        origins: what files in `source` were made from, where they were made here.
    """

    source: Path | Sequence[Path]
    origins: Mapping[Path, Path] = field(default_factory=dict)


@contextlib.contextmanager
def as_images(source: Path | Sequence[Path], model: ModelFolder) -> Iterator[InputImages]:
    """Give a folder with an image for each series where `source` is a folder of DICOM files, else `source` itself.

    The name of a case is that of its series (`find_series`), so that the channels of a case are folders CASE_0000,
    CASE_0001, and so on (see `image_names`). The images go when the context ends.

    Raises:
        UsdError: the model takes pictures; no series; or a series that is no even volume (`Series.read`).
    """
    if not isinstance(source, (str, Path)) or not is_dicom_folder(Path(source)):
        yield InputImages(source)
        return
    source = Path(source)
    ending = image_ending(model)
    if is_picture_ending(ending):
        raise UsdError(f"{source} holds DICOM files, but {model.place} takes pictures ({ending}); convert the images.")
    series, left_out = series_in(source)
    text = f"{source}: {counted(len(series), 'volume')} in DICOM ({', '.join(one.name for one in series)})"
    LOGGER.info("%s", f"{text}; left out: {', '.join(left_out)}" if left_out else text)
    with tempfile.TemporaryDirectory(prefix="usd-dicom-") as folder:
        with ReadingProcess() as process:

            def convert(job: tuple[Series, Path]) -> None:
                volume = process.read_series(job[0])
                write_map(job[1], volume.array[0], volume.geometry)

            named = image_names(series, model)
            origins = {file_of(Path(folder), name, ending): one.folder for name, one in named.items()}
            jobs, names = list(zip(series, origins, strict=True)), [one.name for one in series]
            map_cases(convert, jobs, names=names, workers=0, description="reading DICOM")
        yield InputImages(Path(folder), origins)


def image_ending(model: ModelFolder) -> str:
    """Ending of the images that DICOM series become."""
    return model.plans.file_ending if model.configuration.sources is None else MIXED_ENDING


def image_names(series: Sequence[Series], model: ModelFolder) -> dict[str, Series]:
    """The series by the names of their images, CASE or CASE_0000.

    The number after patient_0012 is that of the patient where the model takes one channel, which would be 0000.
    """
    names = [one.name for one in series]
    numbers = {match["channel"] for name in names if (match := CHANNEL_SUFFIX.fullmatch(name))}
    takes_one = model.configuration.sources is None and len(model.plans.channel_names) == 1
    if takes_one and numbers - {"0000"}:
        names = [f"{name}_0000" for name in names]
    return dict(zip(names, series, strict=True))


def series_of_cases(series: Sequence[Series], model: ModelFolder) -> dict[str, Series]:
    """Of each case the series of its first channel."""
    found: dict[str, Series] = {}
    for name, one in sorted(image_names(series, model).items()):
        match = CHANNEL_SUFFIX.fullmatch(name)
        found.setdefault(match["case"] if match else name, one)
    return found


def series_in(source: Path) -> tuple[tuple[Series, ...], tuple[str, ...]]:
    """As `find_series`, in a process of its own: a file that crashes the native reader is an error, and no crash.

    Raises:
        UsdError: as there; or the process ended.
    """
    with ReadingProcess() as process:
        return process.find_series(source)
