"""Decisions of the planner on made-up fingerprints and on the stored ones of real data sets."""

from __future__ import annotations

import math
import re
from dataclasses import fields, replace
from pathlib import Path

import pytest

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.core.serialization import from_jsonable, read_dataclass, to_jsonable
from unisegdiff_pipeline.fingerprint import (
    CaseFingerprint,
    ComponentFacts,
    Fingerprint,
    IntensityStatistics,
    LesionSummary,
    Percentiles,
)
from unisegdiff_pipeline.io.dataset_json import DatasetDescription
from unisegdiff_pipeline.planning.planner import plan_dataset
from unisegdiff_pipeline.planning.plans import Budget, CascadePlan, Plans
from unisegdiff_pipeline.planning.topology import feature_map_values, multiply_adds

STORED = Path(__file__).resolve().parents[2] / "plans"
CPU, CUDA = Budget("cpu", 16.0, 2), Budget("cuda", 8.0, 16)
Triple = tuple[float, float, float]


def make_fingerprint(
    shape: tuple[int, int, int], spacing_mm: Triple, thickness_mm: float = 20.0, num_cases: int = 40
) -> Fingerprint:
    """A data set of equal cases with one class whose components are all `thickness_mm` thick."""
    same = Percentiles(*([thickness_mm] * 5))
    case = CaseFingerprint("a", None, shape, spacing_mm, shape, 0.05, False, (ComponentFacts("lesion", 0, 0, (), ()),))
    return Fingerprint(
        dataset_name="Dataset001_Made",
        is_2d=shape[0] == 1,
        channel_names=("MRI",),
        fraction_of_empty_cases=0.0,
        median_crop_fraction=1.0,
        intensities=(IntensityStatistics(0, 1, -3, 0, 3, -2, 2),),
        lesions=(LesionSummary("lesion", 1.0, same, same, same, same, 0.05),),
        class_orders=(),
        cases=tuple(replace(case, case_id=f"case_{i}") for i in range(num_cases)),
        direction=None,
    )


def describe(channel_names: tuple[str, ...] = ("MRI",), ending: str = ".nii.gz") -> DatasetDescription:
    """A binary task."""
    labels = LabelScheme(("lesion",), ((1,),), "binary", (1,))
    return DatasetDescription(channel_names, labels, ending, True, None, None, {})


def stored_plans(name: str, budget: str) -> Plans:
    return read_dataclass(Plans, STORED / name / f"plans_{budget}.json")


# What nnU-Net 2.8.1 plans from the same facts for 8 GB: patch, batch, features of the last level, number of levels
NNUNET = [
    ("Dataset004_Hippocampus", "2d", (56, 40), 141, 256, 4),
    ("Dataset004_Hippocampus", "3d_fullres", (40, 56, 40), 4, 256, 4),
    ("Dataset101_BUSI", "2d", (512, 640), 4, 512, 8),
    ("Dataset102_Polyp", "2d", (320, 320), 7, 512, 7),
    ("Dataset104_Glioma", "2d", (192, 160), 32, 512, 6),
    ("Dataset104_Glioma", "3d_fullres", (128, 128, 128), 2, 320, 6),
    ("Dataset105_EBHI", "2d", (224, 224), 4, 512, 6),
    ("Dataset106_EMIDEC", "2d", (256, 256), 16, 512, 7),
    ("Dataset106_EMIDEC", "3d_fullres", (7, 256, 256), 2, 320, 7),
    ("Dataset108_LIDC4R", "2d", (128, 128), 36, 512, 6),
]


@pytest.mark.parametrize(("dataset", "name", "patch", "batch", "features", "levels"), NNUNET)
def test_gpu_plans_are_those_of_nnunet(
    dataset: str, name: str, patch: tuple[int, ...], batch: int, features: int, levels: int
) -> None:
    plan = stored_plans(dataset, "cuda_8_gb").configurations[name]
    assert plan.network.patch_size == patch
    assert plan.training.batch_size == batch
    assert (plan.network.levels[-1].features, len(plan.network.levels)) == (features, levels)


