"""Fixtures shared by all tests: small phantoms made once a session, and real data where it is there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from unisegdiff_pipeline.commands import plan_and_preprocess
from unisegdiff_pipeline.demo.phantoms import make_phantom_dataset
from unisegdiff_pipeline.io.paths import Roots


@pytest.fixture(scope="session")
def raw_data() -> Path:
    """Raw root with real data sets: USD_TEST_RAW, else shared/data/raw beside the repository; skips without."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data" / "raw"
    root = Path(os.environ.get("USD_TEST_RAW", default))
    if not root.is_dir():
        pytest.skip(f"no real data at {root}; set USD_TEST_RAW to a folder of raw data sets")
    return root


@pytest.fixture(scope="session")
def phantom_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A raw root, to which phantom_2d and phantom_3d add their data sets. Read-only for tests."""
    return tmp_path_factory.mktemp("phantoms") / "raw"


@pytest.fixture(scope="session")
def phantom_2d(phantom_root: Path) -> Path:
    """Dataset902_Phantom2D: 12 training and 4 held-out PNG images of 48 x 48, four raters."""
    return make_phantom_dataset(phantom_root, 902, dims=2, num_train=12, num_test=4, seed=1, size=(48, 48))


@pytest.fixture(scope="session")
def phantom_3d(phantom_root: Path) -> Path:
    """Dataset903_Phantom3D: 6 training and 2 held-out NIfTI volumes of 16 x 32 x 32, four raters."""
    return make_phantom_dataset(phantom_root, 903, dims=3, num_train=6, num_test=2, seed=1, size=(16, 32, 32))


@pytest.fixture(scope="module")
def prepared(phantom_2d: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Preprocessed root of the 2D phantoms, planned for a CPU with 4 GB."""
    root = tmp_path_factory.mktemp("prepared")
    arguments = ["-d", "902", "--raw", str(phantom_2d.parent), "--preprocessed", str(root), "--device", "cpu"]
    assert plan_and_preprocess.main([*arguments, "--memory-gb", "4"]) == 0
    return root


@pytest.fixture
def roots(phantom_root: Path, tmp_path: Path) -> Roots:
    """Roots of one test: the phantoms as raw data, its own empty folders for the rest."""
    return Roots(raw=phantom_root, preprocessed=tmp_path / "preprocessed", results=tmp_path / "results")
