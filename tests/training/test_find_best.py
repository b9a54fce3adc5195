"""The choice between models and pairs of models: by hand-made validation folders whose scores are known."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.inference.models import tiny_plans, write_model
from unisegdiff_pipeline.commands import find_best as command
from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.files import file_hash
from unisegdiff_pipeline.core.geometry import Geometry
from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.core.serialization import from_jsonable, read_json, to_jsonable, write_json
from unisegdiff_pipeline.evaluation.metrics import score_case
from unisegdiff_pipeline.evaluation.summary import CaseScores
from unisegdiff_pipeline.inference.lesion_filter import NO_FILTER
from unisegdiff_pipeline.inference.model_name import ModelName
from unisegdiff_pipeline.inference.recipe import Recipe, RecipeMember, read_recipe
from unisegdiff_pipeline.io.images import write_labels
from unisegdiff_pipeline.io.paths import Roots
from unisegdiff_pipeline.planning.plans import PreprocessingPlan
from unisegdiff_pipeline.preprocessing.provenance import CaseProvenance
from unisegdiff_pipeline.preprocessing.reference import reference_hashes, write_cases, write_reference
from unisegdiff_pipeline.training.find_best import Contender, compare_candidates, find_best
from unisegdiff_pipeline.training.validated_models import (
    ClassDice,
    ValidatedModel,
    mean_dice,
    of_all_sources,
    score_of_case,
)

NAME = "Dataset001_X"
LESION = LabelScheme(("lesion",), ((1,),), "binary", (1,))
GRID = Geometry((3.0, 1.0, 1.0))
CASES = tuple(f"c{number:02d}" for number in range(12))
FOLDS = {"0": CASES[:6], "1": CASES[6:]}
REFERENCE = np.array([[[1, 1, 0, 0]]], np.uint8)
# Each of the first two finds one voxel of two: Dice 2/3. Their mean finds both.
FIRST, SECOND = (0.9, 0.4, 0.1, 0.4), (0.4, 0.9, 0.4, 0.1)


def write_preprocessed(root: Path, groups: dict[str, str], reference: np.ndarray = REFERENCE) -> None:
    folder = root / NAME
    for case_id, group in groups.items():
        write_reference(folder, reference[None], GRID.spacing_mm, LESION, case_id, group, CaseProvenance((), ""))
    write_cases(folder, groups)
    splits = [{"train": sorted(set(CASES) - set(val)), "val": list(val)} for val in FOLDS.values()]
    write_json(folder / "splits_final.json", splits)
    description = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "lesion": 1}, "file_ending": ".nii.gz"}
    write_json(folder / "dataset.json", description)


def write_validated(
    results: Path,
    name: str,
    probabilities: tuple[float, ...] | dict[str, tuple[float, ...]],
    *,
    reference: np.ndarray = REFERENCE,
    keeping: bool = True,
    denoiser: bool = False,
) -> Path:
    """A model whose two folds predicted these probabilities, the same for each of their cases or those of the case."""
    plan = PreprocessingPlan((0, 1, 2), GRID.spacing_mm, ("zscore",), (False,), ())
    plans = tiny_plans(LESION, plan, ("CT",), ".nii.gz", True)
    made = write_model(results / "made", plans, tuple(FOLDS), denoiser)
    model = results / NAME / name
    model.parent.mkdir(parents=True, exist_ok=True)
    made.rename(model)
    for fold, cases in FOLDS.items():
        validation = model / f"fold_{fold}/validation"
        scored = []
        for case_id in cases:
            p = probabilities[case_id] if isinstance(probabilities, dict) else probabilities
            array = np.array(p, np.float16).reshape(1, *reference.shape)
            mask = (array[0] > 0.5).astype(np.uint8)
            write_labels(validation / f"{case_id}.nii.gz", mask, GRID)
            scored.append(CaseScores(case_id, tuple(score_case(reference, mask, LESION, GRID.spacing_mm))))
            if keeping:
                (validation / "probabilities").mkdir(exist_ok=True)
                np.savez(validation / f"probabilities/{case_id}.npz", probabilities=array)
        write_json(validation / "summary.json", to_jsonable({"cases": scored, "not_validated": []}))
        write_json(validation / "manifest.json", {"model": str(model)})
        others = [case for case in CASES if case not in cases]
        parts = {"train_cases": others[1:], "holdout_cases": others[:1], "validation_cases": cases}
        write_json(model / f"fold_{fold}/request.json", {"training": {}, **parts})
    return model


@pytest.fixture
def roots(tmp_path: Path) -> Roots:
    write_preprocessed(tmp_path / "preprocessed", {case: case for case in CASES})
    return Roots(None, tmp_path / "preprocessed", tmp_path / "results")


def results_of(roots: Roots) -> Path:
    assert roots.results is not None
    return roots.results


def test_a_pair_that_is_better_in_every_case_is_chosen(roots: Roots) -> None:
    write_validated(results_of(roots), "SegmentationTrainer__tiny", FIRST)
    write_validated(results_of(roots), "StagedDiffusionTrainer__tiny__other", SECOND, denoiser=True)
    found = find_best(roots, 1)
    recipe = read_recipe(results_of(roots) / NAME)
    assert recipe == found.recipe
    one, other = recipe.members
    assert (one.model, one.trainer, one.configuration, one.plans, one.run, one.folds) == (
        "SegmentationTrainer__tiny", "SegmentationTrainer", "tiny", None, None, ("0", "1"),
    )  # fmt: skip
    assert (other.run, recipe.decision, recipe.left_out, recipe.notes) == ("other", "half", (), ())
    assert recipe.lesion_filter == NO_FILTER  # there is no false lesion
    small, large, pair = recipe.candidates
    assert small.num_parameters < large.num_parameters
    assert pair.num_parameters == small.num_parameters + large.num_parameters
    assert [c.score for c in recipe.candidates] == pytest.approx([2 / 3, 2 / 3, 1])
    assert [c.mean_dice for c in recipe.candidates] == pytest.approx([2 / 3, 2 / 3, 1])
    assert (pair.num_cases, pair.score_low, pair.score_high) == (12, 1, 1)
    assert small.comparison is None
    assert large.comparison is not None
    assert not large.comparison.is_better
    assert pair.comparison is not None
    assert pair.comparison.with_models == ("SegmentationTrainer__tiny",)
    assert pair.comparison.difference == pytest.approx(1 / 3)
    assert pair.comparison.p_wilcoxon == pytest.approx(2 / 2**12)
    assert pair.comparison.p_corrected == pytest.approx(2 * 2 / 2**12)
    assert pair.comparison.is_better
    assert "significantly better than SegmentationTrainer__tiny: by 0.3333" in recipe.reason


def test_processes_score_pairs_alike(roots: Roots) -> None:
    write_validated(results_of(roots), "SegmentationTrainer__tiny", FIRST)
    write_validated(results_of(roots), "StagedDiffusionTrainer__tiny", SECOND)
    assert find_best(roots, 1, workers=2, writing=False).recipe == find_best(roots, 1, writing=False).recipe
    assert not (results_of(roots) / NAME / "best.json").exists()


def test_one_candidate_is_taken_and_said_to_be_the_only_one(roots: Roots, capsys: pytest.CaptureFixture[str]) -> None:
    write_validated(results_of(roots), "SegmentationTrainer__tiny", FIRST)
    flags = ["--preprocessed", str(roots.preprocessed), "--results", str(roots.results)]
    assert command.main(["X", *flags, "--dry-run"]) == 0
    assert not (results_of(roots) / NAME / "best.json").exists()
    assert command.main(["1", *flags]) == 0
    recipe = read_recipe(results_of(roots) / NAME)
    assert [member.model for member in recipe.members] == ["SegmentationTrainer__tiny"]
    assert recipe.decision is None
    said = capsys.readouterr().out
    assert "SegmentationTrainer__tiny is the only candidate" in said
    assert "there is nothing to compare with" in said
    assert f"Next: usd_predict --best -d Dataset001_X --results {roots.results} -i IMAGES -o MASKS" in said


def test_patients_are_the_units(tmp_path: Path) -> None:
    write_preprocessed(tmp_path / "preprocessed", {case: f"patient {i // 3}" for i, case in enumerate(CASES)})
    roots = Roots(None, tmp_path / "preprocessed", tmp_path / "results")
    write_validated(tmp_path / "results", "SegmentationTrainer__tiny", FIRST)
    write_validated(tmp_path / "results", "StagedDiffusionTrainer__tiny", SECOND)
    recipe = find_best(roots, 1).recipe
    assert len(recipe.members) == 1  # four patients prove nothing: p = 2 / 2^4
    pair = recipe.candidates[-1].comparison
    assert pair is not None
    assert (pair.num_cases, pair.num_groups, pair.p_wilcoxon) == (12, 4, 0.125)
    assert "4 independent cases" in recipe.notes[0]


def test_what_is_not_finished_is_named_and_left_out(roots: Roots) -> None:
    results = results_of(roots)
    write_validated(results, "SegmentationTrainer__tiny", FIRST)
    half = write_validated(results, "StagedDiffusionTrainer__tiny__half", SECOND)
    (half / "fold_1/weights.safetensors").unlink()
    masks = write_validated(results, "StagedDiffusionTrainer__tiny__masks", SECOND, keeping=False)
    (masks / "fold_0/validation/summary.json").unlink()
    imported = write_validated(results, "StagedDiffusionTrainer__tiny__imported", SECOND)
    for fold in FOLDS:
        (imported / f"fold_{fold}/validation/summary.json").unlink()
        (imported / f"fold_{fold}/request.json").unlink()
    cut = write_validated(results, "StagedDiffusionTrainer__tiny__cut", SECOND)
    for fold in FOLDS:
        path = cut / f"fold_{fold}/validation/summary.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"not_validated": ["c00"]}))
    everything = write_validated(results, "StagedDiffusionTrainer__tiny__everything", SECOND)
    (everything / "fold_0").rename(everything / "fold_all")
    shutil.rmtree(everything / "fold_1")
    recipe = find_best(roots, 1).recipe
    assert recipe.left_out == (
        "StagedDiffusionTrainer__tiny__cut: fold 0 (1 of its cases not validated; usd_train with --val does it)",
        "StagedDiffusionTrainer__tiny__cut: fold 1 (1 of its cases not validated; usd_train with --val does it)",
        "StagedDiffusionTrainer__tiny__everything: fold 0 1 (only fold all)",
        "StagedDiffusionTrainer__tiny__half: fold 1 (not finished)",
        "StagedDiffusionTrainer__tiny__imported: fold 0 (no scores of single cases, and none can be made: it holds no "
        "request.json)",
        "StagedDiffusionTrainer__tiny__imported: fold 1 (no scores of single cases, and none can be made: it holds no "
        "request.json)",
        "StagedDiffusionTrainer__tiny__masks: fold 0 (not validated; usd_train with --val does it)",
        "SegmentationTrainer__tiny + StagedDiffusionTrainer__tiny__masks: StagedDiffusionTrainer__tiny__masks kept no "
        "probabilities of validation cases; usd_train with --val --save-validation all keeps them",
        "StagedDiffusionTrainer__tiny__half + StagedDiffusionTrainer__tiny__masks: no case in common",
    )
    assert {candidate.models: candidate.num_cases for candidate in recipe.candidates} == {
        ("SegmentationTrainer__tiny",): 12,
        ("StagedDiffusionTrainer__tiny__half",): 6,
        ("StagedDiffusionTrainer__tiny__masks",): 6,
        ("SegmentationTrainer__tiny", "StagedDiffusionTrainer__tiny__half"): 6,
    }
    (pair,) = (candidate for candidate in recipe.candidates if len(candidate.models) == 2)
    assert pair.comparison is not None
    assert pair.comparison.num_cases == 6


def renamed_class(model: Path, name: str) -> None:
    """As a model that was trained before the classes of the data set changed."""
    for path in (model / "plans.json", *model.glob("fold_*/validation/summary.json")):
        path.write_text(path.read_text().replace('"lesion"', f'"{name}"'))


@pytest.mark.parametrize("keeping", [True, False])
def test_a_model_of_former_classes_is_left_out(roots: Roots, keeping: bool) -> None:
    write_validated(results_of(roots), "SegmentationTrainer__tiny", FIRST, keeping=keeping)
    former = write_validated(results_of(roots), "SegmentationTrainer__tiny__old", (0.9, 0.9, 0.1, 0.1), keeping=keeping)
    renamed_class(former, "tumour")
    recipe = find_best(roots, 1).recipe
    assert [candidate.models for candidate in recipe.candidates] == [("SegmentationTrainer__tiny",)]
    assert recipe.left_out == ("SegmentationTrainer__tiny__old: its classes are tumour 1, those now lesion 1",)
    other = write_validated(results_of(roots), "SegmentationTrainer__tiny__newer", FIRST, keeping=keeping)
    renamed_class(other, "nodule")
    renamed_class(results_of(roots) / NAME / "SegmentationTrainer__tiny", "cyst")
    with pytest.raises(UsdError, match=r"none those that the data set has now \(lesion 1\): .*__old: tumour 1"):
        find_best(roots, 1)


def test_models_of_one_set_of_classes_are_compared_whatever_dataset_json_calls_it(roots: Roots) -> None:
    """Plans may have been edited."""
    model = write_validated(results_of(roots), "SegmentationTrainer__tiny", FIRST)
    renamed_class(model, "tumour")
    (roots.preprocessed_dataset(1) / "dataset.json").unlink()  # nor is it read
    assert [member.model for member in find_best(roots, 1).recipe.members] == [model.name]


def test_cases_that_have_left_the_data_set_do_not_count(roots: Roots) -> None:
    model = write_validated(results_of(roots), "SegmentationTrainer__tiny", FIRST)
    preprocessed = roots.preprocessed_dataset(1)
    write_cases(preprocessed, {case: case for case in CASES[2:]})
    splits = [
        {"train": sorted({*CASES[2:]} - {*val}), "val": [c for c in val if c in CASES[2:]]} for val in FOLDS.values()
    ]
    write_json(preprocessed / "splits_final.json", splits)
    recipe = find_best(roots, 1).recipe
    assert [candidate.num_cases for candidate in recipe.candidates] == [10]
    gone = f"{model.name}: 2 cases (c00, c01) that the preprocessed data set does not have any more"
    assert recipe.left_out == (gone,)
    write_cases(preprocessed, {"new": "new"})
    write_json(preprocessed / "splits_final.json", [{"train": ["new"], "val": []}])
    write_reference(preprocessed, REFERENCE[None], GRID.spacing_mm, LESION, "new", "new", CaseProvenance((), ""))
    write_cases(preprocessed, {"new": "new"})
    with pytest.raises(UsdError, match="no model that validated a case of the data set as it is"):
        find_best(roots, 1)


def test_cases_that_were_scored_with_former_labels_do_not_count(roots: Roots) -> None:
    preprocessed = roots.preprocessed_dataset(1)
    for name in ("SegmentationTrainer__tiny", "StagedDiffusionTrainer__tiny"):  # the second one after the correction
        model = write_validated(results_of(roots), name, FIRST)
        for fold, cases in FOLDS.items():
            summary = model / f"fold_{fold}/validation/summary.json"
            write_json(summary, {**read_json(summary), "references": reference_hashes(preprocessed, cases)})
        corrected = np.array([[[1, 1, 1, 0]]], np.uint8)
        write_reference(preprocessed, corrected[None], GRID.spacing_mm, LESION, "c01", "c01", CaseProvenance((), ""))
    recipe = find_best(roots, 1).recipe
    assert {len(c.models): c.num_cases for c in recipe.candidates if c.models[0].startswith("Seg")}[1] == 11
    former = (
        "SegmentationTrainer__tiny: 1 case (c01) scored with other labels than the data set has now; usd_train with "
        "--val scores them again"
    )
    assert former in recipe.left_out
    assert not any(line.startswith("StagedDiffusionTrainer__tiny") for line in recipe.left_out)


def test_without_any_validated_fold(roots: Roots) -> None:
    with pytest.raises(UsdError, match=r"no data set 'Dataset001_X' in .*results.*usd_train 1 cv"):
        find_best(roots, 1)
    model = write_validated(results_of(roots), "SegmentationTrainer__tiny", FIRST)
    for fold in FOLDS:
        (model / f"fold_{fold}/weights.safetensors").unlink()
    with pytest.raises(UsdError, match=r"no model with a validated fold: SegmentationTrainer__tiny: fold 0 1"):
        find_best(roots, 1)
    with pytest.raises(UsdError, match=r"holds no best\.json; run usd_find_best Dataset001_X"):
        read_recipe(results_of(roots) / NAME)


def test_a_damaged_summary_is_named(roots: Roots) -> None:
    model = write_validated(results_of(roots), "SegmentationTrainer__tiny", FIRST)
    (model / "fold_0/validation/summary.json").write_text('{"cases": [{"case_id": "c00"}]}')
    with pytest.raises(UsdError, match=r"fold_0/validation/summary\.json does not hold scores"):
        find_best(roots, 1)


def test_the_filter_is_chosen_over_the_folds_and_scored_on_those_it_was_not_chosen_on(tmp_path: Path) -> None:
    reference = np.array([[[1, 1, 0, 0, 0, 0, 0, 0]]], np.uint8)
    write_preprocessed(tmp_path / "preprocessed", {case: case for case in CASES}, reference)
    false = {case: (0.6,) * (1 + number % 3) for number, case in enumerate(CASES)}
    p = {case: (0.9, 0.9, 0.1, 0.1, *false[case], *(0.1,) * (4 - len(false[case]))) for case in CASES}
    write_validated(tmp_path / "results", "SegmentationTrainer__tiny", p, reference=reference)
    found = find_best(Roots(None, tmp_path / "preprocessed", tmp_path / "results"), 1)
    recipe = read_recipe(found.path.parent)
    assert recipe.lesion_filter is not None
    rule = recipe.lesion_filter.rules["lesion"]
    assert 0.6 < rule.min_probability <= 0.9 or rule.max_lesions == 1
    evidence = recipe.filter_evidence
    assert evidence is not None
    assert (evidence.num_folds, evidence.num_groups, evidence.num_with, evidence.num_without) == (2, 12, 12, 0)
    assert evidence.dice == pytest.approx(np.mean([4 / 5, 4 / 6, 4 / 7]))  # of one, two and three false voxels
    assert (evidence.dice_filtered, evidence.lesion_f1_filtered) == (1, 1)
    assert evidence.lesion_f1 == pytest.approx(2 / 3)
    assert evidence.is_taken
    assert "Each of 2 folds filtered by what the others choose: Dice from 0.679 to 1.000" in evidence.in_words[-1]
    assert recipe.candidates[0].score == pytest.approx(evidence.dice)  # of the masks as they are


def test_without_probabilities_the_filters_of_the_folds_stay(roots: Roots) -> None:
    write_validated(results_of(roots), "SegmentationTrainer__tiny", FIRST, keeping=False)
    recipe = find_best(roots, 1).recipe
    assert (recipe.lesion_filter, recipe.filter_evidence) == (None, None)
    assert "no lesion filter was chosen over the folds, theirs stay: SegmentationTrainer__tiny" in recipe.notes[-2]


# --------------------------------------------------------------------------------------------------- the rule itself


def contender(name: str, size: int, scores: list[float], *others: Any) -> Contender:
    cases = {f"c{i:03d}": (ClassDice("lesion", "scored", value),) for i, value in enumerate(scores)}
    own = ValidatedModel(Path(name), ModelName("T", name), ("0",), size, "half", cases, {}, {}, {})
    return Contender((own, *(dataclasses.replace(own, folder=Path(other)) for other in others)), cases)


def test_the_simpler_one_wins_unless_another_is_significantly_better() -> None:
    base = [0.5 + 0.001 * i for i in range(40)]
    better = [value + 0.1 for value in base]
    noisy = [value + (0.06 if i % 2 else -0.05) for i, value in enumerate(base)]
    small, large = contender("small", 1, base), contender("large", 2, better)
    best, candidates = compare_candidates([large, small], {})
    assert (best.models, [c.models for c in candidates]) == (("large",), [("small",), ("large",)])
    assert compare_candidates([contender("small", 1, better), contender("large", 2, base)], {})[0].models == ("small",)
    assert compare_candidates([small, contender("large", 2, noisy)], {})[0].models == ("small",)
    pair = contender("a", 1, better, "b")  # as good as the large one, and of two
    assert compare_candidates([pair, large, small], {})[0].models == ("large",)


def test_a_model_of_some_sources_alone_is_no_candidate() -> None:
    """As 3d_fullres is of the volumes of a data set that has pictures, too; it may be small and good on these."""
    (flat,) = contender("2d", 2, [0.5]).members
    volumes = dataclasses.replace(flat, folder=Path("3d"), num_parameters=1)
    flat = dataclasses.replace(flat, sources=("US", "CT", "MR"))
    volumes = dataclasses.replace(volumes, sources=("CT", "MR"))
    assert of_all_sources([volumes, flat]) == ([flat], ["3d: it knows nothing of images of US"])
    assert of_all_sources([volumes]) == ([volumes], [])
    ordinary = [dataclasses.replace(one, sources=()) for one in (volumes, flat)]
    assert of_all_sources(ordinary) == (ordinary, [])


def of_sources(name: str, size: int, scores: dict[str, list[float]]) -> Contender:
    """A model of a unified data set with the scores of the cases of each source."""
    cases = {
        f"{source}__c{i:03d}": (ClassDice("lesion", "scored", value),)
        for source, values in scores.items()
        for i, value in enumerate(values)
    }
    own = ValidatedModel(Path(name), ModelName("T", name), ("0",), size, "half", cases, {}, {}, {}, tuple(scores))
    return Contender((own,), cases)


def test_a_model_that_is_good_on_the_largest_source_alone_does_not_win() -> None:
    spread = np.linspace(-0.05, 0.05, 100)
    small = of_sources("small", 1, {"US": list(0.5 + spread), "CT": list(0.7 + spread[::10]), "MR": [0.6] * 8})
    large = of_sources("large", 2, {"US": list(0.6 + spread), "CT": list(0.4 + spread[::10]), "MR": [0.5] * 8})
    best, candidates = compare_candidates([small, large], {})
    assert best.models == ("small",)
    first, second = candidates
    assert first.score == first.mean_dice == pytest.approx((0.5 + 0.695 + 0.6) / 3, abs=1e-3)
    assert second.sources == pytest.approx({"US": 0.6, "CT": 0.395, "MR": 0.5}, abs=1e-3)
    assert second.comparison is not None
    assert second.comparison.difference == pytest.approx((0.1 - 0.3 - 0.1) / 3)
    better = of_sources("large", 2, {"US": list(0.6 + spread), "CT": list(0.8 + spread[::10]), "MR": [0.7] * 8})
    best, (_, second) = compare_candidates([small, better], {})
    assert best.models == ("large",)
    assert second.comparison is not None
    assert (second.comparison.num_cases, second.comparison.difference) == (118, pytest.approx(0.1))
    recipe = Recipe(1, "D", (RecipeMember("small", "T", "2d", None, None, ("0",)),), None, "", (), (), candidates)
    assert from_jsonable(Recipe, to_jsonable(recipe)) == recipe
    said = command.describe(recipe)
    assert "mean over sources, in which a small one counts as much as a large one" in said
    assert re.search(r"candidate +US +CT +MR\n-.*\nsmall +0.5000 +0.6955 +0.6000", said)


def test_many_comparisons_need_stronger_proof() -> None:
    base, better = [0.5] * 6, [0.6, 0.61, 0.62, 0.63, 0.64, 0.65]
    two = [contender("small", 1, base), contender("large", 2, better)]
    assert compare_candidates(two, {})[0].models == ("large",)  # p = 2 / 2^6 = 0.03
    three = [*two, contender("largest", 3, base)]
    assert compare_candidates(three, {})[0].models == ("small",)  # 0.06


def test_false_alarms_count() -> None:
    empty, alarm = ClassDice("a", "both_empty", float("nan")), ClassDice("a", "false_positive", float("nan"))
    half = ClassDice("b", "scored", 0.5)
    assert score_of_case((empty, half)) == 0.75
    assert score_of_case((alarm, half)) == 0.25
    assert mean_dice([(empty, half), (alarm, half)]) == 0.5


def test_guarantees_are_calibrated_over_the_validation_cases_of_all_folds(roots: Roots) -> None:
    model = write_validated(results_of(roots), "SegmentationTrainer__tiny", FIRST)
    found = find_best(roots, 1).recipe.guarantees
    assert found == read_recipe(results_of(roots) / NAME).guarantees
    assert found is not None
    assert (found.num_patients, found.num_samples, found.unit) == (12, 0, "ml")
    assert set(found.weights) == {file_hash(model / f"fold_{fold}/weights.safetensors") for fold in FOLDS}
    own = found.classes["lesion"]
    assert own.rates("lesions")[-1] == 0.9  # 1 / 13 <= 0.1
    assert {one.threshold for one in own.lesions} == {float(np.float16(0.9))}
    # One of the two voxels of the reference has 0.4, and so has one outside of it.
    (masks,) = (one for one in own.masks if one.outer.alpha == 0.1)
    assert masks.outer.threshold < 0.4 < masks.inner.threshold
    assert "19 are needed" in own.refused["lesions=0.95"]
    assert "samples no masks" in own.refused["volume=0.5"]
    assert "which no proof covers" in found.in_words[0]


def test_guarantees_count_patients(tmp_path: Path) -> None:
    write_preprocessed(tmp_path / "preprocessed", {case: f"patient {i // 3}" for i, case in enumerate(CASES)})
    write_validated(tmp_path / "results", "SegmentationTrainer__tiny", FIRST)
    found = find_best(Roots(None, tmp_path / "preprocessed", tmp_path / "results"), 1).recipe.guarantees
    assert found is not None
    assert (found.num_patients, found.classes["lesion"].rates("lesions")[-1]) == (4, 0.8)


def test_without_probabilities_there_are_no_guarantees(roots: Roots) -> None:
    write_validated(results_of(roots), "SegmentationTrainer__tiny", FIRST, keeping=False)
    recipe = find_best(roots, 1).recipe
    assert recipe.guarantees is None
    assert any(note.startswith("no guarantees were calibrated: SegmentationTrainer__tiny") for note in recipe.notes)


@pytest.mark.filterwarnings("ignore:.*its scores will be too good")
def test_patients_that_a_fold_was_trained_on_allow_no_guarantees(tmp_path: Path) -> None:
    patients = {case: "both" if case in (FOLDS["0"][0], FOLDS["1"][0]) else case for case in CASES}
    write_preprocessed(tmp_path / "preprocessed", patients)
    write_validated(tmp_path / "results", "SegmentationTrainer__tiny", FIRST)
    recipe = find_best(Roots(None, tmp_path / "preprocessed", tmp_path / "results"), 1).recipe
    assert recipe.guarantees is None
    assert any("no guarantees were calibrated: fold 0 validates cases of the group 'both'" in n for n in recipe.notes)


@pytest.mark.parametrize("num_folds", [1, 3])
def test_folds_are_judged_by_what_they_were_trained_on_and_not_by_later_splits(roots: Roots, num_folds: int) -> None:
    model = write_validated(results_of(roots), "SegmentationTrainer__tiny", FIRST)
    parts = [list(CASES[number::3]) for number in range(num_folds)]
    splits = [{"train": [case for case in CASES if case not in val], "val": val} for val in parts]
    assert roots.preprocessed is not None
    write_json(roots.preprocessed / NAME / "splits_final.json", splits)
    assert find_best(roots, 1).recipe.guarantees is not None
    path = model / "fold_1/request.json"
    request = json.loads(path.read_text())
    write_json(path, request | {"holdout_cases": [CASES[6]]})  # which it also validates
    recipe = find_best(roots, 1).recipe
    assert recipe.guarantees is None
    assert any(f"fold 1 validates cases of the group '{CASES[6]}', which it was also" in note for note in recipe.notes)
    path.unlink()  # as in an archive
    recipe = find_best(roots, 1).recipe
    assert recipe.guarantees is None
    assert any(
        "no guarantees were calibrated: fold_1 of SegmentationTrainer__tiny holds no request.json" in note
        for note in recipe.notes
    )