def test_hippocampus_on_two_cores() -> None:
    plans = stored_plans("Dataset004_Hippocampus", "cpu_2_cores")
    network = plans.configurations["3d_fullres"].network
    assert plans.recommended_configuration == "3d_fullres"
    assert network.patch_size == (40, 56, 40)
    assert [level.features for level in network.levels] == [16, 32, 64, 128]
    assert plans.configurations["3d_fullres"].training.batch_size == 2


def test_ultrasound_is_coarsened_on_two_cores_and_nodules_are_not() -> None:
    busi = stored_plans("Dataset101_BUSI", "cpu_2_cores").configurations["2d"]
    assert busi.network.patch_size == (128, 160)
    assert 3.5 < busi.preprocessing.target_spacing_mm[1] <= 4.0
    nodules = stored_plans("Dataset108_LIDC4R", "cpu_2_cores").configurations["2d"]
    assert nodules.network.patch_size == (128, 128)
    assert nodules.preprocessing.target_spacing_mm == (None, 1.0, 1.0)


@pytest.mark.parametrize("file", sorted(STORED.glob("*/plans_cpu_2_cores.json")), ids=lambda f: f.parent.name)
def test_cpu_plans_stay_within_the_budget_of_an_iteration(file: Path) -> None:
    plans = read_dataclass(Plans, file)
    for plan in plans.configurations.values():
        cost = 3 * plan.training.batch_size * multiply_adds(plan.network, plans.labels.num_channels)
        assert cost <= 30e9


@pytest.mark.parametrize("shape", [(1, 256, 256), (64, 64, 64)])
def test_a_batch_for_many_cores_fits_the_memory(shape: tuple[int, int, int]) -> None:
    plans = plan_dataset(make_fingerprint(shape, (1.0, 1.0, 1.0), num_cases=10_000), describe(), Budget("cpu", 1.0, 16))
    for configuration in plans.configurations.values():
        dims = configuration.network.dims
        limit = {2: 12 * 85e6, 3: 2 * 560e6}[dims] / 8  # nnU-Net's values for 8 GB
        needed = configuration.training.batch_size * feature_map_values(configuration.network, 1)
        assert needed <= limit, configuration.name


def test_a_batch_of_very_many_tiny_pictures_is_one_that_a_plan_may_hold() -> None:
    plans = plan_dataset(make_fingerprint((1, 16, 16), (1.0, 1.0, 1.0), num_cases=100_000), describe(), CUDA)
    assert plans.configurations["2d"].training.batch_size == 4096
    assert from_jsonable(Plans, to_jsonable(plans)) == plans


@pytest.mark.parametrize("shape", [(1, 12_000, 12_000), (1, 1, 20_000)])
def test_very_large_pictures_are_planned(shape: tuple[int, int, int]) -> None:
    plans = plan_dataset(make_fingerprint(shape, (1.0, 1.0, 1.0)), describe(), CPU)
    assert from_jsonable(Plans, to_jsonable(plans)) == plans
    assert max(plans.configurations["2d"].network.patch_size) <= 2048


def test_more_cores_allow_a_larger_patch() -> None:
    fingerprint = make_fingerprint((128, 128, 128), (1.0, 1.0, 1.0))
    patches = [
        plan_dataset(fingerprint, describe(), Budget("cpu", 64.0, cores)).configurations["3d_fullres"].network
        for cores in (1, 2, 8)
    ]
    sizes = [math.prod(network.patch_size) for network in patches]
    assert sizes[0] < sizes[1] < sizes[2]


def test_thin_lesions_forbid_coarsening() -> None:
    thin = plan_dataset(make_fingerprint((1, 512, 512), (1.0, 1.0, 1.0), 8.0), describe(), CPU).configurations["2d"]
    assert thin.preprocessing.target_spacing_mm == (None, 1.0, 1.0)
    assert max(thin.network.patch_size) < 256
    medium = plan_dataset(make_fingerprint((1, 512, 512), (1.0, 1.0, 1.0), 16.0), describe(), CPU)
    assert medium.configurations["2d"].preprocessing.target_spacing_mm == (None, 2.0, 2.0)
    assert "lesion would be thinner" in medium.decisions["configurations.2d.preprocessing.target_spacing_mm"]


