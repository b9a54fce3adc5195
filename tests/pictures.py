"""Draw the pictures of the documentation by the code they speak of: `python -m tests.pictures`.

Each is an SVG beside its page. A test draws them again and compares, so that a picture and the code cannot part ways.
Where measurements are drawn, they are those of the result file of the page.
"""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.fields import kernel_radius, smooth_field
from tests.test_import_arrows import HEIGHT, LAYERS, MODULES, dotted_name, imports, room_of
from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.diffusion.drawing import draw_objects, near_certain
from unisegdiff_pipeline.diffusion.samplers import CERTAIN
from unisegdiff_pipeline.diffusion.schedule import PURE_NOISE, noise_mask
from unisegdiff_pipeline.planning.stages import class_curve

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "documentation"
INK, ACCENT, SOFT = "#1d2733", "#2066a8", "#dfe8f2"
STAGE_COLOURS = {"A": "#f3e2cf", "B": "#dfe8f2", "C": "#dcecdf"}
GREY_LEVELS = 17
BINARY = LabelScheme(("lesion",), ((1,),), "binary", (1,))


# Pieces of an SVG


def svg(width: float, height: float, parts: Iterable[str]) -> str:
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
        f'font-family="Helvetica, Arial, sans-serif" font-size="13" fill="{INK}">\n'
        f'<rect width="{width:g}" height="{height:g}" fill="white"/>\n{body}\n</svg>\n'
    )


def words(x: float, y: float, text: str, anchor: str = "middle", size: int = 13, weight: str = "normal") -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" font-size="{size}" font-weight="{weight}">{text}</text>'


def grey_image(values: np.ndarray, x: float, y: float, pixel: float) -> str:
    """An image (Y, X) with values from 0 (white) to 1 (black), one path for each of a few grey levels."""
    levels = np.rint(np.clip(values, 0, 1) * (GREY_LEVELS - 1)).astype(int)
    height, width = levels.shape
    parts = [f'<g transform="translate({x:g} {y:g}) scale({pixel:g})" shape-rendering="crispEdges">']
    for level in np.unique(levels[levels > 0]):
        grey = round(255 * (1 - level / (GREY_LEVELS - 1)))
        runs = "".join(_runs(levels == level))
        parts.append(f'<path d="{runs}" fill="#{grey:02x}{grey:02x}{grey:02x}"/>')
    parts.append(
        f'<rect width="{width}" height="{height}" fill="none" stroke="{INK}" stroke-width="{1 / pixel:g}"/></g>'
    )
    return "".join(parts)


def _runs(mask: np.ndarray) -> Iterable[str]:
    """Rows of neighbouring pixels as rectangles of a path."""
    for row, line in enumerate(mask):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], line.astype(int), [0]])))
        yield from (f"M{start} {row}h{stop - start}v1h-{stop - start}z" for start, stop in edges.reshape(-1, 2))


# Which room of the package imports from which

BOX_WIDTH, BOX_HEIGHT, COLUMN, ROW = 124, 32, 172, 66
COLUMNS = {"demo": 1, "networks": -1, "reports": 1, "diffusion": -1, "evaluation": 1}  # all others stand in the middle
Point = tuple[float, float]


def import_arrows() -> list[tuple[str, str]]:
    """(room, other) for all imports between rooms, without those that follow from others by way of a third room."""
    graph: dict[str, set[str]] = {room: set() for room in HEIGHT}
    for path in MODULES:
        own = room_of(dotted_name(path))
        if own is not None:
            others = {room_of(module) for _, module in imports(ast.parse(path.read_text("utf-8")))}
            graph[own] |= {other for other in others if other is not None and other != own}
    below: dict[str, set[str]] = {}
    for room in sorted(graph, key=lambda room: HEIGHT[room]):
        below[room] = graph[room].union(*(below[other] for other in graph[room]))
    return [
        (room, other)
        for room in sorted(graph)
        for other in sorted(graph[room])
        if not any(other in below[third] for third in graph[room])
    ]


def architecture() -> str:
    """Rooms in layers, an arrow for each import."""
    existing = {room_of(dotted_name(path)) for path in MODULES}
    layers = [rooms for rooms in reversed(LAYERS) if existing.intersection(rooms)]
    width = 3 * COLUMN + 60
    centres = {
        room: (width / 2 + COLUMN * COLUMNS.get(room, 0), 30.0 + ROW * row)
        for row, rooms in enumerate(layers)
        for room in rooms
    }
    head = (
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0L8 4L0 8z" fill="{ACCENT}"/></marker></defs>'
    )
    boxes = []
    for room, (x, y) in centres.items():
        boxes.append(
            f'<rect x="{x - BOX_WIDTH / 2:g}" y="{y - BOX_HEIGHT / 2:g}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" '
            f'rx="6" fill="{SOFT}" stroke="{INK}"/>'
        )
        boxes.append(words(x, y + 5, room))
    arrows = [_arrow(centres, *pair) for pair in import_arrows()]
    return svg(width, 60 + ROW * (len(layers) - 1), [head, *boxes, *arrows])


