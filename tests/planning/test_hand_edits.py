"""Hand edits of settings and state files: every key, absurd values, and an error that names the key and the value."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.geometry import Geometry
from unisegdiff_pipeline.core.serialization import from_jsonable, to_jsonable
from unisegdiff_pipeline.diffusion.coding import LogitCalibration
from unisegdiff_pipeline.diffusion.samplers import SamplerSettings
from unisegdiff_pipeline.fingerprint import Fingerprint
from unisegdiff_pipeline.inference.settings import InferenceSettings
from unisegdiff_pipeline.planning.plans import Plans, ReadabilityCurve, SourcesPlan, StagePlan, TrainingPlan
from unisegdiff_pipeline.preprocessing.properties import CaseProperties
from unisegdiff_pipeline.training.fold import Phase1Facts

STORED = Path(__file__).resolve().parents[2] / "plans" / "Dataset104_Glioma"
HUGE = 10**40


def plans() -> Any:
    """The reviewed plan of a region data set with two channels, with stages."""
    content = json.loads((STORED / "plans_cpu_2_cores.json").read_text())
    curve = ReadabilityCurve("whole", (-2.0, 0.0, 2.0), (0.0, 0.5, 1.0), -1.0, 1.5, 3)
    stages = to_jsonable(StagePlan(-4.0, 0.0, (1.0,) * len(content["labels"]["names"]), (curve,)))
    configuration = content["configurations"]["3d_fullres"]
    configurations = {"3d_fullres": configuration | {"stages": stages, "sources": None}}
    return content | {"configurations": configurations, "decisions": {"a": "b"}}


def unified_plans() -> Any:
    """The same plan as that of a unified data set with one source, with all that a source's plan may hold."""
    content = plans()
    configuration = content["configurations"]["3d_fullres"]
    source = {
        "modality": "MR",
        "channel_names": ["FLAIR", "T1c"],
        "file_ending": ".nii.gz",
        "spacing_known": True,
        "preprocessing": configuration["preprocessing"],
        "annotated": [True, True, False],
        "num_images": 6,
        "stages": configuration["stages"],
        "labels": content["labels"],
        "label_map": {"whole_tumour": "lesion"},
    }
    sources = to_jsonable(SourcesPlan({})) | {"plans": {"Glioma": source}}
    return content | {"configurations": {"3d_fullres": configuration | {"sources": sources}}}


def fingerprint() -> Any:
    content = json.loads((STORED / "fingerprint.json").read_text())
    return content | {"cases": [content["cases"][0] | {"source": "Glioma"}], "sources": {}}


def unified_fingerprint() -> Any:
    return fingerprint() | {"sources": {"Glioma": fingerprint()}}


def settings() -> Any:
    sampler = SamplerSettings(
        method="hard", start="stage_a", num_calls=1, draw=True, correlation_length_mm=3.0, surface_length_mm=1.0
    )
    value = InferenceSettings(
        lam_a=-3.0,
        lam_c=0.5,
        input_scale=(1.0, 0.5),
        calibration=LogitCalibration(1.5, 1.0, 4.0),
        sampler=sampler,
        mask_sampler=sampler,
    )
    return to_jsonable(value)


def properties() -> Any:
    return to_jsonable(
        CaseProperties(
            "a",
            "g",
            Geometry(),
            (4, 5, 6),
            (0, 1, 2),
            ((0, 3), (0, 5), (1, 6)),
            (3, 5, 5),
            (3, 5, 5),
            (1.0, 1.0, 1.0),
            1,
            source="Glioma",
        )
    )


def phase_1() -> Any:
    return to_jsonable(Phase1Facts(LogitCalibration(), "ema", 10, 2.5, -3.0, 0.0, (1.0,), {"lesion": 0.5}))


