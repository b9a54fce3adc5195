"""How a time budget is shared: choosing and the final validation lie inside it, however long they take."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.diffusion.samplers import SamplerSettings
from unisegdiff_pipeline.inference.case_prediction import SamplingFacts
from unisegdiff_pipeline.preprocessing.storage import StoredCase
from unisegdiff_pipeline.selection.sampler import FULL_SEARCH, QUICK_SEARCH, SHORT_SEARCH, Search
from unisegdiff_pipeline.training import time_budget as module
from unisegdiff_pipeline.training.interrupt import StopRequest, TimeLimit
from unisegdiff_pipeline.training.time_budget import (
    Costs,
    affordable_cases,
    as_trained,
    measure_costs,
    phase_1_budget,
    phase_2_budget,
    phase_iterations,
    within_budget,
)
from unisegdiff_pipeline.training.trainers.diffusion import DiffusionTrainer
from unisegdiff_pipeline.training.trainers.segmentation import SegmentationTrainer


class Log:
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.report_s = 0.0

    def say(self, line: str) -> None:
        self.said.append(line)


def run_of(max_time_s: float, seconds: float = 0.0, num_cases: int = 10) -> Any:
    cases = tuple("abcdefghijklmnopqrstuvwxyz"[:num_cases])
    return SimpleNamespace(
        request=SimpleNamespace(max_time_s=max_time_s, iterations=None, epochs=None),
        plans=SimpleNamespace(labels=SimpleNamespace(coding="binary", num_channels=1)),
        configuration=SimpleNamespace(sources=None),
        holdout_cases=("h", "i", "j"),
        validation_cases=cases,
        monitored_cases=(),
        watch=SimpleNamespace(seconds=seconds),
        device=torch.device("cpu"),
        held_out=None,
        log=Log(),
        stop=StopRequest(),
        is_asked_to_end=False,
    )


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets what one case costs with untrained weights, without a network."""

    def measure(costs: Costs) -> None:
        monkeypatch.setattr(module, "build_model", lambda *_: nn.Identity())
        monkeypatch.setattr(module, "measure_costs", lambda run, model: costs)

    return measure


def test_by_hand() -> None:
    costs = Costs(segment_s=1.0)
    # 10 cases segmented and restored, 1 monitored one scored once more, 5 s and 2 % for what is unforeseen
    assert costs.final_s(run_of(100)) == 10 * 2 + 1 + 5 + 2
    assert costs.final_s(run_of(100), largest_fraction=0.1) == 10 + 5 + 2


def test_phase_2_leaves_the_time_that_validation_takes() -> None:
    run, costs = run_of(200, seconds=30), Costs(segment_s=1.0, sample_s=0.75)
    budget = phase_2_budget(run, 0.75, costs, start_s=30)
    assert budget.seconds is not None
    # 80 s, which is 0.4 of the budget, for choosing and validation; 9 s for what is unforeseen
    assert budget.seconds == pytest.approx(200 - 30 - 80 - 9)
    assert run.log.said == []


@pytest.mark.parametrize(
    ("max_time_s", "search", "left_out"),
    [(1500, FULL_SEARCH, ()), (1100, SHORT_SEARCH, (5,)), (100, QUICK_SEARCH, (5, 3))],
)
def test_where_time_is_short_choosing_and_validation_give_way(
    max_time_s: float, search: Search, left_out: tuple[int, ...]
) -> None:
    run, costs = run_of(max_time_s, seconds=40), Costs(segment_s=0.2, sample_s=2.0)
    found = within_budget(run, costs, 40)
    assert found == Costs(0.2, 2.0, search)
    assert run.log.said == [f"time is short: samplers of {calls} network calls are not tried" for calls in left_out]


def test_seconds_of_a_search_by_hand() -> None:
    # 2 held-out cases with 12 passes and 5 samplings, 10 validated, 1 monitored with half of the samples
    quick = Costs(segment_s=0.2, sample_s=2.0, search=QUICK_SEARCH)
    assert quick.final_s(run_of(100)) == pytest.approx(2 * (2.4 + 10) + 10 * (0.4 + 2) + (0.2 + 1) + 5 + 2)


