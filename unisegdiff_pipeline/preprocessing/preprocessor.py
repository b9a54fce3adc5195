"""From raw cases to stored cases: one case for training and prediction, and whole data sets."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from unisegdiff_pipeline.core.boxes import box_slices
from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.files import remove_stale_temporaries
from unisegdiff_pipeline.core.geometry import Volume
from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.core.parallel import available_memory_gb, choose_workers, map_cases, usable_cores
from unisegdiff_pipeline.core.scratch import CASE_BYTES, Scratch
from unisegdiff_pipeline.core.serialization import write_json
from unisegdiff_pipeline.io.dataset_json import DatasetDescription
from unisegdiff_pipeline.io.endings import has_native_reader
from unisegdiff_pipeline.io.orientation import Reorientation, axis_codes
from unisegdiff_pipeline.io.raw_dataset import RawCase, RawDataset
from unisegdiff_pipeline.io.sources import Source, source_of_case, unified_volumes
from unisegdiff_pipeline.io.spacing import spacing_problem
from unisegdiff_pipeline.planning.plans import (
    ConfigurationPlan,
    Plans,
    PreprocessingPlan,
    StagePlan,
    configuration_folder,
    plans_file,
)
from unisegdiff_pipeline.preprocessing.components import sample_components
from unisegdiff_pipeline.preprocessing.crop import crop_to_nonzero
from unisegdiff_pipeline.preprocessing.label_resampling import resample_labels
from unisegdiff_pipeline.preprocessing.normalize import normalize_image
from unisegdiff_pipeline.preprocessing.presence import for_channels, with_presence
from unisegdiff_pipeline.preprocessing.properties import CaseProperties
from unisegdiff_pipeline.preprocessing.provenance import (
    CaseProvenance,
    case_settings,
    current_source,
    grouped_as_identical,
    image_files,
    is_current,
    label_files,
    mapping_words,
    merge_identical,
    settings_hash,
)
from unisegdiff_pipeline.preprocessing.reference import (
    stored_reference_source,
    write_cases,
    write_reference,
)
from unisegdiff_pipeline.preprocessing.resample import (
    find_separate_axis,
    resample_image,
    resampled_shape,
)
from unisegdiff_pipeline.preprocessing.restore import restore_labels, restore_map
from unisegdiff_pipeline.preprocessing.source_inputs import (
    brought_to_mixture,
    preprocessing_plans,
    reorientation_to,
    to_network_channels,
)
from unisegdiff_pipeline.preprocessing.storage import (
    MANIFEST,
    REFERENCE_FOLDER,
    CaseFile,
    PreprocessedFolder,
    case_folders,
    damaged_files,
    is_outdated,
    remove_case,
    remove_former_layout,
    stored_case_file,
    write_case,
    write_case_file,
)

__all__ = [
    "PreprocessReport",
    "preprocess_dataset",
    "preprocess_image",
    "preprocess_labels",
    "restore_labels",
    "restore_map",
]

# Below this size of all images together, threads are done before worker processes have started.
SMALL_JOB_BYTES = 2_000_000_000
UNCHECKED_GB = 0.05  # asking for the free memory takes as long as resampling a small image


def preprocess_image(
    volume: Volume,
    plan: PreprocessingPlan,
    case_id: str = "",
    group: str | None = None,
    device: str | None = None,
    scratch: Scratch | None = None,
) -> tuple[np.ndarray, CaseProperties]:
    """Turn into the plan's orientation, crop to the non-zero region, normalise and resample an image.

    Normalisation comes before resampling: interpolation would spread the hard edge between an object and the empty
    background around it into values that are neither, and they would enter mean and deviation.

    Args:
        volume: image (C, Z, Y, X); it is not changed.
        plan: what to do.
        case_id, group: kept in the properties.
        device: of torch, where resampling runs; None resamples by numpy.
        scratch: makes the arrays; None keeps them in memory.

    Returns:
        The image (C, Z, Y, X) on the plan grid, float32, and its way back.

    Raises:
        UsdError: where the channels do not fit the plan, a single slice lies across the plan's slices, the spacing
            cannot be right, or the image would not fit into memory on the plan grid.
    """
    turn = _reorientation(volume, plan, case_id)
    _require_likely_spacing(volume, turn, plan, case_id)
    scratch = scratch or Scratch()
    cropped, box = crop_to_nonzero(turn.apply(volume.array))
    scratch.release()
    image = scratch.copy(cropped)  # what follows works in place
    normalize_image(image, plan, case_id)
    spacing = [volume.geometry.spacing_mm[axis] for axis in turn.axis_order]
    z, y, x = (s if t is None else t for s, t in zip(spacing, plan.target_spacing_mm, strict=True))
    shape = resampled_shape(image.shape[1:], spacing, plan.target_spacing_mm)
    _require_fitting(image.shape[0], shape, (z, y, x), case_id)
    separate_axis = None
    if plan.target_spacing_mm[0] is not None:  # slices stay as they are, and what lies within them is interpolated
        separate_axis = find_separate_axis(spacing, (z, y, x), plan.separate_z)
    properties = CaseProperties(
        case_id=case_id,
        group=group,
        geometry=volume.geometry,
        shape_original=_shape(volume.array),
        axis_order=turn.axis_order,
        flipped=turn.flipped,
        crop_box=box,
        shape_cropped=_shape(image),
        shape=shape,
        spacing_mm=(z, y, x),
        separate_axis=separate_axis,
    )
    return resample_image(image, shape, plan.image_order, separate_axis, device, scratch), properties


def preprocess_labels(labels: np.ndarray, properties: CaseProperties) -> np.ndarray:
    """Bring label maps (R, Z, Y, X) of the image's grid onto the plan grid (R, *properties.shape)."""
    cropped = properties.reorientation.apply(labels)[:, *box_slices(properties.crop_box)]
    first, *others = (resample_labels(row, properties.shape, properties.separate_axis) for row in cropped)
    return np.ascontiguousarray(np.stack([first, *others]) if others else first[None])


