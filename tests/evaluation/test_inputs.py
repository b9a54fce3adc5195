"""Where probabilities, samples, raters and maps are found, and what is said where they are not."""

from __future__ import annotations

from pathlib import Path

import pytest

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.evaluation.inputs import CaseInputs, collect_inputs, discover_folders
from unisegdiff_pipeline.evaluation.meaning import find_dataset_json
from unisegdiff_pipeline.evaluation.options import EvaluationOptions


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    reference, prediction = tmp_path / "raw" / "labelsTs", tmp_path / "out"
    for case in ("a", "b"):
        touch(reference / f"{case}.nii.gz", prediction / f"{case}.nii.gz")
    return reference, prediction


def cases(folders: tuple[Path, Path], subset: bool = False, **given: Path) -> tuple[CaseInputs, ...]:
    return collect_inputs(discover_folders(*folders, EvaluationOptions(**given)), subset=subset).cases


def test_everything_in_its_usual_place(folders: tuple[Path, Path]) -> None:
    reference, prediction = folders
    for case in ("a", "b"):
        touch(prediction / "probabilities" / f"{case}.npz", prediction / "uncertainty" / f"{case}.nii.gz")
        touch(*(prediction / "samples" / f"{case}_sample{number:02d}.nii.gz" for number in range(11)))
    touch(reference.parent / "ratersTs" / "a_rater2.nii.gz", reference.parent / "ratersTs" / "a_rater10.nii.gz")
    (reference.parent / "groups.csv").write_text("case,group\na,anna\n")
    a, b = cases(folders)
    assert a.probability == prediction / "probabilities" / "a.npz"
    assert a.uncertainty == prediction / "uncertainty" / "a.nii.gz"
    assert [path.name for path in a.samples] == [f"a_sample{number:02d}.nii.gz" for number in range(11)]
    assert [path.name for path in a.raters] == ["a_rater2.nii.gz", "a_rater10.nii.gz"]
    assert (a.group, b.group) == ("anna", None)
    assert b.raters == ()


def test_what_lies_beside_a_link_is_found_before_what_lies_where_it_leads(folders: tuple[Path, Path]) -> None:
    stored, prediction = folders
    project = stored.parent / "project"
    project.mkdir()
    (linked := project / "labelsTs").symlink_to(stored)
    touch(stored.parent / "ratersTs" / "a_rater1.nii.gz")
    (stored.parent / "dataset.json").touch()
    assert cases((linked, prediction))[0].raters == (stored.parent / "ratersTs" / "a_rater1.nii.gz",)
    assert find_dataset_json(linked, prediction) == stored.parent / "dataset.json"
    touch(project / "ratersTs" / "a_rater1.nii.gz")
    (project / "dataset.json").touch()
    (project / "groups.csv").write_text("case,group\na,anna\n")
    (found, _) = cases((linked, prediction))
    assert (found.raters, found.group) == ((project / "ratersTs" / "a_rater1.nii.gz",), "anna")
    assert find_dataset_json(linked, prediction) == project / "dataset.json"


def test_parts_of_the_uncertainty_are_not_taken_for_it(folders: tuple[Path, Path]) -> None:
    """They lie in folders inside; each may be named as the map to judge by."""
    uncertainty = folders[1] / "uncertainty"
    for case in ("a", "b"):
        touch(uncertainty / f"{case}.nii.gz")
        touch(*(uncertainty / part / f"{case}.nii.gz" for part in ("between_folds", "single_samples")))
    assert [case.uncertainty for case in cases(folders)] == [uncertainty / "a.nii.gz", uncertainty / "b.nii.gz"]
    named = cases(folders, uncertainty=uncertainty / "between_folds")
    assert named[0].uncertainty == uncertainty / "between_folds" / "a.nii.gz"


def test_plain_folders_have_nothing_else(folders: tuple[Path, Path]) -> None:
    for case in cases(folders):
        assert (case.probability, case.samples, case.raters, case.uncertainty, case.group) == (None, (), (), None, None)


def test_probabilities_beside_the_masks_as_nnunet_writes_them(folders: tuple[Path, Path]) -> None:
    prediction = folders[1]
    touch(prediction / "a.npz", prediction / "a.pkl", prediction / "b.npz", prediction / "dataset.json")
    assert [case.probability for case in cases(folders)] == [prediction / "a.npz", prediction / "b.npz"]