def test_stack_of_few_thick_slices_is_planned_in_2d_but_3d_is_offered() -> None:
    plans = plan_dataset(make_fingerprint((6, 200, 200), (10.0, 1.5, 1.5)), describe(), CUDA)
    assert plans.recommended_configuration == "2d"
    assert "3d_fullres" in plans.configurations
    assert plans.configurations["3d_fullres"].training.dummy_2d_augmentation


def test_lowres_for_large_volumes_only() -> None:
    large = plan_dataset(make_fingerprint((512, 512, 512), (1.0, 1.0, 1.0)), describe(), CUDA)
    lowres = large.configurations["3d_lowres"]
    assert math.prod(lowres.network.patch_size) >= 0.25 * 0.95 * math.prod(lowres.median_shape)
    assert large.configurations["3d_fullres"].training.batch_dice
    small = plan_dataset(make_fingerprint((64, 64, 64), (1.0, 1.0, 1.0)), describe(), CUDA)
    assert "3d_lowres" not in small.configurations
    assert "not made" in small.decisions["configurations.3d_lowres"]
    assert "3d_cascade_fullres" not in small.configurations
    assert "3d_lowres, which is not made" in small.decisions["configurations.3d_cascade_fullres"]


def two_classes() -> DatasetDescription:
    labels = LabelScheme(("liver", "tumour"), ((1,), (2,)), "softmax", (1, 2))
    return replace(describe(), labels=labels)


@pytest.mark.parametrize("budget", [CPU, CUDA], ids=["cpu", "cuda"])
def test_cascade_stands_beside_lowres_and_takes_a_channel_for_each_class(budget: Budget) -> None:
    plans = plan_dataset(make_fingerprint((512, 512, 512), (1.0, 1.0, 1.0)), two_classes(), budget)
    fullres, cascade = (plans.configurations[name] for name in ("3d_fullres", "3d_cascade_fullres"))
    assert cascade.cascade == CascadePlan(masks_of="3d_lowres", cases_of="3d_fullres")
    assert (fullres.cases_of, cascade.cases_of) == ("3d_fullres", "3d_fullres")
    assert (fullres.network.num_input_channels, cascade.network.num_input_channels) == (1, 1 + 2)
    assert cascade.preprocessing == fullres.preprocessing
    assert cascade.training.batch_dice
    if budget is CUDA:  # as in nnU-Net: the same patch, batch and levels
        assert replace(cascade.network, num_input_channels=1) == fullres.network
        assert cascade.training == fullres.training
    assert from_jsonable(Plans, to_jsonable(plans)) == plans


def test_a_cascade_is_chosen_with_what_it_stands_on() -> None:
    large = make_fingerprint((512, 512, 512), (1.0, 1.0, 1.0))
    plans = plan_dataset(large, describe(), CUDA, ["3d_cascade_fullres"])
    assert list(plans.configurations) == ["3d_fullres", "3d_lowres", "3d_cascade_fullres"]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("cascade", CascadePlan("3d_low", "3d_fullres"), "masks_of is '3d_low'; allowed is another"),
        ("cascade", CascadePlan("3d_lowres", "3d_cascade_fullres"), "cases_of is '3d_cascade_fullres'; allowed is"),
        ("cascade", CascadePlan("3d_fullres", "3d_lowres"), "preprocessing differs from that of 3d_lowres"),
        ("cascade", None, "num_input_channels is 2; channel_names has 1"),
    ],
)
def test_a_cascade_that_does_not_fit_is_refused(key: str, value: object, message: str) -> None:
    plans = plan_dataset(make_fingerprint((512, 512, 512), (1.0, 1.0, 1.0)), describe(), CUDA)
    edited = replace(plans.configurations["3d_cascade_fullres"], **{key: value})
    with pytest.raises(UsdError, match=f"configurations.3d_cascade_fullres.*{message}"):
        replace(plans, configurations={**plans.configurations, "3d_cascade_fullres": edited})


def test_plans_survive_a_round_trip_through_json() -> None:
    plans = plan_dataset(make_fingerprint((64, 64, 64), (1.0, 1.0, 1.0)), describe(), CPU)
    assert from_jsonable(Plans, to_jsonable(plans)) == plans


