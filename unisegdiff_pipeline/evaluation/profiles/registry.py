"""All profiles by name."""

from __future__ import annotations

from unisegdiff_pipeline.evaluation.profiles.autopet import AUTOPET
from unisegdiff_pipeline.evaluation.profiles.brats import BRATS
from unisegdiff_pipeline.evaluation.profiles.isles import ISLES
from unisegdiff_pipeline.evaluation.profiles.lits import LITS
from unisegdiff_pipeline.evaluation.profiles.panoptic import PANOPTIC
from unisegdiff_pipeline.evaluation.profiles.picai import PICAI
from unisegdiff_pipeline.evaluation.profiles.profile import Profile
from unisegdiff_pipeline.evaluation.profiles.recommended import RECOMMENDED
from unisegdiff_pipeline.evaluation.profiles.ulds import ULDS

PROFILES = {profile.name: profile for profile in (AUTOPET, *BRATS, ISLES, LITS, PANOPTIC, PICAI, RECOMMENDED, ULDS)}


def find_profile(name: str) -> Profile:
    """The profile of this name.

    Raises:
        ValueError: for an unknown name; lists all.
    """
    if name not in PROFILES:
        raise ValueError(f"profile is {name!r}; choose one of {', '.join(PROFILES)}")
    return PROFILES[name]