def _arrow(centres: dict[str, Point], room: str, other: str) -> str:
    """The first way from a box down to another on which no third one lies."""
    (x0, y0), (x1, y1) = centres[room], centres[other]
    bottom, top, gap = y0 + BOX_HEIGHT / 2, y1 - BOX_HEIGHT / 2, y1 - ROW / 2
    side = 1 if x1 >= x0 else -1
    edge, other_edge, far = x0 + side * BOX_WIDTH / 2, x1 + side * BOX_WIDTH / 2, x1 + side * (BOX_WIDTH / 2 + 20)
    aside = x0 + side * 14
    ways = (
        [(x0, bottom), (x1, top)],  # straight
        [(edge, y0), (x1 - side * 14, y0), (x1 - side * 14, top)],  # aside, then down
        [
            (aside, bottom),
            (aside, gap),
            (x1 - side * 14, gap),
            (x1 - side * 14, top),
        ],  # down, then aside
        [(edge, y0 + 6), (far, y0 + 6), (far, y1), (other_edge, y1)],  # around
    )
    way = next((way for way in ways if not _is_blocked(way, centres, {room, other})), ways[-1])
    path = "L".join(f"{x:g} {y:g}" for x, y in way)
    style = f'fill="none" stroke="{ACCENT}" stroke-width="1.5" stroke-linejoin="round" marker-end="url(#head)"'
    return f'<path d="M{path}" {style}/>'


def _is_blocked(way: list[Point], centres: dict[str, Point], ends: set[str]) -> bool:
    boxes = [centre for room, centre in centres.items() if room not in ends]
    for start, end in pairwise(way):
        for part in np.linspace(0, 1, 51):
            x, y = (1 - part) * start[0] + part * end[0], (1 - part) * start[1] + part * end[1]
            if any(abs(x - bx) < BOX_WIDTH / 2 + 4 and abs(y - by) < BOX_HEIGHT / 2 + 4 for bx, by in boxes):
                return True
    return False


# The stages: a noised mask, and how much of it can be read

LAM_SHOWN = (-10.0, 5.0)


def stages() -> str:
    """A disc at several noise levels over its readability, with the planned edges."""
    y, x = np.mgrid[:40, :40]
    disc = (y - 19.5) ** 2 + (x - 19.5) ** 2 <= 49
    curve = class_curve("disc", [disc], (1.0, 1.0))
    assert curve is not None
    width, left, right, top, bottom = 720.0, 60.0, 700.0, 190.0, 380.0

    def place(lam: float) -> float:
        return left + (right - left) * (lam - LAM_SHOWN[0]) / (LAM_SHOWN[1] - LAM_SHOWN[0])

    noise = torch.from_numpy(np.random.Generator(np.random.Philox(7)).standard_normal((1, 1, *disc.shape)))
    clean = torch.from_numpy(np.where(disc, 1.0, -1.0))[None, None]
    middle = (curve.lam_a + curve.lam_c) / 2
    shown = {
        "pure noise": PURE_NOISE,
        "stage A ends": curve.lam_a,
        "stage B": middle,
        "stage C begins": curve.lam_c,
        "clean": 12.0,
    }
    parts = []
    for number, (name, lam) in enumerate(shown.items()):
        noised = noise_mask(clean, torch.tensor([lam], dtype=torch.float64), noise)[0, 0].numpy()
        corner = left + number * (right - left - 112) / (len(shown) - 1)
        parts.append(grey_image((noised + 2) / 4, corner, 14, 2.8))
        parts.append(words(corner + 56, 142, name))
        if np.isfinite(lam) and lam < LAM_SHOWN[1]:
            parts.append(words(corner + 56, 158, f"lam = {lam:.1f}", size=12))
    edges = {"A": (LAM_SHOWN[0], curve.lam_a), "B": (curve.lam_a, curve.lam_c), "C": (curve.lam_c, LAM_SHOWN[1])}
    tasks = {"A": "rapid segmentation", "B": "probabilistic modelling", "C": "denoising refinement"}
    for stage, (low, high) in edges.items():
        x0, x1 = place(low), place(high)
        parts.append(
            f'<rect x="{x0:.1f}" y="{top:g}" width="{x1 - x0:.1f}" height="{bottom - top:g}" '
            f'fill="{STAGE_COLOURS[stage]}"/>'
        )
        parts.append(words((x0 + x1) / 2, top + 18, f"stage {stage}", weight="bold"))
        parts.append(words((x0 + x1) / 2, top + 35, tasks[stage], size=12))
    points = [
        f"{place(lam):.1f} {bottom - (bottom - top - 45) * value:.1f}"
        for lam, value in zip(curve.lam, curve.readability, strict=True)
        if LAM_SHOWN[0] <= lam <= LAM_SHOWN[1]
    ]
    parts.append(f'<path d="M{"L".join(points)}" fill="none" stroke="{ACCENT}" stroke-width="2.5"/>')
    for name, lam in (("lam_a", curve.lam_a), ("lam_c", curve.lam_c)):
        parts.append(f'<path d="M{place(lam):.1f} {top:g}V{bottom + 6:g}" stroke="{INK}" stroke-dasharray="4 3"/>')
        parts.append(words(place(lam), bottom + 20, f"{name} = {lam:g}"))
    parts.append(f'<path d="M{left:g} {top:g}V{bottom:g}H{right:g}" fill="none" stroke="{INK}"/>')
    parts.append(words(left - 8, bottom + 4, "0", "end") + words(left - 8, top + 49, "1", "end"))
    parts.append(words(left, bottom + 20, "noisy", "start") + words(right, bottom + 20, "clean", "end"))
    parts.append(f'<g transform="translate(22 {(top + bottom) / 2:g}) rotate(-90)">{words(0, 0, "readability")}</g>')
    parts.append(words((left + right) / 2, bottom + 40, "log signal-to-noise ratio lam of the noised mask"))
    return svg(width, bottom + 52, parts)


