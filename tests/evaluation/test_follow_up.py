"""Lesions of two time points, with values one can do by hand."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest

from unisegdiff_pipeline.commands.evaluate import main as usd_evaluate
from unisegdiff_pipeline.core.geometry import Geometry
from unisegdiff_pipeline.evaluation.follow_up import (
    RECIST_THRESHOLDS,
    VOLUME_THRESHOLDS,
    ClassChange,
    FollowUpOptions,
    Thresholds,
    TimePoint,
    compare_time_points,
    judge,
)
from unisegdiff_pipeline.evaluation.lesion_matching import MatchingRule
from unisegdiff_pipeline.io.images import write_labels

NAN = math.nan
GEOMETRY = Geometry((10.0, 10.0, 10.0))  # a voxel is 1 ml


def line(*values: int) -> np.ndarray:
    """A volume of two slices, the first of which holds one row of voxels."""
    result = np.zeros((2, 3, len(values)), bool)
    result[0, 0] = np.array(values, bool)
    return result


def follow(
    baseline: np.ndarray,
    follow_up: np.ndarray,
    samples: tuple[list[np.ndarray], list[np.ndarray]] = ([], []),
    options: FollowUpOptions | None = None,
) -> ClassChange:
    times = [TimePoint(mask, drawn) for mask, drawn in zip((baseline, follow_up), samples, strict=True)]
    return compare_time_points("lesion", times[0], times[1], GEOMETRY, options or FollowUpOptions())


def test_every_status_by_hand() -> None:
    #                    growing 2 -> 4    shrinking 4 -> 3   vanished  new        stable 5 -> 6
    before = line(*[1, 1, 0, 0, 0], *[1, 1, 1, 1, 0], *[1, 0, 0], *[0, 0, 0], *[1, 1, 1, 1, 1, 0])
    after = line(*[1, 1, 1, 1, 0], *[1, 1, 1, 0, 0], *[0, 0, 0], *[1, 1, 0], *[1, 1, 1, 1, 1, 1])
    found = follow(before, after)
    assert [lesion.status for lesion in found.lesions] == ["stable", "shrinking", "growing", "new", "vanished"]
    assert [(lesion.baseline_ml, lesion.follow_up_ml) for lesion in found.lesions] == [
        pytest.approx(pair) for pair in ((5, 6), (4, 3), (2, 4), (0, 2), (1, 0))
    ]
    assert [lesion.change_percent for lesion in found.lesions] == pytest.approx([20, -25, 100, NAN, -100], nan_ok=True)
    assert [lesion.lesion_id for lesion in found.lesions] == [1, 2, 3, 4, 5]
    assert found.counts == {"new": 1, "vanished": 1, "growing": 1, "shrinking": 1, "stable": 1}
    assert (found.baseline_ml, found.follow_up_ml) == (pytest.approx(12), pytest.approx(15))
    assert all(lesion.probability is None for lesion in found.lesions)
    assert math.isnan(found.change_ml.low)


def test_a_lesion_that_breaks_up_is_followed_as_a_whole() -> None:
    (lesion,) = follow(line(1, 1, 1, 1, 1, 1, 1), line(1, 1, 1, 0, 1, 1, 1)).lesions
    assert (lesion.baseline_ids, lesion.follow_up_ids, lesion.status) == ((1,), (1, 2), "stable")
    assert (lesion.baseline_diameter_mm, lesion.follow_up_diameter_mm) == (pytest.approx(60), pytest.approx(20 + 20))
    (merged,) = follow(line(1, 1, 0, 1, 1), line(1, 1, 1, 1, 1)).lesions
    assert (merged.baseline_ids, merged.follow_up_ids, merged.status) == ((1, 2), (1,), "growing")


@pytest.mark.parametrize(
    ("before", "after", "thresholds", "status"),
    [
        (4.0, 5.0, VOLUME_THRESHOLDS, "growing"),  # exactly 25 %
        (4.0, 4.99, VOLUME_THRESHOLDS, "stable"),
        (4.0, 3.0, VOLUME_THRESHOLDS, "shrinking"),
        (4.0, 3.01, VOLUME_THRESHOLDS, "stable"),
        (10.0, 14.0, RECIST_THRESHOLDS, "stable"),  # 40 %, but 4 mm
        (10.0, 15.0, RECIST_THRESHOLDS, "growing"),
        (100.0, 110.0, RECIST_THRESHOLDS, "stable"),  # 10 mm, but 10 %
        (10.0, 7.0, RECIST_THRESHOLDS, "shrinking"),
        (10.0, 7.1, RECIST_THRESHOLDS, "stable"),
        (0.0, 6.0, RECIST_THRESHOLDS, "growing"),  # a single voxel has a diameter of 0
        (0.0, 0.0, RECIST_THRESHOLDS, "stable"),
    ],
)
def test_thresholds(before: float, after: float, thresholds: Thresholds, status: str) -> None:
    assert judge(before, after, (True, True), thresholds) == status


@pytest.mark.parametrize("voxel_ml", [0.001 * 0.9 * 1.3 * 2.5, 0.001 * 0.7 * 0.7 * 3.0, 0.001 / 3])
@pytest.mark.parametrize("voxels", [4, 8, 12, 20, 100])
def test_a_change_of_just_the_limit_counts_for_any_size_of_voxels(voxel_ml: float, voxels: int) -> None:
    before, grown, shrunk = voxels * voxel_ml, voxels * 5 // 4 * voxel_ml, voxels * 3 // 4 * voxel_ml
    assert judge(before, grown, (True, True), VOLUME_THRESHOLDS) == "growing"
    assert judge(before, shrunk, (True, True), VOLUME_THRESHOLDS) == "shrinking"


def test_thresholds_that_say_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="shrink_percent 120"):
        Thresholds(shrink_percent=120)


def test_diameters_decide_where_they_are_asked_for() -> None:
    # A row of 3 voxels becomes a block of 3 x 2: twice the volume, 20 mm become sqrt(500) = 22.4.
    before, after = line(1, 1, 1, 0), line(1, 1, 1, 0)
    after[0, 1, :3] = True
    assert follow(before, after).lesions[0].status == "growing"
    assert follow(before, after, options=FollowUpOptions(thresholds=RECIST_THRESHOLDS)).lesions[0].status == "stable"


def test_probabilities_over_all_pairs_of_samples() -> None:
    # Volumes 2 and 4 before, 0, 2 and 5 after; pairs: 2-0, 4-0 vanished, 2-2 stable, 4-2 shrinking, 2-5 and 4-5 grow.
    empty = line(0, 0, 0, 0, 0)
    before = [line(1, 1, 0, 0, 0), line(1, 1, 1, 1, 0)]
    after = [empty, line(1, 1, 0, 0, 0), line(1, 1, 1, 1, 1)]
    found = follow(line(1, 1, 1, 0, 0), line(1, 1, 1, 0, 0), (before, after))
    (lesion,) = found.lesions
    expected = {"new": 0, "vanished": 2, "growing": 2, "shrinking": 1, "stable": 1, "absent": 0}
    assert lesion.probability == pytest.approx({status: count / 6 for status, count in expected.items()})
    # Changes -4, -2, -2, 0, 1, 3: the 5 % quantile lies a quarter of the way from -4 to -2.
    assert (lesion.change_ml.low, lesion.change_ml.high) == (pytest.approx(-3.5), pytest.approx(2.5))
    assert found.change_ml == lesion.change_ml


def test_samples_without_the_lesion_at_either_time_are_absent_and_other_lesions_are_not_its_own() -> None:
    far = line(0, 0, 0, 0, 1)
    (lesion,) = follow(line(1, 0, 0, 0, 0), line(0, 0, 0, 0, 0), ([line(1, 0, 0, 0, 0), far], [far, far])).lesions
    assert lesion.status == "vanished"
    assert lesion.probability is not None
    assert (lesion.probability["vanished"], lesion.probability["absent"]) == (0.5, 0.5)


def test_the_matching_rule_decides_what_a_sample_shows_of_a_lesion() -> None:
    near = line(0, 1, 0, 0)
    options = FollowUpOptions(MatchingRule("dilated", dilation_mm=10.0))
    masks = line(1, 0, 0, 0), line(1, 0, 0, 0)
    for chosen, status in ((None, "absent"), (options, "stable")):
        (lesion,) = follow(*masks, ([near, near], [near, near]), chosen).lesions
        assert lesion.probability is not None
        assert lesion.probability[status] == 1  # type: ignore[index]


def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Patient a: 2 ml become 4, with two samples each; patient b: nothing becomes 1 ml, without samples."""
    baseline, follow_up = tmp_path / "before", tmp_path / "after"
    write(baseline / "a.nii.gz", line(1, 1, 0, 0, 0))
    write(follow_up / "a.nii.gz", line(1, 1, 1, 1, 0))
    write(baseline / "b.nii.gz", line(0, 0, 0, 0, 0))
    write(follow_up / "b.nii.gz", line(0, 0, 1, 0, 0))
    for folder, drawn in ((baseline, ([1, 1, 0, 0, 0],) * 2), (follow_up, ([1, 1, 0, 0, 0], [1, 1, 1, 1, 0]))):
        for number, values in enumerate(drawn, start=1):
            write(folder / "samples" / f"a_sample{number}.nii.gz", line(*values))
    return baseline, follow_up


