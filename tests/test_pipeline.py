"""What planning again keeps of a former plan, and which configurations are asked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from unisegdiff_pipeline import pipeline
from unisegdiff_pipeline.core.serialization import read_dataclass, write_json
from unisegdiff_pipeline.pipeline import PrepareRequest, choose_configurations, keep_stages, plan_and_preprocess
from unisegdiff_pipeline.planning.plans import Plans, SourcePlan, SourcesPlan, StagePlan

PLANS = Path(__file__).parents[1] / "plans" / "Dataset004_Hippocampus" / "plans_cpu_2_cores.json"


def test_stages_keep_their_reason_when_the_plan_is_made_again(tmp_path: Path) -> None:
    bare = read_dataclass(Plans, PLANS)
    configurations = {name: replace(c, stages=None) for name, c in bare.configurations.items()}
    bare = replace(bare, configurations=configurations)
    stages = StagePlan(-6.0, -1.0, (1.0, 1.0, 1.0), ())
    former = replace(
        bare,
        configurations={name: replace(c, stages=stages) for name, c in configurations.items()},
        decisions={"configurations.2d.stages": "a", "configurations.3d_fullres.stages": "b", "other": "gone"},
    )
    write_json(tmp_path / "plans.json", former)
    training = replace(configurations["2d"].training, batch_size=77)
    new = replace(bare, configurations={**configurations, "2d": replace(configurations["2d"], training=training)})
    kept = keep_stages(new, tmp_path / "plans.json")
    assert kept.configurations["3d_fullres"].stages == stages
    assert kept.configurations["2d"].stages is None  # planned otherwise: its stages are planned anew
    assert kept.decisions == {**bare.decisions, "configurations.3d_fullres.stages": "b"}


def test_stages_of_sources_are_kept_as_well(tmp_path: Path) -> None:
    bare = read_dataclass(Plans, PLANS)
    planned, coded = bare.configurations["3d_fullres"], bare.labels.num_channels
    source = SourcePlan("MRI", bare.channel_names, ".nii.gz", True, planned.preprocessing, (True,) * coded, 20)
    planned = replace(planned, stages=None, sources=SourcesPlan({"a": source}))
    new = replace(bare, configurations={"3d_fullres": planned}, decisions={})
    stages = StagePlan(-6.0, -1.0, (1.0,) * coded, ())
    of_source = SourcesPlan({"a": replace(source, stages=stages)})
    former = replace(new, configurations={"3d_fullres": replace(planned, stages=stages, sources=of_source)})
    write_json(tmp_path / "plans.json", former)
    assert keep_stages(new, tmp_path / "plans.json") == former


def test_a_single_configuration_may_be_named_without_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_configurations(read_dataclass(Plans, PLANS), "2d") == ("2d",)
    asked: list[PrepareRequest] = []
    monkeypatch.setattr(pipeline, "prepare", lambda raw, preprocessed, request, on_progress: asked.append(request))
    for configurations in ("2d", ["2d"], None):
        plan_and_preprocess("raw", "preprocessed", configurations=configurations)
    assert [request.configurations for request in asked] == [("2d",), ("2d",), ()]
