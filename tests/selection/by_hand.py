"""Trials and stored cases written by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from unisegdiff_pipeline.diffusion.samplers import SamplerSettings
from unisegdiff_pipeline.preprocessing.components import ANNOTATED
from unisegdiff_pipeline.selection.sampler import SamplerTrial

TWO, EIGHT = SamplerSettings(num_calls=2), SamplerSettings(num_calls=8)
NONE = SamplerSettings(num_calls=0, draw=True, correlation_length_mm=4.0)


def own_spacing(dims: int) -> SimpleNamespace:
    """A plan without sources, whose cases have their own voxel size."""
    network = SimpleNamespace(dims=dims)
    return SimpleNamespace(network=network, field_spacing_mm=lambda spacing_mm: spacing_mm, sources=None)


def trial(
    sampler: SamplerSettings,
    *energies: float,
    groups: tuple[str, ...] | None = None,
    sources: tuple[str, ...] = (),
) -> SamplerTrial:
    return SamplerTrial(sampler, energies, groups, sources=sources)


def objects(shape: tuple[int, ...], spacing_mm: tuple[float, ...], *num_voxels: int, rows: int = 1) -> Any:
    """A stored case with annotated objects of these sizes; with several rows those of the first do not count."""
    row, last = np.arange(len(num_voxels)) % rows, len(num_voxels)
    table = SimpleNamespace(
        class_index=np.array([0] * last + [ANNOTATED]),
        row=np.append(row, 0),
        num_voxels=np.array([*num_voxels, 10**6]),
    )
    properties = SimpleNamespace(spacing_mm=spacing_mm)
    return SimpleNamespace(components=table, properties=properties, image=np.empty((1, *shape)), num_rows=rows)