def _reorientation(volume: Volume, plan: PreprocessingPlan, case_id: str) -> Reorientation:
    """From the axes of the file to those of the plan; a single slice must lie in the plane of the plan's slices."""
    geometry = volume.geometry
    turn = reorientation_to(plan, volume)
    lies_otherwise = turn.axis_order != plan.axis_order and turn.apply(volume.array).shape[1] != 1
    if lies_otherwise and volume.array.shape[1] == 1 and plan.target_spacing_mm[0] is None:
        assert plan.direction is not None
        raise UsdError(
            f"case {case_id!r} is a single slice stored as {axis_codes(geometry.direction)} (axes x, y, z), which lies "
            f"across the slices that this configuration works on ({axis_codes(plan.direction)}); give it slices of the "
            "plane that it was trained on, or whole volumes."
        )
    if geometry.is_2d and plan.axis_order[0] != 0:  # what is a slice here is a row there
        raise UsdError(
            f"case {case_id!r} is a 2D image, but this configuration works on slices along another axis than the third "
            "of the volumes that it was trained on; store it as a volume of one slice, with its place in space."
        )
    return turn


def _require_likely_spacing(volume: Volume, turn: Reorientation, plan: PreprocessingPlan, case_id: str) -> None:
    spacing = [volume.geometry.spacing_mm[axis] for axis in turn.axis_order]
    shape = [volume.array.shape[1 + axis] for axis in turn.axis_order]
    expected = plan.training_spacing_mm or plan.target_spacing_mm
    if problem := spacing_problem(spacing, shape, expected, "the training images"):
        raise UsdError(f"case {case_id!r}: {problem}. Write the right spacing in mm into the image.")


def _require_fitting(channels: int, shape: Sequence[int], spacing_mm: Sequence[float], case_id: str) -> None:
    needed_gb = 4 * channels * math.prod(shape) / 1e9
    if needed_gb > UNCHECKED_GB and needed_gb > (free_gb := available_memory_gb()):
        raise UsdError(
            f"case {case_id!r} has {' x '.join(map(str, shape))} voxels at the planned spacing of "
            f"{' x '.join(f'{s:.4g}' for s in spacing_mm)} mm: {needed_gb:.1f} GB, but {free_gb:.1f} GB of memory are "
            "free. Crop the image, check its spacing, or take a machine with more memory."
        )


def _shape(array: np.ndarray) -> tuple[int, int, int]:
    _, z, y, x = array.shape
    return z, y, x


