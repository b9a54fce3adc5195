"""The training on generated lesions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from unisegdiff_pipeline.networks.unet import SegmentationUNet
from unisegdiff_pipeline.synthetic import pretraining
from unisegdiff_pipeline.synthetic.__main__ import main
from unisegdiff_pipeline.synthetic.pretraining import BATCH_SIZE, draw_batch, finest_levels, pretrain
from unisegdiff_pipeline.training.pretrained import read_start
from unisegdiff_pipeline.training.request import SYNTHETIC_WEIGHTS
from unisegdiff_pipeline.training.synthetic_start import network_plan


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of two small pictures, for networks of three and of six levels."""
    monkeypatch.setattr(pretraining, "BATCH_SIZE", 2)
    monkeypatch.setattr(pretraining, "SIZES", ((6, 64), (3, 16)))


def test_the_command_writes_the_same_file_again(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [tmp_path / folder / SYNTHETIC_WEIGHTS.name for folder in ("one", "again", "other")]
    for file, seed in zip(files, (3, 3, 4), strict=True):
        arguments = ["synthetic", str(file.parent), "--iterations", "2", "--seed", str(seed)]
        monkeypatch.setattr("sys.argv", arguments)
        main()
        assert capsys.readouterr().out == f"{file}\n"
    one, again, other = (file.read_bytes() for file in files)
    assert one == again
    assert one != other
    assert len(one) <= 4e6
    assert read_start(files[0]).hash != read_start(files[2]).hash


def test_training_leaves_the_global_generator_alone(small: None) -> None:
    torch.manual_seed(7)
    expected = torch.random.get_rng_state()
    losses: list[float] = []
    network = pretrain(2, 0, lambda iteration, loss: losses.append(loss))
    assert torch.equal(torch.random.get_rng_state(), expected)
    assert len(losses) == 2
    assert not network.training


def test_finest_levels_are_a_part_of_the_network() -> None:
    network = SegmentationUNet(network_plan(), 1)
    part = finest_levels(network, 3)
    assert len(part.encoder) == len(part.decoder) + 1 == 3
    assert {id(p) for p in part.parameters()} < {id(p) for p in network.parameters()}
    part(torch.randn(1, 3, 16, 16)).logits[0].sum().backward()
    assert all(p.grad is not None for p in network.encoder[2].parameters())
    assert all(p.grad is None for p in network.encoder[3].parameters())


def test_a_batch_holds_pictures_and_masks() -> None:
    image, target = draw_batch(np.random.default_rng(0), 24)
    assert image.shape == (BATCH_SIZE, 3, 24, 24)
    assert target.shape == (BATCH_SIZE, 1, 24, 24)
    assert set(target.unique().tolist()) == {0.0, 1.0}
