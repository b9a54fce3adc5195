"""Plans in a few lines for people; the reasons stand in plans.json."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from unisegdiff_pipeline.core.labels import classes_in_words
from unisegdiff_pipeline.io.dataset_json import DatasetDescription
from unisegdiff_pipeline.planning.plans import Budget, Plans


def describe_plans(plans: Plans) -> str:
    """A line on the budget, and one on each configuration, with the sources that it cannot use, and why."""
    is_2d = set(plans.configurations) == {"2d"}
    unknown = "pixels of the images" if is_2d else "mm (nominal)"
    lines = [f"{plans.dataset_name}: planned for {_budget_text(plans.budget)}"]
    for name, configuration in plans.configurations.items():
        network, spacing = configuration.network, configuration.preprocessing.target_spacing_mm
        mark = " (recommended)" if name == plans.recommended_configuration else ""
        unit = "mm" if plans.in_mm(configuration) else unknown
        lines.append(
            f"  {name}{mark}: spacing {_sizes(f'{s:.3g}' for s in spacing if s is not None)} {unit}, "
            f"patch {_sizes(map(str, network.patch_size))}, batch {configuration.training.batch_size}, "
            f"features {network.levels[0].features} to {network.levels[-1].features} on {len(network.levels)} levels"
        )
        if configuration.stages is not None:
            lines[-1] += f", stages at lam {configuration.stages.lam_a:.2f} and {configuration.stages.lam_c:.2f}"
        used = plans.decisions.get(f"configurations.{name}.sources.plans", "")
        if "left out" in used:
            lines[-1] += f"; {used}"
    return "\n".join(lines)


def differences_from_plan(description: DatasetDescription, plans: Plans) -> Iterator[str]:
    """Classes and channels of dataset.json that are others than in the plan, in words."""
    planned, found = classes_in_words(plans.labels), classes_in_words(description.labels)
    if planned != found:
        yield f"the classes were {planned} and are {found} now"
    if plans.channel_names != description.channel_names:
        channels = ", ".join(description.channel_names)
        yield f"the channels were {', '.join(plans.channel_names)} and are {channels} now"


def _budget_text(budget: Budget) -> str:
    if budget.device == "cpu":
        cores = f"{budget.num_cores} core{'' if budget.num_cores == 1 else 's'}"
        return f"a CPU with {cores} and {budget.memory_gb:.1f} GB"
    return f"a GPU with {budget.memory_gb:.1f} GB"


def _sizes(values: Iterable[str]) -> str:
    return " x ".join(values)
