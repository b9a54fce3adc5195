"""Figures of the data set report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from unisegdiff_pipeline.core.units import MM3_PER_ML, Units
from unisegdiff_pipeline.fingerprint import ComponentFacts, Fingerprint
from unisegdiff_pipeline.planning.plans import ConfigurationPlan
from unisegdiff_pipeline.reports import figures
from unisegdiff_pipeline.reports.page import Html, format_number
from unisegdiff_pipeline.reports.scales import plain_log

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_COUNTED = 15
NUM_BINS = 20


def spacings(fingerprint: Fingerprint) -> Html:
    """Voxel size of all cases along each axis."""
    values = [case.spacing_mm for case in fingerprint.cases]
    return _by_axis(fingerprint, values, "mm", "Voxel size of all cases along each axis")


def shapes(fingerprint: Fingerprint) -> Html:
    """Shape after cropping of all cases along each axis."""
    values = [case.shape_after_crop for case in fingerprint.cases]
    return _by_axis(
        fingerprint,
        values,
        "pixels" if fingerprint.is_2d else "voxels",
        "Shape after cropping of all cases along each axis",
    )


def intensities(fingerprint: Fingerprint) -> Html:
    """A lying box for each channel, on a scale of its own."""
    channels = list(zip(fingerprint.channel_names, fingerprint.intensities, strict=True))

    def paint(drawn: Figure) -> None:
        axes = np.atleast_1d(drawn.subplots(len(channels), 1))
        for index, (axis, (name, s)) in enumerate(zip(axes, channels, strict=True)):
            low, high = max(s.mean - s.std, s.percentile_00_5), min(s.mean + s.std, s.percentile_99_5)
            box = {
                "whislo": s.percentile_00_5,
                "q1": low,
                "med": s.median,
                "q3": high,
                "whishi": s.percentile_99_5,
            }
            color = figures.channel_color(name, index)
            axis.bxp(
                [box],
                orientation="horizontal",
                showfliers=False,
                patch_artist=True,
                widths=0.5,
                boxprops={"facecolor": color, "alpha": 0.25, "edgecolor": color},
                medianprops={"color": color, "linewidth": 2.2},
                whiskerprops={"color": color},
                capprops={"color": color},
            )
            axis.set_yticks([1], [name])
            axis.grid(axis="y", visible=False)
        axes[-1].set_xlabel("intensity in the files")

    return figures.draw(paint, "Foreground intensities of each channel", 9.6, 0.75 + 0.62 * len(channels))


def balance(fingerprint: Fingerprint) -> Html:
    """Fraction of label maps that hold each class, and of voxels."""
    lesions, element = fingerprint.lesions, "pixel" if fingerprint.is_2d else "voxel"
    places = np.arange(len(lesions))
    left = min([lesion.foreground_fraction for lesion in lesions if lesion.foreground_fraction > 0], default=0.01) / 5

    def paint(drawn: Figure) -> None:
        axis = drawn.subplots()
        for offset, values, label in (
            (-0.19, [lesion.fraction_of_maps for lesion in lesions], "of label maps hold it"),
            (0.19, [lesion.foreground_fraction for lesion in lesions], f"of {element}s are of it"),
        ):
            bars = axis.barh(places + offset, np.maximum(values, left), 0.36, label=label)
            axis.bar_label(bars, [f"{100 * v:.2g}%" if v < 0.1 else f"{v:.0%}" for v in values], padding=3, fontsize=8)
        names = figures.wrapped([lesion.class_name for lesion in lesions], figures.NAME_CHARACTERS)
        axis.set(xlim=(left, 4), yticks=places, yticklabels=names)
        plain_log(axis, "x")
        axis.invert_yaxis()
        axis.grid(axis="y", visible=False)
        axis.set_xlabel("fraction")
        figures.legend_above(drawn)

    return figures.draw(paint, "Class balance", height_in=max(figures.HALF_HEIGHT_IN, 1.0 + 0.42 * len(lesions)))


def counts(fingerprint: Fingerprint) -> Html:
    """Number of connected components of each label map."""
    values = [[min(m.count, MOST_COUNTED) for m in maps] for maps in _maps(fingerprint)]
    most = max(chain(*values))
    cut = most == MOST_COUNTED

    def paint(axis: Axes) -> None:
        from matplotlib.ticker import MaxNLocator

        axis.hist(values, bins=[i - 0.5 for i in range(most + 2)], label=_names(fingerprint))
        axis.set(ylabel="label maps")
        plain_log(axis, "y", "symlog")
        axis.set_ylim(bottom=0)
        axis.set_xlabel(f"components ({MOST_COUNTED}: or more)" if cut else "components")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))

    return _histogram(fingerprint, paint, "Components of each label map")


def length_scale(fingerprint: Fingerprint, units: Units) -> float:
    """Factor of the fingerprint's millimetres; files of unknown pixel size may have made one up, which it undoes."""
    if units.length == "mm":
        return 1.0
    return 1 / float(np.median([spacing for case in fingerprint.cases for spacing in case.spacing_mm[1:]]))


