"""RESULTS/DATASET/best.json: which model, or pair of models, predicts a data set best, and how that was found out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from unisegdiff_pipeline.core.bounds import Count, Length, Undefined
from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.names import quoted
from unisegdiff_pipeline.core.serialization import read_dataclass, write_json
from unisegdiff_pipeline.inference.guarantees import Guarantees
from unisegdiff_pipeline.inference.lesion_filter import LesionFilter
from unisegdiff_pipeline.inference.settings import Decision

FILE_NAME = "best.json"
Number = Annotated[float, Undefined()]


@dataclass(frozen=True)
class RecipeMember:
    """A model and the folds of it that are averaged.

    Attributes:
        model: name of its folder beside best.json; the next four say the same in parts.
        trainer, configuration, plans, run: as the flags of usd_train; null for the default plan and no name of a run.
        folds: that were finished and validated.
    """

    model: str
    trainer: str
    configuration: str
    plans: str | None
    run: str | None
    folds: Annotated[tuple[str, ...], Length(1, 1000)]


@dataclass(frozen=True)
class CandidateComparison:
    """A candidate against the simpler one that was the best until then, on the cases that both have.

    Attributes:
        with_models: the simpler candidate.
        num_cases, num_groups: compared; groups (patients) are the independent units.
        difference, low, high: mean of this candidate's score minus the other's, with its 95 % bootstrap interval.
            Of a unified data set of the mean over sources, of normal shape.
        p_wilcoxon: two-sided, by Wilcoxon's signed-rank test over groups; of a unified data set that within each
            source, of which each counts the same, by 10000 draws of signs.
        p_corrected: times the number of comparisons (Bonferroni).
        is_better: the interval lies above 0 and `p_corrected` below 0.05.
    """

    with_models: tuple[str, ...]
    num_cases: Count
    num_groups: Count
    difference: Number
    low: Number
    high: Number
    p_wilcoxon: Number
    p_corrected: Number
    is_better: bool


@dataclass(frozen=True)
class Candidate:
    """A model or a pair of models, by its validation cases.

    Attributes:
        models: names of the folders.
        num_parameters: of the networks of one fold; what is smaller counts as simpler.
        num_cases: validation cases of its folds; of a pair those that both models have.
        score, score_low, score_high: mean over cases of the mean over classes of Dice, with its 95 % bootstrap interval
            over groups; a class that the reference lacks counts 1 where the mask lacks it, too, else 0.
            In a unified data set it is the mean over sources of these means, with an interval of normal shape.
        mean_dice: mean over classes of the mean Dice of the cases whose reference holds the class; also over sources.
        comparison: null for the simplest candidate.
        sources: of a unified data set, the score on the cases of each source.
    """

    models: tuple[str, ...]
    num_parameters: Count
    num_cases: Count
    score: Number
    score_low: Number
    score_high: Number
    mean_dice: Number
    comparison: CandidateComparison | None = None
    sources: Mapping[str, Number] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """For tables and messages."""
        return " + ".join(self.models)


@dataclass(frozen=True)
class FilterEvidence:
    """What a lesion filter chosen on the other folds did to each fold, over the cases and classes of all of them.

    Attributes:
        num_folds, num_groups: folds, and groups (patients) of the cases.
        num_with, num_without: cases and classes with a lesion, and free of one.
        dice, dice_filtered: mean over those with a lesion, without and with the filters.
        difference, low, high: mean difference of Dice, with its 95 % bootstrap interval over groups; of the mean over
            sources, in a unified data set, that of its standard error.
        lesion_f1, lesion_f1_filtered: of all lesions.
        false_alarms, false_alarms_filtered: lesions of the mask per lesion-free case; null without such a case.
        is_taken: the filter that all folds choose is used.
        in_words: what they choose, and the above.
    """

    num_folds: Count
    num_groups: Count
    num_with: Count
    num_without: Count
    dice: Number
    dice_filtered: Number
    difference: Number
    low: Number
    high: Number
    lesion_f1: Number
    lesion_f1_filtered: Number
    false_alarms: Number
    false_alarms_filtered: Number
    is_taken: bool
    in_words: tuple[str, ...]


@dataclass(frozen=True)
class Recipe:
    """What best.json holds.

    Attributes:
        dataset: name of the data set.
        members: one model, or two whose probabilities are averaged.
        decision: threshold of the mean of two members, see `usd_ensemble --decision`; null for one.
        reason: why these, in words.
        notes: what else has to be known, in words.
        left_out: folds and models that were not compared, and why.
        candidates: all that were compared, from the simplest on.
        lesion_filter: which lesions of the mask stay in it; null leaves that to what the folds chose.
        filter_evidence: why this filter; null where none could be chosen anew.
        guarantees: what the validation cases of all folds allow to be promised; null where it is not known.
        source_guarantees: the same of a unified data set, for images of each source.
    """

    schema_version: Literal[1]
    dataset: str
    members: Annotated[tuple[RecipeMember, ...], Length(1, 2)]
    decision: Decision | None
    reason: str
    notes: tuple[str, ...]
    left_out: tuple[str, ...]
    candidates: tuple[Candidate, ...]
    lesion_filter: LesionFilter | None = None
    filter_evidence: FilterEvidence | None = None
    guarantees: Guarantees | None = None
    source_guarantees: Mapping[str, Guarantees] = field(default_factory=dict)


def write_recipe(results_folder: Path, recipe: Recipe) -> Path:
    """Write best.json of a data set, atomically; returns its path."""
    write_json(results_folder / FILE_NAME, recipe)
    return results_folder / FILE_NAME


def read_recipe(results_folder: Path) -> Recipe:
    """Read best.json of a data set.

    Raises:
        UsdError: there is none, or it holds a wrong key or value.
    """
    path = results_folder / FILE_NAME
    if not path.is_file():
        raise UsdError(
            f"{results_folder} holds no {FILE_NAME}; run usd_find_best {quoted(results_folder.name)} once models are "
            f"trained."
        )
    return read_dataclass(Recipe, path)
