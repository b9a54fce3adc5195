"""One case cut into tiles: what the segmenter says of each tile is computed once and kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from unisegdiff_pipeline.core.scratch import Scratch
from unisegdiff_pipeline.diffusion.coding import (
    NO_CALIBRATION,
    LogitCalibration,
    nested_probabilities,
    probabilities_from_logits,
)
from unisegdiff_pipeline.inference.active_region import ACTIVE_PROBABILITY, foreground
from unisegdiff_pipeline.inference.condition_store import ConditionStore
from unisegdiff_pipeline.inference.limits import Limits, call_size
from unisegdiff_pipeline.inference.sliding_window import (
    blend,
    cut_padded,
    gaussian_weights,
    plan_tiles,
    prediction_window,
)
from unisegdiff_pipeline.networks.denoiser import Condition
from unisegdiff_pipeline.networks.precision import autocast
from unisegdiff_pipeline.networks.sources import UNKNOWN
from unisegdiff_pipeline.networks.staged_model import StagedModel


class TiledCase:
    """An image (C, Z, Y, X) under a model: tiles, their weights and their conditions.

    Keep one while several settings are tried on a case: the segmenter runs once.

    Args:
        image: preprocessed image (C, Z, Y, X), fp32; stays where it is, tiles go to the model's device.
        model: in eval mode.
        patch_size: of the plan; two numbers for a 2D network, whose tiles are slices. Tiles are larger along axes that
            a patch nearly covers (`prediction_window`).
        mirror_axes: axes of the patch; the segmenter's logits are averaged over all flips of a tile along them, while
            the denoiser sees the unflipped answer.
        scratch: where arrays of the volume's size live; None keeps them in memory.
        source: row of the image's source in the network's tables (`SourcesPlan.index`), 0 for an unknown one.
    """

    def __init__(
        self,
        image: Tensor,
        model: StagedModel,
        patch_size: Sequence[int],
        limits: Limits,
        mirror_axes: Sequence[int] = (),
        scratch: Scratch | None = None,
        source: int = UNKNOWN,
    ) -> None:
        if image.ndim != 4:
            raise ValueError(f"image has shape {tuple(image.shape)}; expected (C, Z, Y, X), with Z = 1 for 2D")
        self.model = model
        self.limits = limits
        self.scratch = scratch or Scratch()
        self.dims = len(patch_size)
        self._flips = _flips(mirror_axes)
        self.device = next(model.parameters()).device
        # None for an unknown source: the same as a 0 for each example, without looking it up.
        self._source = None if source == UNKNOWN else torch.tensor([source], device=self.device)
        window = prediction_window(patch_size, image.shape[1:], model.segmenter.divisor)
        self.grid = plan_tiles(image.shape[1:], window, limits.step)
        self.weights = gaussian_weights(self.grid.window).to(self.device)
        self.order = sorted(range(len(self.grid.starts)), key=lambda tile: self.grid.starts[tile])
        self.num_recomputed = 0  # segmenter calls that a larger cache would have saved
        self.call_size = call_size(self.device, self.weights.numel())
        self._image = image
        on_disk = self.scratch if self.device.type == "cpu" else None
        self._kept = ConditionStore(limits.feature_gb * 2**30, on_disk)
        self._last: dict[int, Condition] = {}  # of the last call, and not kept
        self._seen: set[int] = set()

    @torch.inference_mode()
    def det_probabilities(self, calibration: LogitCalibration = NO_CALIBRATION) -> Tensor:
        """p_det over the padded volume, (K, Z, Y, X) fp32, on the CPU.

        Regions are no likelier than those around them, so that every mixture with samples keeps them nested.
        """
        return self._whole(calibration, probabilities=True)

    @torch.inference_mode()
    def det_logits(self) -> Tensor:
        """The segmenter's logits, blended over the padded volume, (K, Z, Y, X) fp32 on the CPU; new at each call.

        Logits are blended, as by nnU-Net, and not probabilities: so a calibration, which comes afterwards, changes no
        decision where tiles disagree.
        """
        return self._whole(NO_CALIBRATION, probabilities=False)

    def _whole(self, calibration: LogitCalibration, probabilities: bool) -> Tensor:
        out: Tensor | None = None
        for first, logits in self._logit_slabs(calibration):
            if out is None:
                channels = logits.shape[0]
                out = torch.from_numpy(self.scratch.empty((channels, *self.grid.padded_shape)))
            for z in range(logits.shape[1]):  # slice by slice: no second slab, and the same in every slab
                values = logits[:, z]
                out[:, first + z] = self._probabilities(values[None], calibration)[0] if probabilities else values
            self.scratch.release()
        assert out is not None
        return out

    def _logit_slabs(self, calibration: LogitCalibration) -> Iterator[tuple[int, Tensor]]:
        """(first row, blended logits (K, rows, Y, X)) from the first row to the last."""
        tiles = self._segmented(calibration)
        if len(self.grid.starts) == 1:
            yield 0, next(tiles)[1]
            return
        placed = ((self.grid.starts[index], logits) for index, logits in tiles)
        for first, logits, _ in blend(placed, self.weights, self.grid.padded_shape):
            yield first, logits

    def conditions(self, tiles: Sequence[int]) -> Condition:
        """Conditions of some tiles as one batch, in their order; what is not cached is computed now."""
        missing = [t for t in tiles if t not in self._kept and t not in self._last]
        if missing:
            computed = dict(zip(missing, self._compute(missing), strict=True))
            self._last = {t: c for t, c in {**self._last, **computed}.items() if t in tiles}
            self._last = {t: c for t, c in self._last.items() if not self._kept.keep(t, c)}
        parts = [self._last[t] if t in self._last else self._kept[t] for t in tiles]
        if len(parts) == 1:
            return parts[0]
        logits = torch.cat([p.det_logits for p in parts])
        levels = zip(*(p.features for p in parts), strict=True)
        return Condition(logits, tuple(torch.cat(level) for level in levels), self._source)

    def forget_except(self, tiles: Sequence[int]) -> None:
        """Drop cached conditions of all other tiles, to make room for tiles that are needed and were not kept."""
        self._kept.forget_except(tiles)

    def _probabilities(self, logits: Tensor, calibration: LogitCalibration) -> Tensor:
        p = probabilities_from_logits(logits, self.model.coding, calibration)
        return nested_probabilities(p, self.model.labels.nesting)

    def _segmented(self, calibration: LogitCalibration) -> Iterator[tuple[int, Tensor]]:
        """(tile, logits (K, *window)) of every tile."""
        for batch in batches(self.order, self.call_size):
            missing = [t for t in batch if t not in self._kept]
            fresh = dict(zip(missing, self._compute(missing), strict=True)) if missing else {}
            for tile in batch:
                condition = fresh[tile] if tile in fresh else self._kept[tile]
                if tile in fresh and self._may_be_sampled(condition, calibration):
                    self._kept.keep(tile, condition)
                yield tile, self._in_volume(self._mirrored(tile, condition.det_logits[0]))

    def _may_be_sampled(self, condition: Condition, calibration: LogitCalibration) -> bool:
        """Whether there is any foreground; where there is none, a place in the cache is for others."""
        p = self.model.det_probabilities(condition, calibration)[0]
        return float(foreground(p, self.model.coding).max()) > ACTIVE_PROBABILITY

    def _compute(self, tiles: Sequence[int]) -> list[Condition]:
        """Run the segmenter on some tiles; a Condition of batch size 1 for each."""
        self.num_recomputed += sum(t in self._seen for t in tiles)
        self._seen.update(tiles)
        result = []
        for batch in batches(tiles, self.call_size):
            whole = self._run(self.images(filled(batch, self.call_size)))
            for i in range(len(batch)):
                features = tuple(_sixteen_bit(f[i : i + 1]) for f in whole.features)
                result.append(Condition(whole.det_logits[i : i + 1], features, self._source))
        return result

    def images(self, tiles: Sequence[int]) -> Tensor:
        """The image of some tiles as a network's batch (B, C, *patch) on the device."""
        stacked = torch.stack([cut_padded(self._image, self.grid.starts[t], self.grid) for t in tiles])
        stacked = stacked.to(self.device, torch.float32)
        return stacked[:, :, 0] if self.dims == 2 else stacked

    def _run(self, images: Tensor) -> Condition:
        with torch.inference_mode(), autocast(self.device):
            return self.model.condition(images, self._source)

    def _mirrored(self, tile: int, logits: Tensor) -> Tensor:
        """Mean of logits (K, *patch) over all flips of the tile, where mirroring is on."""
        if not self._flips:
            return logits
        image, total = self.images(filled([tile], self.call_size)), logits.clone()
        for axes in self._flips:
            flipped = self._run(image.flip([a + 2 for a in axes]))
            total += flipped.det_logits[0].flip([a + 1 for a in axes])
        return total / (1 + len(self._flips))

    def _in_volume(self, values: Tensor) -> Tensor:
        """(K, *patch) => (K, Z, Y, X)."""
        return values[:, None] if self.dims == 2 else values


def batches(items: Sequence[int], size: int) -> Iterator[list[int]]:
    """Cut a sequence into lists of `size`, at least 1."""
    size = max(1, size)
    for start in range(0, len(items), size):
        yield list(items[start : start + size])


def filled(items: Sequence[int], size: int) -> list[int]:
    """The items and then the last one again, until there are `size`: network calls are of one size."""
    return [*items, *[items[-1]] * (size - len(items))]


def _sixteen_bit(features: Tensor) -> Tensor:
    """Cached and recomputed features are rounded alike, so that the size of the cache changes no result."""
    return features if features.dtype == torch.bfloat16 else features.half()


def _flips(axes: Sequence[int]) -> list[list[int]]:
    """All non-empty sets of axes."""
    return [[a for i, a in enumerate(axes) if code >> i & 1] for code in range(1, 2 ** len(axes))]