@dataclass(frozen=True)
class PreprocessReport:
    """What `preprocess_dataset` did; `done` and `skipped` are configuration/case, `removed` left the raw data set."""

    plans: Plans
    done: tuple[str, ...]
    skipped: tuple[str, ...]
    removed: tuple[str, ...]


@dataclass(frozen=True)
class _Task:
    """One configuration that cases are stored for, as images of each source are treated (None: ordinary data sets)."""

    name: str
    folder: Path
    plans: Mapping[str | None, PreprocessingPlan]
    settings: Mapping[str | None, str]
    patch_size: tuple[int, ...]
    width: int


@dataclass(frozen=True)
class _CaseJob:
    """Everything a worker needs for one case; the files are read once for all tasks."""

    case: RawCase
    group: str
    dataset_folder: Path
    description: DatasetDescription
    labels: LabelScheme
    source: Source | None
    tasks: tuple[_Task, ...]
    write_reference: bool


def preprocess_dataset(
    raw: RawDataset,
    plans: Plans,
    configurations: Sequence[str],
    folder: Path,
    workers: int | None = None,
    scheduler: str | None = None,
    *,
    plans_name: str | None = None,
) -> PreprocessReport:
    """Preprocess all training cases for the given configurations, plan the stages and write the plan's file.

    A case is made again only where its files, the preprocessing part of the plan or the meaning of the labels changed;
    one that is interrupted leaves nothing that counts as done; cases that left the raw data set are removed.
    Cases with identical images are put into one group.

    Args:
        raw: the raw data set; every case that is made is checked on the way.
        plans: stages of the given configurations are planned where they are missing or labels changed.
        configurations: names in `plans.configurations`; a cascade stands for the one whose cases it reads.
        folder: preprocessed/DatasetXXX_Name.
        workers: processes; None chooses by cores and memory, 0 works in this process.
        scheduler: address of a Dask scheduler to use instead.
        plans_name: name of the plan, which has a file and folders of its own; None is the default one.

    Raises:
        UsdError: where cases failed (all are named, the others are done) or a configuration is not in the plans.
    """
    folder = Path(folder)
    group_of = {case.case_id: case.group or case.case_id for case in raw.cases}
    tasks = {task.name: task for task in (_task(plans, name, folder, plans_name) for name in configurations)}
    for task in tasks.values():
        _require_planned_sources(raw, plans, task)
    members = {name: [case.case_id for case in raw.cases if case.source in task.plans] for name, task in tasks.items()}
    _remove_temporaries(folder, tasks.values())
    removed = tuple(
        f"{name}/{case_id}" for name, task in tasks.items() for case_id in _remove_stale(task, set(members[name]))
    )

    def job(case: RawCase) -> _CaseJob:
        source = raw.source_of(case)
        description = raw.description_of(case)
        if source is None:
            description = replace(description, labels=plans.labels)  # plans may have been edited
        takes_part = tuple(task for task in tasks.values() if case.source in task.plans)
        new = _CaseJob(case, group_of[case.case_id], folder, description, plans.labels, source, takes_part, True)
        return _open_part(new)

    with ThreadPoolExecutor(usable_cores()) as pool:  # what is stored is hashed, which leaves Python's lock
        jobs = list(pool.map(job, raw.cases))
    todo = [each for each in jobs if each.tasks or each.write_reference]
    done = {f"{task.name}/{each.case.case_id}" for each in todo for task in each.tasks}
    try:
        _run(todo, workers, scheduler)
    finally:
        _remove_temporaries(folder, tasks.values())
        stored = {name: _stored_cases(task, members[name]) for name, task in tasks.items()}
        image_hashes = {case_id: case.image_hash for cases in stored.values() for case_id, case in cases.items()}
        named, group_of = group_of, merge_identical(group_of, image_hashes)
        write_cases(folder, group_of, grouped_as_identical(named, group_of))
        for name, task in tasks.items():
            _update_groups(task, stored[name], group_of)
            write_json(task.folder / MANIFEST, {case_id: case.source for case_id, case in stored[name].items()})
    plans = _with_stages(plans, tasks, done)
    write_json(folder / "dataset.json", raw.description.raw)
    write_json(folder / plans_file(plans_name), plans)
    wanted = [f"{name}/{case_id}" for name in tasks for case_id in members[name]]
    skipped = tuple(key for key in wanted if key not in done)
    return PreprocessReport(plans, tuple(key for key in wanted if key in done), skipped, removed)