def test_settings_are_chosen_on_fewer_cases_where_a_case_takes_longer_by_then(measured: Any) -> None:
    search = Search((), samplings_per_case=1.0)
    run = run_of(100, seconds=40, num_cases=5)
    run.holdout_cases = tuple(map(str, range(30)))
    planned = Costs(segment_s=0.05, sample_s=0.1, search=search)
    assert len(planned.choosing_cases(run)) == 14  # 0.6 + 0.1 s each, in a tenth of 100 s
    measured(planned)
    assert affordable_cases(run, nn.Identity(), planned) == (  # type: ignore[arg-type]
        planned.choosing_cases(run),
        pytest.approx(100 - 40 - 5 - 5 * (0.1 + 0.1)),
    )
    measured(Costs(segment_s=0.3, sample_s=0.5))
    # 60 s are left; 5 for what is unforeseen, 5 cases of 0.6 + 0.5 s to validate, 4.1 s a case to choose on
    assert affordable_cases(run, nn.Identity(), planned) == (run.holdout_cases[:12], pytest.approx(49.5))  # type: ignore[arg-type]
    # validation, which would take 110 s, leaves half of the 55 s; a case to choose on takes 122 s, its temperature less
    measured(Costs(segment_s=10.0, sample_s=2.0))
    assert affordable_cases(run, nn.Identity(), planned) == (run.holdout_cases[:6], pytest.approx(27.5))  # type: ignore[arg-type]
    run.watch.seconds = 96  # with the 5 s for what is unforeseen, more than there are
    assert affordable_cases(run, nn.Identity(), planned) == ((), pytest.approx(-1))  # type: ignore[arg-type]


def test_the_least_number_of_cases_gives_way_to_the_budget() -> None:
    run = run_of(100)
    run.holdout_cases = tuple(map(str, range(30)))
    # of 100 s: a tenth for choosing, of cases of 12 passes each; six where they take three tenths at most
    assert len(Costs(segment_s=0.05).choosing_cases(run)) == 16
    assert len(Costs(segment_s=0.3).choosing_cases(run)) == 6
    assert len(Costs(segment_s=1.0).choosing_cases(run)) == 2
    assert Costs(segment_s=3.0).choosing_cases(run) == ()
    assert Costs(segment_s=3.0).monitored_cases(run) == Costs(segment_s=4.0).described_cases(run) == ()


def test_phase_2_has_its_least_share_and_what_follows_is_shortened() -> None:
    run = run_of(100, seconds=60)
    budget = phase_2_budget(run, 0.75, Costs(segment_s=1.0, sample_s=0.75), start_s=60)
    assert budget.seconds == 15.0
    (line,) = run.log.said
    assert "they are shortened, so that phase 2 gets 15.0 s" in line
    assert phase_2_budget(run, 0.75, Costs(segment_s=1.0, sample_s=0.75), start_s=90).seconds == 5.0
    assert phase_2_budget(run, 0.75, Costs(segment_s=1.0, sample_s=0.75), start_s=110).seconds == 1.0


@pytest.mark.parametrize(
    ("max_time_s", "sample_s", "kept"),
    [
        (100, 0.0, 18.5),  # as measured: 10 cases validated, 3 monitored, 7 s for what is unforeseen
        (300, 0.5, 56.0),  # a full search would take more: 0.15 of the time, and 11 s
        (100, 0.25, 42.5),  # even the shortest search takes more, and is kept
        (100, 50.0, 47.0),  # as far as 0.4 of the time
        (15, 50.0, 9.0),  # and never more than 0.6 of what is left
    ],
)
def test_phase_1_keeps_what_untrained_weights_take(
    measured: Any, max_time_s: float, sample_s: float, kept: float
) -> None:
    measured(Costs(segment_s=0.5, sample_s=sample_s))
    assert phase_1_budget(run_of(max_time_s), 0.75).seconds == pytest.approx(0.75 * (max_time_s - kept))


