"""Medical Segmentation Decathlon (Antonelli et al. 2022, Nature Communications 13:4128), all ten tasks.

Published as TaskXX_Name/{imagesTr,labelsTr,imagesTs,dataset.json} with NIfTI files, images of several modalities as
one 4D file. The archives hold hidden copies "._CASE.nii.gz" made by macOS, which are no images.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from dataset_conversion.copying import Frame
from dataset_conversion.finding import Request, images_in, pairs
from dataset_conversion.raw_writer import Case, Conversion, Origin
from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.serialization import read_object
from unisegdiff_pipeline.io.images import read_header
from unisegdiff_pipeline.io.paths import places_of

_ENDING = ".nii.gz"
_FOLDER = re.compile(r"Task(?P<number>\d+)_(?P<name>.+)")
_COPIED_KEYS = ("description", "reference", "licence", "release")


def find(request: Request) -> Conversion:
    """See the module; name and number are the task's own."""
    (source,) = request.sources
    match = next((match for place in places_of(source) if (match := _FOLDER.fullmatch(place.name))), None)
    if match is None:
        raise UsdError(f"{source} is no folder named TaskXX_Name; name the unpacked folder of a Decathlon task.")
    published = read_object(source / "dataset.json")
    channels, labels = _names(source / "dataset.json", published)
    matched = pairs(images_in(source / "imagesTr", (_ENDING,)), images_in(source / "labelsTr", (_ENDING,)))
    cases = [Case(name, _frames(image, len(channels)), (label,)) for name, (image, label) in matched.items()]
    if (source / "imagesTs").is_dir():
        held_out = images_in(source / "imagesTs", (_ENDING,))
        cases += [Case(name, _frames(image, len(channels)), held_out=True) for name, image in held_out.items()]
    texts = {key: str(published[key]) for key in _COPIED_KEYS if key in published}
    origin = Origin(
        f"Medical Segmentation Decathlon, {match[0]}",
        "http://medicaldecathlon.com",
        texts.get("licence", "CC BY-SA 4.0"),
        texts.get("reference", "Antonelli et al. 2022, Nature Communications 13:4128"),
    )
    return Conversion(
        int(match["number"]),
        match["name"],
        channels,
        labels,
        _ENDING,
        tuple(cases),
        origin,
        more={"name": str(published.get("name", match[0])), **texts},
    )


def _names(path: Path, published: dict[str, Any]) -> tuple[tuple[str, ...], dict[str, int | list[int]]]:
    """Channels and labels of the owners' dataset.json."""
    try:
        channels = {int(number): str(name) for number, name in published["modality"].items()}
        labels = {str(name): int(value) for value, name in published["labels"].items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UsdError(
            f"{path} lacks modality or labels in the Decathlon's form (number: name); use the file as published."
        ) from None
    names = tuple(channels[number] for number in sorted(channels))
    return names, {("background" if value == 0 else name): value for name, value in labels.items()}


def _frames(path: Path, num_channels: int) -> tuple[Path | Frame, ...]:
    """A channel each; a 3D file is copied as it is."""
    found = read_header(path)[0][0]
    if found != num_channels:
        raise UsdError(
            f"{path} has {found} channels, but modality in dataset.json names {num_channels}; use the file as "
            "published."
        )
    return (path,) if num_channels == 1 else tuple(Frame(path, channel) for channel in range(num_channels))
