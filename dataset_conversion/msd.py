"""Medical Segmentation Decathlon (Antonelli et al. 2022, Nature Communications 13:4128), all ten tasks.

Published as TaskXX_Name/{imagesTr,labelsTr,imagesTs,dataset.json} with NIfTI files, images of several modalities as
one 4D file. The archives hold hidden copies "._CASE.nii.gz" made by macOS, which are no images.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.files import atomic_path
from unisegdiff_pipeline.core.parallel import choose_workers, map_cases
from unisegdiff_pipeline.core.serialization import read_object, write_json
from unisegdiff_pipeline.io.paths import dataset_name

_ENDING = ".nii.gz"
_FOLDER = re.compile(r"Task(?P<number>\d+)_(?P<name>.+)")
_COPIED_KEYS = ("description", "reference", "licence", "release")


@dataclass(frozen=True)
class _Job:
    """One image to convert: its file, and the target without channel suffix and ending."""

    source: Path
    target_stem: Path
    num_channels: int


def convert(source: Path, raw_root: Path, dataset_id: int | None = None) -> Path:
    """Convert one task.

    Args:
        source: unpacked folder TaskXX_Name.
        raw_root: raw root, the data set becomes a folder of it.
        dataset_id: number of the new data set; the task's own by default.

    Raises:
        UsdError: no such task folder, a label without image, an unreadable image, or the data set is there already.
    """
    source = Path(source).resolve()
    match = _FOLDER.fullmatch(source.name)
    if match is None or not source.is_dir():
        raise UsdError(f"{source} is no folder named TaskXX_Name; name the unpacked folder of a Decathlon task.")
    target = Path(raw_root) / dataset_name(dataset_id or int(match["number"]), match["name"])
    if target.exists():
        raise UsdError(f"{target} is there already; remove it, or choose another number for the data set.")
    description = _description(source)
    labels, images, held_out = (_images(source / part) for part in ("labelsTr", "imagesTr", "imagesTs"))
    _require_pairs(source, images, labels)
    description["numTraining"] = len(images)
    with atomic_path(target) as temporary:
        jobs = [_job(path, temporary / "imagesTr", description) for path in images.values()]
        jobs += [_job(path, temporary / "imagesTs", description) for path in held_out.values()]
        for part in ("imagesTr", "labelsTr", *(("imagesTs",) if held_out else ())):
            (temporary / part).mkdir(parents=True)
        names = [job.source.name for job in jobs]
        workers = choose_workers(memory_per_item_gb=2.0)  # a 4D brain scan as float64, and once more while writing
        map_cases(_split, jobs, names=names, workers=workers, description=f"Converting {source.name}", kind="threads")
        for name, path in labels.items():
            shutil.copyfile(path, temporary / "labelsTr" / f"{name}{_ENDING}")
        write_json(temporary / "dataset.json", description)
    return target


def _description(source: Path) -> dict[str, Any]:
    """dataset.json of the new data set, but for numTraining."""
    path = source / "dataset.json"
    published = read_object(path)
    try:
        channels = {str(int(number)): str(name) for number, name in published["modality"].items()}
        labels = {str(name): int(value) for value, name in published["labels"].items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UsdError(
            f"{path} lacks modality or labels in the Decathlon's form (number: name); use the file as published."
        ) from None
    labels = {("background" if value == 0 else name): value for name, value in labels.items()}
    kept = {key: published[key] for key in _COPIED_KEYS if key in published}
    name = str(published.get("name", source.name))
    return {"name": name, **kept, "channel_names": channels, "labels": labels, "file_ending": _ENDING}


def _images(folder: Path) -> dict[str, Path]:
    """Case -> file, hidden copies left out."""
    paths = sorted(folder.glob(f"*{_ENDING}"))
    return {path.name.removesuffix(_ENDING): path for path in paths if not path.name.startswith(".")}


def _require_pairs(source: Path, images: dict[str, Path], labels: dict[str, Path]) -> None:
    if not images:
        raise UsdError(f"{source / 'imagesTr'} holds no {_ENDING} file; unpack the whole archive of the task.")
    unpaired = sorted(set(images) ^ set(labels))
    if unpaired:
        raise UsdError(
            f"{source}: {len(unpaired)} case(s) lack an image or a label map, among them {', '.join(unpaired[:5])}; "
            "unpack the archive again."
        )


def _job(path: Path, folder: Path, description: dict[str, Any]) -> _Job:
    return _Job(path, folder / path.name.removesuffix(_ENDING), len(description["channel_names"]))


def _split(job: _Job) -> None:
    """Write an image as one file a channel; a 3D file is copied as it is."""
    import nibabel

    try:
        image: Any = nibabel.load(job.source)
        found = image.shape[3] if len(image.shape) > 3 else 1
        if found != job.num_channels:
            raise UsdError(
                f"{job.source} has {found} channels, but modality in dataset.json names {job.num_channels}; use the "
                "file as published."
            )
        if len(image.shape) == 3:
            shutil.copyfile(job.source, f"{job.target_stem}_0000{_ENDING}")
            return
        for channel in range(found):
            nibabel.save(image.slicer[..., channel], f"{job.target_stem}_{channel:04d}{_ENDING}")
    except UsdError:
        raise
    except Exception as error:  # nibabel raises many kinds for a damaged header
        if getattr(error, "errno", None) is not None:
            raise  # of the disk, not of the image
        raise UsdError(f"{job.source} cannot be read ({error}); unpack the archive again.") from error
