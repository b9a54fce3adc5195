"""The name of a model's folder: TRAINER__CONFIGURATION, and after it the plan and the run where they have names.

StagedDiffusionTrainer__2d                      the default plan, plans.json
StagedDiffusionTrainer__2d__low_rate            the same, trained as --run low_rate
StagedDiffusionTrainer__2d__plans_big           by plans_big.json
StagedDiffusionTrainer__2d__plans_big__low_rate
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.names import name_problem
from unisegdiff_pipeline.planning.plans import PLANS_PREFIX

SEPARATOR = "__"
LONGEST = 60


@dataclass(frozen=True)
class ModelName:
    """What a model folder's name says; `plans` and `run` are None where they have no name."""

    trainer: str
    configuration: str
    plans: str | None = None
    run: str | None = None

    @property
    def folder(self) -> str:
        """Name of the folder."""
        plans = None if self.plans is None else f"{PLANS_PREFIX}{self.plans}"
        return SEPARATOR.join(part for part in (self.trainer, self.configuration, plans, self.run) if part is not None)


def parse_model_name(folder: str) -> ModelName | None:
    """What the name of a model folder says; None for a folder that is none."""
    parts = folder.split(SEPARATOR)
    if not 2 <= len(parts) <= 4 or not all(parts):
        return None
    trainer, configuration, *rest = parts
    plans = rest.pop(0).removeprefix(PLANS_PREFIX) if rest and rest[0].startswith(PLANS_PREFIX) else None
    if len(rest) > 1:
        return None
    return ModelName(trainer, configuration, plans, rest[0] if rest else None)


def require_part(flag: str, name: str) -> str:
    """A name of a run or a plan, which becomes part of the names of files and folders.

    Raises:
        UsdError: it could not be such a part everywhere, or could not be told from the other parts.
    """
    if (
        not re.fullmatch(rf"[A-Za-z0-9][A-Za-z0-9._+-]{{0,{LONGEST - 1}}}", name)
        or SEPARATOR in name
        or name.endswith((".", "_"))
        or name.startswith(PLANS_PREFIX)
        or name.startswith("fold_")
        or name_problem(name) is not None
    ):
        raise UsdError(
            f"{flag} {name!r} cannot be part of a folder's name; use 1 to {LONGEST} letters, digits and . _ - + with a "
            f"letter or digit first, no {SEPARATOR!r}, no _ or . at the end, and neither {PLANS_PREFIX!r} nor 'fold_' "
            f"in front."
        )
    return name
