"""One call of the denoiser over a box: every tile of the state is denoised, and all are blended."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from unisegdiff_pipeline.diffusion.schedule import NoiseLevel
from unisegdiff_pipeline.inference.sampling_box import SamplingBox
from unisegdiff_pipeline.inference.settings import InferenceSettings
from unisegdiff_pipeline.inference.sliding_window import Index, blend, window_slices
from unisegdiff_pipeline.inference.tiled_case import batches, filled
from unisegdiff_pipeline.networks.denoiser import Guide
from unisegdiff_pipeline.networks.precision import autocast


class BoxDenoiser:
    """Denoises the tiles of a box, layer by layer, and gives out each slab of rows that no further tile reaches."""

    def __init__(self, box: SamplingBox, settings: InferenceSettings) -> None:
        self.box, self.settings = box, settings
        self._guide: tuple[tuple[int, ...], Guide] | None = None  # of the tiles asked for last

    def estimates(self, x: Tensor, lam: float, corrected: bool) -> Iterator[tuple[int, Tensor]]:
        """Denoise every tile of the state x (n, K, *box) and blend: (first row, p and correction (2, n, K, ...)).

        The correction is left out, (1, n, K, ...), where `corrected` is false.
        """
        denoised = self._denoised(x, lam, corrected)
        if len(self.box.tiles) == 1:
            yield 0, next(denoised)[1]
            return
        for first, found, total in blend(denoised, self.box.case.weights, self.box.extent):
            if bool((total == 0).any()):
                # No tile there: the estimate is p_det, so that the state stays a noised mask.
                p_det = self.box.p_det[:, first : first + total.shape[0]].to(found.device)
                found[0] = torch.where(total == 0, p_det, found[0])
            yield first, found

    def _denoised(self, x: Tensor, lam: float, corrected: bool) -> Iterator[tuple[Index, Tensor]]:
        """(place in the box, p and correction (2 or 1, n, K, *window)) of one tile after the other."""
        n, size = x.shape[0], self.box.case.call_size
        waiting: list[Tensor] = []
        tile = 0
        for numbers in batches(range(len(self.box.tiles) * n), size):
            full = filled(numbers, size)
            starts = [self.box.start_in_box(self.box.tiles[k // n]) for k in full]
            window = self.box.case.grid.window
            parts = [
                x[(k % n, slice(None), *window_slices(start, window))] for k, start in zip(full, starts, strict=True)
            ]
            tiles, x_t = [self.box.tiles[k // n] for k in full], torch.stack(parts).to(self.box.case.device)
            found = self._denoise(tiles, x_t, lam, corrected)
            waiting.append(found[:, : len(numbers)])
            while sum(part.shape[1] for part in waiting) >= n:
                whole = waiting[0] if len(waiting) == 1 else torch.cat(waiting, dim=1)
                yield self.box.start_in_box(self.box.tiles[tile]), whole[:, :n]
                waiting = [whole[:, n:]] if whole.shape[1] > n else []
                tile += 1

    def _denoise(self, tiles: Sequence[int], x_t: Tensor, lam: float, corrected: bool) -> Tensor:
        """Denoise x_t (B, K, *window) of some tiles => p and correction (2 or 1, B, K, *window)."""
        case, flat = self.box.case, self.box.case.dims == 2
        different = tuple(dict.fromkeys(tiles))
        guide = self._guide_of(different)
        if len(tiles) > 1:
            which = torch.tensor([different.index(tile) for tile in tiles], device=case.device)
            guide = guide.each(lambda values: values[which])
        level = NoiseLevel.of(torch.full((1,), lam, device=case.device), self.settings.edges)
        x_t = x_t[:, :, 0] if flat else x_t
        with autocast(case.device):
            found = case.model.denoise_guided(x_t, level, guide, corrected)
        values = torch.stack([found.probabilities, found.correction]) if corrected else found.probabilities[None]
        return values[:, :, :, None] if flat else values

    def _guide_of(self, tiles: tuple[int, ...]) -> Guide:
        """What the denoiser takes of these tiles; kept until others are asked for, after all samples of a tile."""
        if self._guide is None or self._guide[0] != tiles:
            condition = self.box.case.conditions(tiles)
            self._guide = tiles, self.box.case.model.guide(condition, self.settings.denoiser_calibration)
        return self._guide[1]
