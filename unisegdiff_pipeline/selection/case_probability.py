"""The probability that a case holds any lesion, calibrated on held-out cases.

Few of these are lesion-free, so the fit has the prior that the network tells nothing: it then says how frequent lesions
are among the held-out cases, and moves away from that only as far as these show. On most small hold-outs this was
nearer to new patients than a prior for the network's own log-odds, than the highest probability as it is, and than the
frequency alone (figures, and where it was not: documentation/benchmarks/lesions.md). Cases of one patient resemble each
other, so n of them count as much as sqrt(n) patients with one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from unisegdiff_pipeline.inference.cases import PresenceCalibration, log_odds

FEWEST_OF_A_KIND = 2  # held-out patients with a lesion-free case, and with another one
SLOPE_PENALTY = 1.0  # on slope^2 / 2: a normal prior around 0 with a standard deviation of 1
INTERCEPT_PENALTY = 1e-6  # as good as none
ITERATIONS = 50


def fit_case_calibration(
    highest: Sequence[float], holds_lesion: Sequence[bool], groups: Sequence[str]
) -> PresenceCalibration | None:
    """Fit the logistic function of the log-odds of the highest foreground probability; None for too few cases.

    The targets are Platt's, which take one case of each kind more than there are, so that no frequency is 0 or 1; a
    slope below 0, where the probability misleads, is 0.

    Args:
        highest: highest foreground probability of each case.
        holds_lesion: whether its reference holds any.
        groups: its patient.
    """
    y = np.asarray(holds_lesion, bool)
    for kind in (True, False):
        if len({group for group, found in zip(groups, y, strict=True) if found == kind}) < FEWEST_OF_A_KIND:
            return None
    x = np.array([log_odds(value) for value in highest])
    target = np.where(y, (y.sum() + 1) / (y.sum() + 2), 1 / ((~y).sum() + 2))
    _, patients, sizes = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)
    counted = 1 / np.sqrt(sizes[patients])
    intercept, slope = _fit(x, target, counted)
    if slope < 0:
        mean = float(np.average(target, weights=counted))
        intercept, slope = log_odds(mean), 0.0
    return PresenceCalibration(float(intercept), float(slope), int(y.sum()), int((~y).sum()))


def _fit(x: np.ndarray, target: np.ndarray, counted: np.ndarray) -> tuple[float, float]:
    """Newton's method for the penalised likelihood, which is concave; steps that overshoot are halved.

    Args:
        x, target: log-odds and target of each case.
        counted: how much each case counts.
    """
    design = np.stack([np.ones_like(x), x], axis=1)
    penalty = np.array([INTERCEPT_PENALTY, SLOPE_PENALTY])

    def loss(beta: np.ndarray) -> float:
        z = design @ beta
        return float((counted * (np.logaddexp(0.0, z) - target * z)).sum() + (penalty * beta**2).sum() / 2)

    beta = np.zeros(2)
    for _ in range(ITERATIONS):
        p = 1 / (1 + np.exp(-np.clip(design @ beta, -30, 30)))
        gradient = design.T @ (counted * (p - target)) + penalty * beta
        curvature = (design * (counted * p * (1 - p))[:, None]).T @ design + np.diag(penalty)
        step = np.linalg.solve(curvature, gradient)
        while loss(beta - step) > loss(beta) + 1e-12 and np.abs(step).max() > 1e-9:
            step = step / 2
        beta = beta - step
        if np.abs(step).max() < 1e-9:
            break
    return float(beta[0]), float(beta[1])