def _task(plans: Plans, name: str, folder: Path, plans_name: str | None) -> _Task:
    if name not in plans.configurations:
        raise UsdError(
            f"configuration {name!r} is not in the plans of {plans.dataset_name}, which have "
            f"{', '.join(plans.configurations)}; choose one of these, or plan again with -c {name}."
        )
    configuration = plans.configurations[plans.configurations[name].cases_of]
    task_folder = folder / configuration_folder(configuration.name, plans_name)
    task_folder.mkdir(parents=True, exist_ok=True)
    remove_former_layout(task_folder)
    return _Task(
        configuration.name,
        task_folder,
        preprocessing_plans(configuration),
        case_settings(plans.labels, configuration),
        configuration.network.patch_size,
        configuration.network.num_input_channels,
    )


def _require_planned_sources(raw: RawDataset, plans: Plans, task: _Task) -> None:
    """What dataset.json says of the sources must be what the plan was made for, which the hashes of cases stand on."""
    configuration = plans.configurations[task.name]
    planned = {} if configuration.sources is None else configuration.sources.plans
    for source in raw.description.sources:
        plan = planned.get(source.name)
        labels = raw.source_descriptions[source.name].labels
        if plan is not None and (plan.label_map, plan.labels) != (source.label_map, labels):
            raise UsdError(
                f"source {source.name!r} of {raw.name}: its labels or its label_map in dataset.json are others than in "
                f"the plan; run usd_plan_and_preprocess, or usd_fingerprint and usd_plan, again."
            )
    unknown = planned.keys() - {source.name for source in raw.description.sources}
    if unknown or (configuration.sources is None) != (not raw.description.sources):
        raise UsdError(
            f"the plan of {task.name} has {', '.join(planned) or 'no sources'} where {raw.folder / 'dataset.json'} has "
            f"{', '.join(source.name for source in raw.description.sources) or 'no sources'}; plan again."
        )


def _remove_temporaries(folder: Path, tasks: Iterable[_Task]) -> None:
    """Remove what worker processes that were killed left half written."""
    for part in (folder, folder / REFERENCE_FOLDER, *(part for task in tasks for part in case_folders(task.folder))):
        remove_stale_temporaries(part)


def _remove_stale(task: _Task, members: set[str]) -> list[str]:
    stale = [case_id for case_id in PreprocessedFolder(task.folder).case_ids if case_id not in members]
    for case_id in stale:
        remove_case(task.folder, case_id)
    return stale


def _open_part(job: _CaseJob) -> _CaseJob:
    """The part of the work on a case that is not done already."""
    case = job.case
    if case.label_path is None or not case.image_paths:  # the check will say so
        return job
    files, labels = image_files(case), label_files(case)
    open_tasks = [task for task in job.tasks if not _is_done(job, task, files)]
    reference = stored_reference_source(job.dataset_folder, case.case_id)
    needs_reference = not is_current(reference, labels, _reference_settings(job))
    return replace(job, tasks=tuple(open_tasks), write_reference=needs_reference)


def _is_done(job: _CaseJob, task: _Task, files: Sequence[Path]) -> bool:
    """Whether what is stored of a case is what these files and the plan would give again, and undamaged."""
    case_id, source = job.case.case_id, job.case.source
    stored = stored_case_file(task.folder, case_id)
    if stored is None or not is_current(stored.source, files, task.settings[source]):
        return False
    if stored.properties.missing_channels != job.case.missing(job.description.channel_names):
        return False  # the same file may have become another channel
    return not is_outdated(stored) and not damaged_files(task.folder, case_id, stored)


def _reference_settings(job: _CaseJob) -> str:
    if job.source is None:
        # Other values of the background once counted as foreground in the records of such data sets.
        return settings_hash(job.labels, "background is no foreground" if job.labels.background_values else "")
    return settings_hash(job.labels, mapping_words(job.description.labels, job.source.label_map))