def write(path: Path, mask: np.ndarray, geometry: Geometry = GEOMETRY) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_labels(path, mask.astype(np.uint8), geometry)


def command(*words: str | Path) -> int:
    return usd_evaluate(["--follow-up", *map(str, words), "--labels", "1"])


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().err.split())


def test_command_writes_table_summary_and_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    baseline, follow_up = folders(tmp_path)
    out = tmp_path / "out"
    assert command(baseline, follow_up, "-o", out) == 0
    with open(out / "follow_up.csv", newline="") as stream:
        one, other = csv.DictReader(stream)
    assert (one["case"], one["status"], one["change_percent"], one["p_growing"]) == ("a", "growing", "100", "0.5")
    assert (float(one["change_low_ml"]), float(one["change_high_ml"])) == (pytest.approx(0), pytest.approx(2))
    assert (other["case"], other["status"], other["p_new"], other["follow_up_ml"]) == ("b", "new", "", "1")
    stored = json.loads((out / "follow_up.json").read_text())
    assert stored["classes"]["1"]["lesions"] == {"new": 1, "vanished": 0, "growing": 1, "shrinking": 0, "stable": 0}
    assert (stored["num_patients"], stored["num_patients_with_samples"]) == (2, 1)
    assert stored["patients"][0]["classes"]["1"]["change_high_ml"] == pytest.approx(2)
    page = (out / "follow_up.html").read_text()
    assert all(text in page for text in ("Both time points in pictures", "All lesions", "RECIST 1.1"))
    shown = capsys.readouterr().out
    assert "growing: volume at least 25 % larger; shrinking: at least 25 % smaller" in shown
    assert "(1 of 2 patients)" in shown
    assert sorted(path.name for path in out.iterdir()) == ["follow_up.csv", "follow_up.html", "follow_up.json"]


