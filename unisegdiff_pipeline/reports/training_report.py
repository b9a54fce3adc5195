"""report.html of one fold: how its training goes, and once it has ended what was chosen and how the fold is scored.

Everything is read from the fold's folder, so that the page can be written at any time, of old trainings as well:

    log.jsonl          losses, Dice on held-out cases, bands of lam, pictures
    request.json       what was asked for
    inference.json     what was chosen; candidates.json: among what
    validation/        summary.json: scores of the fold's validation cases
    pictures/          layers over a held-out case
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.progress import format_duration
from unisegdiff_pipeline.core.serialization import from_jsonable, read_dataclass, read_json
from unisegdiff_pipeline.core.units import VOLUMES, Units
from unisegdiff_pipeline.core.version import __version__
from unisegdiff_pipeline.diffusion.coding import LogitCalibration
from unisegdiff_pipeline.diffusion.samplers import SamplerSettings
from unisegdiff_pipeline.evaluation.spread import SPREAD_NAME, Spread
from unisegdiff_pipeline.evaluation.summary import macro_mean
from unisegdiff_pipeline.io.prediction_files import VALIDATION, scores_of_fold
from unisegdiff_pipeline.reports import attention, figures, sample_spread, snapshots, training_sources
from unisegdiff_pipeline.reports.operating_points import operating_points
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
from unisegdiff_pipeline.reports.scales import fit_unit_interval
from unisegdiff_pipeline.reports.training_findings import findings
from unisegdiff_pipeline.reports.training_log import (
    LOG_NAME,
    PHASES,
    Entry,
    held_out_dice,
    of_kind,
    read_log,
    thinned,
    value,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

REPORT_NAME = "report.html"
REFRESH_S = 30
MARKED_POINTS = 30  # of a curve
WIDTH_IN, HEIGHT_IN = 3.45, 2.75  # three figures side by side
HOURS_FROM_S = 3 * 3600.0


@dataclass(frozen=True)
class _Fold:
    """What the folder of a fold holds; None or empty for what is not there (yet)."""

    folder: Path
    entries: Sequence[Entry]
    request: Mapping[str, Any]
    chosen: Mapping[str, Any] | None
    candidates: Mapping[str, Sequence[Mapping[str, Any]]]
    validation: Mapping[str, Any] | None
    is_running: bool
    chosen_in_words: Sequence[str]

    @property
    def is_finished(self) -> bool:
        return bool(of_kind(self.entries, "finished"))

    @property
    def phases(self) -> list[int]:
        return sorted({e["phase"] for e in of_kind(self.entries, "train")})

    @property
    def seconds(self) -> float:
        return max((value(e, "seconds") for e in self.entries if "seconds" in e), default=0.0)


def write_training_report(folder: Path, is_running: bool = False, chosen_in_words: Sequence[str] = ()) -> Path:
    """Write report.html into the folder of a fold; returns its path.

    Args:
        folder: results folder of the fold.
        is_running: the page says so, and the browser reads it again every REFRESH_S seconds.
        chosen_in_words: sentences on what inference.json holds.
    """
    fold = _read_fold(folder, is_running, chosen_in_words)
    page = Page(
        title=f"Training of {_name(fold)}",
        subtitle=_subtitle(fold),
        lead=_lead(fold),
        sections=[
            section
            for section in (
                _progress(fold),
                training_sources.section(fold.entries, fold.validation, *_time_unit(fold)),
                _pictures(fold),
                _chosen(fold),
                _validation(fold),
                sample_spread.section(_spread(fold).by_class(), _units(fold)),
                attention.section(folder, fold.entries),
                _setup(fold),
            )
            if section is not None
        ],
        footer=f"unisegdiff_pipeline {__version__}",
        refresh_s=REFRESH_S if is_running else None,
    )
    return write_page(folder / REPORT_NAME, page)


def _read_fold(folder: Path, is_running: bool, chosen_in_words: Sequence[str]) -> _Fold:
    return _Fold(
        folder,
        read_log(folder / LOG_NAME),
        _json(folder / "request.json") or {},
        _json(folder / "inference.json"),
        _json(folder / "candidates.json") or {},
        _json(scores_of_fold(folder)),
        is_running,
        chosen_in_words,
    )


def _spread(fold: _Fold) -> Spread:
    """Of the validation cases; empty where it is not there (yet) or of another version."""
    try:
        return read_dataclass(Spread, fold.folder / VALIDATION / SPREAD_NAME)
    except UsdError:
        return Spread()


def _json(path: Path) -> Any:
    try:
        return read_json(path)
    except UsdError:  # not there yet
        return None


# ------------------------------------------------------------------------------------------------------------ opening


def _name(fold: _Fold) -> str:
    model = fold.folder.parent
    return f"{model.parent.name}, {fold.folder.name.replace('_', ' ')}"


def _subtitle(fold: _Fold) -> str:
    trainer, _, configuration = fold.folder.parent.name.partition("__")  # and what follows
    configuration = configuration.replace("__", ", ")
    # An interrupted training leaves the page of its last checkpoint, so a page says when it was right.
    state = "finished, written" if fold.is_finished else "running at" if fold.is_running else "stopped, written"
    return f"{trainer}, {configuration}; {state} {time.strftime('%Y-%m-%d %H:%M:%S')}"


def _lead(fold: _Fold) -> list[Html]:
    train = of_kind(fold.entries, "train")
    if not train:
        return [notice("Nothing has been logged yet; the first entry comes after about ten seconds of training.")]
    items = [_state_figure(fold, train[-1]), KeyFigure("Trained for", format_duration(fold.seconds))]
    items += _dice_figures(fold)
    items.append(KeyFigure("Speed", f"{value(train[-1], 'iterations_per_s'):.2f} it/s", "iterations per second, last"))
    lead = [key_figures(items)]
    cases = (fold.validation or {}).get("cases") or ()
    warnings = findings(fold.entries, fold.chosen, cases, _spread(fold), _units(fold))
    lead += [notice(text, "warning") for text in warnings]
    if not (fold.is_finished or fold.is_running):
        lead.append(notice("This training has stopped before its end. The command that began it continues it."))
    return lead


def _state_figure(fold: _Fold, last: Entry) -> KeyFigure:
    phase = f"phase {last['phase']}, {PHASES.get(last['phase'], '')}"
    if fold.is_finished:
        return KeyFigure("State", "finished", f"{_iterations(fold)} iterations")
    fraction = f"{value(last, 'progress'):.0%}" if "progress" in last else f"iteration {last['iteration']}"
    if not fold.is_running:
        return KeyFigure("Stopped at", fraction, phase)
    left, until = _time_left(fold, last)
    return KeyFigure("Time left", left, f"{until}; {phase} at {fraction}")


def _time_left(fold: _Fold, last: Entry) -> tuple[str, str]:
    limit = fold.request.get("max_time_s")
    seconds = value(last, "seconds_left") if limit is None else float(limit) - fold.seconds
    if math.isnan(seconds):
        return "unknown", "until the end"
    what = "of this phase" if limit is None else "of everything"
    end = time.strftime("%a %H:%M", time.localtime(time.time() + max(0.0, seconds)))
    return format_duration(max(0.0, seconds)), f"end {what} {end}"


def _iterations(fold: _Fold) -> int:
    return sum(max(e["iteration"] for e in of_kind(fold.entries, "train", phase)) for phase in fold.phases)


def _dice_figures(fold: _Fold) -> list[KeyFigure]:
    items = []
    scored = of_kind(fold.entries, "validation")
    if scored:
        of_sources = ", mean of sources" if "by_source" in scored[-1] else ""
        detail = f"last, on held-out cases{of_sources}; best {format_number(_best(scored))}"
        items.append(KeyFigure("Held-out Dice", format_number(held_out_dice(scored[-1])), detail))
    summary = (fold.validation or {}).get("summary")
    if summary is not None and summary.get("mean_dice") is not None:
        count = len((fold.validation or {}).get("cases", ()))
        items.append(KeyFigure("Validation Dice", f"{summary['mean_dice']:.3f}", f"mean over {count} cases"))
    sources = (fold.validation or {}).get("by_source")
    if sources is not None and sources.get("macro_mean_dice") is not None:
        text = f"mean over {len(sources['sources'])} sources"
        items.append(KeyFigure("Validation Dice by source", f"{sources['macro_mean_dice']:.3f}", text))
    return items


def _best(scored: Sequence[Entry]) -> float:
    """Highest Dice of those on held-out cases that is defined; NaN without one."""
    return max((v for v in map(held_out_dice, scored) if not math.isnan(v)), default=math.nan)


# ----------------------------------------------------------------------------------------------------------- progress


def _progress(fold: _Fold) -> Section:
    drawn: list[Html | None] = []
    if of_kind(fold.entries, "train"):
        scored = bool(of_kind(fold.entries, "validation"))
        drawn = [
            _curve(fold, "Loss", _paint_loss, "Loss over time", "What training minimises; the denoiser's by stage."),
            _curve(fold, "Dice", _paint_dice, "Dice on held-out cases", _about_dice(fold)) if scored else None,
            _curve(
                fold,
                "learning rate",
                _paint_rate,
                "Learning rate over time",
                "Learning rate; in phase 2 that of the denoiser.",
            ),
            _curve(
                fold,
                "norm",
                _paint_norm,
                "Norm of the gradient over time",
                "Norm of the gradient, before it is limited.",
            ),
        ]
    if of_kind(fold.entries, "train", 2):
        drawn += [
            _curve(fold, "loss", _paint_stages, "Unweighted loss of each stage", "Phase 2: unweighted loss by stage."),
            _curve(
                fold,
                "weight",
                _paint_weights,
                "Learned weight of each stage",
                "Phase 2: learned weights of these losses.",
            ),
        ]
    body = [grid([d for d in drawn if d is not None], min_width_px=310)] if drawn else []
    return Section("Progress", [*body, *_phase_table(fold)], _phases_in_words(fold))


def _phases_in_words(fold: _Fold) -> str:
    """What each phase does, and what the second one changed."""
    if not fold.phases:
        return ""
    alone = "Phase 1 trains the segmenter, an ordinary segmentation network."
    if 2 not in fold.phases:
        return alone
    text = (
        f"{alone} Phase 2 goes on with it and trains the denoiser beside it, which makes the samples, so that losses, "
        "gradients and learning rates of the two phases are of different things and jump where phase 2 begins."
    )
    ends = [of_kind(fold.entries, "validation", phase)[-1:] for phase in (1, 2)]
    before, after = (held_out_dice(end[0]) if end else math.nan for end in ends)
    if not math.isnan(before + after):
        text += (
            f" Held-out Dice was {before:.3f} at the end of phase 1, by the segmenter's mask, and is {after:.3f} now, "
            "by the mean of four samples."
        )
    bands = of_kind(fold.entries, "bands")
    planned = _planned_stages(fold)
    if bands and planned is not None:
        edges = [f"{format_number(v, 1)}" for v in (*planned, value(bands[-1], "lam_a"), value(bands[-1], "lam_c"))]
        text += (
            f" After phase 1 the edges of the stages went from lam {edges[0]} and {edges[1]}, as planned from the "
            f"labels, to {edges[2]} and {edges[3]}, by what the segmenter knows."
        )
    return text


def _planned_stages(fold: _Fold) -> tuple[float, float] | None:
    name = fold.folder.parent.name.split("__")[1:2]
    try:
        stages = (_json(fold.folder.parent / "plans.json") or {})["configurations"][name[0]]["stages"]
        return float(stages["lam_a"]), float(stages["lam_c"])
    except (KeyError, IndexError, TypeError, ValueError):  # of another version, or without a plan
        return None


def _about_dice(fold: _Fold) -> str:
    count, classes = len(fold.request.get("holdout_cases", ())), len(_scored_classes(fold))
    return (
        f"On whole cases of the inner hold-out ({count}, of which short trainings score a part), with the moving "
        f"average of the weights.{figures.drawn_note(classes)}"
    )


def _curve(fold: _Fold, label: str, paint: Any, alt: str, caption: str) -> Html:
    def on(drawn: Figure) -> None:
        axis = drawn.subplots()
        paint(axis, fold)
        axis.set_ylabel(label)
        axis.set_xlabel(f"{_time_unit(fold)[1]} of training")
        if axis.get_legend_handles_labels()[0]:
            figures.legend_above(drawn)

    return figure(figures.draw(on, alt, WIDTH_IN, HEIGHT_IN), caption)


def _time_unit(fold: _Fold) -> tuple[float, str]:
    return (3600.0, "hours") if fold.seconds > HOURS_FROM_S else (60.0, "minutes")


def _times(fold: _Fold, entries: Sequence[Entry]) -> list[float]:
    return [value(e, "seconds") / _time_unit(fold)[0] for e in entries]


def _plot(axis: Axes, fold: _Fold, phase: int, key: str, color: int, label: str) -> None:
    entries = thinned(of_kind(fold.entries, "train", phase))
    if any(key in e for e in entries):
        shown = [value(e, key) for e in entries]
        mark = "." if len(entries) <= MARKED_POINTS else ""
        axis.plot(_times(fold, entries), shown, marker=mark, color=figures.series_color(color), label=label)


def _paint_loss(axis: Axes, fold: _Fold) -> None:
    for phase in fold.phases:
        _plot(axis, fold, phase, "loss", phase - 1, f"phase {phase}, {PHASES.get(phase, '')}")
    _plot(axis, fold, 2, "loss_segmenter", 3, "phase 2, segmenter")


def _paint_rate(axis: Axes, fold: _Fold) -> None:
    for phase in fold.phases:
        _plot(axis, fold, phase, "learning_rate", phase - 1, f"phase {phase}")
    axis.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))


def _paint_norm(axis: Axes, fold: _Fold) -> None:
    for phase in fold.phases:
        _plot(axis, fold, phase, "gradient_norm", phase - 1, f"phase {phase}")
    axis.set_ylim(bottom=0)


def _paint_stages(axis: Axes, fold: _Fold) -> None:
    for index, stage in enumerate("ABC"):
        _plot(axis, fold, 2, f"loss_{stage.lower()}", index + 2, f"stage {stage}")
    axis.set_ylim(bottom=0)


def _paint_weights(axis: Axes, fold: _Fold) -> None:
    entries = thinned(of_kind(fold.entries, "train", 2))
    for index, stage in enumerate("ABC"):
        weights = [math.exp(-value(e, f"log_variance_{stage.lower()}")) for e in entries]
        mark = "." if len(entries) <= MARKED_POINTS else ""
        color = figures.series_color(index + 2)
        axis.plot(_times(fold, entries), weights, marker=mark, color=color, label=f"stage {stage}")
    axis.set_ylim(0, 1.15 * axis.get_ylim()[1])


def _paint_dice(axis: Axes, fold: _Fold) -> None:
    scored, classes = of_kind(fold.entries, "validation"), _scored_classes(fold)[: figures.DRAWN_CLASSES]
    lines = [(f"dice_{name}", name, ".--", 1.0, figures.series_color(i)) for i, name in enumerate(classes)]
    of_mean = ("dice_mean", "mean", "o-", 1.6, figures.INK)
    shown = [*lines, of_mean] if len(lines) > 1 else [of_mean]
    for phase in sorted({e["phase"] for e in scored}):
        mine = thinned([e for e in scored if e["phase"] == phase])
        for key, name, style, width, color in shown:
            label = name if phase == scored[0]["phase"] else None
            axis.plot(_times(fold, mine), [value(e, key) for e in mine], style, lw=width, color=color, label=label)
    fit_unit_interval(axis, [value(e, key) for e in scored for key, *_ in shown])


def _scored_classes(fold: _Fold) -> list[str]:
    """Classes whose Dice on held-out cases is logged."""
    last = of_kind(fold.entries, "validation")[-1]
    return [key.removeprefix("dice_") for key in last if key.startswith("dice_") and key != "dice_mean"]


def _phase_table(fold: _Fold) -> list[Html]:
    rows = []
    for phase in fold.phases:
        mine, scored = of_kind(fold.entries, "train", phase), of_kind(fold.entries, "validation", phase)
        earlier = of_kind(fold.entries, "train", phase - 1)
        start = value(earlier[-1], "seconds") if earlier else 0.0
        rates = [value(e, "iterations_per_s") for e in mine]
        rows.append(
            [
                f"{phase}, {PHASES.get(phase, '')}",
                mine[-1]["iteration"],
                (value(mine[-1], "seconds") - start) / 60,
                sum(rates) / len(rates),
                value(mine[-1], "loss"),
                value(mine[-1], "gradient_norm"),
                _best(scored),
            ]
        )
    columns = [
        Column("phase", "text"),
        Column("iterations"),
        Column("minutes", digits=1),
        Column("iterations/s", digits=2),
        Column("last loss"),
        Column("last gradient norm", hint="before it is limited"),
        Column("best Dice", hint="on the inner hold-out"),
    ]
    return [table(Table(columns, rows, sortable=False))] if rows else []


# ----------------------------------------------------------------------------------------------------------- pictures


def _pictures(fold: _Fold) -> Section | None:
    made = of_kind(fold.entries, "pictures")
    folder = fold.folder / snapshots.PICTURES_NAME
    if not made or not (folder / f"{snapshots.IMAGE_LAYER}.png").is_file():
        return None
    made = [e for e in made if ("letters" in e) == ("letters" in made[-1])]  # an earlier version did not turn them
    *earlier, last = made
    letters = last.get("letters", ())
    names = (_json(fold.folder.parent / "plans.json") or {}).get("labels", {}).get("names", ())
    body = [snapshots.style(folder), snapshots.case(folder, letters), _moment(folder, last)]
    body.append(snapshots.colors_of_pictures(names))
    if earlier:
        body.append(details(f"Earlier pictures ({len(earlier)})", [_moment(folder, e) for e in earlier]))
    place = f", slice {last['slice'] + 1} of {last['num_slices']}" if last["num_slices"] > 1 else ""
    intro = (
        f"{last['case_id']}{place}: a case of the inner hold-out, never trained on. Samples of one number start from "
        "the same noise at every moment."
    )
    if letters:
        intro += " Seen as radiologists do: R is the patient's right."
    return Section("Pictures", body, intro)


def _moment(folder: Path, entry: Entry) -> Html:
    phase = f"Phase {entry['phase']}, {PHASES.get(entry['phase'], '')}"
    title = f"{phase}: iteration {entry['iteration']}, after {format_duration(value(entry, 'seconds'))}"
    return snapshots.moment(folder, entry["name"], entry["layers"], title, entry.get("letters", ()))


# ------------------------------------------------------------------------------------------------------------- the end


def _chosen(fold: _Fold) -> Section | None:
    if fold.chosen is None:
        return None
    chosen, sampler = fold.chosen, fold.chosen.get("sampler", {})
    items = {
        "chosen on": str(chosen.get("chosen_on", "")),
        "temperature of the segmenter": _calibration(chosen.get("calibration", chosen.get("temperature", {}))),
        "segmenter weight": f"{chosen.get('segmenter_weight', chosen.get('w', 1)):g}",
        "samples": f"{chosen.get('num_samples', 0)}",
    }
    if chosen.get("num_samples"):
        if chosen.get("mask_sampler"):
            items["sampler of the mean"] = _in_words(fold, sampler)
            items["sampler of the masks"] = _in_words(fold, chosen["mask_sampler"])
        else:
            items["sampler"] = _in_words(fold, sampler)
        items["mask"] = {"half": "threshold of 0.5", "dice": "threshold of the highest expected Dice"}.get(
            str(chosen.get("decision")), str(chosen.get("decision"))
        )
        edges = (format_number(float(chosen.get(name, math.nan)), 2) for name in ("lam_a", "lam_c"))
        items["edges of the stages"] = f"lam {' and '.join(edges)}"
    items["weights"] = {"ema": "moving average at the end", "best": "best on the hold-out"}.get(
        str(chosen.get("weights")), str(chosen.get("weights"))
    )
    words = [bullets(fold.chosen_in_words)] if fold.chosen_in_words else []
    body = [*words, facts(items), *_candidates(fold), *operating_points(chosen)]
    return Section("What was chosen", body, "Settings of prediction, chosen on held-out cases; see inference.json.")


def _candidates(fold: _Fold) -> list[Html]:
    """Tables of all samplers and all ways to make the mask that were compared."""
    body = []
    if samplers := fold.candidates.get("samplers"):
        columns = [Column("sampler", "text"), Column("energy score", digits=4)]
        rows: list[list[Any]] = [[_in_words(fold, s.get("sampler", {})), _mean(s, "energy")] for s in samplers]
        title = f"All {len(rows)} samplers, best first, other lengths of the field last{_over_sources(samplers)}"
        body.append(details(title, [table(Table(columns, rows))]))
    if means := fold.candidates.get("means"):
        columns = [Column("sampler", "text"), Column("segmenter weight", digits=2), Column("threshold", "text")]
        columns += [Column("Dice", digits=4), Column("NLL", digits=4)]
        rows = [
            [
                _in_words(fold, m.get("sampler", {})),
                m.get("segmenter_weight", m.get("w")),
                m.get("decision"),
                _mean(m, "dice"),
                _mean(m, "nll"),
            ]
            for m in means
        ]
        title = f"All {len(rows)} ways to make the mask, best first{_over_sources(means)}"
        body.append(details(title, [table(Table(columns, rows))]))
    return body


def _units(fold: _Fold) -> Units:
    units = (fold.validation or {}).get("units")
    return VOLUMES if units is None else from_jsonable(Units, units, "validation/summary.json: units")


def _mean(trial: Mapping[str, Any], name: str) -> float:
    """The mean that ranked, over cases with a score and, of a unified data set, over sources; NaN without one."""
    values = [math.nan if v is None else v for v in trial.get(f"{name}_of_cases") or ()]
    return macro_mean(values, trial.get("sources") or ())


def _over_sources(trials: Sequence[Mapping[str, Any]]) -> str:
    return "; means over sources" if any(trial.get("sources") for trial in trials) else ""


def _calibration(value: Any) -> str:
    try:
        return from_jsonable(LogitCalibration, value).describe()
    except UsdError:  # of another version
        return str(value)


def _in_words(fold: _Fold, sampler: Mapping[str, Any]) -> str:
    try:
        return SamplerSettings(**sampler).describe(_units(fold).length)
    except (TypeError, ValueError):  # of another version
        return str(dict(sampler))


def _validation(fold: _Fold) -> Section | None:
    cases = (fold.validation or {}).get("cases")
    if not cases:
        return None
    # In the order of the first case that has them: of a unified data set, a case has the classes of its source.
    names = list(dict.fromkeys(score["class_name"] for case in cases for score in case["scores"]))
    shown = {n: [_score(case, n, "dice") for case in cases] for n in names[: figures.DRAWN_CLASSES]}

    def paint(drawn: Figure) -> None:
        axis = drawn.subplots()
        figures.box_and_points(axis, shown)
        axis.set_ylabel("Dice")
        axis.set_ylim(-0.02, 1.02)

    columns = [Column("case", "text")]
    columns += [Column(f"{key} {name}" if len(names) > 1 else key) for name in names for key in ("Dice", "IoU")]
    rows: list[list[Any]] = []
    for case in cases:
        cells = [cell for name in names for cell in (_dice_cell(case, name), _score(case, name, "iou"))]
        rows.append([case["case_id"], *cells])
    cases_table = Table(columns, rows, caption=f"{len(rows)} validation cases", searchable=len(rows) > 10)
    drawn = figures.draw(paint, "Dice of the validation cases by class", max(WIDTH_IN, 1.0 + 1.1 * len(shown)))
    boxes = figure(
        drawn,
        f"Median, quartiles, and every case.{figures.drawn_note(len(names))}",
        wide=len(shown) > figures.NARROW_GROUPS,
    )
    intro = (
        "Cases that neither weights nor settings have seen. A case whose reference lacks the class has no Dice: false "
        "positive is one whose prediction has it, a dash one whose prediction lacks it, too"
    )
    of_all = len(cases) * len(names) == sum(len(case["scores"]) for case in cases)
    intro += "." if of_all else ", or whose source does not annotate it."
    body = [boxes, table(cases_table), paragraph(_files_of_validation(fold), quiet=True)]
    return Section("Validation", body, intro)


def _files_of_validation(fold: _Fold) -> Html:
    summary = link("validation/summary.json", "summary.json")
    text = f"Masks lie in {link('validation/', 'validation/')}, all scores in {summary}"
    page = fold.folder / VALIDATION / "evaluation" / "report.html"
    more = f"; {link('validation/evaluation/report.html', 'full evaluation')}" if page.is_file() else ""
    return Html(f"{text}{more}.")


def _dice_cell(case: Mapping[str, Any], class_name: str) -> Cell:
    false = any(s["class_name"] == class_name and s.get("outcome") == "false_positive" for s in case["scores"])
    return Shown("false positive", None) if false else _score(case, class_name, "dice")


def _score(case: Mapping[str, Any], class_name: str, key: str) -> float:
    for score in case["scores"]:
        if score["class_name"] == class_name:
            return value(score, key)
    return math.nan


def _setup(fold: _Fold) -> Section:
    request, training = fold.request, fold.request.get("training", {})
    limits = (("max_time_s", "{:g} s in all"), ("epochs", "{} epochs"), ("iterations", "{} iterations"))
    length = [text.format(request[key]) for key, text in limits if request.get(key) is not None]
    counts = {name: request.get(f"{name}_cases", ()) for name in ("train", "holdout", "validation")}
    items = {
        "trainer": str(request.get("trainer", "")),
        "length": length[0] if length else f"{training.get('num_epochs', '?')} epochs, as planned",
        "batch size": str(training.get("batch_size", "")),
        "optimiser": f"{training.get('optimizer', '')}, learning rate {training.get('learning_rate', '')}",
        "seed": str(request.get("seed", "")),
        "device": f"{request.get('device', '')}, torch {request.get('torch', '')}",
        "cases": f"{len(counts['train'])} trained on, {len(counts['holdout'])} held out, "
        f"{len(counts['validation'])} to validate",
    }
    named = {"Cases trained on": "train", "Inner hold-out": "holdout", "Validation cases": "validation"}
    lists = [details(title, [bullets(counts[key], names=True)]) for title, key in named.items() if counts[key]]
    return Section("Set-up", [facts(items), *lists])