def test_phase_1_is_as_long_in_a_later_session(measured: Any) -> None:
    measured(Costs(segment_s=0.5))
    began, continued = run_of(100, seconds=2), run_of(100, seconds=40)
    assert phase_1_budget(continued, 0.75, start_s=2) == phase_1_budget(began, 0.75)


def test_phase_1_has_a_moment_where_the_time_is_over_before_it_begins(measured: Any) -> None:
    measured(Costs(segment_s=0.5))
    assert phase_1_budget(run_of(100, seconds=110), 0.75).seconds == 1.0


def test_a_budget_that_the_validation_fills_is_said_and_leaves_time_to_train(measured: Any) -> None:
    measured(Costs(segment_s=4.0))
    run = run_of(50, seconds=3)
    # 47 s are left; the end would take 20 s and 6 s for what is unforeseen: phase 1 has its fraction of what remains
    assert phase_1_budget(run, 0.75).seconds == pytest.approx(0.75 * 21)
    (line,) = run.log.said
    assert line.startswith("--max-time 50 s is short: segmenting the 10 validation cases alone may take 40.0 s")


class Tiles:
    """Stands for a prediction: each tile takes `segment_s`, and `sample_s` with 8 samples if it holds anything."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, segment_s: float, sample_s: float, active: int) -> None:
        self.clock, self.segment_s, self.sample_s, self.active = 0.0, segment_s, sample_s, active
        self.calls: list[tuple[tuple[int, ...], int]] = []
        self.sampler: SamplerSettings | None = None
        monkeypatch.setattr(module, "predict_stored", self.predict)
        monkeypatch.setattr(module, "fallback_length_mm", lambda *_: 16.0)
        monkeypatch.setattr(module.time, "monotonic", lambda: self.clock)

    def predict(self, run: Any, model: Any, stored: Any, settings: Any, num_samples: int, keep_samples: bool) -> Any:
        tiles = 125 if stored.image.shape[1:] == (24, 24, 24) else 1
        active = min(tiles, self.active)
        segmented, sampled = tiles * self.segment_s, active * self.sample_s * num_samples / 8
        self.calls.append((stored.image.shape, num_samples))
        self.sampler = settings.mask_sampler
        self.clock += segmented + sampled
        facts = SamplingFacts(tiles, active, 0, segmented, sampled)
        return SimpleNamespace(facts=facts)


@dataclass(frozen=True)
class Stored:
    """A volume of 5 x 5 x 5 tiles of 8 voxels, with one lesion."""

    image: np.ndarray
    components: Any
    mask: None = None
    within = StoredCase.within


def volume_run(max_time_s: float) -> Any:
    run = run_of(max_time_s)
    run.request.seed = 0
    run.configuration = SimpleNamespace(
        network=SimpleNamespace(patch_size=(8, 8, 8)),
        stages=SimpleNamespace(lam_a=-4.0, lam_c=-1.0, input_scale=()),
        sources=None,
    )
    components = SimpleNamespace(num_voxels=[7], draw=lambda *_: (1, 23, 12))
    run.data = SimpleNamespace(open=lambda case_id: Stored(np.zeros((4, 24, 24, 24), np.float32), components))
    return run


MODEL: Any = SimpleNamespace(denoiser=nn.Identity(), segmenter=SimpleNamespace(divisor=(8, 8, 8)))


def test_a_tile_is_timed_where_a_whole_case_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    tiles = Tiles(monkeypatch, segment_s=0.1, sample_s=0.4, active=3)
    run = volume_run(100)
    # 1.25 s to measure in; the whole case would take 12.5 s and more. All tiles are taken to be sampled.
    assert measure_costs(run, MODEL) == Costs(pytest.approx(12.5), pytest.approx(50.0))  # type: ignore[arg-type]
    assert {shape for shape, _ in tiles.calls} == {(4, 8, 8, 8)}
    assert tiles.clock < 1.25
    # Masks are drawn by fields, as they will be: most of the time may go into these.
    assert tiles.sampler is not None
    assert (tiles.sampler.total_calls, tiles.sampler.method, tiles.sampler.draw) == (2, "hard", True)
    assert tiles.sampler.correlation_length_mm == tiles.sampler.surface_length_mm == 16.0
    assert run.log.said == ["timing the prediction of one of 125 tiles of a case"]


def test_the_case_of_most_voxels_is_timed_and_not_the_one_of_most_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    tiles = Tiles(monkeypatch, segment_s=0.1, sample_s=0.4, active=3)
    run = volume_run(100)
    opened, shapes = run.data.open, {"h": (32, 8, 8), "i": (24, 24, 24), "j": (16, 8, 8)}
    run.data = SimpleNamespace(open=lambda case: replace(opened(case), image=np.zeros((4, *shapes[case]), np.float32)))
    measure_costs(run, MODEL)
    assert run.log.said == ["timing the prediction of one of 125 tiles of a case"]
    assert tiles.clock < 1.25


def unified_run(max_time_s: float) -> Any:
    """Every fifth case is a volume of 125 tiles, the others are pictures of one tile; the first is a volume."""
    run = volume_run(max_time_s)
    run.holdout_cases = tuple(f"{source}__{i}" for i in range(6) for source in ("CT", "US", "OCT", "Skin", "Polyp"))
    run.validation_cases = tuple(f"{case_id}v" for case_id in run.holdout_cases)
    opened = run.data.open
    run.data = SimpleNamespace(
        open=lambda case: replace(opened(case), image=np.zeros((4, *shape_of(case)), np.float32)),
        properties=lambda case: SimpleNamespace(shape=shape_of(case)),
    )
    run.configuration.sources = object()
    return run


def shape_of(case_id: str) -> tuple[int, int, int]:
    return (24, 24, 24) if case_id.startswith("CT") else (8, 8, 8)


def test_pictures_of_a_unified_data_set_are_not_reserved_the_time_of_its_volumes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Tiles(monkeypatch, segment_s=0.1, sample_s=0.4, active=3)
    run = unified_run(100)
    costs = replace(measure_costs(run, MODEL), search=Search((), samplings_per_case=1.0))
    assert (costs.segment_s, costs.sample_s) == (pytest.approx(12.5), pytest.approx(50.0))  # of the first, a volume
    # With untrained weights every tile is sampled. 6 volumes and 24 pictures are validated.
    tiles = 6 * 125 + 24
    assert costs.validation_s(run) == pytest.approx(tiles * (2 * 0.1 + 0.4))
    # A volume takes 125 * (12 * 0.1 + 0.4) = 200 s to choose on, a picture 1.6 s.
    assert [round(costs.choosing_s(case), 6) for case in run.holdout_cases[:2]] == [200.0, 1.6]
    run.request.max_time_s = 1200  # in three tenths a case of each source, where a tenth is too little for one volume
    assert costs.choosing_cases(run) == run.holdout_cases[:5]
    run.request.max_time_s = 4130  # two volumes and eight pictures
    assert costs.choosing_cases(run) == run.holdout_cases[:10]
    run.configuration.sources = None  # cases of an ordinary data set are taken to be alike
    assert measure_costs(run, MODEL).sizes == {}


def test_lesions_are_taken_to_be_in_as_many_tiles_of_a_picture_as_of_a_volume(monkeypatch: pytest.MonkeyPatch) -> None:
    Tiles(monkeypatch, segment_s=0.1, sample_s=0.4, active=3)
    run = unified_run(3000)  # the whole volume is timed, of which 3 tiles hold lesions
    costs = measure_costs(run, MODEL)
    volume, picture = run.holdout_cases[:2]
    assert costs.case_s(volume, 1, 1) == pytest.approx(12.5 + 3 * 0.4)
    assert costs.case_s(picture, 1, 1) == pytest.approx(0.1 + 0.4)


@pytest.mark.parametrize(
    ("voxels", "tiles"),
    [
        ([], 1),  # at least one
        ([(0, 0, 0)], 3**3),  # tiles begin every 4 voxels, of which those at 0, 4 and 8 lie within 8 voxels
        ([(0, 0, 0), (23, 0, 0)], 5 * 3**2),
    ],
)
def test_learned_weights_are_taken_to_sample_around_lesions_alone(
    monkeypatch: pytest.MonkeyPatch, voxels: list[tuple[int, int, int]], tiles: int
) -> None:
    Tiles(monkeypatch, segment_s=0.1, sample_s=0.4, active=3)
    run = volume_run(100)
    run.data.open(0).components.voxels = np.array(voxels, np.int32)
    costs = as_trained(run, MODEL, measure_costs(run, MODEL))
    assert costs.segment_s == pytest.approx(12.5)
    assert costs.sample_s == pytest.approx(tiles * 0.4)


def test_tiles_of_cases_of_one_shape_are_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    Tiles(monkeypatch, segment_s=0.1, sample_s=0.4, active=3)
    planned: list[tuple[int, ...]] = []
    former = module.plan_tiles
    monkeypatch.setattr(module, "plan_tiles", lambda shape, *more: planned.append(tuple(shape)) or former(shape, *more))
    module._num_tiles.cache_clear()
    for _ in range(4):  # as often as a training measures
        measure_costs(unified_run(100), MODEL)
    volume, picture = (24, 24, 24), (8, 8, 8)
    assert sorted(planned) == [picture] + 5 * [volume]  # the volume that is timed each time, for the tile to time


def test_a_whole_case_is_timed_where_it_surely_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    tiles = Tiles(monkeypatch, segment_s=0.1, sample_s=0.4, active=3)
    found = measure_costs(volume_run(3000), MODEL)
    assert tiles.calls[-1] == ((4, 24, 24, 24), 1)
    assert found == Costs(pytest.approx(12.5), pytest.approx(3 * 0.4))  # type: ignore[arg-type]


def test_timing_ends_when_its_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the first pass of the segmenter is made whatever it takes; samples are then guessed."""
    tiles = Tiles(monkeypatch, segment_s=2.0, sample_s=0.4, active=3)

    class Over(StopRequest):
        @contextlib.contextmanager
        def limited(self, seconds: float | None) -> Iterator[TimeLimit]:
            assert seconds == pytest.approx(1.25 - 2.0)
            with contextlib.suppress(InterruptedError):
                yield TimeLimit(exceeded=True)

    def interrupted(*_: Any, **__: Any) -> None:
        raise InterruptedError

    run = volume_run(100)
    run.stop = Over()
    original = tiles.predict

    def once(*arguments: Any, **named: Any) -> Any:
        monkeypatch.setattr(module, "predict_stored", interrupted)
        return original(*arguments, **named)

    monkeypatch.setattr(module, "predict_stored", once)
    assert measure_costs(run, MODEL) == Costs(125 * 2.0, 125 * 20.0)


def test_one_iteration_is_enough_where_another_training_stands_for_phase_1() -> None:
    """A dry run counted both phases and refused what the training itself does."""
    request = SimpleNamespace(max_time_s=None, iterations=1, phase_1_from="fold_0", phase_2_only=None)
    plan = SimpleNamespace(training=SimpleNamespace(phase_1_fraction=0.5))
    run: Any = SimpleNamespace(request=request, configuration=plan)
    assert phase_iterations(run, DiffusionTrainer) == (0, 1)
    request.phase_1_from = None
    with pytest.raises(UsdError, match="leaves one of the two phases without any"):
        phase_iterations(run, DiffusionTrainer)
    assert phase_iterations(run, SegmentationTrainer) == (1, 0)