def test_the_report_shows_sizes_of_small_lesions(tmp_path: Path) -> None:
    """Of 1 and 3 mm3, as in multiple sclerosis: with two decimals both were 0.00 ml."""
    for folder, size in (("first", 1), ("second", 3)):
        mask = np.zeros((2, 4, 5), np.uint8)
        mask[0, 1, :size] = 1
        write_labels(tmp_path / folder / "a.nii.gz", mask, Geometry((1.0, 1.0, 1.0)))
        for number in range(2):
            write_labels(tmp_path / folder / "samples" / f"a_sample{number}.nii.gz", mask, Geometry((1.0, 1.0, 1.0)))
    out = tmp_path / "out"
    assert command(tmp_path / "first", tmp_path / "second", "-o", out) == 0
    page = (out / "follow_up.html").read_text()
    assert page.count(">0.00100</td>") == page.count(">0.00300</td>") == 2  # of the patient and of the lesion
    assert page.count(">0.00200 to 0.00200</td>") == 2


def test_pairs_are_read_from_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    baseline, follow_up = folders(tmp_path)
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("case,baseline,follow_up\npatient 7,b,a\n")
    assert command(baseline, follow_up, "--pairs", pairs, "-o", tmp_path / "out", "--no-report") == 0
    with open(tmp_path / "out/follow_up.csv", newline="") as stream:
        assert [(row["case"], row["status"]) for row in csv.DictReader(stream)] == [("patient 7", "new")]
    assert "2 case(s) without a partner are left out" in capsys.readouterr().out  # a of the baseline, b of the other
    for text, message in (
        ("case,old,new\n", 'must begin with the line "case,baseline,follow_up"'),
        ("case,baseline,follow_up\np,b,c\n", "line 2 names 'c', but"),
        ("case,baseline,follow_up\np,b\n", "line 2 is 'p,b'"),
        ("case,baseline,follow_up\np,b,a\np,a,a\n", "line 3 names the case 'p' again"),
        ("case,baseline,follow_up\n", "names no pair"),
    ):
        pairs.write_text(text)
        assert command(baseline, follow_up, "--pairs", pairs) == 1
        assert message in error_of(capsys)


