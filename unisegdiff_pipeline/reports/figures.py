"""Figures of the reports in one style: drawn with matplotlib, put into the page as SVG whose colours follow it.

Text stays text, in the page's font; ink, grid and the colours of series are the page's own (`--ink`, `--series-1`,
and so on), so that a figure reads as well in dark mode as in print. The series colours are those of Okabe and Ito
(2008), which readers with a colour vision deficiency can tell apart.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import math
import re
import textwrap
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from unisegdiff_pipeline.reports.page import Html

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Light values; page.css says what each becomes in dark mode. They must differ from each other and from what data use.
INK, MUTED, GRID, PAPER = "#1d232a", "#5c6670", "#d9dee3", "#fefefe"
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f6d4f", "#555b62")
_VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--rule", PAPER: "--paper"} | {
    color: f"--series-{index + 1}" for index, color in enumerate(SERIES)
}
HALF_WIDTH_IN, HALF_HEIGHT_IN = 4.6, 3.1
_COLOR = re.compile(rf"(?:{'|'.join(_VARIABLES)})\b", re.IGNORECASE)
_TAG = re.compile(r"<[^>]*>")
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
LABELLED_CHARACTERS = 36  # side by side along one axis
NAME_CHARACTERS = 26  # of a name beside a row
CHARACTER_IN, KEY_IN, ROW_IN = 0.065, 0.5, 0.17  # of legends: a character, a line with its margins, a row
DRAWN_CLASSES = len(SERIES)  # of one figure: more have no colours of their own; tables and files hold all
NARROW_GROUPS = 4  # of more boxes than these, a figure takes the width of the page
MANY_POINTS = 3000  # more marks than this are drawn as pixels, which keeps the page small


def draw(
    paint: Callable[[Figure], None],
    alt: str,
    width_in: float = HALF_WIDTH_IN,
    height_in: float = HALF_HEIGHT_IN,
    *,
    constrained: bool = True,
) -> Html:
    """Draw a figure as SVG for `page.figure`.

    Args:
        paint: fills an empty matplotlib figure in the style of the reports.
        alt: what the figure shows, for readers who cannot see it.
        width_in: width in inches of 96 CSS pixels; text is 9 pt, so draw small figures rather than shrink large ones.
        height_in: height, likewise.
        constrained: let matplotlib make room for labels; False leaves the places of axes to `paint`.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    style: Any = _style()  # its keys are typed one by one in some versions
    with mpl.rc_context(style):
        figure = Figure(figsize=(width_in, height_in), layout="constrained" if constrained else None)
        paint(figure)
        _label_powers_without_math(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _inline(buffer.getvalue(), alt)


def series_color(index: int) -> str:
    """Colour of the series of this index; they repeat after eight."""
    return SERIES[index % len(SERIES)]


def drawn_note(num_classes: int) -> str:
    """That figures leave out classes of so many, after another sentence; empty where they do not."""
    return f" Figures show the first {DRAWN_CLASSES} of {num_classes} classes." if num_classes > DRAWN_CLASSES else ""


def channel_color(name: str, index: int) -> str:
    """Colour of a channel: channels R, G and B have their own hue, others that of their place."""
    hues = {"r": SERIES[1], "red": SERIES[1], "g": SERIES[2], "green": SERIES[2], "b": SERIES[0], "blue": SERIES[0]}
    return hues.get(name.casefold(), series_color(index))


def legend_above(figure: Figure, columns: int = 2) -> None:
    """A legend of all lines above the axes, where it hides nothing; the figure grows by what is more than two rows.

    Args:
        figure: all of whose lines are drawn.
        columns: at most; fewer where names are long. Names that are wider than the figure are wrapped.
    """
    found = [axes.get_legend_handles_labels() for axes in figure.axes]
    handles = [handle for pair in found for handle in pair[0]]
    names = [name for pair in found for name in pair[1]]
    if not names:
        return
    width_in, height_in = figure.get_size_inches()
    labels = wrapped(names, int((width_in - KEY_IN) / CHARACTER_IN))
    longest = max(len(line) for label in labels for line in label.split("\n"))
    columns = max(1, min(columns, int(width_in / (KEY_IN + CHARACTER_IN * longest))))
    in_rows = [labels[row :: -(-len(labels) // columns)] for row in range(-(-len(labels) // columns))]
    lines = sum(max(label.count("\n") + 1 for label in row) for row in in_rows)
    figure.set_size_inches(width_in, height_in + ROW_IN * max(0, lines - 2))
    figure.legend(handles, labels, loc="outside upper left", ncols=columns)


def wrapped(names: Iterable[str], characters: int) -> list[str]:
    """Names in lines of so many characters, so that long ones leave room for what they name."""
    return [textwrap.fill(name, max(characters, 8)) or name for name in names]


def say_nothing_to_show(axis: Axes, reason: str) -> None:
    """Turn an axis into a sentence that says why there is nothing in it."""
    axis.set_axis_off()
    axis.text(0.5, 0.5, reason, ha="center", va="center", color=MUTED, transform=axis.transAxes, wrap=True)


def box_and_points(axis: Axes, groups: Mapping[str, Sequence[float]], colors: Sequence[str] | None = None) -> None:
    """Box (median, quartiles, whiskers to 1.5 interquartile ranges) of each group, and its values beside it.

    NaN is left out; a group without values keeps its place and says "none". Values are spread sideways by the golden
    ratio, so that equal input gives an equal picture.
    """
    for index, (_name, values) in enumerate(groups.items()):
        defined = np.array([v for v in values if v is not None and math.isfinite(v)], float)
        color = series_color(index) if colors is None else colors[index]
        if not len(defined):
            axis.text(index, 0.5, "none", ha="center", color=MUTED, transform=axis.get_xaxis_transform())
            continue
        _box(axis, index, defined, color)
        spread = (np.arange(len(defined)) * 0.6180339887) % 1 - 0.5
        axis.scatter(
            index + 0.27 + 0.22 * spread,
            defined,
            s=9,
            color=color,
            alpha=0.55,
            linewidths=0,
            rasterized=len(defined) > MANY_POINTS,
            zorder=3,
        )
    width = max(10, LABELLED_CHARACTERS // max(len(groups), 1))  # of one label, so that neighbours do not overlap
    labels = [
        f"{textwrap.fill(name, width, break_long_words=False)}\n"
        f"n = {sum(v is not None and math.isfinite(v) for v in values)}"
        for name, values in groups.items()
    ]
    axis.set_xticks(range(len(groups)), labels)
    margin = 1.0 if len(groups) < 2 else 0.5
    axis.set_xlim(-margin, max(len(groups), 1) - 1 + margin)
    axis.grid(axis="x", visible=False)


def _box(axis: Axes, place: float, values: np.ndarray, color: str) -> None:
    axis.boxplot(
        values,
        positions=[place - 0.12],
        widths=0.34,
        showfliers=False,
        patch_artist=True,
        manage_ticks=False,
        boxprops={"facecolor": color, "alpha": 0.22, "edgecolor": color},
        medianprops={"color": color, "linewidth": 2.2, "solid_capstyle": "butt"},
        whiskerprops={"color": color},
        capprops={"color": color},
    )


def _style() -> dict[str, Any]:
    from cycler import cycler

    return {
        "svg.fonttype": "none",
        "svg.hashsalt": "unisegdiff_pipeline",
        "font.size": 9,
        "axes.titlesize": 9.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.labelsize": 9,
        "xtick.labelsize": 8.5,
        "ytick.labelsize": 8.5,
        "legend.fontsize": 8.5,
        "legend.frameon": False,
        "text.parse_math": False,  # a class may be named "$"; labels hold no formulas
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": MUTED,
        "axes.facecolor": "none",
        "figure.facecolor": "none",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.linewidth": 0.8,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.prop_cycle": cycler(color=SERIES),
        "grid.color": GRID,
        "grid.linewidth": 0.7,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "xtick.major.size": 3,
        "ytick.major.size": 3,
        "lines.linewidth": 1.6,
        "lines.markersize": 4,
        "savefig.dpi": 144,
    }


def _inline(svg: str, alt: str) -> Html:
    """Turn matplotlib's SVG file into an element of a page: no prologue, names of its own, the page's colours."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>\s*", "", body, flags=re.DOTALL)
    # Only tags are changed: labels, which matplotlib has escaped, may read like anything.
    used = {name for tag in _TAG.findall(body) for name in re.findall(r'(?:url\(#|href="#)([^)"]+)', tag)}
    prefix = f"f{hashlib.sha256(svg.encode('utf-8')).hexdigest()[:8]}-"
    body = _TAG.sub(lambda m: _inline_tag(m[0], used, prefix), body)
    width, height = (float(re.search(rf'\b{name}="([\d.]+)pt"', body)[1]) for name in ("width", "height"))  # type: ignore[index]
    opening = (
        f'<svg class=plot role=img viewBox="0 0 {width:g} {height:g}" width="{width / 0.75:.0f}" '
        f'height="{height / 0.75:.0f}" xmlns:xlink="http://www.w3.org/1999/xlink">'
        f"<title>{html.escape(alt)}</title>"
    )
    return Html(re.sub(r"<svg[^>]*>", lambda _: opening, body, count=1).strip())


def _inline_tag(tag: str, used: Collection[str], prefix: str) -> str:
    """A tag with names that begin with `prefix`, where they are used, and the page's colours."""
    tag = re.sub(r' id="([^"]+)"', lambda m: f' id="{prefix}{m[1]}"' if m[1] in used else "", tag)
    tag = re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}", tag)
    tag = _COLOR.sub(lambda m: f"var({_VARIABLES[m[0].lower()]})", tag)
    tag = re.sub(r' d="([^"]*)"', lambda m: f' d="{shorter_path(m[1])}"', tag)
    return re.sub(r"data:image/png;base64,([^\"]+)", lambda m: _smaller_image(m[1]), tag)


def _label_powers_without_math(figure: Figure) -> None:
    """Give logarithmic axes labels such as 10⁴ and 0.01; matplotlib's own are formulas."""
    from matplotlib.ticker import LogFormatter, LogFormatterMathtext

    class Plain(LogFormatter):
        def __call__(self, x: float, pos: int | None = None) -> str:
            if not super().__call__(x, pos):  # where no label is due
                return ""
            power = math.log10(abs(x)) if x else 0.0
            if abs(power) < 4 or abs(power - round(power)) > 1e-9:
                return f"{x:g}"
            return ("\N{MINUS SIGN}" if x < 0 else "") + "10" + str(round(power)).translate(_SUPERSCRIPTS)

    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        scale: Any = axis.get_transform()
        for former, replace in (
            (axis.get_major_formatter(), axis.set_major_formatter),
            (axis.get_minor_formatter(), axis.set_minor_formatter),
        ):
            if isinstance(former, LogFormatterMathtext):
                linear_to = getattr(scale, "linthresh", None)
                replace(Plain(scale.base, former.labelOnlyBase, former.minor_thresholds, linear_to))


def shorter_path(path: str) -> str:
    """A path of matplotlib with hundredths of a point, single blanks, and H and V for lines along the axes.

    Outlines are thousands of such lines, and most of the weight of a page that shows them.
    """
    path = re.sub(r"\d+\.\d+", lambda m: f"{float(m[0]):.2f}".rstrip("0").rstrip("."), path)
    path = re.sub(r"\s+", " ", path).strip()
    path = re.sub(r"M (\S+) (\S+) L (\S+) \2(?= |$)", r"M\1 \2H\3", path)
    return re.sub(r"M (\S+) (\S+) L \1 (\S+)(?= |$)", r"M\1 \2V\3", path)


def _smaller_image(encoded: str) -> str:
    """An opaque PNG of matplotlib, always RGBA, as grey or palette PNG where that loses nothing, else as JPEG."""
    from PIL import Image

    data = base64.b64decode(encoded)
    with Image.open(io.BytesIO(data)) as opened:
        image = opened.convert("RGBA")
    if image.getchannel("A").getextrema() != (255, 255):
        return f"data:image/png;base64,{encoded}"
    image, buffer = image.convert("RGB"), io.BytesIO()
    red, green, blue = (np.asarray(channel) for channel in image.split())
    if np.array_equal(red, green) and np.array_equal(red, blue):
        image.convert("L").save(buffer, format="png", optimize=True)
    elif image.getcolors(256) is not None:
        image.quantize(256).save(buffer, format="png", optimize=True)
    else:
        image.save(buffer, format="jpeg", quality=90, subsampling=0)
    kind = "jpeg" if buffer.getvalue()[:2] == b"\xff\xd8" else "png"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
