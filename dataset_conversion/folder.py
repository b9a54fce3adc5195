"""Plain folders of images and masks, matched by name; 2D pictures or volumes.

A mask has the name of its image, or that name with one of the common additions (scan1.png and scan1_mask.png).
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path

from dataset_conversion.finding import Request, group_by, images_in, pairs, picture_ending
from dataset_conversion.masks import Above, AsLabelled, Mapped, MaskReader
from dataset_conversion.raw_writer import RGB, Case, Conversion
from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.progress import counted, progress
from unisegdiff_pipeline.io.endings import (
    LOSSY_ENDINGS,
    NIFTI_ENDINGS,
    PICTURE_ENDINGS,
    SUPPORTED_ENDINGS,
    is_picture_ending,
    split_ending,
    unread_images,
)
from unisegdiff_pipeline.io.images import read_header, read_labels
from unisegdiff_pipeline.io.integrity import Colour, label_values, other_colour, used_colours

_ADDITION = re.compile(r"[ _.-](masks?|seg|segmentation|labels?|lesions?|gt|anno|annotation)$", re.IGNORECASE)
_MAX_CLASSES = 20


def find(request: Request) -> Conversion:
    """See the module."""
    images_folder, masks_folder = request.sources
    if request.number is None or request.name is None:
        raise UsdError("a folder has no number or name of its own; give --dataset-id N and --name NAME.")
    together = images_folder.resolve() == masks_folder.resolve()
    for folder in (images_folder, masks_folder):
        _require_known_formats(folder)
    images, masks = images_in(images_folder), images_in(masks_folder)
    if together:
        masks = {stem: path for stem, path in images.items() if _ADDITION.search(stem)}
        images = {stem: path for stem, path in images.items() if stem not in masks}
        if not masks:
            raise UsdError(
                f"{images_folder} is named for images and masks, but no file in it is named as a mask is, such as "
                f"{next(iter(images))}_mask; name the folder of the masks, or add _mask to their names."
            )
    if request.channels:
        _require_channels(list(images.values()), request.channels)
    matched = pairs(images, _by_image(masks, images))
    channels = request.channels or _channels(list(images.values()))
    reader, labels = meaning_of([mask for _, mask in matched.values()], request.threshold)
    cases = tuple(
        Case(name.replace(" ", "_"), (image,), (mask,), group_by(request.group_pattern, name))
        for name, (image, mask) in matched.items()
    )
    ending = _ending([image for image, _ in matched.values()], channels)
    return Conversion(request.number, request.name, tuple(channels), labels, ending, cases, read_mask=reader)


def _require_known_formats(folder: Path) -> None:
    """Refuse images of formats that are not read, but for copies: with such masks they would be left out unseen."""
    foreign = unread_images(path.name for path in folder.iterdir())
    if foreign:
        raise UsdError(
            f"{folder} holds {counted(len(foreign), 'image')} of formats that are not read ({', '.join(foreign[:3])}); "
            f"convert them to one of {', '.join(SUPPORTED_ENDINGS)}, or move them away."
        )


def _by_image(masks: dict[str, Path], images: dict[str, Path]) -> dict[str, Path]:
    """Masks by the name of their image, where there is one."""
    result: dict[str, Path] = {}
    for stem, path in masks.items():
        bare = _ADDITION.sub("", stem)
        name = stem if stem in images or bare not in images else bare
        if result.setdefault(name, path) != path:
            raise UsdError(f"{result[name]} and {path} are two masks of one image; join them, or move one away.")
    return result


def _channels(images: list[Path]) -> tuple[str, ...]:
    """Channels of images of which the user names none: colours where any picture has them."""
    first = images[0]
    number = read_header(first)[0][0]
    if number > 1 and not is_picture_ending(split_ending(first.name)[1]):
        raise UsdError(f"{first} has {number} channels; name them with --channels, in their order.")
    pictures = [path for path in images if is_picture_ending(split_ending(path.name)[1])]
    return RGB if any(read_header(path)[0][0] == 3 for path in pictures) else ("image",)


def _require_channels(images: list[Path], channels: tuple[str, ...]) -> None:
    """Refuse images of another number of channels than the user names: a grey picture would be copied into each.

    Colour pictures may become grey, and grey ones R, G, B beside colour ones, where pictures are of both kinds.
    """
    for path in images:
        found = read_header(path)[0][0]
        picture = is_picture_ending(split_ending(path.name)[1])
        recoloured = picture and found in (1, 3) and (channels == RGB or len(channels) == 1)
        if found != len(channels) and not recoloured:
            raise UsdError(
                f"{path} has {counted(found, 'channel')}, but --channels names {len(channels)} "
                f"({', '.join(channels)}); name each channel of a file once, in their order."
            )


def _ending(images: list[Path], channels: tuple[str, ...]) -> str:
    endings = {split_ending(path.name)[1].lower() for path in images}
    if endings <= set(PICTURE_ENDINGS):
        return picture_ending(images, channels)
    if endings <= set(NIFTI_ENDINGS):
        return ".nii.gz"
    if len(endings) == 1:
        return endings.pop()
    raise UsdError(
        f"{images[0].parent} mixes {', '.join(sorted(endings))}; convert the images to one format, and put "
        "pictures and volumes into data sets of their own."
    )


def meaning_of(masks: list[Path], threshold: float | None) -> tuple[MaskReader, dict[str, int | list[int]]]:
    """How the values of masks are meant: with a threshold one class, else a class for each value but 0.

    Raises:
        UsdError: all masks are empty or hold one value alone, or their values are no classes (JPEG, soft edges,
            palettes in another order).
    """
    if threshold is not None:
        return Above(threshold), {"background": 0, "lesion": 1}
    values: set[int] = set()
    colours: dict[int, tuple[str, Colour]] = {}
    for path in progress(masks, len(masks), "Reading masks"):
        if split_ending(path.name)[1].lower() in LOSSY_ENDINGS:
            raise UsdError(f"{path} is a JPEG, which alters values; give --threshold 127 for masks of black and white.")
        found = label_values(read_labels(path).array)
        _require_same_colours(path, found, colours)
        values |= found
        if len(values) > _MAX_CLASSES + 1:
            raise UsdError(
                f"the masks up to {path} hold {len(values)} different values, which are no classes; give --threshold "
                "127 for masks of black and white with soft edges."
            )
    classes = sorted(values - {0})
    if not classes:
        raise UsdError(f"all masks of {masks[0].parent} are empty; check that these are the masks.")
    if len(classes) == 1 and 0 not in values:
        raise UsdError(
            f"all masks of {masks[0].parent} hold {classes[0]} and nothing else, but 0 is the background; check that "
            "these are the masks."
        )
    if len(classes) == 1:
        return Mapped({0: 0, classes[0]: 1}), {"background": 0, "lesion": 1}
    background = "" if 0 in values else " No mask holds 0, which is the background: look whether another value is."
    warnings.warn(
        f"the masks hold the values {classes}, of which each became a class; rename the classes in dataset.json, or "
        f"give --threshold N if they mean one lesion.{background}",
        stacklevel=3,
    )
    labels: dict[str, int | list[int]] = {"background": 0, **{f"value_{v}": n for n, v in enumerate(classes, start=1)}}
    if classes == list(range(1, len(classes) + 1)):
        return AsLabelled(), labels
    return Mapped({0: 0, **{value: number for number, value in enumerate(classes, start=1)}}), labels


def _require_same_colours(path: Path, values: set[int], known: dict[int, tuple[str, Colour]]) -> None:
    """Refuse a mask in which a value has another colour than in the masks before, which `known` holds."""
    if (found := other_colour(str(path), used_colours(path, values), known)) is not None:
        value, colour, first, expected = found
        raise UsdError(
            f"{path} shows the value {value} in the colour {colour}, {first} in {expected}: their palettes are in "
            "another order, so that a value is not one class; save all masks as grey values or with one palette, "
            "or give --threshold N for one lesion that is brighter than N."
        )
