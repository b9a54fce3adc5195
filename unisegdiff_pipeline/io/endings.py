"""Endings of image files: which family of formats they name, and how files that belong together end."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

NIFTI_ENDINGS = (".nii.gz", ".nii")
ITK_ENDINGS = (".nrrd", ".mha", ".gipl")
PICTURE_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp")
TIFF_ENDINGS = (".tiff", ".tif")
LOSSY_ENDINGS = (".jpg", ".jpeg")
# Formats that are not read. Their files are images all the same, and must not be left out unseen.
FOREIGN_VOLUME_ENDINGS = (
    *(".mhd", ".nhdr", ".hdr", ".img", ".img.gz", ".dcm", ".mgz", ".mgh", ".mnc", ".mnc.gz", ".mif", ".mif.gz"),
    *(".nii.bz2", ".nii.xz", ".nii.zst", ".vtk"),
)
FOREIGN_PICTURE_ENDINGS = (
    *(".gif", ".webp", ".jp2", ".j2k", ".heic", ".avif", ".jfif", ".tga", ".ppm", ".pgm", ".pbm"),
    *(".svs", ".ndpi", ".czi"),
)
SUPPORTED_ENDINGS = NIFTI_ENDINGS + ITK_ENDINGS + PICTURE_ENDINGS + TIFF_ENDINGS


def has_native_reader(path: Path) -> bool:
    """Whether a file's format is parsed by native code, which a damaged file may crash, and the process with it.

    ITK's formats and TIFF; headers are checked first, but not every field of them. NIfTI is parsed in Python, and of
    pictures Python parses what says how much there is.
    """
    return path.name.lower().endswith(ITK_ENDINGS + TIFF_ENDINGS)


def split_ending(name: str) -> tuple[str, str]:
    """Split a file name into stem and supported ending, `("case_0000", ".nii.gz")`; the ending is "" if unknown."""
    for ending in SUPPORTED_ENDINGS:
        if name.lower().endswith(ending):
            return name[: -len(ending)], name[-len(ending) :]
    return name, ""


def split_image_ending(name: str) -> tuple[str, str]:
    """As `split_ending`, of images in formats that are not read, too: `("case_0000", ".mhd")`."""
    stem, ending = split_ending(name)
    foreign = FOREIGN_VOLUME_ENDINGS + FOREIGN_PICTURE_ENDINGS
    if not ending and (found := next((other for other in foreign if name.lower().endswith(other)), "")):
        return name[: -len(found)], name[-len(found) :]
    return stem, ending


def is_unread_image(name: str) -> bool:
    """Whether a file is an image by its name, of a format that is not read."""
    return bool(split_image_ending(name)[1]) and not split_ending(name)[1]


def unread_images(names: Iterable[str]) -> list[str]:
    """Of the names in a folder, sorted, images of formats that are not read, without copies of images that are read.

    a.mhd beside a.nii.gz is taken for a copy; alone it would be left out unseen.
    """
    names = sorted(name for name in names if not name.startswith("."))
    read = {split_ending(name)[0] for name in names if split_ending(name)[1]}
    return [name for name in names if is_unread_image(name) and split_image_ending(name)[0] not in read]


def is_picture_ending(ending: str) -> bool:
    """Whether files of this ending are pictures without a geometry of their own."""
    return ending.lower() in PICTURE_ENDINGS + TIFF_ENDINGS + FOREIGN_PICTURE_ENDINGS


def label_ending(file_ending: str) -> str:
    """Ending of label files that belong to images of `file_ending`: the same, but PNG beside JPEG, which is lossy."""
    return ".png" if file_ending.lower() in LOSSY_ENDINGS else file_ending


def map_ending(file_ending: str) -> str:
    """Ending of probability and uncertainty maps that belong to images of `file_ending`: pictures get PNG maps."""
    return ".png" if file_ending.lower() in PICTURE_ENDINGS else file_ending
