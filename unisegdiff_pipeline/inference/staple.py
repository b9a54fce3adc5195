"""STAPLE: the truth behind several label maps, and how well each of them tells it, by expectation maximisation.

After Warfield, Zou, Wells 2004, "Simultaneous truth and performance level estimation (STAPLE)", IEEE TMI 23(7), in its
form for several labels. D_ij is the label that map j gives voxel i, T_i the unknown true one, gamma_s = P(T_i = s) the
fraction of label s over all maps and voxels, and theta_j(s' | s) = P(D_ij = s' | T_i = s) the performance of map j:

    (1)  W_si = gamma_s prod_j theta_j(D_ij | s) / sum_s' gamma_s' prod_j theta_j(D_ij | s')        expectation
    (2)  theta_j(s' | s) = sum_{i: D_ij = s'} W_si / sum_i W_si                                     maximisation

Voxels to which all maps give the same labels have the same W, so both sums run over the distinct rows of D with their
numbers of voxels: a volume of 10^8 voxels has some hundreds of them. SimpleITK's filters visit every voxel in every
iteration and hold float64 volumes (11 million voxels, 8 maps, on one core: 25 s for two labels and 48 s for three; here
a tenth of a second), and the one for several labels returns no W. For two labels the results are equal, as tests hold.
"""

from __future__ import annotations

import numpy as np

START = 0.99999  # of theta_j(s | s), as in the paper
TOLERANCE = 1e-8  # largest change of a performance at which the iteration ends
MAX_ITERATIONS = 1000


def staple(decisions: np.ndarray, counts: np.ndarray, num_labels: int) -> np.ndarray:
    """W, the probability of each label for each row, (P, J) => (S, P) float64.

    Args:
        decisions: label index 0 .. S-1 that each of J maps gives to the voxels of a row.
        counts: voxels of each row (P,); a row of none takes no part and gets the fractions of the labels, gamma.
        num_labels: S; a label that no map gives has W = 0.
    """
    rows = [_fractions(column, counts[None], num_labels)[:, 0] for column in decisions.T]
    prior = np.mean(rows, axis=0)  # gamma, (S,)
    known = prior > 0
    if known.sum() == 1:
        return np.repeat(known[:, None].astype(float), len(counts), axis=1)
    # A row without voxels may be one that theta rules out under every label: its W would be 0 / 0.
    found = np.repeat(prior[:, None], len(counts), axis=1)  # (S, P)
    found[:, counts > 0] = _iterated(decisions[counts > 0], counts[counts > 0], prior)
    return found


def _iterated(decisions: np.ndarray, counts: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """W (S, P) of rows that have voxels, by (1) and (2) in turn."""
    known, num_labels, num_maps = prior > 0, len(prior), decisions.shape[1]
    theta = np.full((num_maps, num_labels, num_labels), (1 - START) / (num_labels - 1))  # (J, S' given, S true)
    theta[:, np.arange(num_labels), np.arange(num_labels)] = START
    weights = _expectation(decisions, prior, theta)
    for _ in range(MAX_ITERATIONS):
        mass = weights * counts  # (S, P)
        updated = np.stack([_fractions(column, mass, num_labels) for column in decisions.T])
        change = float(np.abs(updated - theta)[:, :, known].max())
        theta = updated
        weights = _expectation(decisions, prior, theta)
        if change < TOLERANCE:
            break
    return weights


def _expectation(decisions: np.ndarray, prior: np.ndarray, theta: np.ndarray) -> np.ndarray:
    """(1), in logarithms, as products over many maps underflow."""
    with np.errstate(divide="ignore"):
        log_weights = np.repeat(np.log(prior)[:, None], len(decisions), axis=1)  # (S, P)
        for column, performance in zip(decisions.T, np.log(theta), strict=True):
            log_weights += performance[column].T
    weights = np.exp(log_weights - log_weights.max(axis=0))
    return np.asarray(weights / weights.sum(axis=0))


def _fractions(given: np.ndarray, mass: np.ndarray, num_labels: int) -> np.ndarray:
    """(2) of one map: fraction of each row of mass (S, P) that lies where label s' is given, (S' given, S)."""
    sums = np.stack([np.bincount(given, weights=row, minlength=num_labels) for row in mass], axis=1)
    return np.asarray(sums / np.maximum(sums.sum(axis=0), np.finfo(float).tiny))
