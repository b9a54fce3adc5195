"""Plans of a unified data set: the shared grid, what a configuration takes, and each source's own preprocessing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.core.serialization import from_jsonable, to_jsonable
from unisegdiff_pipeline.fingerprint import (
    CaseFingerprint,
    ClassOrder,
    ComponentFacts,
    Fingerprint,
    IntensityStatistics,
    LesionSummary,
    Percentiles,
)
from unisegdiff_pipeline.io.dataset_json import DatasetDescription
from unisegdiff_pipeline.io.sources import Source
from unisegdiff_pipeline.planning.description import describe_plans
from unisegdiff_pipeline.planning.for_weights import WeightsToFollow, plan_for_weights
from unisegdiff_pipeline.planning.planner import plan_dataset
from unisegdiff_pipeline.planning.plans import Budget, LevelPlan, NetworkPlan, Plans

CUDA = Budget("cuda", 8.0, 16)
BINARY = LabelScheme(("lesion",), ((1,),), "binary", (1,))
STATISTICS = IntensityStatistics(0, 1, -3, 0, 3, -2, 2)
Triple = tuple[float, float, float]


def facts(name: str, shape: tuple[int, int, int], spacing_mm: Triple, channels: tuple[str, ...], n: int) -> Fingerprint:
    thickness = Percentiles(*[20.0] * 5)
    case = CaseFingerprint("", None, shape, spacing_mm, shape, 0.1, False, (ComponentFacts("lesion", 0, 0, (), ()),))
    return Fingerprint(
        dataset_name=name,
        is_2d=shape[0] == 1,
        channel_names=channels,
        fraction_of_empty_cases=0.0,
        median_crop_fraction=1.0,
        intensities=(STATISTICS,) * len(channels),
        lesions=(LesionSummary("lesion", 1.0, thickness, thickness, thickness, thickness, 0.1),),
        class_orders=(),
        cases=tuple(replace(case, case_id=f"{name}__{i}", source=name) for i in range(n)),
        direction=None,
    )


PICTURES = facts("Pictures", (1, 200, 200), (1.0, 1.0, 1.0), ("R", "G", "B"), 1000)
SCANS = facts("Scans", (1, 400, 400), (1.0, 1.0, 1.0), ("US",), 10)
VOLUMES = facts("Volumes", (40, 160, 640), (2.0, 0.5, 0.5), ("CT",), 5)


def plan(
    *sources: Fingerprint,
    known: bool | tuple[str, ...] = False,
    labels: LabelScheme = BINARY,
    asked: list[str] | None = None,
) -> Plans:
    """Plans of the sources; none of them knows its spacing but where `known`, or those that it names."""
    entries = tuple(
        Source(f.dataset_name, f"Dataset00{i}", "any", {"lesion": "lesion"}, "") for i, f in enumerate(sources)
    )

    def knows(f: Fingerprint) -> bool:
        return known if isinstance(known, bool) else f.dataset_name in known

    descriptions = {
        f.dataset_name: DatasetDescription(
            f.channel_names, BINARY, ".nii.gz" if not f.is_2d else ".png", knows(f), None, None, {}
        )
        for f in sources
    }
    width = max(len(f.channel_names) for f in sources)
    names = tuple(f"channel_{i}" for i in range(width))
    unified = DatasetDescription(names, labels, ".png", all(map(knows, sources)), None, None, {}, sources=entries)
    together = replace(
        sources[0],
        dataset_name="Dataset500_Unified",
        is_2d=all(f.is_2d for f in sources),
        channel_names=names,
        intensities=(STATISTICS,) * width,
        cases=tuple(case for f in sources for case in f.cases),
        sources={f.dataset_name: f for f in sources},
    )
    return plan_dataset(together, unified, CUDA, asked, source_descriptions=descriptions)


def targets(plans: Plans, configuration: str = "2d") -> dict[str, tuple[float | None, ...]]:
    sources = plans.configurations[configuration].sources
    assert sources is not None
    return {name: source.preprocessing.target_spacing_mm for name, source in sources.plans.items()}


def test_images_of_all_sources_get_the_size_of_the_median_source_on_a_relative_grid() -> None:
    """Edges of 200, 400 and sqrt(160 x 640) = 320 pixels: the median is 320, however many images the first has."""
    plans = plan(PICTURES, SCANS, VOLUMES)
    assert targets(plans) == {
        "Pictures": (None, 0.625, 0.625),
        "Scans": (None, 1.25, 1.25),
        "Volumes": (None, 0.5, 0.5),
    }
    configuration = plans.configurations["2d"]
    assert configuration.sources is not None
    assert configuration.sources.grid == "relative"
    assert configuration.median_shape == (1, 320, 320)
    assert not plans.spacing_known
    assert "Pictures, Scans, Volumes do not know" in plans.decisions["configurations.2d.sources.grid"]
    factor = configuration.sources.learning_rate_factor
    assert plans.decisions["configurations.2d.sources.learning_rate_factor"].startswith(f"{factor:g}: ")


def test_a_source_of_small_lesions_stays_finer_than_a_relative_grid_asks_for() -> None:
    """Brought from 400 to 300 pixels its lesions, 9 pixels thick in the median, would have 6.75: 8 are needed."""
    thin = Percentiles(*[9.0] * 5)
    small = replace(SCANS, lesions=tuple(replace(lesion, main_thickness_mm=thin) for lesion in SCANS.lesions))
    plans = plan(PICTURES, small)
    assert targets(plans) == {"Pictures": (None, 0.666667, 0.666667), "Scans": (None, 1.125, 1.125)}
    assert "too thin" in plans.decisions["configurations.2d.sources.plans.Scans.preprocessing.target_spacing_mm"]
    assert targets(plan(PICTURES, SCANS))["Scans"] == (None, 1.33333, 1.33333)


def test_a_physical_grid_has_one_spacing() -> None:
    plans = plan(PICTURES, SCANS, VOLUMES, known=True)
    assert set(targets(plans).values()) == {(None, 1.0, 1.0)}
    assert plans.configurations["2d"].preprocessing.target_spacing_mm == (None, 1.0, 1.0)
    assert plans.spacing_known


def test_sources_follow_the_spacing_of_weights_on_a_physical_grid_and_stay_on_a_relative_one() -> None:
    levels = tuple(LevelPlan(8 << i, (1, 1) if i == 0 else (2, 2), (3, 3), 2) for i in range(4))
    weights = WeightsToFollow(NetworkPlan(2, (64, 64), 3, levels), (None, 1.25, 1.5), "WEIGHTS")
    found = plan_for_weights(plan(PICTURES, SCANS, VOLUMES, known=True), weights, 1015)
    assert set(targets(found).values()) == {(None, 1.25, 1.5)}
    assert found.configurations["2d"].preprocessing.target_spacing_mm == (None, 1.25, 1.5)
    relative = plan(PICTURES, SCANS, VOLUMES)
    kept = plan_for_weights(replace(relative, spacing_known=True), weights, 1015)
    assert targets(kept) == targets(relative)
    assert "no millimetres" in kept.decisions["configurations.2d.preprocessing.target_spacing_mm"]


def test_a_batch_for_weights_is_bounded_by_the_slices_of_volumes() -> None:
    levels = tuple(LevelPlan(32 << i, (1, 1) if i == 0 else (2, 2), (3, 3), 2) for i in range(4))
    weights = WeightsToFollow(NetworkPlan(2, (64, 64), 1, levels), None, "WEIGHTS")
    planned = plan(VOLUMES)
    found = plan_for_weights(planned, weights, 5)  # cases of 40 slices
    assert planned.configurations["2d"].training.batch_size == found.configurations["2d"].training.batch_size == 10


def test_axes_along_which_the_classes_of_any_source_lie_in_order_are_not_mirrored() -> None:
    def ordered(name: str, axis: int, *shape_and_spacing: Triple) -> Fingerprint:
        (z, y, x), spacing = shape_and_spacing
        share = tuple(float(i == axis) for i in range(3))
        found = facts(name, (int(z), int(y), int(x)), spacing, ("CT",), 20)
        return replace(found, class_orders=(ClassOrder("head", "tail", 20, share),))  # type: ignore[arg-type]

    axial = ordered("Axial", 2, (40, 160, 160), (2.0, 0.5, 0.5))
    sagittal = ordered("Sagittal", 1, (160, 160, 40), (0.5, 0.5, 2.0))  # Y of the files is the network's X
    for sources in ((axial,), (sagittal,), (axial, sagittal)):
        plans = plan(*sources, known=True)
        assert plans.configurations["3d_fullres"].training.mirror_axes == (0, 1)
        reason = plans.decisions["configurations.3d_fullres.training.mirror_axes"]
        assert f"{sources[-1].dataset_name}: all axes but X, on which head and tail" in reason


def test_each_source_keeps_channels_and_normalisation_of_its_own() -> None:
    configuration = plan(PICTURES, VOLUMES).configurations["2d"]
    assert configuration.sources is not None
    pictures, volumes = configuration.sources.plans.values()
    assert (pictures.preprocessing.normalization, pictures.num_images) == (("rgb_to_0_1",) * 3, 1000)
    assert (volumes.preprocessing.normalization, volumes.num_images) == (("ct",), 5 * 40)
    assert (configuration.network.num_input_channels, configuration.preprocessing.normalization) == (3, ("zscore",) * 3)


def test_a_3d_configuration_takes_volumes_and_says_what_is_left_out() -> None:
    plans = plan(PICTURES, SCANS, VOLUMES)
    assert targets(plans, "3d_fullres") == {"Volumes": (2.0, 0.5, 0.5)}
    assert (
        "left out, as they hold 2D images: Pictures, Scans"
        in plans.decisions["configurations.3d_fullres.sources.plans"]
    )
    of_2d, of_3d = describe_plans(plans).splitlines()[1:3]
    assert "left out" not in of_2d
    assert of_3d.endswith("; 1 source: Volumes; left out, as they hold 2D images: Pictures, Scans")
    assert plans.decisions["configurations.3d_fullres.sources.channel_rule"] == (
        "images of fewer than 3 channels repeat theirs: nothing has to be learned"
    )
    assert plan(VOLUMES).decisions["configurations.2d.sources.channel_rule"] == "all images have one channel"
    assert plans.recommended_configuration == "2d"


def test_a_3d_configuration_of_volumes_that_know_their_spacing_is_in_mm_beside_pictures_that_do_not() -> None:
    plans = plan(PICTURES, VOLUMES, known=("Volumes",))
    of_2d, of_3d = describe_plans(plans).splitlines()[1:3]
    assert "mm (nominal), patch" in of_2d
    assert "spacing 2 x 0.5 x 0.5 mm, patch" in of_3d
    configuration = plans.configurations["3d_fullres"]
    weights = WeightsToFollow(configuration.network, (2.5, 0.6, 0.6), "WEIGHTS")
    assert targets(plan_for_weights(plans, weights, 1015), "3d_fullres") == {"Volumes": (2.5, 0.6, 0.6)}


@pytest.mark.parametrize("name", ["3d_fullres", "3d_lowres"])
def test_a_3d_configuration_of_2d_sources_is_refused_by_name(name: str) -> None:
    with pytest.raises(UsdError, match=rf"'{name}' is not planned .*all sources hold 2D images \(Pictures, Scans\)"):
        plan(PICTURES, SCANS, asked=[name])


def test_volumes_meet_in_size_where_one_does_not_know_its_spacing() -> None:
    """Twice the edge along all axes is brought to 1.5 times: the median of two is their mean."""
    twice = facts("Twice", (80, 320, 1280), (2.0, 0.5, 0.5), ("CT",), 5)
    found = targets(plan(VOLUMES, twice), "3d_fullres")
    assert found["Volumes"] == pytest.approx((2 / 1.5, 0.5 / 1.5, 0.5 / 1.5), rel=1e-5)
    assert found["Twice"] == pytest.approx((2 / 0.75, 0.5 / 0.75, 0.5 / 0.75), rel=1e-5)


def test_a_class_that_no_class_of_a_source_becomes_is_not_annotated_there() -> None:
    regions = LabelScheme(("lesion", "organ"), ((1,), (2,)), "regions", (1, 2))
    plans = plan(PICTURES, SCANS, labels=regions)
    sources = plans.configurations["2d"].sources
    assert sources is not None
    assert sources.plans["Scans"].annotated == (True, False)
    assert "organ" in plans.decisions["configurations.2d.sources.plans.Scans.annotated"]


def test_a_unified_plan_is_what_is_read_again() -> None:
    plans = plan(PICTURES, VOLUMES)
    assert from_jsonable(Plans, to_jsonable(plans)) == plans
