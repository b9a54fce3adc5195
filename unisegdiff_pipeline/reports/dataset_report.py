"""dataset_report.html: what a data set holds, what was planned for it and why, and what to look at before training.

Everything is read from the data set's preprocessed folder:

    fingerprint.json   facts of all cases
    plans.json         the plan, with its stages once the labels are preprocessed; may be missing
    warnings.json      what the check of the files found worth a look; may be missing
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from unisegdiff_pipeline.core.files import file_hash
from unisegdiff_pipeline.core.progress import counted
from unisegdiff_pipeline.core.serialization import read_dataclass
from unisegdiff_pipeline.core.units import Units, units_of
from unisegdiff_pipeline.core.version import __version__
from unisegdiff_pipeline.fingerprint import CaseFingerprint, Fingerprint, Percentiles, read_fingerprint
from unisegdiff_pipeline.io.integrity import Problem
from unisegdiff_pipeline.io.raw_dataset import RawDataset
from unisegdiff_pipeline.planning.plans import ConfigurationPlan, Plans
from unisegdiff_pipeline.reports import dataset_figures, dataset_pictures, dataset_sources, figures
from unisegdiff_pipeline.reports.dataset_figures import length_scale, size_scale
from unisegdiff_pipeline.reports.dataset_warnings import data_warnings
from unisegdiff_pipeline.reports.kept_figures import KeptFigures
from unisegdiff_pipeline.reports.page import (
    Cell,
    Column,
    Html,
    KeyFigure,
    Page,
    Section,
    Shown,
    Table,
    bullets,
    details,
    facts,
    figure,
    format_number,
    grid,
    key_figures,
    link,
    notice,
    paragraph,
    table,
    write_page,
)

REPORT_NAME = "dataset_report.html"
FINGERPRINT_NAME, PLANS_NAME, WARNINGS_NAME = "fingerprint.json", "plans.json", "warnings.json"
T = TypeVar("T")
MOST_CASES = 2000  # rows of the table of cases
MOST_WARNINGS = 12  # shown at once


def write_dataset_report(folder: Path, with_plans: bool = True, raw: RawDataset | None = None) -> Path:
    """Write dataset_report.html into a preprocessed data set's folder; returns its path.

    Figures that a former report of the same facts and images shows are taken from it.

    Args:
        folder: preprocessed/DatasetXXX_Name, which holds fingerprint.json.
        with_plans: show plans.json, where there is one; off where it may belong to an earlier fingerprint.
        raw: the data set, for pictures of three of its cases; without it there are none.

    Raises:
        UsdError: fingerprint.json or plans.json cannot be read.
    """
    fingerprint = read_fingerprint(folder / FINGERPRINT_NAME)
    plans = None
    if with_plans and (folder / PLANS_NAME).is_file():
        plans = read_dataclass(Plans, folder / PLANS_NAME)
    found = read_dataclass(tuple[Problem, ...], folder / WARNINGS_NAME) if (folder / WARNINGS_NAME).is_file() else ()
    known = plans is None or plans.spacing_known if raw is None else raw.description.spacing_known
    units = units_of(fingerprint.is_2d, known)
    kept = KeptFigures(folder / REPORT_NAME, file_hash(folder / FINGERPRINT_NAME))
    pictures = None if raw is None else dataset_pictures.section(fingerprint, raw, kept)
    page = Page(
        title=fingerprint.dataset_name,
        subtitle="Data set report",
        lead=[*_lead(fingerprint, units), *_warnings_ahead(len(data_warnings(fingerprint, plans)) + len(found))],
        sections=[
            *(part for part in (pictures, dataset_sources.section(fingerprint, plans, raw, kept)) if part is not None),
            _images(fingerprint, units, kept),
            _intensities(fingerprint, plans, kept),
            _objects(fingerprint, units, kept),
            *([] if plans is None else [_plan(plans, units)]),
            _warnings(fingerprint, plans, found),
            _cases(fingerprint, units),
            _stages(fingerprint, plans, kept),
        ],
        footer=f"unisegdiff_pipeline {__version__}",
    )
    return write_page(folder / REPORT_NAME, page)


# ------------------------------------------------------------------------------------------------------------ opening


def _lead(fingerprint: Fingerprint, units: Units) -> list[Html]:
    cases, empty = fingerprint.cases, sum(case.empty for case in fingerprint.cases)
    raters = max(len(case.raters) for case in cases)
    classes = [lesion.class_name for lesion in fingerprint.lesions]
    items = [
        KeyFigure("Cases", str(len(cases)), f"{empty} without foreground"),
        KeyFigure("Images", _dimensions(fingerprint), _shape_text(fingerprint)),
        _size_figure(fingerprint, units),
        KeyFigure("Channels", str(len(fingerprint.channel_names)), ", ".join(fingerprint.channel_names)),
        KeyFigure("Classes", str(len(classes)), ", ".join(classes)),
    ]
    if raters:
        items.append(KeyFigure("Annotators", str(raters), "label maps a case, at most"))
    return [key_figures(items)]


def _dimensions(fingerprint: Fingerprint) -> str:
    dims = {"2D" if part.is_2d else "3D" for part in fingerprint.sources.values() or [fingerprint]}
    return " and ".join(sorted(dims))


def _shape_text(fingerprint: Fingerprint) -> str:
    if len({part.is_2d for part in fingerprint.sources.values()}) > 1:
        return "sizes by source below"  # a median over slices and volumes is the size of neither
    shapes = [_axes(fingerprint, case.shape) for case in fingerprint.cases]
    return f"median {_times(round(statistics.median(axis)) for axis in zip(*shapes, strict=True))}"


def _size_figure(fingerprint: Fingerprint, units: Units) -> KeyFigure:
    name = "Pixel size" if fingerprint.is_2d else "Voxel size"
    if units.length == "pixels":
        return KeyFigure(name, "unknown", "sizes are in pixels")
    spacings = [_axes(fingerprint, case.spacing_mm) for case in fingerprint.cases]
    medians = [statistics.median(axis) for axis in zip(*spacings, strict=True)]
    detail = "nominal: not known" if units.nominal else f"median, {_times(_axes(fingerprint, 'ZYX'))}"
    return KeyFigure(f"{name}, mm", _times(f"{s:.3g}" for s in medians), detail)


def _warnings_ahead(count: int) -> list[Html]:
    """A line at the top that leads to the warnings further down."""
    if not count:
        return []
    text = link("#warnings", "1 warning" if count == 1 else f"{count} warnings")
    return [notice(Html(f"{text} to look at before you train."), "warning")]


def _warnings(fingerprint: Fingerprint, plans: Plans | None, found: Sequence[Problem]) -> Section:
    body = [notice(text, "warning") for text in data_warnings(fingerprint, plans)]
    files = [str(warning) for warning in found]
    if files:
        body.append(paragraph(f"The check of the files found {len(files)} more to look at:"))
        body.append(bullets(files[:MOST_WARNINGS]))
        if len(files) > MOST_WARNINGS:
            body.append(details(f"{len(files) - MOST_WARNINGS} more", [bullets(files[MOST_WARNINGS:])]))
    if not body:
        body.append(notice("Nothing stands out in the files, the labels or the plan."))
    return Section("Warnings", body)


# ------------------------------------------------------------------------------------------------------------ the data


def _images(fingerprint: Fingerprint, units: Units, kept: KeptFigures) -> Section:
    drawn, said, name = [], [], "Pixels" if fingerprint.is_2d else "Voxels"
    spacings, shapes = ({getattr(c, name) for c in fingerprint.cases} for name in ("spacing_mm", "shape_after_crop"))
    if len(spacings) > 1:
        drawn.append(figure(kept.draw(dataset_figures.spacings, "", fingerprint), f"{name[:-1]} size along each axis."))
    elif units.length == "mm" and not units.nominal:
        said.append(f"{name} are of {_times(f'{s:.3g}' for s in _axes(fingerprint, *spacings))} mm in every image.")
    if len(shapes) > 1:
        text = f"{name} along each axis after cropping to what is not zero."
        drawn.append(figure(kept.draw(dataset_figures.shapes, "", fingerprint), text))
    else:
        said.append(f"All images have {_times(_axes(fingerprint, *shapes))} {name.lower()}.")
    cropped = 1 - fingerprint.median_crop_fraction
    if cropped >= 0.005:
        said.append(f"Cropping to what is not zero takes {cropped:.0%} of the median image away.")
    return Section("Images", [grid(drawn)] if drawn else [], " ".join(said))


def _intensities(fingerprint: Fingerprint, plans: Plans | None, kept: KeptFigures) -> Section:
    configuration = None if plans is None else plans.configurations[plans.recommended_configuration]
    columns = [Column("channel", "text"), *(Column(t, digits=2) for t in _INTENSITY_TITLES)]
    if configuration is not None:
        columns.append(Column("normalisation", "text"))
    rows: list[list[Cell]] = []
    for i, (name, s) in enumerate(zip(fingerprint.channel_names, fingerprint.intensities, strict=True)):
        numbers = (s.mean, s.std, s.minimum, s.percentile_00_5, s.median, s.percentile_99_5, s.maximum)
        row: list[Cell] = [name, *(Shown(f"{v:.4g}".replace("-", "\N{MINUS SIGN}"), v) for v in numbers)]
        rows.append(row if configuration is None else [*row, configuration.preprocessing.normalization[i]])
    content = Table(columns, rows, sortable=False)
    caption = "Median, mean ± one standard deviation, 0.5 to 99.5 %."
    drawn = figure(kept.draw(dataset_figures.intensities, "", fingerprint), caption, wide=True)
    intro = "Inside the foreground, over all cases; where that has no values or but one, of all that is not zero."
    return Section("Intensities", [drawn, table(content)], intro)


_INTENSITY_TITLES = ("mean", "std", "minimum", "0.5 %", "median", "99.5 %", "maximum")


def _objects(fingerprint: Fingerprint, units: Units, kept: KeptFigures) -> Section:
    drawn = [figure(kept.draw(dataset_figures.balance, "", fingerprint), "Class balance, on a logarithmic scale.")]
    if any(lesion.fraction_of_maps for lesion in fingerprint.lesions[: figures.DRAWN_CLASSES]):
        drawn += [
            figure(kept.draw(dataset_figures.counts, "", fingerprint), "Connected components of each label map."),
            figure(
                kept.draw(dataset_figures.volumes, str(units), fingerprint, units), f"Components by {units.size_word}."
            ),
            figure(
                kept.draw(dataset_figures.thicknesses, str(units), fingerprint, units),
                "Components by thickness: twice the largest distance to the outside.",
            ),
        ]
    nominal = " All sizes are nominal: voxel sizes are not known." if units.nominal else ""
    touching = "voxels touch by face, edge or corner" if units.size == "ml" else "pixels touch by side or corner"
    note = figures.drawn_note(len(fingerprint.lesions))
    intro = f"Connected components of each class; {touching}.{nominal}{note}"
    return Section("Objects", [grid(drawn), table(_objects_table(fingerprint, units)), *_raters(fingerprint)], intro)


def _objects_table(fingerprint: Fingerprint, units: Units) -> Table:
    scale = size_scale(fingerprint, units)
    spread = "median (10 to 90 %)"
    columns = [
        Column("class", "text"),
        Column("in maps", hint="fraction of the label maps that hold the class"),
        Column("fraction of voxels" if units.size == "ml" else "fraction of pixels"),
        Column("components a map", hint=f"{spread}, over maps that hold the class"),
        Column(f"{units.size_word} {units.size_text}", hint=spread),
        Column(f"thickness {units.length}", hint=spread),
        Column(f"main thickness {units.length}", hint=f"{spread}, of each map's thickest component"),
    ]
    rows: list[list[Cell]] = [
        [
            lesion.class_name,
            Shown(f"{lesion.fraction_of_maps:.0%}", lesion.fraction_of_maps),
            Shown(f"{lesion.foreground_fraction:.3%}", lesion.foreground_fraction),
            _spread(lesion.components_per_map),
            _spread(lesion.volume_mm3, scale),
            _spread(lesion.thickness_mm, length_scale(fingerprint, units)),
            _spread(lesion.main_thickness_mm, length_scale(fingerprint, units)),
        ]
        for lesion in fingerprint.lesions
    ]
    return Table(columns, rows)


def _spread(p: Percentiles | None, scale: float = 1.0) -> Cell:
    if p is None:
        return None
    return Shown(f"{p.p50 * scale:.3g} ({p.p10 * scale:.3g} to {p.p90 * scale:.3g})", p.p50 * scale)


def _raters(fingerprint: Fingerprint) -> list[Html]:
    """What annotators disagree about, for each class."""
    rated = [case for case in fingerprint.cases if len(case.raters) > 1]
    if not rated:
        return []
    rows: list[list[Cell]] = []
    for i, lesion in enumerate(fingerprint.lesions):
        voxels = [[rater[i].voxels for rater in case.raters] for case in rated]
        split = sum(0 < sum(v > 0 for v in case) < len(case) for case in voxels)
        spreads = [statistics.stdev(case) / statistics.mean(case) for case in voxels if min(case) > 0]
        median = statistics.median(spreads) if spreads else math.nan
        rows.append([lesion.class_name, len(rated), Shown(f"{split / len(rated):.0%}", split / len(rated)), median])
    columns = [
        Column("class", "text"),
        Column("cases with several annotators"),
        Column("presence disputed"),
        Column(
            "variation of the size",
            digits=2,
            hint="standard deviation over mean of an object's size between "
            "annotators who all see it, median over cases",
        ),
    ]
    return [paragraph("Between annotators:"), table(Table(columns, rows, sortable=False))]


# ------------------------------------------------------------------------------------------------------------ the plan


def _stages(fingerprint: Fingerprint, plans: Plans | None, kept: KeptFigures) -> Section:
    planned = [] if plans is None else [c for c in plans.configurations.values() if c.stages is not None]
    if not planned:
        text = "The stages are planned at the end of preprocessing, from the preprocessed labels; this page is then "
        return Section("Stages of the diffusion", [notice(f"{text}written again.")])
    names = [lesion.class_name for lesion in fingerprint.lesions]
    curves = {c.name: kept.draw(dataset_figures.readability, f"{c.name} {c.stages}", c, names) for c in planned}
    drawn = [figure(curve, f"Configuration {name}.") for name, curve in curves.items()]
    rows: list[list[Cell]] = []
    for c in planned:
        assert c.stages is not None
        rows += [[c.name, k.class_name, k.lam_a, k.lam_c, k.num_patches] for k in c.stages.curves]
        rows.append([c.name, "stages of the plan", c.stages.lam_a, c.stages.lam_c, None])
    columns = [
        Column("configuration", "text"),
        Column("class", "text"),
        Column("lam_a", digits=2),
        Column("lam_c", digits=2),
        Column("label patches"),
    ]
    about = _ABOUT_STAGES + figures.drawn_note(len(names))
    return Section("Stages of the diffusion", [grid(drawn), table(Table(columns, rows))], about)


_ABOUT_STAGES = (
    "How well a noised mask can still be read without any image, over lam, the log signal-to-noise ratio: 0 is chance, "
    "1 is perfect. Large objects stay readable in more noise than small ones. In stage A no class can be read, in "
    "stage B the mask is partly readable, in stage C every class is nearly known."
)


def _plan(plans: Plans, units: Units) -> Section:
    columns = [Column("", "text"), *(Column(name, "text") for name in plans.configurations)]
    described = [_describe(configuration, units) for configuration in plans.configurations.values()]
    rows: list[list[Cell]] = [[key, *(d[key] for d in described)] for key in described[0]]
    reasons: list[list[Cell]] = [[key, reason] for key, reason in plans.decisions.items()]
    budget = plans.budget
    cores = f"{budget.num_cores} core{'' if budget.num_cores == 1 else 's'}"
    device = f"a CPU with {cores}" if budget.device == "cpu" else "a GPU"
    items = {
        "planned for": f"{device} and {budget.memory_gb:.3g} GB",
        "recommended": plans.recommended_configuration,
    }
    wrapped = "<style>.reasons td:nth-child(2){white-space:normal;min-width:22rem}</style>"
    found = table(Table([Column("field", "text"), Column("reason", "text")], reasons, searchable=True))
    body = [
        facts(items),
        table(Table(columns, rows, sortable=False)),
        details(f"Reasons for all {len(reasons)} decisions", [Html(f"{wrapped}<div class=reasons>{found}</div>")]),
    ]
    where = Html(f"{link('plans.json', 'plans.json')} holds the whole plan; edit it if you disagree.")
    return Section("Plan", [*body, paragraph(where, quiet=True)])


def _describe(c: ConfigurationPlan, units: Units) -> dict[str, str]:
    network, training, spacing = c.network, c.training, c.preprocessing.target_spacing_mm
    features = ", ".join(str(level.features) for level in network.levels)
    stages = "not planned yet"
    if c.stages is not None:
        stages = f"lam {format_number(c.stages.lam_a, 2)} and {format_number(c.stages.lam_c, 2)}"
    is_2d = units.size != "ml"  # 2D images have no Z
    size = _times("kept" if s is None else f"{s:.3g}" for s in spacing[is_2d:])
    return {
        "pixel size" if is_2d else "voxel size": f"{size} {units.length}{' of the files' if is_2d else ''}",
        "median image": _times(c.median_shape[is_2d:]),
        "patch": _times(network.patch_size),
        "batch": str(training.batch_size),
        "normalisation": ", ".join(dict.fromkeys(c.preprocessing.normalization)),
        "network": f"{network.encoder}, {len(network.levels)} levels",
        "features": features,
        "denoiser": ", ".join(map(str, c.denoiser.features)),
        "optimiser": f"{training.optimizer}, {training.learning_rate:g}",
        "length": f"{_times((training.num_epochs, training.iterations_per_epoch))} iterations",
        "edges of the stages": stages,
    }


def _cases(fingerprint: Fingerprint, units: Units) -> Section:
    shown = fingerprint.cases[:MOST_CASES]
    with_groups = any(case.group is not None for case in shown)
    columns = [
        Column("case", "text"),
        *([Column("group", "text")] if with_groups else []),
        Column("shape"),
        *([Column("voxel mm")] if units.length == "mm" else []),
        Column("foreground"),
        Column("components"),
        Column(f"largest {units.size_text}", digits=0 if units.size == "pixels2" else 2),
        Column(f"thickest {units.length}", digits=1),
    ]
    rows = []
    scales = size_scale(fingerprint, units), length_scale(fingerprint, units)  # each is made of all cases
    for case in shown:
        row = _case_row(fingerprint, case, units, scales)
        rows.append([row[0], *([case.group or ""] if with_groups else []), *row[1:]])
    left = len(fingerprint.cases) - len(shown)
    intro = f"The first {len(shown)} cases; {left} more are in fingerprint.json." if left else ""
    return Section("Cases", [table(Table(columns, rows, caption=counted(len(rows), "case"), searchable=True))], intro)


def _case_row(fingerprint: Fingerprint, case: CaseFingerprint, units: Units, scales: tuple[float, float]) -> list[Cell]:
    volumes = [v * scales[0] for c in case.classes for v in c.volumes_mm3[:1]]
    thickness = [t * scales[1] for c in case.classes for t in c.thickness_mm]
    shape, spacing = _axes(fingerprint, case.shape), _axes(fingerprint, case.spacing_mm)
    size: list[Cell] = [Shown(_times(f"{s:.3g}" for s in spacing), math.prod(spacing))]
    return [
        case.case_id,
        Shown(_times(shape), float(math.prod(case.shape))),
        *(size if units.length == "mm" else []),
        Shown(f"{case.foreground_fraction:.2%}", case.foreground_fraction),
        sum(c.count for c in case.classes),
        max(volumes, default=None),
        max(thickness, default=None),
    ]


def _axes(fingerprint: Fingerprint, values: Sequence[T]) -> Sequence[T]:
    """(Z, Y, X) values of the axes that are shown: the last two of 2D images."""
    return values[1:] if fingerprint.is_2d else values


def _times(values: Iterable[object]) -> str:
    return " \N{MULTIPLICATION SIGN} ".join(str(v) for v in values)