FILES: dict[str, tuple[Any, Any]] = {
    "plans": (Plans, plans),
    "unified": (Plans, unified_plans),
    "fingerprint": (Fingerprint, fingerprint),
    "unified_fingerprint": (Fingerprint, unified_fingerprint),
    "inference": (InferenceSettings, settings),
    "properties": (CaseProperties, properties),
    "phase_1": (Phase1Facts, phase_1),
}
# Any text, any number of either sign, any list may stand here (by the last part of the key's path).
FREE_TEXT = {"chosen_on", "weights", "case_id", "group", "orientation", "class_name", "first", "second", "decisions"}
FREE_TEXT |= {"dataset_name", "channel_names", "names", "recommended_configuration"}  # checked below
FREE_TEXT |= {"modality", "source", "label_map", "filter_in_words"}
SIGNED = {"mean", "minimum", "median", "maximum", "percentile_00_5", "percentile_99_5", "direction", "origin_mm"}
SIGNED |= {"lam", "lam_a", "lam_c", "lam_end"}
MAY_BE_EMPTY = {"mirror_axes", "input_scale", "curves", "raters", "class_orders", "volumes_mm3", "thickness_mm"}
# Empty intensities are allowed in a plan without "ct", and refused in a fingerprint below.
MAY_BE_EMPTY |= {"intensities", "background_values", "filter_in_words", "missing_channels"}
MAY_BE_EMPTY |= {"configurations", "decisions", "holdout_dice"}


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all values and of the lists and objects that hold them; of a long list the first two entries."""
    if path:
        yield path
    entries = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for key, entry in entries:
        yield from leaves(entry, (*path, key))


def at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def edited(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    value = copy.deepcopy(value)
    at(value, path[:-1])[path[-1]] = new
    return value


def name_of(path: tuple[Any, ...]) -> str:
    """The last key of a path that is a name."""
    for of_any_key in ("decisions", "label_map"):
        if of_any_key in path:
            return of_any_key
    return next(key for key in reversed(path) if isinstance(key, str))


def absurd_values(path: tuple[Any, ...], old: Any) -> Iterator[Any]:
    name = name_of(path)
    words = {"filter_in_words", "missing_channels"}  # lists of any words
    yield from ([[[]]] if name in words else ["x"], [[[]]])
    if name != "holdout_dice":
        yield {"x": 1}
    if old is not None:
        yield True if not isinstance(old, bool) else 1
    if not isinstance(old, str) and name not in {"group", "source"}:
        yield "x"
    if isinstance(old, (int, float)) and not isinstance(old, bool):
        yield from (HUGE, -HUGE, 1e300)
        if name not in SIGNED:
            yield from (-1, -0.5)
        if isinstance(old, int):
            yield 0.5
    if isinstance(old, str) and name not in FREE_TEXT:
        yield from ("", "x\ny", "../../x")
    if isinstance(old, list) and name not in MAY_BE_EMPTY:
        yield []
    yield 2**31 if isinstance(old, (str, bool, list, dict)) else [2**31]


def accepted(cls: Any, content: Any, path: tuple[Any, ...]) -> None:
    from_jsonable(cls, content)
    pytest.fail(f"{path} was accepted as {at(content, path)!r}")


@pytest.mark.parametrize("file", FILES)
def test_every_key_refuses_absurd_values_by_name(file: str) -> None:
    cls, make = FILES[file]
    good = make()
    assert to_jsonable(from_jsonable(cls, good)) == good
    tried = 0
    for path in leaves(good):
        for value in absurd_values(path, at(good, path)):
            with pytest.raises(UsdError) as caught:
                accepted(cls, edited(good, path, value), path)
            message = str(caught.value)
            named = [key for key in path if isinstance(key, str)]
            assert named[-1] in message or named[-2:-1] == [k for k in named[-2:-1] if k in message], (path, message)
            assert "\n" not in message
            assert len(message) < 700
            tried += 1
    assert tried > 5 * len(good)


EDITS: list[tuple[str, str, Any, list[str]]] = [
    ("plans", "schema_version", 99, ["schema_version is 99", "reads 1"]),
    ("plans", "dataset_name", "../../x", ["dataset_name is named '../../x'"]),
    ("plans", "file_ending", "/../../x.nii.gz", ["file_ending is '/../../x.nii.gz'"]),
    ("plans", "C.name", "../x", ["name is '../x'"]),
    ("plans", "C.preprocessing.target_spacing_mm", [1, -1, 1], ["target_spacing_mm[1] is -1", "from 1e-06"]),
    ("plans", "C.preprocessing.target_spacing_mm", [1, 0, 1], ["target_spacing_mm[1] is 0"]),
    ("plans", "C.preprocessing.image_order", 7, ["image_order is 7", "one of 3, 1"]),
    ("plans", "C.preprocessing.axis_order", [0, 0, 2], ["axis_order is [0, 0, 2]"]),
    ("plans", "C.preprocessing.use_nonzero_mask", [True], ["use_nonzero_mask has 1 values for 2 channels"]),
    ("plans", "C.preprocessing.direction", [1, 0, 0, 1, 0, 0, 0, 0, 1], ["direction is [1"]),
    ("plans", "C.preprocessing.direction", [0] * 9, ["direction is [0"]),
    ("plans", "C.network.num_input_channels", 3, ["num_input_channels is 3", "2 channels"]),
    ("plans", "C.training.channel_dropout", 0.2, ["channel_dropout is 0.2", "without preprocessing.missing_channels"]),
    ("plans", "C.preprocessing.missing_channels", True, ["num_input_channels is 2", "twice as many inputs", "(4)"]),
    ("plans", "C.network.dims", 4, ["dims is 4", "one of 2, 3"]),
    ("plans", "C.network.dims", 2, ["patch_size is [", "with dims 2 it needs 2 values"]),
    ("plans", "C.network.patch_size", [64, 64], ["patch_size is [64, 64]", "needs 3 values"]),
    ("plans", "C.network.patch_size", [50, 64, 64], ["patch_size[0] is 50", "nearest are 48 and 56"]),
    ("plans", "C.network.patch_size", [4, 64, 64], ["patch_size[0] is 4", "nearest are 8"]),
    ("plans", "C.network.patch_size", [1024, 1024, 1024], ["patch_size is [1024", "[512, 512, 512]"]),
    ("plans", "C.network.patch_size", [0, 64, 64], ["patch_size[0] is 0"]),
    ("plans", "C.network.levels", [], ["levels is []", "1 to 12"]),
    ("plans", "C.denoiser.noise_levels_per_patch", 4, ["noise_levels_per_patch is 4", "multiple of 3"]),
    ("plans", "C.training.ema_decay", 5, ["ema_decay is 5", "to below 1"]),
    ("plans", "C.training.ema_decay", 1, ["ema_decay is 1"]),
    ("plans", "C.training.phase_1_fraction", 7, ["phase_1_fraction is 7"]),
    ("plans", "C.training.learning_rate", 0, ["learning_rate is 0", "above 0"]),
    ("plans", "C.training.mirror_axes", [0, 0], ["mirror_axes is [0, 0]"]),
    ("plans", "C.training.mirror_axes", [3], ["mirror_axes is [3]"]),
    ("plans", "C.stages.lam_a", 3, ["lam_a is 3"]),
    ("plans", "C.stages.input_scale", [1.0], ["input_scale has 1 values"]),
    ("plans", "C.stages.input_scale", [0, 1, 1], ["input_scale[0] is 0"]),
    ("unified", "C.sources.plans", {}, ["sources.plans is empty"]),
    ("unified", "C.sources.plans.Glioma.modality", "x\ny", ["modality", "'x\\ny'"]),
    ("unified", "C.sources.plans.Glioma.channel_names", ["FLAIR"], ["normalization has 2 values", "1 channels"]),
    ("unified", "C.sources.plans.Glioma.annotated", [True], ["annotated has 1 values", "3 channels"]),
    ("unified", "C.sources.plans.Glioma.stages.input_scale", [1.0], ["input_scale has 1 values", "3 channels"]),
    ("unified", "C.sources.plans.Glioma.file_ending", ".doc", ["file_ending is '.doc'"]),
    ("unified", "C.sources.grid", "round", ["grid is 'round'", "'physical', 'relative'"]),
    ("unified", "C.sources.unknown_fraction", 2, ["unknown_fraction is 2"]),
    ("unified", "C.sources.learning_rate_factor", -1, ["learning_rate_factor is -1"]),
    ("plans", "labels.write_values", [1, 2], ["names has 3 values", "write_values 2"]),
    ("plans", "labels.members", [[1], [2], []], ["members[2] is []"]),
    ("plans", "labels.write_values", [1, 2, 70000], ["write_values[2] is 70000"]),
    ("plans", "labels.coding", "binary", ["coding is 'binary' for 3 classes"]),
    ("plans", "labels.coding", "softmax", ["a value is of one class only"]),
    ("plans", "labels.names", ["a", "b", "c\n"], ["'c\\n'"]),
    ("plans", "budget.memory_gb", 0, ["memory_gb is 0"]),
    ("inference", "segmenter_weight", 1.5, ["segmenter_weight is 1.5"]),
    ("inference", "lam_a", 2, ["lam_a is 2", "below lam_c"]),
    ("inference", "calibration.foreground", 0, ["calibration.foreground is 0"]),
    ("inference", "sampler.correlation_length_mm", 2**31, ["sampler.correlation_length_mm is 2147483648"]),
    ("inference", "sampler.num_calls", 10**6, ["sampler.num_calls is 1000000"]),
    ("inference", "num_samples", 10**6, ["num_samples is 1000000"]),
    ("inference", "decision", "third", ["decision is 'third'", "'half', 'dice'"]),
    ("fingerprint", "cases", [], ["cases is []"]),
    ("fingerprint", "intensities", [], ["intensities has 0 values for 2 channels"]),
    ("properties", "axis_order", [1, 1, 2], ["axis_order is [1, 1, 2]"]),
    ("properties", "crop_box", [[0, 3], [0, 5], [2, 7]], ["crop_box is"]),
]


@pytest.mark.parametrize(("file", "key", "value", "words"), EDITS, ids=[f"{f}:{k}={v}"[:60] for f, k, v, _ in EDITS])
def test_hand_edits_name_key_value_and_what_is_allowed(file: str, key: str, value: Any, words: list[str]) -> None:
    cls, make = FILES[file]
    good = make()
    path = tuple(re.sub(r"^C\.", "configurations|3d_fullres.", key).replace("|", ".").split("."))
    with pytest.raises(UsdError) as caught:
        from_jsonable(cls, edited(good, path, value))
    for word in words:
        assert word in str(caught.value)


ALLOWED: list[tuple[str, str, Any]] = [
    ("plans", "C.training.foreground_fraction", 0),
    ("plans", "C.training.foreground_fraction", 1),
    ("plans", "C.training.mirror_axes", []),
    ("plans", "C.training.weight_decay", 0),
    ("plans", "C.stages", None),
    ("plans", "C.stages.input_scale", []),
    ("plans", "C.preprocessing.direction", None),
    ("plans", "C.preprocessing.intensities", []),
    ("plans", "decisions", {}),
    ("inference", "num_samples", 0),
    ("inference", "segmenter_weight", 0),
    ("inference", "mask_sampler", None),
    ("inference", "calibration.soft_cap", None),
    ("inference", "sampler.correlation_length_mm", 0),
    ("properties", "group", None),
]


@pytest.mark.parametrize(("file", "key", "value"), ALLOWED)
def test_what_makes_sense_is_allowed(file: str, key: str, value: Any) -> None:
    cls, make = FILES[file]
    path = tuple(key.replace("C.", "configurations.3d_fullres.", 1).split("."))
    from_jsonable(cls, edited(make(), path, value))


def test_training_is_read_under_the_names_of_earlier_versions() -> None:
    former = {"batch_size": 2, "foreground_share": 0.5, "phase_1_share": 0.6}
    assert from_jsonable(TrainingPlan, former) == TrainingPlan(2, foreground_fraction=0.5, phase_1_fraction=0.6)
