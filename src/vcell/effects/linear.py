"""Rows of numbers compared, scaled and reduced: what several predictors need of linear algebra.

Shape legend: T and U rows, G columns, K components.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import eigh

SMALLEST = 1e-12


def likeness(one_TG: np.ndarray, other_UG: np.ndarray, other_U: np.ndarray | None = None) -> np.ndarray:
    """Cosine of every row with every other, ``(T, U)``; 0 for rows of zeros.

    Parameters
    ----------
    other_U
        `lengths` of the other rows, where they are known.
    """
    other_U = lengths(other_UG) if other_U is None else other_U
    found: np.ndarray = (one_TG @ other_UG.T) / lengths(one_TG)[:, None] / other_U
    return found


def lengths(x_TG: np.ndarray) -> np.ndarray:
    """Lengths of rows to divide by: no smaller than a small number, ``(T)``."""
    found: np.ndarray = np.maximum(np.sqrt(products(x_TG, x_TG)), SMALLEST)
    return found


def products(one_TG: np.ndarray, other_TG: np.ndarray) -> np.ndarray:
    """Sum over genes of each row with its like, ``(T)``, without a matrix of products in between."""
    found: np.ndarray = np.einsum("ij,ij->i", one_TG, other_TG)
    return found


def cosine(one_TG: np.ndarray, other_TG: np.ndarray) -> np.ndarray:
    """Cosine of rows with their like, ``(T)``; 0 for rows of zeros."""
    size = np.sqrt(products(one_TG, one_TG) * products(other_TG, other_TG))
    return np.divide(products(one_TG, other_TG), size, out=np.zeros_like(size), where=size > 0)


def discrimination_by_target(predicted_TG: np.ndarray, truth_TG: np.ndarray) -> np.ndarray:
    """1 - rank / (targets - 1) of the own truth among all, by cosine, ``(T)``; equals share their places."""
    similarity = likeness(predicted_TG, truth_TG)
    own = np.diag(similarity)[:, None]
    rank = (similarity > own).sum(1) + ((similarity == own).sum(1) - 1) / 2
    found: np.ndarray = 1 - rank / max(len(truth_TG) - 1, 1)
    return found


def discrimination(predicted_TG: np.ndarray, truth_TG: np.ndarray) -> float:
    """The mean of `discrimination_by_target`."""
    return float(discrimination_by_target(predicted_TG, truth_TG).mean())


def with_norms_of(found_TG: np.ndarray, like_TG: np.ndarray) -> np.ndarray:
    """Rows scaled to the norms of other rows; rows of zeros stay."""
    before, after = (np.sqrt(products(x, x))[:, None] for x in (like_TG, found_TG))
    return found_TG * np.divide(before, after, out=np.zeros_like(after), where=after > 0)


def main_directions(x_TG: np.ndarray, number: int, least: float = 1e-9) -> tuple[np.ndarray, np.ndarray]:
    """The first principal directions of rows, uncentred, in the space of rows: ``(T, K)``, and their squared sizes ``(K)``.

    Those of a smaller squared size than `least` of the largest are left out.
    """
    rows = len(x_TG)
    number = min(number, rows)
    if not number:
        return np.zeros((rows, 0)), np.zeros(0)
    gram = (x_TG @ x_TG.T).astype(np.float64)
    values, vectors = eigh(gram, subset_by_index=[rows - number, rows - 1], check_finite=False)
    values, vectors = values[::-1], vectors[:, ::-1]
    keep = values > least * max(float(values[0]), SMALLEST)
    return vectors[:, keep], values[keep]


def singular_directions(x_TF: np.ndarray, smallest: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Thin singular value decomposition: left vectors ``(T, K)``, values ``(K)``, largest first, and right vectors ``(F, K)``.

    By the products of rows, or of columns where they are fewer, which takes a fifth of the time. That squares the values, so that those below about
    1e-7 of the largest would be lost; float32 rows have none that mean anything.

    Parameters
    ----------
    smallest
        Values at most as large as this part of the largest are left out.
    """
    x = x_TF.astype(np.float64)
    wide = x.shape[0] <= x.shape[1]
    vectors, values = root_directions(x @ x.T if wide else x.T @ x, smallest)
    others = (x.T @ vectors if wide else x @ vectors) / values
    return (vectors, values, others) if wide else (others, values, vectors)


def root_directions(products_TT: np.ndarray, smallest: float) -> tuple[np.ndarray, np.ndarray]:
    """Directions of a symmetric matrix, ``(T, K)``, and the square roots of their sizes, largest first, ``(K)``; `smallest` as of `singular_directions`."""
    squared, vectors = np.linalg.eigh(products_TT)
    values = np.sqrt(np.maximum(squared[::-1], 0))
    keep = values > smallest * values[0]
    return vectors[:, ::-1][:, keep], values[keep]


def spread(number: int, most: int) -> np.ndarray:
    """Numbers below `number`, at most `most`, evenly spread."""
    return np.unique(np.linspace(0, number - 1, min(number, most)).astype(np.int64))
