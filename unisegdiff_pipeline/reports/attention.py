"""Loss by noise level: how much training does, and how well masks are read, at each noise level.

For each band of lam (the log signal-to-noise ratio of the noised mask): the unweighted loss, the norm of its gradient
with respect to the weights of the last layer, and the Dice of the mask that one call of the network estimates. Bands do
not cross the edges of the stages; pure noise and the start from the segmenter's mean are shown apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from unisegdiff_pipeline.reports import figures
from unisegdiff_pipeline.reports.page import (
    Column,
    Html,
    Section,
    Table,
    details,
    figure,
    format_number,
    paragraph,
    table,
)
from unisegdiff_pipeline.reports.scales import fit_unit_interval, plain_log
from unisegdiff_pipeline.reports.training_log import LOG_NAME, Entry, of_kind, read_log

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NUMBERS = {"loss": "unweighted loss", "gradient_norm": "norm of the gradient", "dice": "Dice of the estimated mask"}
TITLE = "Loss by noise level"
WIDTH_IN, HEIGHT_IN = 10.6, 3.3
OUTSIDE = 1.4  # nats between the outermost band and what is shown apart
PARTS, WHOLE = ("first third", "second third", "last third"), "whole training"
FEW_EXAMPLES = 10  # of a band
HELD_OUT = "held-out cases, last"


@dataclass(frozen=True)
class Bands:
    """Means of one part of a training.

    Attributes:
        lam_a, lam_c: edges of the stages.
        limits: ascending limits of the intervals of lam.
        examples: number of training examples of each band: pure noise, the intervals, the start from the mean.
        means: by NUMBERS, a value for each band; NaN where nothing was seen.
    """

    lam_a: float
    lam_c: float
    limits: tuple[float, ...]
    examples: tuple[int, ...]
    means: Mapping[str, tuple[float, ...]]

    @property
    def middles(self) -> list[float]:
        """Middle of each interval."""
        return [(low + high) / 2 for low, high in zip(self.limits, self.limits[1:], strict=False)]


def merge(entries: Sequence[Entry]) -> Bands | None:
    """Mean over entries of the log, weighted by their numbers of examples; None without entries.

    Entries with other bands than the last one has are left out (a plan that was edited between two sessions).
    """
    entries = [e for e in entries if e["limits"] == entries[-1]["limits"]]
    if not entries:
        return None
    counts = [e["num_examples"] for e in entries]
    means = {
        key: tuple(
            _mean([(e[key][band], c[band]) for e, c in zip(entries, counts, strict=True)])
            for band in range(len(counts[0]))
        )
        for key in NUMBERS
    }
    last = entries[-1]
    totals = tuple(sum(column) for column in zip(*counts, strict=True))
    return Bands(last["lam_a"], last["lam_c"], tuple(last["limits"]), totals, means)


def section(folder: Path, entries: Sequence[Entry]) -> Section | None:
    """Section of the training report; None where the training has logged no bands.

    Args:
        folder: of the fold; trainings of the same configuration and fold by other trainers are compared with it.
        entries: the fold's log.
    """
    logged = of_kind(entries, "bands")
    training = [e for e in logged if e["cases"] == "training"]
    if not training:
        return None
    parts = bands_of_parts(training)
    last = list(parts.values())[-1]
    held_out = merge([e for e in logged if e["cases"] == "held_out"][-1:])
    curves = {**parts, **({} if held_out is None else {HELD_OUT: held_out})}
    inner = [
        paragraph(_INTRO),
        figure(draw(curves, "Loss, gradient norm and Dice over lam in the course of training"), _CAPTION, wide=True),
        details(f"Numbers of the {list(parts)[-1]}", [_table(last, held_out)]),
    ]
    others = other_trainers(folder)
    if others:
        own = folder.parent.name.partition("__")[0]
        compared = {own: last, **others}
        text = "The end of this training and of those by other trainers, on the same configuration and fold."
        inner.append(figure(draw(compared, "Loss, gradient norm and Dice over lam by trainer"), text, wide=True))
    inner.append(paragraph(_READING, quiet=True))
    return Section(TITLE, [details("Loss, gradient and Dice at each noise level", inner)], _FOR_WHOM)


def draw(curves: Mapping[str, Bands], alt: str) -> Html:
    """One panel for each of NUMBERS over lam, a line for each curve; the stages of the first one are marked."""

    def paint(drawn: Figure) -> None:
        axes = drawn.subplots(1, len(NUMBERS))
        first = next(iter(curves.values()))
        for axis, (key, title) in zip(axes, NUMBERS.items(), strict=True):
            for index, (name, bands) in enumerate(curves.items()):
                if any(math.isfinite(v) for v in bands.means[key]):
                    _plot(axis, bands, key, name, index)
            axis.set_title(title, pad=16)
            _mark_stages(axis, first)
            if key == "dice":
                fit_unit_interval(axis, [v for bands in curves.values() for v in bands.means[key]])
            else:
                plain_log(axis, "y")
        handles, labels = axes[0].get_legend_handles_labels()
        drawn.legend(handles, labels, loc="outside lower center", ncols=len(labels))

    return figures.draw(paint, alt, WIDTH_IN, HEIGHT_IN)


def other_trainers(folder: Path) -> dict[str, Bands]:
    """End of the trainings of the same configuration and fold by other trainers, by the trainer's name."""
    configuration = folder.parent.name.partition("__")[2]
    result = {}
    for model in sorted(folder.parent.parent.glob(f"*__{configuration}")):
        if model != folder.parent:
            logged = [e for e in of_kind(read_log(model / folder.name / LOG_NAME), "bands") if e["cases"] == "training"]
            if logged:
                result[model.name.partition("__")[0]] = list(bands_of_parts(logged).values())[-1]
    return result