def test_probabilities_are_found_by_composed_names(folders: tuple[Path, Path]) -> None:
    """macOS writes names in decomposed form."""
    prediction = folders[1]
    touch(*(place / "Zo\u0308e.nii.gz" for place in folders), prediction / "probabilities" / "Zo\u0308e.npz")
    found = {case.case_id: case.probability for case in cases(folders)}
    assert found == {"a": None, "b": None, "Z\u00f6e": prediction / "probabilities" / "Zo\u0308e.npz"}
    touch(prediction / "probabilities" / "Z\u00f6e.npz")
    with pytest.raises(UsdError, match="two files of case Z\u00f6e"):
        cases(folders)


@pytest.mark.parametrize("form", ["{case}/{number}.png", "draw_{number}/{case}.png", "{case}_sample{number}.png"])
def test_three_forms_of_samples(folders: tuple[Path, Path], form: str, tmp_path: Path) -> None:
    numbers = (1, 2, 10)
    touch(*(tmp_path / "s" / form.format(case=case, number=number) for case in ("a", "b") for number in numbers))
    found = cases(folders, samples=tmp_path / "s")[1].samples
    assert found == tuple(tmp_path / "s" / form.format(case="b", number=number) for number in numbers)


def test_a_named_folder_must_be_complete(folders: tuple[Path, Path], tmp_path: Path) -> None:
    touch(tmp_path / "p" / "a.npz")
    with pytest.raises(UsdError, match=r"--probabilities .*p holds nothing of 1 of 2 cases: b\."):
        cases(folders, probabilities=tmp_path / "p")
    touch(tmp_path / "p" / "b.npz", tmp_path / "p" / "c.npz")
    with pytest.raises(UsdError, match=r"1 case not in .*: c\."):
        cases(folders, probabilities=tmp_path / "p")
    assert cases(folders, subset=True, probabilities=tmp_path / "p")[0].probability is not None


def test_a_folder_that_was_only_found_may_be_incomplete(folders: tuple[Path, Path]) -> None:
    touch(folders[1] / "samples" / "a_sample00.nii.gz")
    assert [len(case.samples) for case in cases(folders)] == [1, 0]


def test_raters_of_some_cases_are_enough_but_not_of_none(folders: tuple[Path, Path], tmp_path: Path) -> None:
    touch(tmp_path / "r" / "a_rater1.nii.gz", tmp_path / "r" / "z_rater1.nii.gz")
    assert [len(case.raters) for case in cases(folders, raters=tmp_path / "r")] == [1, 0]
    (tmp_path / "r" / "a_rater1.nii.gz").unlink()
    with pytest.raises(UsdError, match=r"--raters .* holds nothing of 2 of 2"):
        cases(folders, raters=tmp_path / "r")


def test_folders_that_are_not_there(folders: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(UsdError, match=r"--samples is .*nowhere, which is no folder"):
        cases(folders, samples=tmp_path / "nowhere")
    with pytest.raises(UsdError, match=r"--groups is .*nowhere"):
        cases(folders, groups=tmp_path / "nowhere")


def test_two_maps_of_one_case(folders: tuple[Path, Path]) -> None:
    touch(folders[1] / "uncertainty" / "a.nii.gz", folders[1] / "uncertainty" / "a.nrrd")
    with pytest.raises(UsdError, match=r"two files of case a: a\.nii\.gz and a\.nrrd"):
        cases(folders)


@pytest.mark.parametrize("names", [("b_sample1.nii", "b_sample1.nii.gz"), ("b_sample1.nii.gz", "b_sample01.nii.gz")])
def test_one_sample_twice(folders: tuple[Path, Path], names: tuple[str, str]) -> None:
    touch(*(folders[1] / "samples" / name for name in ("b_sample0.nii.gz", *names)))
    with pytest.raises(UsdError, match=r"one sample of case b twice: .*b_sample0?1\.nii.* and .*b_sample0?1\.nii"):
        cases(folders)


def test_groups_that_name_no_case_are_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """Names with an ending fit no case; each image counted as a patient of its own without a word."""
    groups = tmp_path / "own.csv"
    groups.write_text("case,group\na.nii.gz,anna\nb.nii.gz,anna\n")
    with pytest.raises(UsdError, match=r"--groups .*own\.csv names none of \d+ cases?: a.*without their ending"):
        cases(folders, groups=groups)
    groups.write_text("case,group\na,anna\n")  # one is enough, others are groups by themselves
    assert [case.group for case in cases(folders, groups=groups)][:1] == ["anna"]
