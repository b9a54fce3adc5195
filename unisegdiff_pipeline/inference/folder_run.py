"""Prediction of folders: which cases, in which order, into whose folder, and what becomes of those that fail."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event, Lock

import numpy as np
import torch

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.files import require_writable
from unisegdiff_pipeline.core.parallel import MappedCasesError, available_memory_gb, map_cases, usable_cores
from unisegdiff_pipeline.core.progress import counted, is_or_are, progress
from unisegdiff_pipeline.core.scratch import Scratch
from unisegdiff_pipeline.core.serialization import read_object, to_jsonable
from unisegdiff_pipeline.inference.dicom_input import InputImages, as_images
from unisegdiff_pipeline.inference.export import (
    OutputOptions,
    PredictionRecord,
    endings_there,
    output_folders,
    read_record,
    write_prediction,
    write_record,
    write_summary,
)
from unisegdiff_pipeline.inference.memory import MemoryBudget
from unisegdiff_pipeline.inference.model_folder import (
    PLANS_NAME,
    ModelFolder,
    choose_folds,
    open_model_folder,
)
from unisegdiff_pipeline.inference.model_inputs import ModelInputs
from unisegdiff_pipeline.inference.origin import input_hashes, request_hash
from unisegdiff_pipeline.inference.output_folder import (
    Owner,
    claimed,
    collected,
    finished_in_words,
    is_finished,
    remove_former,
    require_own,
)
from unisegdiff_pipeline.inference.predictor import EnsemblePrediction, Predictor, require_finite
from unisegdiff_pipeline.inference.promised import promises_of_model
from unisegdiff_pipeline.inference.request import PredictRequest
from unisegdiff_pipeline.inference.saving import facts_of, manifest_of
from unisegdiff_pipeline.io.images import load_writer
from unisegdiff_pipeline.io.integrity import image_warnings
from unisegdiff_pipeline.io.prediction_files import MANIFEST
from unisegdiff_pipeline.io.raw_dataset import RawCase
from unisegdiff_pipeline.io.reading_process import ReadingProcess
from unisegdiff_pipeline.networks.allocator import LARGE_BYTES, return_freed_memory
from unisegdiff_pipeline.networks.threads import torch_threads
from unisegdiff_pipeline.preprocessing.properties import CaseProperties

LOGGER = logging.getLogger(__name__)
OVERLAP_FRACTION = 0.1  # of free memory that an image may take for three cases to be under way at once


class CasesFailedError(UsdError):
    """Some cases could not be predicted; the others are done."""


def predict_folder(request: PredictRequest, images: InputImages | None = None) -> int:
    """Predict the cases of a folder, a file or a list; returns how many were predicted now.

    What runs that were killed left half written in the output is removed first.

    The output belongs to one model with one set of settings (see `output_folder`). Cases that it holds already, made
    from the same image, with all that is asked for, are left as they are. Of a case that is predicted again all parts
    are removed before. See `export` for what is written.

    Args:
        request: what is predicted, by which model, and how.
        images: what was made of its source already, as by `as_images`.

    Raises:
        UsdError: no such model or input; nothing to combine or to split; the output cannot be written into, or holds
            other predictions, or another process predicts the same part into it; a full disk; or cases that failed,
            named after all others have been finished.
        ValueError: a rule, a decision or a number of samples that there is not.
    """
    model = open_model_folder(Path(request.model_folder))
    choose_folds(model, request.folds)
    with (
        torch_threads(max(1, min(torch.get_num_threads(), usable_cores()))),
        as_images(request.source, model) if images is None else nullcontext(images) as found,
    ):
        return _predict_folder(request, model, found)


def _predict_folder(request: PredictRequest, model: ModelFolder, images: InputImages) -> int:
    started = time.perf_counter()
    require_seen_by_workers(request, images)
    output, part_id, num_parts = Path(request.output), request.part_id, request.num_parts
    if problem := model.plans.labels.order_problem():  # refused when planned today; masks of such models say it
        _say(f"warning: labels.write_values in {model.place / PLANS_NAME} is {problem}")
    inputs = ModelInputs(model, request.source_name, request.suffixes)
    cases = inputs.find_cases(images.source)
    _require_elsewhere(output, cases)
    if 0 < len(cases) <= part_id:
        problem = f"part {part_id} of {num_parts} holds no case, there {is_or_are(len(cases))} "
        problem += f"{counted(len(cases), 'case')} in all"
        if request.needs_cases:
            raise UsdError(
                f"{problem}. Take as many parts as there are cases at most, or give --num-parts 1 where each task of "
                f"the array has images of its own."
            )
        _say(f"warning: {problem}")
    for folder in output_folders(output):
        require_writable(folder)
    run = _open_run(request, inputs)
    run.origins = images.origins
    endings = {case.case_id: inputs.file_ending(case.image_paths) for case in cases}
    part = part_id, num_parts
    with claimed(output, run.owner, endings, model.plans.file_ending, overwrite=request.overwrite, part=part):
        chosen = cases[part_id::num_parts]
        run.of_other_parts = {case.case_id for case in cases} - {case.case_id for case in chosen}
        left = [case for case in chosen if request.overwrite or not run.is_finished(case)]
        if len(left) < len(chosen):
            _say(finished_in_words(len(chosen), len(left)))
        try:
            if request.scheduler is None:
                run.predict(left)
            else:
                run.predict_on(request.scheduler, request, left)
        finally:
            run.write_tables(time.perf_counter() - started)
        run.raise_failures()
        return len(left)


def require_seen_by_workers(request: PredictRequest, images: InputImages) -> None:
    """Raise a UsdError where the workers of a cluster are to predict images that were made on this machine."""
    if request.scheduler is not None and images.origins:
        raise UsdError(
            f"the DICOM files in {request.source} would become images on this machine, which the workers of "
            f"--scheduler need not see; leave the flag out, or convert the series to NIfTI first."
        )


def _open_run(request: PredictRequest, inputs: ModelInputs) -> _FolderRun:
    model = inputs.model
    predictor = Predictor(
        model,
        request.folds,
        request.device,
        request.mirror,
        request.decision,
        request.utility,
        request.lesion_filter,
    )
    count = predictor.num_samples(request.num_samples)
    predictor.require_possible(request.combine, request.save_uncertainty_parts, count)
    promises = promises_of_model(request, model, predictor.folds, predictor.weights.values(), count)
    if not count and (void := predictor.lesion_filter.void_without_samples()):
        LOGGER.warning("%s", void)
    if request.num_samples and not count:
        LOGGER.warning("%s was trained without a denoiser: no samples are drawn", model.place)
    if request.mirror and not predictor.mirror_axes:
        LOGGER.warning("training.mirror_axes in the plan of %s is empty: mirroring changes nothing", model.place)
    if not count and predictor.decision == "dice":
        LOGGER.warning("training chose the decision 'dice', which goes by samples; without any it is 'half'")
    options = OutputOptions(
        model.plans.file_ending,
        model.plans.spacing_known,
        save_samples=request.save_samples,
        save_probabilities=request.save_probabilities,
        save_uncertainty_parts=request.save_uncertainty_parts,
        combine=request.combine,
        promises=promises,
    )
    budget = MemoryBudget.of(request.max_memory_gb)
    if request.max_memory_gb is not None and predictor.device.type == "cpu":
        load_writer(model.plans.file_ending)
        budget.require_room()
    return _FolderRun(predictor, Path(request.output), options, count, request.seed, budget, inputs)


@dataclass(frozen=True)
class _Task:
    """One case for a worker of a cluster."""

    request: PredictRequest
    made_of: str  # `Owner.request`
    case: RawCase


_ONE_CASE = Lock()  # a worker with several threads predicts one case at a time all the same


_KEPT: list[tuple[PredictRequest, str, _FolderRun]] = []  # the last model of a worker; requests have no hash


def _run_of_worker(request: PredictRequest, made_of: str) -> _FolderRun:
    """The model of a worker, which stays in memory for the next case."""
    if _KEPT and _KEPT[0][:2] == (request, made_of):
        return _KEPT[0][2]
    _KEPT.clear()
    model = open_model_folder(Path(request.model_folder))
    run = _open_run(request, ModelInputs(model, request.source_name))
    if run.owner.request != made_of:
        raise UsdError(
            f"a worker on {socket.gethostname()} finds another model in {request.model_folder}, or runs another "
            f"version of this program; workers must see the same files at the same paths."
        )
    _KEPT.append((request, made_of, run))
    return run


def _predict_on_worker(task: _Task) -> bool:
    """Predict a case; returns whether a worker before this one died at it."""
    mark = task.request.output / f".begun-{task.case.case_id}"
    with _ONE_CASE:
        run = _run_of_worker(task.request, task.made_of)
        again = mark.exists()
        mark.touch()
        try:
            run.failures.clear()
            run.predict([task.case])
        finally:
            mark.unlink(missing_ok=True)
        if run.failures:
            raise UsdError(run.failures[task.case.case_id])
        return again


@dataclass
class _Prepared:
    """A case that has been read and preprocessed.

    `image` and `for_masks` are None once the network is done with them: masks are written without them.
    """

    case: RawCase
    image: np.ndarray | None
    properties: CaseProperties
    input_hashes: tuple[str, ...]
    seconds: dict[str, float]
    scratch: Scratch
    for_masks: tuple[np.ndarray, CaseProperties] | None  # see `ModelInputs.prepare_for_masks`


class _FolderRun:
    """Goes through cases: one is read while another is in the network and a third is written."""

    def __init__(
        self,
        predictor: Predictor,
        output: Path,
        options: OutputOptions,
        num_samples: int,
        seed: int,
        budget: MemoryBudget,
        inputs: ModelInputs,
    ) -> None:
        self.predictor, self.output, self.options = predictor, output, options
        self.num_samples, self.seed, self.budget, self.inputs = num_samples, seed, budget, inputs
        self.origins: Mapping[Path, Path] = {}  # of images that were made for this run
        self.of_other_parts: set[str] = set()  # cases of runs that share the output
        self.failures: dict[str, str] = {}  # in words: the error itself would hold the arrays of its case
        self._warned = False
        self._interrupted = Event()
        made_of = predictor.made_of(num_samples, seed, options.combine, inputs.source)
        if options.promises is not None:
            made_of["promises"] = to_jsonable(options.promises)
        self.owner = Owner(request_hash(made_of), str(predictor.model.place.resolve()), made_of)

    def is_finished(self, case: RawCase) -> bool:
        """Whether the output holds all that is wanted of this case, made from the same files in the same way."""
        counts = len(self.predictor.folds), self.num_samples
        options = self._options(case)
        return is_finished(self.output, self.owner, case.case_id, options, counts, lambda: input_hashes(case))

    def _options(self, case: RawCase) -> OutputOptions:
        """What is written of a case, in the ending of its image."""
        paths = case.image_paths
        return replace(
            self.options,
            file_ending=self.inputs.file_ending(paths),
            spacing_known=self.inputs.knows_spacing(paths),
        )

    def predict(self, cases: Sequence[RawCase]) -> None:
        """Predict cases one after the other; failures of single cases are collected, and named by raise_failures."""
        if not cases:
            return
        # What keeps the threads busy ends before they are waited for, or Ctrl-C would wait with them: the reading
        # process, and the slabs of a case.
        with (
            ThreadPoolExecutor(1) as reader,
            ThreadPoolExecutor(1) as writer,
            ReadingProcess() as images,
            self._noting_interruption(),
        ):
            reading: Future[_Prepared] | None = reader.submit(self._prepare, cases[0], images)
            writing: tuple[str, Future[None]] | None = None
            for index in progress(range(len(cases)), len(cases), "predicting"):
                case, following = cases[index], cases[index + 1 : index + 2]
                assert reading is not None
                overlap = False
                with collected(self.failures, case.case_id):
                    require_own(self.output, self.owner)
                    remove_former(self.output, case.case_id, self.inputs.file_ending(case.image_paths))
                    prepared = reading.result()
                    overlap = self._overlap_fits(prepared)
                    if not overlap:
                        images.close()  # its memory is the network's; for the next case it starts again
                    reading = reader.submit(self._prepare, following[0], images) if following and overlap else None
                    try:
                        found = self._compute(prepared)
                        self._wait_for(writing)
                        writing = case.case_id, writer.submit(self._write, prepared, found)
                        del found
                    finally:
                        del prepared  # of a case that fails, too: the next one needs its memory
                    if not overlap:
                        self._wait_for(writing)
                        writing = None
                if not overlap:
                    reading = reader.submit(self._prepare, following[0], images) if following else None
            self._wait_for(writing)

    def predict_on(self, scheduler: str, request: PredictRequest, cases: Sequence[RawCase]) -> None:
        """As `predict`, by the workers of a Dask cluster; a case whose worker died goes to another one."""
        marks = [self.output / f".begun-{case.case_id}" for case in cases]
        for mark in marks:  # of a run that was killed
            mark.unlink(missing_ok=True)
        folds = request.folds if request.folds is None or isinstance(request.folds, str | int) else (*request.folds,)
        asked = replace(
            request,
            source=(),
            output=self.output.absolute(),
            model_folder=Path(request.model_folder).absolute(),
            folds=folds,
            guarantees=tuple(request.guarantees),
            overwrite=False,
            num_parts=1,
            part_id=0,
            needs_cases=False,
            scheduler=None,
        )
        tasks = [
            _Task(asked, self.owner.request, replace(case, image_paths=tuple(p.absolute() for p in case.image_paths)))
            for case in cases
        ]
        names = [case.case_id for case in cases]
        try:
            found = map_cases(
                _predict_on_worker, tasks, names=names, workers=0, description="predicting", scheduler=scheduler
            )
        except MappedCasesError as error:
            self.failures.update(error.failures)
        else:
            if again := [outcome.name for outcome in found if outcome.value]:
                _say(f"warning: a worker died, and another one predicted its case anew: {', '.join(again)}")
        finally:
            for mark in marks:
                mark.unlink(missing_ok=True)

    @contextmanager
    def _noting_interruption(self) -> Iterator[None]:
        try:
            yield
        except (KeyboardInterrupt, SystemExit):
            self._interrupted.set()
            raise

    def _wait_for(self, writing: tuple[str, Future[None]] | None) -> None:
        if writing is not None:
            case_id, future = writing
            with collected(self.failures, case_id):
                future.result()

    def write_tables(self, seconds: float) -> None:
        """Write the tables and manifest.json over all finished cases, those of earlier runs included."""
        require_own(self.output, self.owner)
        manifest = manifest_of(
            self.owner,
            self.predictor.labels,
            str(self.predictor.device),
            endings_there(self.output, self.options.file_ending),
            spacing_known=self.options.spacing_known,
        )
        manifest["seconds_of_last_run"] = round(seconds, 3)
        manifest["failed"] = self._failures_of_other_parts() | self.failures
        write_summary(self.output, manifest)

    def _failures_of_other_parts(self) -> dict[str, str]:
        """What the manifest says of cases that this run does not predict, and that are not finished since."""
        path = self.output / MANIFEST
        said = read_object(path).get("failed") if self.of_other_parts and path.is_file() else None
        return {
            case_id: text
            for case_id, text in (said if isinstance(said, dict) else {}).items()
            if case_id in self.of_other_parts and read_record(self.output, case_id) is None
        }

    def raise_failures(self) -> None:
        """Name all cases that failed, if any did."""
        if self.failures:
            lines = [f"{case_id}: {failure}" for case_id, failure in self.failures.items()]
            number = counted(len(self.failures), "case")
            raise CasesFailedError("\n".join([f"{number} could not be predicted, the others are done.", *lines]))

    def _prepare(self, case: RawCase, images: ReadingProcess) -> _Prepared:
        start = time.perf_counter()
        hashes = input_hashes(case)
        scratch = Scratch(self.output, self.budget.for_arrays(), self._interrupted)
        inputs = self.inputs
        channels = inputs.num_channels(case)
        scratch.release()  # an interrupted run ends here, before it starts the process again
        volume = images.read_image(case.image_paths, scratch.empty, num_channels=channels)
        scratch.release()
        require_finite(volume.array, [str(path) for path in case.image_paths])
        for doubt in image_warnings(case, volume):
            _say(f"warning: case {case.case_id}: {doubt}")
        scratch.release()
        read = time.perf_counter()
        try:
            plan = inputs.plan_for(volume, case)
            if plan.direction is None and not volume.geometry.is_2d and inputs.model.configuration.sources is None:
                self._warn_of_stored_orientation()
            image, properties = inputs.prepare(plan, volume, case, scratch)
            for_masks = inputs.prepare_for_masks(volume, case, scratch)
        except UsdError as error:
            raise UsdError(f"{case.image_paths[0]}: {error}") from error
        scratch.release()
        if properties.missing_channels:
            _say(f"{case.case_id}: predicted without {', '.join(properties.missing_channels)}, missing there")
        seconds = {"read": read - start, "preprocess": time.perf_counter() - read}
        return _Prepared(case, image, properties, hashes, seconds, scratch, for_masks)

    def _warn_of_stored_orientation(self) -> None:
        if not self._warned:
            self._warned = True
            _say(
                f"warning: the plan of this model names no orientation (preprocessing.direction in "
                f"{self.predictor.model.place / PLANS_NAME}), so volumes are predicted as they are stored: their axes "
                f"must point where those of the training images do. Plan and train again to have them turned."
            )

    def _compute(self, prepared: _Prepared) -> EnsemblePrediction:
        assert prepared.image is not None
        start, large = time.perf_counter(), prepared.image.nbytes > LARGE_BYTES
        if large:
            return_freed_memory()
        try:
            result = self.predictor.predict_preprocessed(
                prepared.image,
                prepared.properties,
                num_samples=self.num_samples,
                seed=self.seed,
                memory_gb=self.budget.free_gb,
                scratch=prepared.scratch,
                for_masks=prepared.for_masks,
            )
        except torch.OutOfMemoryError as error:
            raise UsdError(
                f"memory of {self.predictor.device} ran out at case {prepared.case.case_id} "
                f"(shape {prepared.properties.shape} on the plan's grid); use --device cpu, or a GPU with more memory."
            ) from error
        prepared.image = prepared.for_masks = None
        if large:
            return_freed_memory()
        prepared.seconds["network"] = time.perf_counter() - start
        prepared.seconds["segmenter"] = result.facts.seconds_segmenter
        prepared.seconds["samples"] = result.facts.seconds_samples
        return result

    def _write(self, prepared: _Prepared, found: EnsemblePrediction) -> None:
        start = time.perf_counter()
        require_own(self.output, self.owner)
        labels = self.predictor.labels
        num_lesions = write_prediction(self.output, found, prepared.properties, labels, self._options(prepared.case))
        prepared.seconds["write"] = time.perf_counter() - start
        facts = found.facts
        if facts.num_recomputed > facts.num_tiles:
            _say(
                f"{prepared.case.case_id}: the features of its {facts.num_active_tiles} active tiles did not fit into "
                f"memory; the segmenter ran {facts.num_recomputed} times more than once a tile"
            )
        inputs = tuple(str(self.origins.get(path, path)) for path in prepared.case.image_paths)
        record = PredictionRecord(
            prepared.case.case_id,
            self.owner.request,
            inputs,
            prepared.input_hashes,
            prepared.seconds,
            facts_of(found, num_lesions),
            self.inputs.file_ending(prepared.case.image_paths),
        )
        write_record(self.output, record)

    def _overlap_fits(self, prepared: _Prepared) -> bool:
        """Whether three cases of this size may be in memory at once."""
        channels = self.predictor.labels.num_channels * max(1, len(self.predictor.folds))
        voxels = np.prod(prepared.properties.shape, dtype=np.int64)
        assert prepared.image is not None
        images = prepared.image.nbytes
        if prepared.for_masks is not None:  # the other network's image, and this one with a channel for each class
            num_inputs = len(prepared.image) + len(self.predictor.labels.write_values)
            images += prepared.for_masks[0].nbytes + 4 * num_inputs * int(voxels)
        size_gb = (images + 4 * channels * int(voxels)) / 2**30
        return size_gb < OVERLAP_FRACTION * min(self.budget.free_gb(), available_memory_gb())


def _require_elsewhere(output: Path, cases: Sequence[RawCase]) -> None:
    """Masks beside images would be taken for images the next time, or replace them."""
    for case in cases:
        if case.image_paths[0].parent.resolve() == output.resolve():
            raise UsdError(f"{output} is the folder of the images; choose another folder for the masks.")


def _say(line: str) -> None:
    LOGGER.info("%s", line)
