"""One case cut into tiles: what the segmenter says of each tile is computed once and kept while memory allows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from unisegdiff_pipeline.diffusion.coding import (
    NO_TEMPERATURE,
    Temperature,
    nested_probabilities,
    probabilities_from_logits,
)
from unisegdiff_pipeline.inference.active_region import ACTIVE_PROBABILITY, foreground
from unisegdiff_pipeline.inference.limits import Limits
from unisegdiff_pipeline.inference.sliding_window import (
    Index,
    blend,
    gaussian_weights,
    pad_volume,
    plan_tiles,
    prediction_window,
    weight_sum,
)
from unisegdiff_pipeline.networks.precision import autocast
from unisegdiff_pipeline.networks.staged_model import Condition, StagedModel


class TiledCase:
    """An image (C, Z, Y, X) under a model: tiles, their weights and the cache of their conditions.

    Keep one while several settings are tried on a case: the segmenter runs once.

    Args:
        image: preprocessed image (C, Z, Y, X), fp32; stays where it is, tiles go to the model's device.
        model: in eval mode.
        patch_size: of the plan; two numbers for a 2D network, whose tiles are slices. Tiles are larger along axes that
            a patch nearly covers (`prediction_window`).
        mirror_axes: axes of the patch; the segmenter's logits are averaged over all flips of a tile along them, while
            the denoiser sees the unflipped answer.
    """

    def __init__(
        self,
        image: Tensor,
        model: StagedModel,
        patch_size: Sequence[int],
        limits: Limits,
        mirror_axes: Sequence[int] = (),
    ) -> None:
        if image.ndim != 4:
            raise ValueError(f"image has shape {tuple(image.shape)}; expected (C, Z, Y, X), with Z = 1 for 2D")
        self.model = model
        self.limits = limits
        self.dims = len(patch_size)
        self._flips = _flips(mirror_axes)
        self.device = next(model.parameters()).device
        window = prediction_window(patch_size, image.shape[1:], model.segmenter.divisor)
        self.grid = plan_tiles(image.shape[1:], window, limits.step)
        self.weights = gaussian_weights(self.grid.window).to(self.device)
        self.num_recomputed = 0  # segmenter calls that a larger cache would have saved
        self._image = pad_volume(image, self.grid)
        self._cache: dict[int, Condition] = {}
        self._free_bytes = int(limits.feature_gb * 2**30)
        self._seen: set[int] = set()

    @property
    def window_voxels(self) -> int:
        """Voxels of one tile."""
        return self.weights.numel()

    @torch.inference_mode()
    def det_probabilities(self, temperature: Temperature = NO_TEMPERATURE) -> Tensor:
        """p_det over the padded volume, (K, Z, Y, X) fp32, on the device if the limits allow, else on the CPU.

        Regions are no likelier than those around them, so that every mixture with samples keeps them nested.
        """
        p = self.det_logits(temperature)
        for z in range(p.shape[1]):  # slice by slice, so that no second volume is needed
            p[:, z] = self._probabilities(p[None, :, z], temperature)[0]
        return p

    @torch.inference_mode()
    def det_logits(self, temperature: Temperature = NO_TEMPERATURE) -> Tensor:
        """The segmenter's logits, blended over the padded volume, (K, Z, Y, X) fp32; a new array at each call.

        Logits are blended, as by nnU-Net, and not probabilities: so a temperature, which comes afterwards, changes no
        decision where tiles disagree.

        Args:
            temperature: that p_det is taken at; it says which tiles are likely to be sampled, and worth a place in the
                cache.
        """
        tiles = self._segmented(temperature)
        first_index, first = next(tiles)
        if len(self.grid.starts) == 1:
            return first.clone()
        channels = first.shape[0]
        out = torch.zeros((channels, *self.grid.padded_shape), device=self._home(channels))
        weights = self.weights.to(out.device)
        total = weight_sum(self.grid.starts, weights, self.grid.padded_shape)

        def placed() -> Iterator[tuple[Index, Tensor]]:
            yield self.grid.starts[first_index], first.to(out.device)
            for index, logits in tiles:
                yield self.grid.starts[index], logits.to(out.device)

        return blend(placed(), weights, total, out)

    def conditions(self, tiles: Sequence[int]) -> Condition:
        """Conditions of some tiles as one batch, in their order; what is not cached is computed now."""
        missing = [t for t in tiles if t not in self._cache]
        computed = dict(zip(missing, self._compute(missing), strict=True)) if missing else {}
        for tile, condition in computed.items():
            self._keep(tile, condition)
        parts = [computed[t] if t in computed else self._cache[t] for t in tiles]
        if len(parts) == 1:
            return parts[0]
        logits = torch.cat([p.det_logits for p in parts])
        levels = zip(*(p.features for p in parts), strict=True)
        return Condition(logits, tuple(torch.cat(level) for level in levels))

    def forget_except(self, tiles: Sequence[int]) -> None:
        """Drop cached conditions of all other tiles, to make room for tiles that are needed and were not kept."""
        for tile in set(self._cache) - set(tiles):
            self._free_bytes += _num_bytes(self._cache.pop(tile))

    def _probabilities(self, logits: Tensor, temperature: Temperature) -> Tensor:
        p = probabilities_from_logits(logits, self.model.coding, temperature)
        return nested_probabilities(p, self.model.labels.nesting)

    def _segmented(self, temperature: Temperature) -> Iterator[tuple[int, Tensor]]:
        """(tile, logits (K, *window)) of every tile."""
        for batch in batches(range(len(self.grid.starts)), self.limits.segmenter_voxels // self.window_voxels):
            missing = [t for t in batch if t not in self._cache]
            fresh = dict(zip(missing, self._compute(missing), strict=True)) if missing else {}
            for tile in batch:
                condition = fresh[tile] if tile in fresh else self._cache[tile]
                if tile in fresh and self._may_be_sampled(condition, temperature):
                    self._keep(tile, condition)
                yield tile, self._in_volume(self._mirrored(tile, condition.det_logits[0]))

    def _may_be_sampled(self, condition: Condition, temperature: Temperature) -> bool:
        """Whether there is any foreground; where there is none, a place in the cache is for others."""
        p = self.model.det_probabilities(condition, temperature)[0]
        return float(foreground(p, self.model.coding).max()) > ACTIVE_PROBABILITY

    def _compute(self, tiles: Sequence[int]) -> list[Condition]:
        """Run the segmenter on some tiles; a Condition of batch size 1 for each."""
        self.num_recomputed += sum(t in self._seen for t in tiles)
        self._seen.update(tiles)
        found = []
        for batch in batches(tiles, self.limits.segmenter_voxels // self.window_voxels):
            logits, features = self._run(self.images(batch))
            for i in range(len(batch)):
                found.append(Condition(logits[i : i + 1], tuple(_sixteen_bit(f[i : i + 1]) for f in features)))
        return found

    def images(self, tiles: Sequence[int]) -> Tensor:
        """The image of some tiles as a network's batch (B, C, *patch) on the device."""
        stacked = torch.stack([self._image[(slice(None), *self.grid.slices(t))] for t in tiles])
        stacked = stacked.to(self.device, torch.float32)
        return stacked[:, :, 0] if self.dims == 2 else stacked

    def _run(self, images: Tensor) -> Condition:
        with torch.inference_mode(), autocast(self.device):
            return self.model.condition(images)

    def _mirrored(self, tile: int, logits: Tensor) -> Tensor:
        """Mean of logits (K, *patch) over all flips of the tile, where mirroring is on."""
        if not self._flips:
            return logits
        image, total = self.images([tile]), logits.clone()
        for axes in self._flips:
            flipped = self._run(image.flip([a + 2 for a in axes]))
            total += flipped.det_logits[0].flip([a + 1 for a in axes])
        return total / (1 + len(self._flips))

    def _in_volume(self, values: Tensor) -> Tensor:
        """(K, *patch) => (K, Z, Y, X)."""
        return values[:, None] if self.dims == 2 else values

    def _keep(self, tile: int, condition: Condition) -> None:
        size = _num_bytes(condition)
        if tile not in self._cache and size <= self._free_bytes:
            # A view would hold on to the batch it was cut from, and the budget would be wrong.
            self._cache[tile] = Condition(condition.det_logits.clone(), tuple(f.clone() for f in condition.features))
            self._free_bytes -= size

    def _home(self, channels: int) -> torch.device:
        voxels = self.grid.padded_shape[0] * self.grid.padded_shape[1] * self.grid.padded_shape[2]
        fits = 8 * channels * voxels <= self.limits.state_gb * 2**30
        return self.device if fits else torch.device("cpu")


def batches(items: Sequence[int], size: int) -> Iterator[list[int]]:
    """Cut a sequence into lists of `size`, at least 1."""
    size = max(1, size)
    for start in range(0, len(items), size):
        yield list(items[start : start + size])


def _sixteen_bit(features: Tensor) -> Tensor:
    """Cached and recomputed features are rounded alike, so that the size of the cache changes no result."""
    return features if features.dtype == torch.bfloat16 else features.half()


def _num_bytes(condition: Condition) -> int:
    return sum(t.numel() * t.element_size() for t in (condition.det_logits, *condition.features))


def _flips(axes: Sequence[int]) -> list[list[int]]:
    """All non-empty sets of axes."""
    return [[a for i, a in enumerate(axes) if code >> i & 1] for code in range(1, 2 ** len(axes))]
