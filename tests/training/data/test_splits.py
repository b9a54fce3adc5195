"""Folds and inner hold-out."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from sklearn.model_selection import KFold

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.serialization import write_json
from unisegdiff_pipeline.io.sources import source_of_case
from unisegdiff_pipeline.preprocessing.reference import ReferenceRecord
from unisegdiff_pipeline.training.data.splits import (
    Folds,
    Split,
    group_splits,
    inner_holdout,
    inner_holdout_by_source,
    load_or_create_splits,
    make_splits,
    make_splits_by_source,
    nnunet_splits,
    select_split,
    trainable_cases,
)


def records(count: int, empty: int = 0) -> list[tuple[str, str, float]]:
    return [(f"case{i:03d}", f"case{i:03d}", 0.0 if i < empty else float(2**i)) for i in range(count)]


def test_every_case_is_validated_once() -> None:
    splits = make_splits(records(23))
    validated = Counter(case for split in splits for case in split.val)
    assert set(validated.values()) == {1}
    assert len(validated) == 23
    for split in splits:
        assert set(split.train) | set(split.val) == set(validated)
        assert not set(split.train) & set(split.val)
        assert len(split.val) in (4, 5)


def test_empty_cases_and_volumes_are_spread() -> None:
    cases = records(30, empty=10)
    volume = {case: value for case, _, value in cases}
    for split in make_splits(cases):
        values = sorted(volume[case] for case in split.val)
        assert values.count(0.0) == 2
        assert len(values) == 6
        large = [v for v in values if v >= 2**25]  # the five largest
        assert len(large) == 1


def test_groups_stay_together_and_folds_even() -> None:
    rng = np.random.default_rng(0)
    cases = [(f"g{g}_{i}", f"g{g}", float(rng.random())) for g in range(40) for i in range(1 + g % 5)]
    splits = make_splits(cases)
    for split in splits:
        assert not {c.split("_")[0] for c in split.train} & {c.split("_")[0] for c in split.val}
    sizes = [len(split.val) for split in splits]
    assert max(sizes) - min(sizes) <= 3  # of 24


def test_seed_decides() -> None:
    assert make_splits(records(20)) == make_splits(list(reversed(records(20))))
    assert make_splits(records(20), seed=1) != make_splits(records(20), seed=2)


def test_too_few_cases_or_groups() -> None:
    with pytest.raises(UsdError, match=r"4 cases in 4 groups are too few for 5 folds.*'all'"):
        make_splits(records(4))
    with pytest.raises(UsdError, match="9 cases in 1 group are too few"):
        make_splits([(f"c{i}", "one patient", 1.0) for i in range(9)])


def test_holdout_is_grouped_seeded_and_of_the_right_size() -> None:
    train = [f"case{i:03d}" for i in range(80)]
    groups = {case: f"patient{i // 2}" for i, case in enumerate(train)}
    kept, held = inner_holdout(train, groups, fraction=0.15, seed=3)
    assert len(held) == 12
    assert sorted(kept + held) == train
    assert not {groups[c] for c in kept} & {groups[c] for c in held}
    assert inner_holdout(train, groups, 0.15, 3) == (kept, held)
    assert inner_holdout(train, groups, 0.15, 4) != (kept, held)


def test_holdout_covers_the_volumes() -> None:
    train = [f"case{i:02d}" for i in range(40)]
    volumes = {case: float(i) for i, case in enumerate(train)}
    _, held = inner_holdout(train, {}, 0.1, 0, volumes)
    assert [int(volumes[case]) // 10 for case in held] == [0, 1, 2, 3]


def test_holdout_holds_some_cases_without_lesion() -> None:
    # By volume alone the hold-out of 12 of these 80 has one of the 8 lesion-free cases; a third of them is 2.
    train = [f"case{i:02d}" for i in range(80)]
    volumes = {case: max(0.0, i - 7.0) for i, case in enumerate(train)}
    for seed in range(20):
        kept, held = inner_holdout(train, {}, 0.15, seed, volumes)
        assert len(held) == 12
        assert sum(volumes[case] == 0 for case in held) == 2
        assert sum(volumes[case] == 0 for case in kept) == 6


def test_a_patient_who_has_lesion_free_slices_may_be_held_out_for_them() -> None:
    train = [f"case{i:02d}" for i in range(40)]
    groups = {case: f"patient{i // 2}" for i, case in enumerate(train)}
    volumes = {case: float(i) for i, case in enumerate(train)} | {f"case{i:02d}": 0.0 for i in (11, 13, 15)}
    for seed in range(20):
        kept, held = inner_holdout(train, groups, 0.15, seed, volumes)
        assert not {groups[c] for c in kept} & {groups[c] for c in held}
        assert any(volumes[case] == 0 for case in held)


def test_holdout_of_tiny_sets() -> None:
    kept, held = inner_holdout(["a", "b"], {})
    assert len(kept) == len(held) == 1
    with pytest.raises(UsdError, match="form 1 group"):
        inner_holdout(["a", "b"], {"a": "x", "b": "x"})


@pytest.fixture
def preprocessed(tmp_path: Path) -> Path:
    folder = tmp_path / "preprocessed"
    cases = [ReferenceRecord(f"c{i}", f"g{i // 2}", 0, {"lesion": float(i)}, float(i)) for i in range(12)]
    write_json(folder / "cases.json", cases)
    return folder


def test_splits_are_written_in_nnunet_format_and_read_again(preprocessed: Path) -> None:
    splits = load_or_create_splits(preprocessed)
    written = json.loads((preprocessed / "splits_final.json").read_text())
    assert [sorted(part) for part in written] == [["train", "val"]] * 5
    written.reverse()
    (preprocessed / "splits_final.json").write_text(json.dumps(written))
    assert load_or_create_splits(preprocessed) == splits[::-1]


def test_names_in_splits_may_have_another_unicode_form(tmp_path: Path) -> None:
    cases = [ReferenceRecord(name, name, 0, {"lesion": 1.0}, 1.0) for name in ("M\u00fcller", "Maier")]
    write_json(tmp_path / "cases.json", cases)
    own = [{"train": ["Mu\u0308ller"], "val": ["Maier"]}]
    (tmp_path / "splits_final.json").write_text(json.dumps(own))
    assert load_or_create_splits(tmp_path)[0].train == ("M\u00fcller",)


def test_own_splits_in_the_raw_folder_are_honoured(preprocessed: Path, tmp_path: Path) -> None:
    own = [{"train": [f"c{i}" for i in range(10)], "val": ["c10", "c11"]}]
    (tmp_path / "splits_final.json").write_text(json.dumps(own))
    splits = load_or_create_splits(preprocessed, tmp_path)
    assert [split.val for split in splits] == [("c10", "c11")]
    assert load_or_create_splits(preprocessed) == splits
    own[0]["val"] = ["c10"]
    (tmp_path / "splits_final.json").write_text(json.dumps(own))
    with (
        pytest.warns(UserWarning, match="leaves out 1 of 12"),
        pytest.raises(UsdError, match="differ; delete the one"),
    ):
        load_or_create_splits(preprocessed, tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"train": ["c1", "zz"], "val": ["c2"]}]', r"1 case that is not preprocessed \('zz'\)"),
        ('[{"train": ["c1", "c3", "c1"], "val": ["c2"]}]', "fold 0 names 'c1' more than once in train"),
        ('[{"train": ["c1"], "val": ["c2", "c2"]}]', "fold 0 names 'c2' more than once in val"),
        ("[]", "holds no fold"),
        ('{"train": ["c1"], "val": ["c2"]}', "must be a list"),
        ('[["c1", "c2"]]', r"\[0\] must be an object"),
        ('[{"train": "c1", "val": ["c2"]}]', r"train must be a list"),
        ('[{"train": [1], "val": ["c2"]}]', r"train\[0\] must be a text, not 1"),
        ('[{"train": ["c1", "c2"], "val": ["c2"]}]', "'c2' in both train and val"),
        ('[{"train": [], "val": ["c2"]}]', "no training case"),
        ('[{"train": ["c1"]}]', r"missing key .*val"),
        ("[{", "no valid JSON"),
    ],
)
def test_wrong_splits_are_named(preprocessed: Path, content: str, message: str) -> None:
    (preprocessed / "splits_final.json").write_text(content)
    with pytest.raises(UsdError, match=message):
        load_or_create_splits(preprocessed)


def test_test_cases_of_own_splits_are_in_no_part(preprocessed: Path, tmp_path: Path) -> None:
    """A model on all cases is not trained on them either; those that are not preprocessed play no part."""
    own = [{"train": [f"c{i}" for i in range(8)], "val": ["c8", "c9"], "test": ["c10", "c11", "elsewhere"]}]
    (tmp_path / "splits_final.json").write_text(json.dumps(own))
    splits = load_or_create_splits(preprocessed, tmp_path)
    assert splits == [Split(tuple(own[0]["train"]), ("c8", "c9"), ("c10", "c11", "elsewhere"))]
    assert json.loads((preprocessed / "splits_final.json").read_text()) == own
    assert load_or_create_splits(preprocessed, tmp_path) == splits
    cases = [f"c{i}" for i in range(12)]
    assert trainable_cases(preprocessed, tmp_path, cases) == tuple(f"c{i}" for i in range(10))
    assert trainable_cases(preprocessed, None, cases) == tuple(f"c{i}" for i in range(10))


def test_a_test_case_that_is_trained_on_is_refused(preprocessed: Path) -> None:
    own = [{"train": [f"c{i}" for i in range(10)], "val": ["c10", "c11"], "test": ["c9"]}]
    (preprocessed / "splits_final.json").write_text(json.dumps(own))
    with pytest.raises(UsdError, match="fold 0 trains on or validates 'c9', which are test cases"):
        load_or_create_splits(preprocessed)


def named_as_test(preprocessed: Path, test: object) -> None:
    write_json(preprocessed / "dataset.json", {"test": test})


def test_cases_that_dataset_json_holds_out_are_in_no_fold(preprocessed: Path) -> None:
    """Paths and objects, as others list images without labels there, are no training cases."""
    named_as_test(preprocessed, ["c0", "c5", "./imagesTs/c1.nii.gz", {"image": "./imagesTs/c2.nii.gz"}])
    for fold in load_or_create_splits(preprocessed, num_folds=3):
        assert set(fold.train) | set(fold.val) == {f"c{i}" for i in range(12)} - {"c0", "c5"}
    assert "c0" not in trainable_cases(preprocessed, None, [f"c{i}" for i in range(12)])
    assert trainable_cases(preprocessed, None, ["c0", "c1", "c5"]) == ("c1",)


def test_cases_that_the_raw_dataset_json_holds_out_since_are_in_no_fold(preprocessed: Path, tmp_path: Path) -> None:
    """Without preprocessing again, too; a case that is not preprocessed yet plays no part."""
    named_as_test(tmp_path, ["c0", "not_preprocessed"])
    assert "c0" not in trainable_cases(preprocessed, tmp_path, [f"c{i}" for i in range(12)])
    for fold in load_or_create_splits(preprocessed, tmp_path, num_folds=3, writing=False):
        assert set(fold.train) | set(fold.val) == {f"c{i}" for i in range(1, 12)}
    load_or_create_splits(preprocessed, num_folds=3)
    with pytest.raises(UsdError, match="'c0', which are test cases"):
        load_or_create_splits(preprocessed, tmp_path)


def test_folds_made_before_a_case_was_held_out_are_refused(preprocessed: Path) -> None:
    load_or_create_splits(preprocessed, num_folds=3)
    named_as_test(preprocessed, ["c0"])
    with pytest.raises(UsdError, match="'c0', which are test cases"):
        load_or_create_splits(preprocessed)


@pytest.mark.parametrize(
    ("test", "named"), [(["c12"], "test names 'c12', which are no cases"), ("c1", "must be a list"), ([1], "a list")]
)
def test_what_is_no_test_case_is_named(preprocessed: Path, test: object, named: str) -> None:
    named_as_test(preprocessed, test)
    with pytest.raises(UsdError, match=named):
        load_or_create_splits(preprocessed)


def test_all_cases_held_out_leave_nothing_to_train_on(preprocessed: Path) -> None:
    named_as_test(preprocessed, ["c0", "c1", "c5"])
    with pytest.raises(UsdError, match="no case is left"):
        trainable_cases(preprocessed, None, ["c0", "c1", "c5"])


@pytest.mark.parametrize("folds", ["nnunet", "by-group"])
def test_folds_of_no_case_are_refused(preprocessed: Path, folds: Folds) -> None:
    named_as_test(preprocessed, [f"c{i}" for i in range(12)])
    with pytest.raises(UsdError, match=f"--splits {folds} has no case to make folds of: `test` of dataset.json lists"):
        load_or_create_splits(preprocessed, folds=folds)


def test_leave_one_group_out() -> None:
    splits = group_splits({"a": "x", "b": "y", "c": "x", "d": "z"})
    assert splits == [
        Split(("b", "d"), ("a", "c")),
        Split(("a", "c", "d"), ("b",)),
        Split(("a", "b", "c"), ("d",)),
    ]
    with pytest.raises(UsdError, match=r"groups\.csv names none"):
        group_splits({"a": "a", "b": "b", "c": "c"})
    with pytest.raises(UsdError, match=r"needs three groups.*make 2: x, y"):
        group_splits({"a": "x", "b": "y", "c": "x"})
    copies = {"a": "a", "b": "a", "c": "c", "d": "d"}
    with pytest.raises(UsdError, match=r"groups\.csv names none"):
        group_splits(copies, {"a", "b"})
    assert len(group_splits(copies)) == 3


def test_folds_by_group_are_written_and_asked_for_again(preprocessed: Path) -> None:
    """c0 to c11 are six groups of two."""
    splits = load_or_create_splits(preprocessed, folds="by-group")
    assert [split.val for split in splits[:2]] == [("c0", "c1"), ("c2", "c3")]
    assert len(splits) == 6
    assert load_or_create_splits(preprocessed) == splits
    with pytest.raises(UsdError, match="nnU-Net's folds know no groups"):
        load_or_create_splits(preprocessed, folds="nnunet")
    (preprocessed / "splits_final.json").unlink()
    load_or_create_splits(preprocessed, num_folds=3)
    with pytest.raises(UsdError, match="holds other folds than --splits by-group"):
        load_or_create_splits(preprocessed, folds="by-group")


def test_a_leak_in_own_splits_is_said(preprocessed: Path) -> None:
    own = [{"train": [f"c{i}" for i in range(11)], "val": ["c11"]}]  # c10 and c11 are one group
    (preprocessed / "splits_final.json").write_text(json.dumps(own))
    with pytest.warns(UserWarning, match="fold 0 validates on 1 cases of group 'g5'"):
        load_or_create_splits(preprocessed)


def test_missing_fold(preprocessed: Path) -> None:
    splits = load_or_create_splits(preprocessed)
    assert select_split(splits, 4) == splits[4]
    with pytest.raises(UsdError, match=r"fold 5 does not exist, .*0 to 4"):
        select_split(splits, 5)


@pytest.fixture
def ungrouped(tmp_path: Path) -> Path:
    """Preprocessed data of 12 cases, each a group of its own."""
    folder = tmp_path / "preprocessed"
    names = [f"c{i:02d}" for i in range(12)]
    write_json(folder / "cases.json", [ReferenceRecord(name, name, 0, {"lesion": 1.0}, 1.0) for name in names])
    return folder


def test_folds_of_nnunet_are_those_of_scikit_learn(ungrouped: Path) -> None:
    names = [f"c{i:02d}" for i in range(12)]
    expected = [
        ([names[i] for i in train], [names[i] for i in val])
        for train, val in KFold(5, shuffle=True, random_state=12345).split(names)
    ]
    assert [len(val) for _, val in expected] == [3, 3, 2, 2, 2]
    splits = load_or_create_splits(ungrouped, folds="nnunet")
    assert [(list(split.train), list(split.val)) for split in splits] == expected
    assert load_or_create_splits(ungrouped) == splits  # written, and used by every training that follows
    assert nnunet_splits({name: name for name in reversed(names)}) == splits
    assert all(type(name) is str for split in splits for name in split.train)


def test_folds_of_nnunet_are_refused_where_groups_would_be_torn(preprocessed: Path) -> None:
    with pytest.raises(
        UsdError, match=r"groups\.csv or identical images put 2 cases into group 'g0'.*leave --splits nnunet out"
    ):
        load_or_create_splits(preprocessed, folds="nnunet")
    assert not (preprocessed / "splits_final.json").exists()
    with pytest.raises(UsdError, match="4 cases are too few for the 5 folds"):
        nnunet_splits({name: name for name in "abcd"})


def test_other_folds_that_are_there_are_not_taken_for_nnunets(ungrouped: Path, tmp_path: Path) -> None:
    default = load_or_create_splits(ungrouped)
    with pytest.raises(UsdError, match=r"splits_final\.json holds other folds than --splits nnunet would make"):
        load_or_create_splits(ungrouped, folds="nnunet")
    assert load_or_create_splits(ungrouped) == default
    (ungrouped / "splits_final.json").unlink()
    expected = nnunet_splits({case: case for case in names_of(default)})
    theirs = [{"train": list(reversed(split.train)), "val": list(split.val)} for split in expected]
    (tmp_path / "splits_final.json").write_text(json.dumps(theirs))
    assert load_or_create_splits(ungrouped, tmp_path, folds="nnunet")[0].val == tuple(theirs[0]["val"])


def names_of(splits: list[Split]) -> list[str]:
    return sorted((*splits[0].train, *splits[0].val))


def test_folds_of_a_unified_data_set_are_those_of_its_sources() -> None:
    first = [(f"A__{i:02d}", f"A__{i:02d}", float(i)) for i in range(12)]
    second = [(f"B__{i:02d}", f"B__g{i // 2}", float(i)) for i in range(6)]
    joined = make_splits_by_source(first + second)
    assert [tuple(c for c in s.val if c.startswith("A")) for s in joined] == [s.val for s in make_splits(first)]
    of_second = [[c for c in split.val if c.startswith("B")] for split in joined]
    assert [len(cases) for cases in of_second] == [2, 2, 2, 0, 0]  # three groups for five folds
    assert all(len(split.train) + len(split.val) == 18 for split in joined)


def test_a_small_source_whose_images_another_one_has_is_never_kept_from_training_whole() -> None:
    """B's two images are copies of two that one fold of A validates."""
    first = [(f"A__{i:02d}", f"A__{i:02d}", float(i)) for i in range(10)]
    shared = make_splits(first)[2].val
    assert len(shared) == 2
    records = [*first, *((f"B__{i}", group, 1.0) for i, group in enumerate(shared))]
    groups = {case: group for case, group, _ in records}
    splits = make_splits_by_source(records)
    assert Counter(case for split in splits for case in split.val) == Counter(list(groups))
    assert all({source_of_case(case) for case in split.train} == {"A", "B"} for split in splits)
    for seed in range(20):
        kept, held = inner_holdout_by_source(list(groups), groups, 0.5, seed)
        assert {source_of_case(case) for case in kept} == {source_of_case(case) for case in held} == {"A", "B"}
        assert len({groups[case] for case in held}) in (5, 6)  # half of A, and one of B where that has none of it


def test_images_that_two_sources_share_are_never_on_both_sides() -> None:
    """Copies are one group; the volumes differ, so that each source alone would put them into other folds."""
    first = [(f"A__{i:02d}", f"A__{i:02d}", float(i)) for i in range(10)]
    copies = [(f"B__{i:02d}", f"A__{9 - i:02d}", float(i * 7 % 10)) for i in range(10)]
    lone = [("C__0", "A__03", 1.0)]  # a source of one group, which by itself is trained on only
    records = first + copies + lone
    groups = {case: group for case, group, _ in records}
    volumes = {case: volume for case, _, volume in records}
    joined = make_splits_by_source(records)
    assert [tuple(c for c in s.val if c.startswith("A")) for s in joined] == [s.val for s in make_splits(first)]
    for split in joined:
        assert len(split.train) + len(split.val) == 21
        assert not {groups[case] for case in split.train} & {groups[case] for case in split.val}
        for seed in range(5):
            kept, held = inner_holdout_by_source(split.train, groups, 0.3, seed, volumes)
            assert sorted(kept + held) == sorted(split.train)
            assert kept
            assert held
            assert not {groups[case] for case in kept} & {groups[case] for case in held}