def test_mirror_axes_are_those_of_the_patch_and_checked(tmp_path: Path) -> None:
    plans = stored_plans("Dataset004_Hippocampus", "cpu_2_cores")
    slices, volumes = plans.configurations["2d"], plans.configurations["3d_fullres"]
    assert slices.training.mirror_axes == volumes.training.mirror_axes == (2,)
    assert (slices.patch_mirror_axes, volumes.patch_mirror_axes) == ((1,), (2,))
    text = (STORED / "Dataset004_Hippocampus" / "plans_cpu_2_cores.json").read_text()
    (tmp_path / "plans.json").write_text(text.replace('"mirror_axes": [2]', '"mirror_axes": [3]'))
    with pytest.raises(UsdError, match=r"plans\.json: .*training: mirror_axes is \[3\]; allowed are 0, 1 and 2"):
        read_dataclass(Plans, tmp_path / "plans.json")


def test_only_the_wanted_configurations_and_their_reasons() -> None:
    plans = plan_dataset(make_fingerprint((64, 64, 64), (1.0, 1.0, 1.0)), describe(), CPU, ["3d_fullres"])
    assert list(plans.configurations) == ["3d_fullres"]
    assert plans.recommended_configuration == "3d_fullres"
    assert not any(key.startswith("configurations.2d.") for key in plans.decisions)


def test_impossible_configurations_are_named_with_the_reason() -> None:
    flat = make_fingerprint((1, 64, 64), (1.0, 1.0, 1.0))
    with pytest.raises(UsdError, match=r"3d_fullres.*images are 2D"):
        plan_dataset(flat, describe(), CPU, ["3d_fullres"])
    with pytest.raises(UsdError, match="'3d' is unknown; allowed are 2d, 3d_fullres, 3d_lowres"):
        plan_dataset(flat, describe(), CPU, ["3d"])


def test_every_configuration_has_its_reasons() -> None:
    plans = plan_dataset(make_fingerprint((512, 512, 512), (1.0, 1.0, 1.0)), describe(), CUDA)
    for name in plans.configurations:
        for field in ("preprocessing.target_spacing_mm", "network.patch_size", "network.levels", "training.batch_size"):
            assert plans.decisions[f"configurations.{name}.{field}"]


FACTS = {"network.dims", "network.num_input_channels"}  # of the configuration and the data, nothing to decide


def field_at(plans: Plans, path: str) -> object:
    """The field that a key of `decisions` names; AttributeError, KeyError or IndexError where there is none."""
    result: object = plans
    for name in re.findall(r"\w+", path):
        if isinstance(result, dict):
            result = result[name]
        elif isinstance(result, tuple):
            result = result[int(name)]
        else:
            result = getattr(result, name)
    return result


@pytest.mark.parametrize("file", sorted(STORED.glob("*/plans_*.json")), ids=lambda f: f"{f.parent.name}/{f.stem}")
def test_every_decision_names_a_field_or_a_configuration_that_was_not_made(file: Path) -> None:
    plans = read_dataclass(Plans, file)
    for key, reason in plans.decisions.items():
        name = key.removeprefix("configurations.")
        if name in ("3d_lowres", "3d_cascade_fullres") and name not in plans.configurations:
            assert reason.startswith("not made")
        else:
            field_at(plans, key)


@pytest.mark.parametrize("file", sorted(STORED.glob("*/plans_*.json")), ids=lambda f: f"{f.parent.name}/{f.stem}")
def test_every_field_that_is_decided_has_its_reason(file: Path) -> None:
    plans = read_dataclass(Plans, file)
    for name, configuration in plans.configurations.items():
        for part in ("preprocessing", "network", "denoiser", "training"):
            names = {f"{part}.{field.name}" for field in fields(getattr(configuration, part))} - FACTS
            decided = {
                key.removeprefix(f"configurations.{name}.").split("[")[0]
                for key in plans.decisions
                if key.startswith(f"configurations.{name}.{part}.")
            }
            assert decided == names


def test_classes_that_never_occur_do_not_break_planning() -> None:
    fingerprint = make_fingerprint((1, 300, 300), (1.0, 1.0, 1.0))
    absent = LesionSummary("lesion", 0.0, None, None, None, None, 0.0)
    plans = plan_dataset(replace(fingerprint, lesions=(absent,)), describe(), CPU)
    assert plans.recommended_configuration == "2d"
