"""The way from raw data to preprocessed data in the three steps that the commands offer singly and together."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from unisegdiff_pipeline.commands.common import EXIT_ERROR, roots_of, run
from unisegdiff_pipeline.commands.terminal import report_error, say
from unisegdiff_pipeline.core.errors import UsdError

if TYPE_CHECKING:
    from unisegdiff_pipeline.fingerprint import Fingerprint
    from unisegdiff_pipeline.io.integrity import IntegrityReport
    from unisegdiff_pipeline.io.paths import Roots
    from unisegdiff_pipeline.io.raw_dataset import RawDataset
    from unisegdiff_pipeline.planning.plans import Budget, Plans
    from unisegdiff_pipeline.preprocessing.preprocessor import PreprocessReport

FINGERPRINT, PLANS, DATASET, WARNINGS = "fingerprint.json", "plans.json", "dataset.json", "warnings.json"
REPORT = "dataset_report.html"
LOCK = ".lock"
LISTED_CASES = 10


def run_on_datasets(
    parse: Callable[[], argparse.Namespace], prepare: Callable[[argparse.Namespace, Roots], Callable[[str], None]]
) -> int:
    """Run a command over raw data sets: `parse` the flags, `prepare` what all share, then do the work for each."""

    def work() -> int:
        args = parse()
        return for_each_dataset(args.dataset, prepare(args, roots_of(args)))

    return run(work)


def for_each_dataset(datasets: Sequence[str], work: Callable[[str], None]) -> int:
    """Do the work for each data set; one with an error does not keep the others from being done."""
    failed = False
    for dataset in datasets:
        try:
            work(dataset)
        except UsdError as error:
            if len(datasets) == 1:
                raise
            report_error(f"{dataset}: {error}")
            failed = True
    return EXIT_ERROR if failed else 0


def open_raw(roots: Roots, dataset: str) -> RawDataset:
    """Open a data set of the raw root by its number or name."""
    from unisegdiff_pipeline.io.paths import find_dataset
    from unisegdiff_pipeline.io.raw_dataset import open_raw_dataset

    root = roots.require_raw()
    return open_raw_dataset(root / find_dataset(root, dataset))


def load_plans(roots: Roots, dataset: str, plans_name: str | None = None) -> tuple[Path, Plans]:
    """The preprocessed folder of a data set, and its plans."""
    from unisegdiff_pipeline.core.serialization import read_dataclass
    from unisegdiff_pipeline.planning.plans import Plans, require_plans

    folder = roots.preprocessed_dataset(dataset)
    return folder, read_dataclass(Plans, require_plans(folder, plans_name))


def plans_name_of(args: argparse.Namespace) -> str | None:
    """What --plans says; None is the default plan.

    Raises:
        UsdError: it cannot be part of a path.
    """
    from unisegdiff_pipeline.inference.model_name import require_part

    return None if args.plans is None else require_part("--plans", args.plans)


def working_on(folder: Path) -> AbstractContextManager[None]:
    """Lock a preprocessed data set, so that two commands do not write it at once."""
    from unisegdiff_pipeline.core.locks import locked

    return locked(folder / LOCK, str(folder))


def fingerprint_step(
    raw: RawDataset, workers: int | None, scheduler: str | None
) -> tuple[Fingerprint, IntegrityReport]:
    """Check every case and collect its facts in one pass; every problem found is named, and ends the command."""
    from unisegdiff_pipeline.fingerprint import extract_fingerprint

    say(f"{raw.name}: checking and measuring {len(raw.cases)} cases")
    reader = raw.description.raw.get("overwrite_image_reader_writer")
    if isinstance(reader, str) and reader.endswith("Reorient"):
        say(f"{raw.name}: dataset.json asks for {reader}: volumes are turned to one orientation, as always")
    fingerprint, report = extract_fingerprint(raw, workers=workers, scheduler=scheduler)
    report_integrity(raw, report)
    return fingerprint, report


def report_integrity(raw: RawDataset, report: IntegrityReport) -> None:
    """Print the warnings of a check; raise a UsdError that lists all problems where there are any."""
    for warning in report.warnings:
        report_error(str(warning), kind="warning")
    if report.empty_cases:
        names = ", ".join(report.empty_cases[:LISTED_CASES])
        more = f" and {len(report.empty_cases) - LISTED_CASES} more" if len(report.empty_cases) > LISTED_CASES else ""
        say(f"{len(report.empty_cases)} of {len(raw.cases)} cases hold no foreground: {names}{more}")
    report.require_ok()


def write_facts(folder: Path, raw: RawDataset, fingerprint: Fingerprint, report: IntegrityReport) -> None:
    """Write fingerprint.json, the warnings of the check and a copy of dataset.json into the preprocessed folder."""
    from unisegdiff_pipeline.core.serialization import write_json

    write_json(folder / FINGERPRINT, fingerprint)
    write_json(folder / WARNINGS, report.warnings)
    write_json(folder / DATASET, raw.description.raw)


def write_report(folder: Path, raw: RawDataset, with_plans: bool = True) -> Path:
    """Write dataset_report.html from what the preprocessed folder holds, and pictures; returns its path."""
    from unisegdiff_pipeline.reports.dataset_report import write_dataset_report

    return write_dataset_report(folder, with_plans, raw)


def plan_step(raw: RawDataset, fingerprint: Fingerprint, budget: Budget, former: Path | None = None) -> Plans:
    """Plan all configurations that make sense; stages of a former plans.json stay where nothing else changed."""
    from unisegdiff_pipeline.planning.planner import plan_dataset

    plans = plan_dataset(fingerprint, raw.description, budget)
    return plans if former is None or not former.is_file() else keep_stages(plans, former)


def keep_stages(plans: Plans, former: Path) -> Plans:
    """Take over the stages of configurations that the former plans.json plans in the same way."""
    from unisegdiff_pipeline.core.serialization import read_dataclass
    from unisegdiff_pipeline.planning.plans import Plans

    try:
        old = read_dataclass(Plans, former)
    except UsdError:  # written by another version, or edited: the new plans replace it anyway
        return plans
    kept = {
        name: old.configurations[name]
        for name, configuration in plans.configurations.items()
        if name in old.configurations and replace(old.configurations[name], stages=None) == configuration
    }
    keys = [f"configurations.{name}.stages" for name in kept]
    reasons = {key: old.decisions[key] for key in keys if key in old.decisions}
    return replace(plans, configurations={**plans.configurations, **kept}, decisions={**plans.decisions, **reasons})


def choose_configurations(plans: Plans, asked_for: Sequence[str] | None) -> tuple[str, ...]:
    """The planned ones of the configurations asked for, all of them without a wish.

    One that makes no sense for the data is left out with a warning, so that a command can name several data sets.
    """
    names = tuple(asked_for or plans.configurations)
    planned = tuple(name for name in names if name in plans.configurations)
    for name in names:
        if name in planned:
            continue
        reason = plans.decisions.get(f"configurations.{name}")
        why = f" ({reason})" if reason else "; only configurations that make sense for the data are"
        message = f"{plans.dataset_name}: {name} is not planned{why}"
        if not planned:
            raise UsdError(f"{message}. Leave it out of -c; there are {', '.join(plans.configurations)}.")
        report_error(f"{message}. Left out; {', '.join(planned)} is preprocessed.", kind="warning")
    return planned


def preprocess_step(
    raw: RawDataset,
    folder: Path,
    plans: Plans,
    configurations: Sequence[str],
    workers: int | None,
    scheduler: str | None,
    plans_name: str | None = None,
) -> PreprocessReport:
    """Preprocess what is new or changed, and plan the stages from the preprocessed labels."""
    from unisegdiff_pipeline.preprocessing.preprocessor import preprocess_dataset

    return preprocess_dataset(
        raw, plans, configurations, folder, workers=workers, scheduler=scheduler, plans_name=plans_name
    )


def plan_and_preprocess(
    raw: RawDataset,
    folder: Path,
    budget: Budget,
    configurations: Sequence[str] | None = None,
    workers: int | None = None,
    scheduler: str | None = None,
    plans_name: str | None = None,
) -> Plans:
    """All steps for one data set; returns the plans with their stages.

    A plan with a name is made beside the default one, to which the report of the data set belongs.
    """
    from unisegdiff_pipeline.core.serialization import write_json
    from unisegdiff_pipeline.planning.plans import plans_file

    path = folder / plans_file(plans_name)
    with working_on(folder):
        fingerprint, report = fingerprint_step(raw, workers, scheduler)
        plans = plan_step(raw, fingerprint, budget, path)
        names = choose_configurations(plans, configurations)
        write_facts(folder, raw, fingerprint, report)
        write_json(path, plans)
        say(describe_plans(plans))
        plans = preprocess_step(raw, folder, plans, names, workers, scheduler, plans_name).plans
        if plans_name is None:
            write_report(folder, raw)
    return plans


def first_fold(raw: RawDataset, folder: Path) -> str:
    """The fold to begin training with: 0, or "all", with a warning, where the cases are too few to be split."""
    from unisegdiff_pipeline.training.data.splits import load_or_create_splits

    try:
        load_or_create_splits(folder, raw.folder, writing=False)
    except UsdError as error:
        report_error(str(error), kind="warning")
        return "all"
    return "0"


def describe_plans(plans: Plans) -> str:
    """The plan in a few lines for the terminal; the reasons stand in plans.json."""
    is_2d = set(plans.configurations) == {"2d"}
    unit = "mm" if plans.spacing_known else "pixels of the images" if is_2d else "mm (nominal)"
    lines = [f"{plans.dataset_name}: planned for {_budget_text(plans.budget)}"]
    for name, configuration in plans.configurations.items():
        network, spacing = configuration.network, configuration.preprocessing.target_spacing_mm
        mark = " (recommended)" if name == plans.recommended_configuration else ""
        lines.append(
            f"  {name}{mark}: spacing {_sizes(f'{s:.3g}' for s in spacing if s is not None)} {unit}, "
            f"patch {_sizes(map(str, network.patch_size))}, batch {configuration.training.batch_size}, "
            f"features {network.levels[0].features} to {network.levels[-1].features} on {len(network.levels)} levels"
        )
        if configuration.stages is not None:
            lines[-1] += f", stages at lam {configuration.stages.lam_a:.2f} and {configuration.stages.lam_c:.2f}"
    return "\n".join(lines)


def _budget_text(budget: Budget) -> str:
    if budget.device == "cpu":
        cores = f"{budget.num_cores} core{'' if budget.num_cores == 1 else 's'}"
        return f"a CPU with {cores} and {budget.memory_gb:.1f} GB"
    return f"a GPU with {budget.memory_gb:.1f} GB"


def _sizes(values: Iterable[str]) -> str:
    return " x ".join(values)