# Coherent sampling

SHAPE = (48, 72)
WHOLE_LENGTH, SURFACE_LENGTH, REACH = 36.0, 4.0, 9


def lesion_probability() -> np.ndarray:
    """(Y, X): a lesion that is certain on the left, one of probability 0.5 on the right, both with soft rims."""
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]

    def blob(centre: tuple[float, float], radius: float, highest: float) -> np.ndarray:
        distance = np.hypot(y - centre[0], x - centre[1])
        return highest / (1 + np.exp((distance - radius) / 1.2))

    return np.maximum(blob((24, 20), 11, 0.99), blob((22, 54), 7, 0.5))


def coherent_masks(probability: np.ndarray, count: int) -> np.ndarray:
    """(count, Y, X) masks, sampled as the pipeline samples them."""
    fields = []
    for number in range(count):
        generator = np.random.Generator(np.random.Philox([11, number]))
        pair = []
        for length in (WHOLE_LENGTH, SURFACE_LENGTH):
            margin = 2 * kernel_radius(length)
            white = generator.standard_normal((1, SHAPE[0] + margin, SHAPE[1] + margin))
            pair.append(smooth_field(white, (length, length)))
        fields.append(np.concatenate(pair))
    p = torch.from_numpy(probability)[None, None]
    near = near_certain(p, BINARY, CERTAIN, (REACH, REACH))
    return draw_objects(p, near, torch.from_numpy(np.stack(fields)), BINARY, CERTAIN)[:, 0].numpy()


