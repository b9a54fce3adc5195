"""The start that comes with the package: a segmenter trained on generated lesions alone, see `synthetic.pretraining`.

One file starts networks of many widths and depths, in 2D and 3D (`embedding`).
"""

from __future__ import annotations

from pathlib import Path

from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.inference.model_folder import read_weights, tensors_hash
from unisegdiff_pipeline.planning.plans import LevelPlan, NetworkPlan
from unisegdiff_pipeline.training.pretrained_start import PretrainedStart, SeenCases, StartReader
from unisegdiff_pipeline.training.request import SYNTHETIC, SYNTHETIC_WEIGHTS

CHANNELS = 3
EDGE = 96
# As plans for a CPU double from 16; the coarsest levels are narrow, so that the file stays within 4 MB.
FEATURES = (16, 32, 64, 128, 128, 96)
LABELS = LabelScheme(names=("lesion",), members=((1,),), coding="binary", write_values=(1,))


def network_plan(depth: int = len(FEATURES)) -> NetworkPlan:
    """The network of the start, or its finest levels alone."""
    levels = (LevelPlan(width, (2, 2) if i else (1, 1), (3, 3), 2) for i, width in enumerate(FEATURES[:depth]))
    return NetworkPlan(2, (EDGE, EDGE), CHANNELS, tuple(levels))


def _read(path: Path, fold: str | None) -> PretrainedStart:
    """The weights, which have seen no case of any data set."""
    tensors, origin = read_weights(path)
    return PretrainedStart(
        tensors={name: tensor.float() for name, tensor in tensors.items()},
        network=network_plan(),
        description=f"{path} (generated lesions, {origin['iterations']} iterations)",
        hash=tensors_hash(tensors),
        labels=LABELS,
        seen=SeenCases(all_known=True),
        embeds=True,
    )


GENERATED = StartReader(
    kind=f"generated lesions (usd_train --pretrained {SYNTHETIC})",
    accepts=lambda path: path.name == SYNTHETIC_WEIGHTS.name,
    read=_read,
)
