"""Pictures of one slice while a network trains: a grey image once, and layers to lay over it as small PNG files.

    pictures/image.png  pictures/reference.png
    pictures/NAME_segmenter.png  NAME_mean.png  NAME_sample_1.png ...

All are of the same size; layers are transparent where they say nothing. Pages put a layer over the image by style
sheet, so that the image is stored once, whatever the number of layers.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unisegdiff_pipeline.core.boxes import Box, box_slices, centred_box, nonzero_box, whole_box
from unisegdiff_pipeline.core.files import atomic_path
from unisegdiff_pipeline.reports.case_pictures import CLASS_COLORS, class_colors
from unisegdiff_pipeline.reports.page import Html, figure, grid, legend, markup, picture_from_png, subsection

PICTURES_NAME = "pictures"
IMAGE_LAYER, REFERENCE_LAYER = "image", "reference"
SMALLEST_SIDE = 64  # pixels of the image; a smaller part of it says nothing about where one is
CONTEXT = 3.0  # side of what is shown, in longest sides of the reference's box
DRAWN_SIDE = 288  # pixels of the picture, about
FILL_ALPHA, PROBABILITY_ALPHA = 70, 0.75
PROBABILITY_STEPS = 12  # even steps pack into a few kilobytes
PROBABILITY_GRADIENT = "linear-gradient(90deg,#0d0887,#7e03a8,#cc4778,#f89540,#f0f921)"  # plasma


@dataclass(frozen=True)
class Snapshot:
    """One slice of a case, all arrays (Y, X).

    Attributes:
        image: intensities, (Y, X) or (Y, X, 3) for colours.
        reference: number of the class of each pixel, 0 background.
        segmenter: the segmenter's probability of foreground.
        mean: mean probability of foreground over the samples; None without samples.
        samples: sampled masks as numbers of classes.
        pixel_mm: distance of rows and of columns.
    """

    image: np.ndarray
    reference: np.ndarray
    segmenter: np.ndarray
    mean: np.ndarray | None = None
    samples: tuple[np.ndarray, ...] = ()
    pixel_mm: tuple[float, float] = (1.0, 1.0)


def write_snapshot(folder: Path, name: str, snapshot: Snapshot) -> tuple[str, ...]:
    """Write the image, the reference and the layers of this moment; returns the names of its layers."""
    layers = {"segmenter": probability_layer(_shown(snapshot, snapshot.segmenter))}
    if snapshot.mean is not None:
        layers["mean"] = probability_layer(_shown(snapshot, snapshot.mean))
    for number, sample in enumerate(snapshot.samples, start=1):
        layers[f"sample_{number}"] = mask_layer(_shown(snapshot, sample))
    _write(folder / f"{IMAGE_LAYER}.png", grey_picture(_shown(snapshot, snapshot.image)))
    _write(folder / f"{REFERENCE_LAYER}.png", mask_layer(_shown(snapshot, snapshot.reference)))
    for layer, pixels in layers.items():
        _write(folder / f"{name}_{layer}.png", pixels)
    return tuple(layers)


def shown_box(reference: np.ndarray) -> Box:
    """A square around the foreground with CONTEXT, at most the whole image; all of it where there is no foreground."""
    box = nonzero_box(reference)
    if box is None:
        return whole_box(reference.shape)
    side = max(SMALLEST_SIDE, round(CONTEXT * max(high - low for low, high in box)))
    return centred_box(box, (side, side), reference.shape)


def grey_picture(image: np.ndarray) -> np.ndarray:
    """Intensities between their 0.5th and 99.5th percentile as bytes; (Y, X) or (Y, X, 3)."""
    low, high = np.percentile(image, (0.5, 99.5))
    scaled = (image - low) / max(float(high - low), 1e-6)
    return np.rint(255 * np.clip(scaled, 0, 1)).astype(np.uint8)


def mask_layer(numbers: np.ndarray) -> np.ndarray:
    """Classes as coloured outlines, lightly filled (Y, X, 4); the number 0 is transparent."""
    layer = np.zeros((*numbers.shape, 4), np.uint8)
    for number in np.unique(numbers[numbers > 0]):
        mask = numbers == number
        color = bytes.fromhex(CLASS_COLORS[(int(number) - 1) % len(CLASS_COLORS)][1:])
        layer[mask] = (*color, FILL_ALPHA)
        layer[mask & ~_eroded(_eroded(mask))] = (*color, 255)
    return layer


def probability_layer(p: np.ndarray) -> np.ndarray:
    """Probabilities as colours that grow denser with p (Y, X, 4), and a white line where p crosses a half."""
    import matplotlib as mpl

    steps = np.rint(np.clip(p, 0, 1) * PROBABILITY_STEPS) / PROBABILITY_STEPS
    layer = np.rint(255 * mpl.colormaps["plasma"](steps)).astype(np.uint8)
    layer[..., 3] = np.rint(255 * PROBABILITY_ALPHA * np.sqrt(steps))
    mask = p > 0.5
    layer[mask & ~_eroded(_eroded(mask))] = 255
    return layer


def _eroded(mask: np.ndarray) -> np.ndarray:
    """Pixels whose four neighbours are in the mask as well; the border of the picture counts as mask."""
    padded = np.pad(mask, 1, constant_values=True)
    return padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]


def _shown(snapshot: Snapshot, values: np.ndarray) -> np.ndarray:
    """The part of a slice that is shown, at about DRAWN_SIDE pixels: repeated or thinned out, never interpolated.

    A millimetre is as long in both directions.
    """
    part = values[box_slices(shown_box(snapshot.reference))]
    lengths = [n * mm / min(snapshot.pixel_mm) for n, mm in zip(part.shape, snapshot.pixel_mm, strict=False)]
    side = max(lengths)
    times = max(1, round(DRAWN_SIDE / side)) / max(1, round(side / DRAWN_SIDE))
    for axis, length in enumerate(lengths):
        drawn = max(1, round(length * times))
        part = part.take(np.arange(drawn) * part.shape[axis] // drawn, axis=axis)
    return part


def _write(path: Path, pixels: np.ndarray) -> None:
    from PIL import Image

    with atomic_path(path) as temporary:
        Image.fromarray(np.ascontiguousarray(pixels)).save(temporary, format="png")


# ----------------------------------------------------------------------------------------------------------- in a page


def style(folder: Path) -> Html:
    """Style sheet that lays the layers of `moment` over the image, which it holds."""
    encoded = base64.b64encode((folder / f"{IMAGE_LAYER}.png").read_bytes()).decode("ascii")
    return Html(
        "<style>.sides{position:relative}.sides b{position:absolute;color:#fff;font-size:.8rem;line-height:1;"
        "padding:.1em .25em;background:#0009;print-color-adjust:exact;-webkit-print-color-adjust:exact}"
        ".side-left{left:.2rem;top:50%;transform:translateY(-50%)}"
        ".side-top{top:.2rem;left:50%;transform:translateX(-50%)}"
        ".snapshot img{display:block;width:100%;height:auto;image-rendering:pixelated}"
        ".snapshot .over{background-size:100% 100%;image-rendering:pixelated;print-color-adjust:exact;"
        f"-webkit-print-color-adjust:exact;background-image:url(data:image/png;base64,{encoded})}}</style>"
    )


def case(folder: Path, letters: Sequence[str] = ()) -> Html:
    """The image and the reference; `letters` name what the left and the top edge point to."""
    image = Html(f"<div class=sides>{picture_from_png(folder / f'{IMAGE_LAYER}.png', 'image')}{_sides(letters)}</div>")
    reference = _over(folder / f"{REFERENCE_LAYER}.png", "reference", letters)
    return _row("The case", [figure(image, "image"), figure(reference, "reference")])


def moment(folder: Path, name: str, layers: Sequence[str], title: str, letters: Sequence[str] = ()) -> Html:
    """The layers of one moment over the image; those whose file is gone are left out."""
    captions = {"segmenter": "segmenter", "mean": "mean of the samples"}

    def caption(layer: str, path: Path) -> str:
        said = captions.get(layer, layer.replace("_", " "))
        return f"{said}, empty" if layer not in captions and _is_empty(path) else said

    paths = {layer: folder / f"{name}_{layer}.png" for layer in layers}
    shown = [
        figure(_over(path, f"{layer}, {title}", letters), caption(layer, path))
        for layer, path in paths.items()
        if path.is_file()
    ]
    return _row(title, shown)


def _is_empty(path: Path) -> bool:
    """Whether a layer is transparent everywhere."""
    from PIL import Image

    with Image.open(path) as opened:
        return bool(opened.getchannel("A").getextrema() == (0, 0))


def _row(title: str, shown: Sequence[Html]) -> Html:
    return Html(f"<div class=snapshot>{subsection(title, [grid(shown, min_width_px=165)])}</div>")


def _over(path: Path, alt: str, letters: Sequence[str]) -> Html:
    return Html(f'<div class="over sides">{picture_from_png(path, alt)}{_sides(letters)}</div>')


def _sides(letters: Sequence[str]) -> Html:
    """Marks at the left and the top edge."""
    places = zip(letters, ("left", "top"), strict=False)
    return Html("".join(f"<b class=side-{place}>{markup(letter)}</b>" for letter, place in places))


def colors_of_pictures(class_names: Sequence[str]) -> Html:
    """What the colours of the layers mean: a bar for probabilities, and the classes of references and samples."""
    entries = dict(zip(class_names, class_colors(len(class_names)), strict=True))
    bar = {"probability of any class, 0 to 1 (white line: 0.5)": PROBABILITY_GRADIENT}
    return legend(bar | entries)