def _run(jobs: list[_CaseJob], workers: int | None, scheduler: str | None) -> None:
    if not jobs:
        return
    largest, total = _image_bytes(jobs)
    # Image as read and as cropped, one channel's intermediates, labels and their fractions: about four times the image.
    chosen = choose_workers(4 * largest / 1e9 + 0.3, workers)
    native = any(has_native_reader(path) for job in jobs for path in job.case.image_paths)
    map_cases(
        _preprocess_case,
        jobs,
        names=[job.case.case_id for job in jobs],
        workers=chosen,
        description="preprocessing",
        scheduler=scheduler,
        kind="native" if native else "threads" if total < SMALL_JOB_BYTES else "processes",
        preload=("numpy", "SimpleITK", "blosc2", __name__),
    )


def _image_bytes(jobs: Sequence[_CaseJob]) -> tuple[int, int]:
    """Bytes (largest case, all cases) of the images as float32, from the headers of the largest files."""
    sizes = {job.case.case_id: sum(p.stat().st_size for p in job.case.image_paths if p.is_file()) for job in jobs}
    largest_jobs = sorted(jobs, key=lambda job: sizes[job.case.case_id], reverse=True)[:5]
    found = [sum(_header_bytes(path) for path in job.case.image_paths) for job in largest_jobs]
    compressed = sum(sizes[job.case.case_id] for job in largest_jobs)
    return max(found), int(sum(found) * sum(sizes.values()) / max(compressed, 1))


def _header_bytes(path: Path) -> int:
    """Bytes of a file's image as float32; 0 where it cannot be read, which the check of the case reports."""
    from unisegdiff_pipeline.io.images import read_header

    try:
        return 4 * int(np.prod(read_header(path)[0]))
    except UsdError:
        return 0


def _preprocess_case(job: _CaseJob) -> None:
    """Read and check one case, store it for every open configuration, and its label maps on their own grid.

    Raises:
        UsdError: the check found problems; all of them are named and nothing of the case is stored.
    """
    from unisegdiff_pipeline.io.integrity import check_case, read_case

    source = _source(job.case)  # before reading: a change in between is then seen the next time
    with Scratch(job.dataset_folder, CASE_BYTES) as scratch:
        volumes = read_case(job.case, job.description, scratch)
        check = check_case(job.case, job.description, volumes, scratch)
        if check.problems:
            raise UsdError(" ".join(map(str, check.problems)))
        assert volumes.image is not None
        assert volumes.labels is not None
        assert check.image_hash is not None
        maps: tuple[Volume, ...] = (volumes.labels, *volumes.raters)
        if job.source is not None:
            maps = unified_volumes(maps, job.source, job.description.labels, job.labels)
        labels = _label_rows(maps, job.labels)
        if job.write_reference:
            _store_reference(job, labels, source)
        for task in job.tasks:
            assert source is not None
            content = replace(source, settings=task.settings[job.case.source])
            _store_configuration(job, task, volumes.image, labels.array, content, check.image_hash, scratch)


def _source(case: RawCase) -> CaseProvenance | None:
    """State of a case's files; None where some are missing, which the check reports."""
    try:
        return current_source(image_files(case))
    except (UsdError, FileNotFoundError):
        return None


def _label_rows(volumes: Sequence[Volume], scheme: LabelScheme) -> Volume:
    """Labels and raters of a case as rows (R, Z, Y, X), uint8 where the values fit, else int16."""
    dtype = np.uint8 if max(scheme.allowed_values) < 256 else np.int16
    first, *others = (volume.array.astype(dtype, copy=False) for volume in volumes)
    return Volume(np.concatenate([first, *others]) if others else first, volumes[0].geometry)


def _store_reference(job: _CaseJob, labels: Volume, source: CaseProvenance | None) -> None:
    assert source is not None
    scheme = job.labels
    files = source.files[-len(label_files(job.case)) :]
    write_reference(
        job.dataset_folder,
        labels.array,
        labels.geometry.spacing_mm,
        scheme,
        job.case.case_id,
        job.group,
        replace(source, files=files, settings=_reference_settings(job)),
    )


def _store_configuration(
    job: _CaseJob,
    task: _Task,
    volume: Volume,
    labels: np.ndarray,
    source: CaseProvenance,
    image_hash: str,
    scratch: Scratch,
) -> None:
    name, channels = job.case.source, job.case.channels
    plan = task.plans[name]
    of_image = for_channels(plan, channels)
    image, properties = preprocess_image(volume, of_image, job.case.case_id, job.group, scratch=scratch)
    if name is not None:
        image = to_network_channels(image, task.width, job.case.case_id)
        properties = replace(properties, source=name)
    if plan.missing_channels:
        image = with_presence(image, channels, len(plan.normalization), scratch)
        properties = replace(properties, missing_channels=job.case.missing(job.description.channel_names))
    scratch.release()
    rows = preprocess_labels(labels, properties)
    components = sample_components(rows, job.labels, job.case.case_id)
    content = CaseFile(source, image_hash, properties)
    write_case(task.folder, image, rows, components, content, task.patch_size)