def test_two_predictions_say_themselves_what_their_values_mean(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    baseline, follow_up = folders(tmp_path)
    words = ["--follow-up", str(baseline), str(follow_up), "--no-report"]
    own, other = ({"names": [name], "members": [[1]], "coding": "binary", "write_values": [1]} for name in "xy")
    for folder, labels in ((baseline, own), (follow_up, own)):
        (folder / "manifest.json").write_text(json.dumps({"labels": labels, "spacing_known": False}))
    assert usd_evaluate(words) == 0
    stored = json.loads((follow_up / "follow_up" / "follow_up.json").read_text())
    assert (stored["settings"]["classes"], stored["spacing_known"]) == ({"x": [1]}, False)
    two = {"names": ["x", "z"], "members": [[1], [2]], "coding": "softmax", "write_values": [1, 2]}
    (baseline / "manifest.json").write_text(json.dumps({"labels": two}))
    assert usd_evaluate(words) == 1
    assert f"{baseline} has the classes x (1), z (2) by its manifest.json" in error_of(capsys)
    assert usd_evaluate(["--follow-up", *(str(folder / "b.nii.gz") for folder in (baseline, follow_up))]) == 1
    assert f"by its manifest.json, but {follow_up / 'manifest.json'} has x (1)" in error_of(capsys)
    (baseline / "manifest.json").write_text(json.dumps({"labels": other}))  # another name of the same value
    assert usd_evaluate(words) == 0


def test_values_that_are_not_followed_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    baseline, follow_up = folders(tmp_path)
    write(follow_up / "b.nii.gz", 3 * line(0, 0, 1, 0, 0))
    assert command(baseline, follow_up, "--no-report") == 0
    assert "Label values that are not followed: 3." in capsys.readouterr().out
    assert usd_evaluate(["--follow-up", str(baseline), str(follow_up), "--labels", "9", "--no-report"]) == 1
    assert "no mask holds any of the label values 9 that are to be scored; they hold 1, 3" in error_of(capsys)


def test_other_grids_and_lone_cases_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    baseline, follow_up = folders(tmp_path)
    write(follow_up / "a.nii.gz", line(1, 1, 1, 1, 0), Geometry((10.0, 10.0, 12.0)))
    write(follow_up / "c.nii.gz", line(1, 0, 0, 0, 0))
    assert command(baseline, follow_up) == 1
    assert "1 case(s) lie in only one of" in error_of(capsys)
    assert command(baseline, follow_up, "--subset") == 1
    message = error_of(capsys)
    assert "a: spacing (10, 10, 10) against (10, 10, 12) mm" in message
    assert "Register the follow-up to the baseline" in message
    assert not (follow_up / "follow_up").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--follow-up", "--raters", "x"], "--raters does not go with --follow-up"),
        (["--follow-up", "--profile", "lits"], "--profile does not go with --follow-up"),
        (["--follow-up", "--bootstrap", "0"], "--bootstrap does not go with --follow-up"),
        (["--follow-up", "--tolerance-mm", "1", "2"], "--tolerance-mm does not go with --follow-up"),
        (["--follow-up", "--seed", "0"], "--seed does not go with --follow-up"),
        (["--follow-up", "--workers", "0"], "--workers does not go with --follow-up"),
        (["--follow-up", "--scheduler", "tcp://a:1"], "--scheduler does not go with --follow-up"),
        (["--grow-percent", "30"], "--grow-percent goes with --follow-up"),
        (["--follow-up", "--grow-mm", "3"], "--grow-mm 3 is a diameter; add --change diameter"),
        (["--follow-up", "--shrink-percent", "130"], "--shrink-percent is 130; a lesion shrinks by at most 100"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    baseline, follow_up = folders(tmp_path)
    assert usd_evaluate([str(baseline), str(follow_up), "--labels", "1", *words]) == 1
    assert message in error_of(capsys)


def test_images_of_2d_have_areas(tmp_path: Path) -> None:
    flat = Geometry((1.0, 2.0, 2.0), is_2d=True)
    before, after = np.zeros((1, 4, 4), bool), np.zeros((1, 4, 4), bool)
    before[0, 0, :2] = after[0, 0, :3] = True
    write(tmp_path / "one/a.nii.gz", before, flat)
    write(tmp_path / "two/a.nii.gz", after, flat)
    assert command(tmp_path / "one", tmp_path / "two", "--change", "diameter", "--grow-mm", "2") == 0
    with open(tmp_path / "two/follow_up/follow_up.csv", newline="") as stream:
        (row,) = csv.DictReader(stream)
    assert (row["baseline_mm2"], row["follow_up_mm2"], row["status"]) == ("8", "12", "growing")
    assert (row["baseline_diameter_mm"], row["follow_up_diameter_mm"]) == ("2", "4")
    solid = np.zeros((2, 4, 4), bool)
    solid[0, 0, :2] = True
    for folder in ("one", "two"):
        write(tmp_path / folder / "b.nii.gz", solid, Geometry((1.0, 2.0, 2.0)))
    assert command(tmp_path / "one", tmp_path / "two") == 0
    written = json.loads((tmp_path / "two/follow_up/follow_up.json").read_text())
    assert written["units"] == {"length": "mm", "size": "ml", "nominal": True}  # beside a volume it is a slice