def size_scale(fingerprint: Fingerprint, units: Units) -> float:
    """The same for its cubic millimetres, of 2D images square ones."""
    return 1 / MM3_PER_ML if units.size == "ml" else length_scale(fingerprint, units) ** 2


def volumes(fingerprint: Fingerprint, units: Units) -> Html:
    """Volumes of all listed components, areas for 2D images."""
    unit, scale = f"{units.size_word} ({units.size_text})", size_scale(fingerprint, units)
    values = [[v * scale for m in maps for v in m.volumes_mm3] for maps in _maps(fingerprint)]
    every = list(chain(*values))
    bins = np.geomspace(min(every) * 0.99, max(every) * 1.01, NUM_BINS)

    def paint(axis: Axes) -> None:
        axis.hist(values, bins=bins.tolist(), label=_names(fingerprint))
        axis.set(xlabel=unit, ylabel="components")
        _count_in_whole_numbers(axis)
        plain_log(axis, "x")

    return _histogram(fingerprint, paint, f"Components by {unit}")


def thicknesses(fingerprint: Fingerprint, units: Units) -> Html:
    """Thickness of all listed components."""
    scale = length_scale(fingerprint, units)
    values = [[t * scale for m in maps for t in m.thickness_mm] for maps in _maps(fingerprint)]
    bins = np.linspace(0, max(chain(*values)) * 1.01, NUM_BINS)

    def paint(axis: Axes) -> None:
        axis.hist(values, bins=bins.tolist(), label=_names(fingerprint))
        axis.set(xlabel=f"thickness ({units.length})", ylabel="components")
        _count_in_whole_numbers(axis)

    return _histogram(fingerprint, paint, "Components by thickness")


def _count_in_whole_numbers(axis: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.yaxis.set_major_locator(MaxNLocator("auto", integer=True))


def readability(configuration: ConfigurationPlan, class_names: Sequence[str]) -> Html:
    """Readability of noised masks of each class over lam, with the edges of the stages."""
    stages = configuration.stages
    assert stages is not None

    def paint(drawn: Figure) -> None:
        axis = drawn.subplots()
        curves = {curve.class_name: curve for curve in stages.curves}
        for index, name in enumerate(class_names[: figures.DRAWN_CLASSES]):  # a class without a curve keeps its colour
            if (curve := curves.get(name)) is not None:
                axis.plot(curve.lam, curve.readability, color=figures.series_color(index), label=name)
        lam = stages.curves[0].lam if stages.curves else (stages.lam_a - 6, stages.lam_c + 6)
        for edge, name, side in ((stages.lam_a, "lam_a", "right"), (stages.lam_c, "lam_c", "left")):
            axis.axvline(edge, color=figures.MUTED, lw=1, ls=":")
            place = (edge, 1.09)
            axis.annotate(f"{name} {format_number(edge, 2)}", place, xycoords=("data", "axes fraction"), ha=side)
        ends = (lam[0], stages.lam_a, stages.lam_c, lam[-1])
        for stage, low, high in zip("ABC", ends, ends[1:], strict=False):
            place = ((low + high) / 2, 1.02)
            axis.annotate(stage, place, xycoords=("data", "axes fraction"), ha="center", color=figures.MUTED)
        axis.set(xlabel="lam = ln(signal-to-noise ratio)", ylabel="readability")
        axis.set(xlim=(lam[0], lam[-1]), ylim=(-0.02, 1.02))
        figures.legend_above(drawn)

    return figures.draw(paint, f"Readability of noised masks over lam, {configuration.name}")


def _maps(fingerprint: Fingerprint) -> list[list[ComponentFacts]]:
    """For each drawn class its components in every label map; those of the annotators where there are several."""
    maps = [m for case in fingerprint.cases for m in (case.raters or (case.classes,))]
    return [[m[i] for m in maps] for i in range(len(_names(fingerprint)))]


def _names(fingerprint: Fingerprint) -> list[str]:
    return [lesion.class_name for lesion in fingerprint.lesions[: figures.DRAWN_CLASSES]]


def _histogram(fingerprint: Fingerprint, paint: Callable[[Axes], None], alt: str) -> Html:
    def on(drawn: Figure) -> None:
        axis = drawn.subplots()
        paint(axis)
        axis.grid(axis="x", visible=False)
        if len(fingerprint.lesions) > 1:
            figures.legend_above(drawn)

    return figures.draw(on, alt)


def _by_axis(fingerprint: Fingerprint, values: Sequence[Sequence[float]], unit: str, alt: str) -> Html:
    names = "YX" if fingerprint.is_2d else "ZYX"

    def paint(drawn: Figure) -> None:
        axis = drawn.subplots()
        columns = np.array(values, float)[:, -len(names) :].T
        figures.box_and_points(axis, dict(zip(names, columns, strict=True)))
        axis.set_ylabel(unit)
        axis.set_ylim(bottom=0)

    return figures.draw(paint, alt)