def _stored_cases(task: _Task, case_ids: Iterable[str]) -> dict[str, CaseFile]:
    """All complete cases; their own JSON files are what counts, the manifest that is made of them is the overview."""
    found = {case_id: stored_case_file(task.folder, case_id) for case_id in sorted(case_ids)}
    return {case_id: case for case_id, case in found.items() if case is not None}


def _update_groups(task: _Task, stored: Mapping[str, CaseFile], group_of: Mapping[str, str]) -> None:
    for case_id, case in stored.items():
        if case.properties.group != group_of[case_id]:  # after another groups.csv nothing else changes
            properties = replace(case.properties, group=group_of[case_id])
            write_case_file(task.folder, replace(case, properties=properties))


def _with_stages(plans: Plans, tasks: Mapping[str, _Task], done: set[str]) -> Plans:
    """Plan the stages of each configuration that has none yet or whose cases changed."""
    configurations, decisions = dict(plans.configurations), dict(plans.decisions)
    for name, task in tasks.items():
        configuration = configurations[name]
        if configuration.stages is None or any(key.startswith(f"{name}/") for key in done):
            configurations[name] = _plan_stages(configuration, plans.labels, task)
            decisions[f"configurations.{name}.stages"] = _stage_reason(configurations[name])
    for name, configuration in plans.configurations.items():
        if configuration.cascade is not None and configuration.cases_of in tasks:
            stages = configurations[configuration.cases_of].stages
            configurations[name] = replace(configuration, stages=stages)
            decisions[f"configurations.{name}.stages"] = f"those of {configuration.cases_of}, whose labels are the same"
    return replace(plans, configurations=configurations, decisions=decisions)


def _plan_stages(configuration: ConfigurationPlan, scheme: LabelScheme, task: _Task) -> ConfigurationPlan:
    """Stages of all cases together, and of the cases of each source."""
    folder = PreprocessedFolder(task.folder)
    mixture = _stages_of(folder, configuration, scheme, folder.case_ids)
    configuration = replace(configuration, stages=mixture)
    if configuration.sources is None:
        return configuration
    plans = {}
    for name, plan in configuration.sources.plans.items():
        case_ids = [case_id for case_id in folder.case_ids if source_of_case(case_id) == name]
        own = _stages_of(folder, configuration, scheme, case_ids) if case_ids else None
        plans[name] = replace(plan, stages=None if own is None else brought_to_mixture(own, mixture))
    return replace(configuration, sources=replace(configuration.sources, plans=plans))


def _stages_of(
    folder: PreprocessedFolder, configuration: ConfigurationPlan, scheme: LabelScheme, case_ids: Sequence[str]
) -> StagePlan:
    from unisegdiff_pipeline.planning.stages import plan_stages
    from unisegdiff_pipeline.preprocessing.stage_patches import collect_label_patches

    properties = folder.open(case_ids[0]).properties
    plan = preprocessing_plans(configuration)[properties.source]
    patches = collect_label_patches(folder, scheme, configuration.network.patch_size, case_ids=case_ids)
    spacing = [s if t is None else t for s, t in zip(properties.spacing_mm, plan.target_spacing_mm, strict=True)]
    return plan_stages(patches, configuration.network.dims, spacing, scheme=scheme)


def _stage_reason(configuration: ConfigurationPlan) -> str:
    stages = configuration.stages
    assert stages is not None
    if not stages.curves:
        return "no label patch with foreground was found; default edges"
    first = min(stages.curves, key=lambda curve: curve.lam_a)
    last = max(stages.curves, key=lambda curve: curve.lam_c)
    patches = ", ".join(f"{curve.num_patches} of {curve.class_name}" for curve in stages.curves)
    return (
        f"closed-form readability of noised label patches at plan spacing and patch size ({patches}): "
        f"lam_a from {first.class_name}, lam_c from {last.class_name}"
    )