def samples() -> str:
    probability = lesion_probability()
    alone = np.random.Generator(np.random.Philox(3)).random(SHAPE) < probability
    shown = [("probability", probability), ("each voxel on its own", alone)]
    shown += [(f"coherent sample {number + 1}", mask) for number, mask in enumerate(coherent_masks(probability, 4))]
    pixel, columns = 3.0, 3
    width, height = SHAPE[1] * pixel, SHAPE[0] * pixel
    parts = []
    for number, (name, image) in enumerate(shown):
        x, y = 12 + (width + 14) * (number % columns), 12 + (height + 34) * (number // columns)
        parts.append(grey_image(np.asarray(image, float), x, y, pixel))
        parts.append(words(x + width / 2, y + height + 18, name))
    return svg(24 + columns * width + 28, 24 + 2 * height + 58, parts)


# What grows how fast

PANEL, PANELS_A_ROW = (250.0, 170.0), 2
LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#7f6d4f")


def slopes() -> str:
    """Seconds of each step over each factor, as multiples of the least, beside a line of slope 1."""
    measured = json.loads((PAGES / "benchmarks/results/slopes.json").read_text("utf-8"))["measured"]
    steps = list(dict.fromkeys(step for of_steps in measured.values() for step in of_steps))
    parts = []
    for number, (axis, of_steps) in enumerate(measured.items()):
        left = 70 + (PANEL[0] + 80) * (number % PANELS_A_ROW)
        top = 50 + (PANEL[1] + 70) * (number // PANELS_A_ROW)
        parts += _panel(left, top, axis, of_steps, [LINES[steps.index(step)] for step in of_steps])
    for number, step in enumerate(steps):
        x = 70 + 125 * number
        parts.append(f'<path d="M{x} 18h22" stroke="{LINES[number]}" stroke-width="2.5"/>')
        parts.append(words(x + 28, 22, step, "start"))
    rows = math.ceil(len(measured) / PANELS_A_ROW)
    return svg(70 + PANELS_A_ROW * (PANEL[0] + 80), 50 + rows * (PANEL[1] + 70), parts)


def _panel(left: float, top: float, axis: str, of_steps: dict[str, Any], colours: list[str]) -> list[str]:
    """One factor, logarithmic along both axes."""
    values = [int(v) for v in next(iter(of_steps.values()))]
    (width, height), largest = PANEL, values[-1] / values[0]

    def place(value: float, times: float) -> Point:
        x, y = (math.log(v) / math.log(largest) for v in (value / values[0], times))
        return left + width * x, top + height * (1 - y)

    parts = [words(left + width / 2, top - 8, f"times as long, over {axis}", weight="bold")]
    for value in values:
        (x, y), (_, low) = place(value, value / values[0]), place(value, 1)
        parts.append(f'<path d="M{x:.1f} {top:g}V{low:.1f}M{left:g} {y:.1f}h{width:g}" stroke="{SOFT}"/>')
        parts.append(
            words(x, low + 18, str(value), size=12) + words(left - 8, y + 4, f"{value / values[0]:g}", "end", 12)
        )
    (x0, y0), (x1, y1) = place(values[0], 1), place(values[-1], largest)
    parts.append(f'<path d="M{x0:g} {y0:g}L{x1:g} {y1:g}" stroke="{INK}" stroke-dasharray="4 4"/>')
    for costs, colour in zip(of_steps.values(), colours, strict=True):
        least = costs[str(values[0])]["seconds"]
        points = [place(int(value), max(0.9, cost["seconds"] / least)) for value, cost in costs.items()]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2.5"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in points]
    return parts


# One model for several sources beside one for each

DICE_WIDTH, SOURCE_HEIGHT = 420.0, 30.0


def unified() -> str:
    """Dice of every source and in the mean, of its own model and of the unified one, a line for each seed."""
    page = json.loads((PAGES / "benchmarks/results/unified.json").read_text("utf-8"))
    (section,) = (section for section in page["sections"] if section["heading"] == "The paper's six sets")
    table = next(content["table"] for content in section["content"] if "table" in content)
    values: dict[str, list[Point]] = {}
    for source, _, _, alone, of_unified, *_ in table["rows"]:
        values.setdefault(source.strip("*"), []).append((float(alone.strip("*")), float(of_unified.strip("*"))))
    left, top = 168.0, 54.0
    bottom = top + SOURCE_HEIGHT * len(values)
    parts = []
    for tick in range(6):
        x = left + DICE_WIDTH * tick / 5
        parts.append(f'<path d="M{x:g} {top:g}V{bottom:g}" stroke="{SOFT}"/>')
        parts.append(words(x, bottom + 18, f"{tick / 5:g}", size=12))
    for row, (source, seeds) in enumerate(values.items()):
        middle = top + SOURCE_HEIGHT * (row + 0.5)
        name = "mean over sources" if source == "macro mean" else source
        parts.append(words(left - 10, middle + 4, name, "end", weight="bold" if row == len(values) - 1 else "normal"))
        for number, (alone, of_unified) in enumerate(seeds):
            y = middle + 9 * (number - (len(seeds) - 1) / 2)
            first, second = (left + DICE_WIDTH * dice for dice in (alone, of_unified))
            parts.append(f'<path d="M{first:.1f} {y:g}H{second:.1f}" stroke="{INK}" stroke-width="1.2"/>')
            parts.append(f'<circle cx="{first:.1f}" cy="{y:g}" r="3.6" fill="white" stroke="{INK}"/>')
            parts.append(f'<circle cx="{second:.1f}" cy="{y:g}" r="3.6" fill="{ACCENT}"/>')
    parts.append(f'<circle cx="{left + 6:g}" cy="24" r="3.6" fill="white" stroke="{INK}"/>')
    parts.append(words(left + 16, 28, "one for each source", "start"))
    parts.append(f'<circle cx="{left + 160:g}" cy="24" r="3.6" fill="{ACCENT}"/>')
    parts.append(words(left + 170, 28, "one for all, in the same seconds in total", "start"))
    parts.append(words(left + DICE_WIDTH / 2, bottom + 38, "Dice, a line for each seed"))
    return svg(left + DICE_WIDTH + 24, bottom + 52, parts)


PICTURES: dict[str, Callable[[], str]] = {
    "explanation/architecture.svg": architecture,
    "explanation/stages.svg": stages,
    "explanation/samples.svg": samples,
    "benchmarks/slopes.svg": slopes,
    "benchmarks/unified.svg": unified,
}


def main() -> None:
    for name, draw in PICTURES.items():
        (PAGES / name).write_text(draw(), "utf-8")
        print((PAGES / name).relative_to(ROOT))


if __name__ == "__main__":
    main()