def bands_of_parts(entries: Sequence[Entry]) -> dict[str, Bands]:
    """The thirds of a training, or the whole where thirds would hold too few examples to mean anything."""
    whole = merge(entries)
    assert whole is not None
    thirds = bands_of_thirds(entries)
    if sum(whole.examples) < FEW_EXAMPLES * len(PARTS) * len(whole.examples) or thirds[-1] is None:
        return {WHOLE: whole}
    return {name: bands for name, bands in zip(PARTS, thirds, strict=True) if bands is not None}


def bands_of_thirds(entries: Sequence[Entry]) -> list[Bands | None]:
    """Bands of the first, second and last third of the iterations."""
    end = entries[-1]["iteration"]
    parts: list[list[Entry]] = [[], [], []]
    for entry in entries:
        parts[min(2, (3 * entry["iteration"] - 1) // max(1, end))].append(entry)
    return [merge(part) if part else None for part in parts]


def _mean(values: Sequence[tuple[float | None, int]]) -> float:
    known = [(v, n) for v, n in values if v is not None]
    total = sum(n for _, n in known)
    return sum(v * n for v, n in known) / total if total else math.nan


def _plot(axis: Axes, bands: Bands, key: str, name: str, index: int) -> None:
    noise, *inner, start = bands.means[key]
    held_out = name == HELD_OUT
    color = figures.series_color(1 if held_out else 0 if name in (*PARTS, WHOLE) else index)
    strength = {PARTS[0]: 0.3, PARTS[1]: 0.6}.get(name, 1.0)
    style = "--" if held_out else "-"
    known = [(m, v) for m, v in zip(bands.middles, inner, strict=True) if math.isfinite(v)]
    lam, means = [k[0] for k in known], [k[1] for k in known]
    axis.plot(lam, means, style, marker="o", ms=3.5, color=color, alpha=strength, label=name)
    axis.plot([bands.limits[0] - OUTSIDE], [noise], "s", ms=5, color=color, alpha=strength)
    axis.plot([bands.lam_a], [start], "D", ms=5, color=color, alpha=strength, mfc="none", mew=1.4)


def _mark_stages(axis: Axes, bands: Bands) -> None:
    low, high = bands.limits[0], bands.limits[-1]
    for edge in (bands.lam_a, bands.lam_c):
        axis.axvline(edge, color=figures.MUTED, lw=0.9, ls=":")
    places = {"A": (low + bands.lam_a) / 2, "B": (bands.lam_a + bands.lam_c) / 2, "C": (bands.lam_c + high) / 2}
    for stage, lam in places.items():
        axis.text(lam, 1.02, stage, ha="center", va="bottom", color=figures.MUTED, transform=axis.get_xaxis_transform())
    ticks = [round(t) for t in (bands.lam_a, (bands.lam_a + bands.lam_c) / 2, bands.lam_c, high)]
    axis.set_xticks([low - OUTSIDE, *ticks], ["pure\nnoise", *(format_number(t) for t in ticks)])
    axis.set_xlim(low - 2 * OUTSIDE, high + 0.5)
    axis.set_xlabel("lam")


def _table(bands: Bands, held_out: Bands | None) -> Html:
    names = ["pure noise", *(f"{a:.1f} to {b:.1f}" for a, b in zip(bands.limits, bands.limits[1:], strict=False))]
    names.append(f"start from the segmenter, {bands.lam_a:.1f}")
    columns = [Column("lam", "text"), Column("examples"), Column("loss"), Column("gradient norm", digits=4)]
    columns += [Column("Dice"), Column("held-out loss"), Column("held-out Dice")]
    rows = []
    for i, name in enumerate(names):
        row: list[str | float | int] = [name, bands.examples[i]]
        row += [bands.means[key][i] for key in NUMBERS]
        same = held_out is not None and held_out.limits == bands.limits
        row += [held_out.means[key][i] if same and held_out is not None else math.nan for key in ("loss", "dice")]
        rows.append(row)
    return table(Table(columns, rows))


_FOR_WHOM = "For those who work on the method; nothing here has to be looked at to use the model."
_INTRO = (
    "What training does at each noise level. lam is the log signal-to-noise ratio of the noised mask: on the left the "
    "mask cannot be read, on the right it is nearly known."
)
_CAPTION = (
    "Squares: pure noise. Diamonds: the start of stage B from the segmenter's own mean. Dotted lines: planned edges of "
    "stages A, B and C. Losses of different stages are different functions and are not to be compared with each other."
)
_READING = (
    "Losses and gradients are those before the learned weights of the stages. The gradient is that of one example's "
    "loss with respect to the weights of the last layer. Dice is of the mask that one call estimates, over patches "
    "that hold foreground; while training, the segmenter's answer is hidden from a fifth of the examples, with "
    "held-out cases it never is. Held-out patches and their noise are the same each time."
)
