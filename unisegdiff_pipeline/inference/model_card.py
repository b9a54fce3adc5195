"""The page that goes with a model: data, cases, scores as measured, intended use, limits. Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from unisegdiff_pipeline.core.version import __version__
from unisegdiff_pipeline.evaluation.summary import format_value
from unisegdiff_pipeline.inference.model_folder import ModelFolder
from unisegdiff_pipeline.inference.model_name import parse_model_name
from unisegdiff_pipeline.inference.model_scores import FoldScores, ModelScores
from unisegdiff_pipeline.inference.settings import InferenceSettings


def model_card(
    model: ModelFolder, folds: Sequence[str], scores: ModelScores, settings: InferenceSettings, notes: str = ""
) -> str:
    """The card as Markdown.

    Args:
        model: that is described.
        folds: those of its folds that are meant.
        scores: of these folds.
        settings: of the first of them.
        notes: what the authors add, Markdown; a section of its own.
    """
    sections = [
        f"# {model.plans.dataset_name}: {model.folder.name}",
        _what(model, folds, settings),
        "## Data",
        _data(model),
        "## Cases",
        _cases(scores),
        "## Scores",
        _scores(scores),
        "## Intended use",
        _use(model),
        "## Limits",
        _limits(model, scores),
    ]
    if notes.strip():
        sections += ["## Notes of the authors", notes.strip()]
    return "\n\n".join(sections) + "\n"


def _what(model: ModelFolder, folds: Sequence[str], settings: InferenceSettings) -> str:
    name = parse_model_name(model.folder.name)
    trainer = model.folder.name if name is None else name.trainer
    samples = (
        f"It samples {settings.num_samples} masks a case unless asked for another number."
        if settings.num_samples
        else "It is a segmenter alone and samples no masks."
    )
    return (
        f"A model of configuration `{model.configuration.name}`, trained by `{trainer}` of unisegdiff_pipeline "
        f"(exported by version {__version__}); folds: {', '.join(folds)}. {samples}"
    )


def _data(model: ModelFolder) -> str:
    plans, configuration = model.plans, model.configuration
    labels = plans.labels
    spacing = configuration.preprocessing.target_spacing_mm
    unit = "mm" if plans.in_mm(configuration) else "(nominal, the spacing of the data is not known)"
    grid = " x ".join("as it is" if s is None else f"{s:g}" for s in spacing)
    lines = [
        f"- data set: {plans.dataset_name}",
        f"- channels: {', '.join(plans.channel_names)} ({', '.join(configuration.preprocessing.normalization)})",
        f"- classes (label values): {labels.in_words()}"
        + ("" if labels.ignore_value is None else f"; the value {labels.ignore_value} was ignored"),
        f"- files: {plans.file_ending}",
        f"- grid of the network, Z Y X: {grid} {unit}; median image on it: "
        f"{' x '.join(map(str, configuration.median_shape))} voxels",
    ]
    if model.masks_from is not None:
        lines.append(
            f"- further inputs: the mask of `{model.masks_from.configuration.name}`, a model that goes with it (folds "
            f"{', '.join(model.masks_from.folds)}) and predicts first"
        )
    if configuration.sources is not None:
        lines.append(f"- sources: {', '.join(configuration.sources.plans)}")
    return "\n".join(lines)


def _cases(scores: ModelScores) -> str:
    rows: list[tuple[str, ...]] = [("fold", "trained on", "held out to choose settings", "validation")]
    for fold in scores.folds:
        counts = (fold.num_train, fold.num_held_out, fold.num_validation)
        rows.append((fold.fold, *("not known" if n is None else str(n) for n in counts)))
    return _table(rows)


def _scores(scores: ModelScores) -> str:
    pooled = scores.pooled()
    if not pooled:
        return "Nothing was validated: no score of this model is known."
    scored = [fold for fold in scores.folds if fold.classes]
    text = (
        f"Measured on the validation cases of {_listed([fold.fold for fold in scored])}: cases that the network of the "
        f"fold never saw, predicted by this network alone (new images get the mean over folds). Dice and IoU are means "
        f"over the n cases whose reference holds the class."
    )
    rows = [("class", "cases", "n", "Dice", "IoU", "predictions on empty references")]
    for c in pooled:
        means = (format_value(c.mean_dice), format_value(c.mean_iou))
        rows.append((_cell(c.class_name), str(c.num_cases), str(c.num_scored), *means, str(c.num_false_positive)))
    by_fold = [("fold", *(_cell(c.class_name) for c in pooled))]
    for fold in scored:
        by_fold.append((fold.fold, *(_of_class(fold, c.class_name) for c in pooled)))
    left_out = sum(fold.num_not_validated for fold in scores.folds)
    parts = [text, _table(rows), "Dice (n) of each fold:", _table(by_fold)]
    if left_out:
        parts.append(f"{left_out} validation cases were not predicted for lack of time and are in no score.")
    return "\n\n".join(parts)


def _use(model: ModelFolder) -> str:
    plans = model.plans
    return (
        f"Research on segmenting {', '.join(plans.labels.names)} in images like those of {plans.dataset_name}: the "
        f"same channels in the same order ({', '.join(plans.channel_names)}), acquired and prepared alike. "
        f"Uncertainty maps and sampled masks say how sure this model is, not how often it is wrong on other data."
    )


def _limits(model: ModelFolder, scores: ModelScores) -> str:
    lines = [
        "- No medical device: not to be used for decisions about patients.",
        "- Images of other scanners, protocols or patients were not tested; measure there before use (`usd_evaluate`).",
    ]
    if any(fold.classes for fold in scores.folds):
        lines.append(
            "- The scores are those of a cross-validation on one data set, no external test; settings were chosen on "
            "held-out training cases, not on these."
        )
    if unscored := [fold.fold for fold in scores.folds if not fold.classes]:
        lines.append(f"- No score was measured of fold {', '.join(unscored)}.")
    if few := [f"{c.class_name} (n = {c.num_scored})" for c in scores.pooled() if c.num_scored < 20]:
        lines.append(f"- Few cases to score: {', '.join(few)}; the means are uncertain.")
    if not model.plans.in_mm(model.configuration):
        lines.append("- The pixel size of the data is not known: volumes and distances are in pixels.")
    return "\n".join(lines)


def _of_class(fold: FoldScores, name: str) -> str:
    found = next((c for c in fold.classes if c.class_name == name), None)
    return "-" if found is None else f"{format_value(found.mean_dice)} ({found.num_scored})"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _listed(folds: Sequence[str]) -> str:
    return f"fold {folds[0]}" if len(folds) == 1 else f"folds {', '.join(folds)}"


def _table(rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    lines.insert(1, f"|{'---|' * len(rows[0])}")
    return "\n".join(lines)
