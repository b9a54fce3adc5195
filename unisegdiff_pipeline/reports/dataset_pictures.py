"""Three cases with their labels: a label that is flipped, shifted or of another case is seen at once.

Of a unified data set it is a case of each source, with the classes that its labels become. They are drawn from the raw
files, as viewers show them, before anything was resampled or normalised.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.geometry import on_grid_of
from unisegdiff_pipeline.evaluation.reading import check_label_values
from unisegdiff_pipeline.fingerprint import CaseFingerprint, Fingerprint
from unisegdiff_pipeline.io.images import files_read, read_image, read_labels
from unisegdiff_pipeline.io.raw_dataset import RawCase, RawDataset
from unisegdiff_pipeline.io.sources import unified_volumes
from unisegdiff_pipeline.reports.case_pictures import (
    Marks,
    Outline,
    choose_plane,
    class_colors,
    draw_panel,
    is_colored,
    region_of_interest,
    window,
)
from unisegdiff_pipeline.reports.kept_figures import KeptFigures
from unisegdiff_pipeline.reports.page import Html, Section, legend, panels, subsection

QUANTILES = (1 / 6, 1 / 2, 5 / 6)  # of the amount of foreground: a small, a median and a large one
MOST_CHANNELS = 4
MOST_VOXELS = 200_000_000  # of an image; reading a larger one takes longer than its picture is worth


def section(fingerprint: Fingerprint, raw: RawDataset, kept: KeptFigures) -> Section | None:
    """Pictures of three cases with foreground, or of one of each source; None where there is none to be read."""
    files = {case.case_id: case for case in raw.cases}
    known = [case for case in fingerprint.cases if case.case_id in files]
    chosen = _of_each_source(known, fingerprint.sources) if fingerprint.sources else chosen_cases(known)
    parts = []
    for case in chosen:
        try:
            found = files[case.case_id]
            parts.append(subsection(case.case_id, [kept.draw(_panels, _drawn_from(found, raw), found, raw)]))
        except (UsdError, OSError):  # the files have changed since they were measured; the commands say so
            continue
    if not parts:
        return None
    labels = raw.description.labels
    which = "With median foreground" if fingerprint.sources else "With little, median and much foreground"
    title = "A case of each source with its labels" if fingerprint.sources else "Three cases with their labels"
    if not fingerprint.sources and len(parts) < len(QUANTILES):
        which, title = "With foreground", "Cases with their labels"
    intro = (
        f"{which}: the slice with the largest labelled area, as the files hold it. See whether the outlines follow "
        f"what they should."
    )
    if not fingerprint.is_2d and raw.description.spacing_known:
        intro += " The patient's right (R) is on the left, anterior (A) or superior (S) on top."
    colors = dict(zip(labels.names, class_colors(len(labels.names)), strict=True))
    return Section(title, [*parts, legend(colors)], intro)


def chosen_cases(cases: Sequence[CaseFingerprint]) -> list[CaseFingerprint]:
    """A small, a median and a large one of the cases with foreground, by the voxels they label."""

    def amount(case: CaseFingerprint) -> int:
        return sum(found.voxels for found in case.classes)

    able = [c for c in cases if not c.empty and np.prod(c.shape, dtype=float) <= MOST_VOXELS]
    ranked = sorted(able, key=lambda case: (amount(case), case.case_id))
    places = dict.fromkeys(int(quantile * len(ranked)) for quantile in QUANTILES)
    return [ranked[place] for place in places] if ranked else []


def _of_each_source(cases: Sequence[CaseFingerprint], sources: Iterable[str]) -> list[CaseFingerprint]:
    """The median one by foreground of each source that has any."""
    found = (chosen_cases([case for case in cases if case.source == source]) for source in sources)
    return [ranked[len(ranked) // 2] for ranked in found if ranked]


def _drawn_from(case: RawCase, raw: RawDataset) -> str:
    """What the panels of a case are drawn from besides its facts: its files as they are now, and what they mean."""
    assert case.label_path is not None
    states = [(str(path), path.stat()) for path in files_read([*case.image_paths, case.label_path])]
    files = [(name, state.st_size, state.st_mtime_ns) for name, state in states]
    return f"{files} {raw.description_of(case)} {raw.source_of(case)} {raw.description.labels}"


def _panels(case: RawCase, raw: RawDataset) -> Html:
    assert case.label_path is not None
    description, source = raw.description_of(case), raw.source_of(case)
    image = read_image(case.image_paths, case.num_channels(len(description.channel_names)))
    labels = on_grid_of(read_labels(case.label_path), image)
    if source is not None:
        check_label_values(case.label_path, labels.array, description.labels)
        (labels,) = unified_volumes([labels], source, description.labels, raw.description.labels)
    if image.array.shape[1:] != labels.array.shape[1:]:
        raise UsdError(f"{case.label_path} has another shape than its image.")
    scheme, mask = raw.description.labels, labels.array[0]
    classes = dict(scheme.class_masks(mask))
    foreground = np.logical_or.reduce(list(classes.values()))
    plane = choose_plane([foreground], labels.geometry, description.spacing_known)
    shown = plane.cut(image.array)
    missing = case.missing(description.channel_names)
    names = [name for name in description.channel_names if name not in missing]
    is_2d = image.geometry.is_2d
    pictures = {name: window(shown[i : i + 1], is_2d) for i, name in enumerate(names[:MOST_CHANNELS])}
    if is_colored(shown, is_2d):
        pictures = {"Image": window(shown, is_2d)}
    outlines = _outlines({name: plane.cut(m) for name, m in classes.items()})
    region = region_of_interest([outline.mask for outline in outlines], plane.pixel_mm)
    first = next(iter(pictures.values()))
    found: list[tuple[Html, str]] = []
    place = f", slice {plane.index + 1}" if len(mask) > 1 else ""
    for name, picture in pictures.items():
        alt = f"{case.case_id}: {name}"
        found.append((draw_panel(picture, plane.pixel_mm, alt, Marks(letters=plane.letters)), f"{name}{place}"))
    marks = Marks(outlines, letters=plane.letters)
    whole = draw_panel(first, plane.pixel_mm, f"{case.case_id}: labels", marks)
    found.append((whole, "Labels"))
    if region is not None:
        near = draw_panel(first, plane.pixel_mm, f"{case.case_id}: near", Marks(outlines), region=region)
        found.append((near, "Labels, enlarged"))
    return panels(found)


def _outlines(masks: Mapping[str, np.ndarray]) -> list[Outline]:
    colors = class_colors(len(masks))
    return [Outline(mask, color) for mask, color in zip(masks.values(), colors, strict=True)]
