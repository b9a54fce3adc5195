"""Signal and noise amplitudes as functions of lam, the log signal-to-noise ratio.

Variance preserving (Kingma et al. 2021, "Variational Diffusion Models", section 3.1): x_t = a x_0 + s e with
a^2 = sigmoid(lam), s^2 = sigmoid(-lam), so that lam = ln(a^2 / s^2). Small lam is noisy; lam = -infinity is the noise
itself, exactly, so that training and sampling start from the same distribution (zero terminal signal-to-noise ratio).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

PURE_NOISE = float("-inf")
LAM_EMBEDDED_FOR_PURE_NOISE = -20.0  # networks see this finite number where lam = -infinity

Target = Literal["staged", "x0", "v", "epsilon"]


@dataclass(frozen=True)
class StageEdges:
    """Edges of the stages on lam: A (rapid segmentation) | lam_a | B (probabilistic) | lam_c | C (refinement).

    `input_scale` holds a factor b for each channel, empty for 1 everywhere. Scaling x_0 by b is nothing but a shift of
    that channel's lam by 2 ln b, which is how it is done here: every channel stays variance preserving.

    `target` says what the network predicts: "staged" changes it from stage to stage, the others keep one everywhere
    (see `targets`).
    """

    lam_a: float
    lam_c: float
    input_scale: tuple[float, ...] = ()
    target: Target = "staged"

    def __post_init__(self) -> None:
        if not self.lam_a < self.lam_c:
            raise ValueError(f"lam_a {self.lam_a} must lie below lam_c {self.lam_c}; plan the stages again")


def channel_lam(lam: Tensor, edges: StageEdges) -> Tensor:
    """lam of every channel: (B,) => (B, C) where channels are scaled, else (B,) as it is."""
    if all(b == 1 for b in edges.input_scale):
        return lam
    return lam[:, None] + 2 * torch.tensor(edges.input_scale, device=lam.device).log()


@dataclass(frozen=True)
class NoiseLevel:
    """How noisy masks are.

    Attributes:
        lam: (B,), or (1,) for all, which is faster; -inf for pure noise. What a network is told.
        mask_lam: of each channel of the mask, (B or 1, C) where channels are scaled, else lam.
    """

    lam: Tensor
    mask_lam: Tensor

    @classmethod
    def of(cls, lam: Tensor, edges: StageEdges) -> NoiseLevel:
        """The level of masks that are scaled as `edges` says."""
        return cls(lam, channel_lam(lam, edges))


def expand_to(values: Tensor, ndim: int) -> Tensor:
    """Append axes of length one: (B,) or (B, C) => ndim axes, to broadcast against (B, C, *spatial).

    Raises:
        ValueError: `values` has more than `ndim` axes.
    """
    if values.ndim > ndim:
        raise ValueError(f"values has shape {tuple(values.shape)}, which is more than {ndim} axes; pass (B,) or (B, C)")
    return values.reshape(values.shape + (1,) * (ndim - values.ndim))


def alpha_sigma(lam: Tensor) -> tuple[Tensor, Tensor]:
    """Amplitudes (a, s) of signal and noise for lam of any shape."""
    return torch.sigmoid(lam).sqrt(), torch.sigmoid(-lam).sqrt()


def noise_mask(x_start: Tensor, lam: Tensor, noise: Tensor) -> Tensor:
    """Draw x_t from q(x_t | x_0), variance preserving (Kingma et al. 2021, eq. 1).

    Args:
        x_start: clean mask in {-1, +1}, shape (B, C, *spatial).
        lam: log signal-to-noise ratio ln(a^2/s^2), shape (B,) or (B, C); -inf gives the noise exactly.
        noise: standard normal, same shape as x_start.
    """
    a, s = alpha_sigma(lam)
    return torch.addcmul(expand_to(s, x_start.ndim) * noise, expand_to(a, x_start.ndim), x_start)
