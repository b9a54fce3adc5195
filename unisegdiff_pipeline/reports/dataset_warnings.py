"""What stands out in the facts and the plan of a data set, each with what to do about it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from unisegdiff_pipeline.core.progress import counted, is_or_are
from unisegdiff_pipeline.core.units import units_of
from unisegdiff_pipeline.core.words import joined
from unisegdiff_pipeline.fingerprint import Fingerprint
from unisegdiff_pipeline.planning.normalization import choose_normalizations
from unisegdiff_pipeline.planning.plans import ConfigurationPlan, Plans

FEW_CASES = 20
MANY_EMPTY = 0.1
FEW_MAPS = 10
SPACING_RATIO = 2.0
THIN_VOXELS = 3.0
TINY_FRACTION = 1e-4


def data_warnings(fingerprint: Fingerprint, plans: Plans | None) -> list[str]:
    """Sentences about what should be looked at before training; none where nothing stands out."""
    found = [*_about_cases(fingerprint), *_about_classes(fingerprint)]
    if plans is None:
        return [*found, *_about_spacing(fingerprint)]
    if plans.spacing_known:
        found += _about_spacing(fingerprint)
    configuration = plans.configurations[plans.recommended_configuration]
    found += _about_thin_objects(fingerprint, configuration, plans.spacing_known)
    return [*found, *_about_stages(fingerprint, configuration)]


def _about_cases(fingerprint: Fingerprint) -> Iterator[str]:
    count = len(fingerprint.cases)
    if count < FEW_CASES:
        most = -(-count // 5)
        yield (
            f"There {is_or_are(count)} only {counted(count, 'case')}, so a fold validates on {most} or fewer: "
            "differences between trainings will hardly be told from chance. Judge by all five folds together, and add "
            "cases if you can."
        )
    if fingerprint.fraction_of_empty_cases > MANY_EMPTY:
        yield (
            f"{fingerprint.fraction_of_empty_cases:.0%} of the cases hold no foreground "
            f"({sum(case.empty for case in fingerprint.cases)} of {count}). See that they are meant to be empty; Dice "
            "is undefined for them, so look at false positives beside it."
        )
    for choice in choose_normalizations(fingerprint.channel_names, natural_images=True):
        if choice.warning:
            yield f"{choice.warning[0].upper()}{choice.warning[1:]}."


def _about_classes(fingerprint: Fingerprint) -> Iterator[str]:
    maps, element = sum(max(1, len(c.raters)) for c in fingerprint.cases), units_of(fingerprint.is_2d, True).element
    present = {lesion.class_name: round(lesion.fraction_of_maps * maps) for lesion in fingerprint.lesions}
    never = [name for name, count in present.items() if count == 0]
    rare = [f"{name} ({count})" for name, count in present.items() if 0 < count < FEW_MAPS and count < maps / 2]
    tiny = [lesion.class_name for lesion in fingerprint.lesions if 0 < lesion.foreground_fraction < TINY_FRACTION]
    if never:
        yield f"In no label map there is any {joined(never)}: check the labels in dataset.json, or take it out."
    if rare:
        yield (
            f"Of {maps} label maps very few hold {joined(rare)}, so that some folds may validate on none of them. "
            "Write the folds by hand in splits_final.json, or merge the class with another."
        )
    if tiny:
        yield (
            f"Less than {TINY_FRACTION:.2%} of the {element}s are {joined(tiny)}. Patches are centred on such objects "
            "often enough to learn them, but look at counts of lesions beside Dice when you evaluate."
        )


def _about_spacing(fingerprint: Fingerprint) -> Iterator[str]:
    spacing = np.array([case.spacing_mm for case in fingerprint.cases])
    element = units_of(fingerprint.is_2d, True).element
    for axis, name in enumerate("ZYX"):
        low, high = np.percentile(spacing[:, axis], (5, 95))
        if high > SPACING_RATIO * low:
            yield (
                f"The {element} size along {name} goes from {low:.3g} to {high:.3g} mm between the 5 % finest and "
                "coarsest cases. All are resampled to one size; look whether the coarse ones are scored worse."
            )


def _about_thin_objects(
    fingerprint: Fingerprint, configuration: ConfigurationPlan, spacing_known: bool
) -> Iterator[str]:
    in_plane = [s for s in configuration.preprocessing.target_spacing_mm[1:] if s is not None]
    if not in_plane:
        return
    limit_mm = THIN_VOXELS * max(in_plane)
    thin, specks = [], []
    for lesion in fingerprint.lesions:
        if lesion.main_thickness_mm is not None and lesion.main_thickness_mm.p50 < limit_mm:
            thin.append(lesion.class_name)
        elif lesion.thickness_mm is not None and lesion.thickness_mm.p50 < limit_mm:
            specks.append(lesion.class_name)
    unit = units_of(fingerprint.is_2d, spacing_known).length
    size = f"{THIN_VOXELS:g} voxels at the {max(in_plane):.3g} {unit} planned for {configuration.name}"
    if thin:
        yield (
            f"In half of the label maps {joined(thin)} is nowhere thicker than {size}: Dice will be low whatever is "
            "trained. Plan for more memory (--memory-gb), or set a finer target_spacing_mm in plans.json."
        )
    if specks:
        yield (
            f"More than half of the components of {joined(specks)} are specks thinner than {size}, beside thicker "
            "ones. See whether they are meant: every one of them counts as a lesion when lesions are counted."
        )


def _about_stages(fingerprint: Fingerprint, configuration: ConfigurationPlan) -> Iterator[str]:
    if configuration.stages is None:
        return
    curves = {curve.class_name: curve for curve in configuration.stages.curves}
    for lesion in fingerprint.lesions:
        curve = curves.get(lesion.class_name)
        if curve is None and lesion.fraction_of_maps > 0:
            yield (
                f"No label patch of class {lesion.class_name} could be used to plan the stages: it is empty or fills "
                "the patch everywhere, so the other classes, or the defaults, decide the edges."
            )
        elif curve is not None and curve.lam_c >= curve.lam[-1]:
            yield (
                f"Class {lesion.class_name} is never nearly readable within the range of lam that is looked at; its "
                "objects are smaller than a voxel or two. Stage C begins at the end of that range."
            )
