"""Label patches for the planning of the stages."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np

from unisegdiff_pipeline.core.geometry import Geometry
from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.preprocessing.components import sample_components
from unisegdiff_pipeline.preprocessing.properties import CaseProperties
from unisegdiff_pipeline.preprocessing.provenance import CaseProvenance
from unisegdiff_pipeline.preprocessing.stage_patches import MAX_ROUNDS, collect_label_patches, label_patch
from unisegdiff_pipeline.preprocessing.storage import CaseFile, PreprocessedFolder, StoredCase, write_case

SCHEME = LabelScheme(("whole", "core"), ((1, 2), (2,)), "regions", (1, 2))


def stored(folder: Path, labels: np.ndarray) -> StoredCase:
    _, z, y, x = labels.shape
    properties = CaseProperties(
        "a", None, Geometry(), (z, y, x), (0, 1, 2), ((0, z), (0, y), (0, x)), (z, y, x), (z, y, x), (1.0, 1.0, 1.0)
    )
    components = sample_components(labels, SCHEME, "a")
    image = np.zeros((1, z, y, x), np.float32)
    write_case(folder, image, labels, components, CaseFile(CaseProvenance((), ""), "", properties), (8, 8))
    return PreprocessedFolder(folder).open("a")


def test_patch_moves_inwards_and_pads(tmp_path: Path) -> None:
    labels = np.arange(4 * 6 * 5, dtype=np.uint8).reshape(1, 4, 6, 5)
    case = stored(tmp_path, labels)
    np.testing.assert_array_equal(label_patch(case, 0, (2, 0, 4), (4, 3)), labels[0, 2, :4, 2:])
    np.testing.assert_array_equal(label_patch(case, 0, (3, 5, 0), (2, 2, 2)), labels[0, 2:, 4:, :2])
    padded = label_patch(case, 0, (1, 1, 1), (4, 6, 9))
    np.testing.assert_array_equal(padded[:, :, 2:7], labels[0])
    assert not padded[:, :, :2].any()
    assert not padded[:, :, 7:].any()


def test_patches_of_regions_and_raters(tmp_path: Path) -> None:
    labels = np.zeros((2, 6, 16, 16), np.uint8)
    labels[0, 2:4, 4:10, 4:10] = 1
    labels[0, 3, 6, 6] = 2
    patches = collect_label_patches(PreprocessedFolder(stored(tmp_path, labels).folder), SCHEME, (8, 8))
    assert len(patches["whole"]) == len(patches["core"]) == MAX_ROUNDS  # one a round: the other rater saw nothing
    assert all(patch.shape == (8, 8) and patch.dtype == bool and patch.any() for patch in patches["whole"])
    assert all(patch.sum() == 1 for patch in patches["core"])
    again = collect_label_patches(PreprocessedFolder(tmp_path), SCHEME, (8, 8))
    np.testing.assert_array_equal(patches["whole"], again["whole"])


def test_empty_data_set_gives_no_patches(tmp_path: Path) -> None:
    stored(tmp_path, np.zeros((1, 1, 8, 8), np.uint8))
    patches = collect_label_patches(PreprocessedFolder(tmp_path), SCHEME, (8, 8))
    assert {name: list(masks) for name, masks in patches.items()} == {"whole": [], "core": []}


def test_patches_take_the_memory_of_what_they_show(tmp_path: Path) -> None:
    labels = np.zeros((1, 1, 400, 400), np.uint8)
    labels[0, 0, 10:14, 10:14] = 2
    stored(tmp_path, labels)
    folder = PreprocessedFolder(tmp_path)
    collect_label_patches(folder, SCHEME, (400, 400))  # modules that it imports take memory as well
    tracemalloc.start()
    patches = collect_label_patches(folder, SCHEME, (400, 400))
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(patches["core"]) == MAX_ROUNDS
    assert patches["core"][0].shape == (400, 400)
    assert [mask.sum() for mask in patches["core"][:2]] == [16, 16]
    assert kept < 400 * 400  # of one mask, where there are two times MAX_ROUNDS
