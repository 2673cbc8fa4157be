"""Reference of mean field and the permutohedral lattice, pixel by pixel."""

from __future__ import annotations

import math
from itertools import product

import numpy as np


def pair_weights(features: np.ndarray) -> np.ndarray:
    """Compute (N, N) exp(-|f_i - f_j|^2 / 2) of (N, d) float64 features."""
    squared = np.zeros((len(features),) * 2)
    for axis in features.T:
        squared += (axis[:, None] - axis[None]) ** 2
    return np.exp(-0.5 * squared)


def spatial_features(rgb: np.ndarray, sxy: float) -> np.ndarray:
    height, width = rgb.shape[:2]
    places = [(column, row) for row, column in product(range(height), range(width))]
    return np.array(places, np.float64) / sxy


def bilateral_features(rgb: np.ndarray, sxy: float, srgb: float) -> np.ndarray:
    colours = rgb.reshape(-1, 3).astype(np.float64) / srgb
    return np.concatenate([spatial_features(rgb, sxy), colours], axis=1)


def plain_crf(
    unary: np.ndarray,
    rgb: np.ndarray,
    *,
    sxy_gaussian: float,
    compat_gaussian: float,
    sxy_bilateral: float,
    srgb_bilateral: float,
    compat_bilateral: float,
    iterations: int,
) -> np.ndarray:
    """Compute mean field in float64.

    Q = softmax(-U + sum_m c_m K~_m Q), K~ = K_ij / sqrt(n_i n_j). The diagonal of K is included.
    """
    weights = np.zeros((rgb.shape[0] * rgb.shape[1],) * 2)
    for compat, features in (
        (compat_gaussian, lambda: spatial_features(rgb, sxy_gaussian)),
        (compat_bilateral, lambda: bilateral_features(rgb, sxy_bilateral, srgb_bilateral)),
    ):
        if compat:
            kernel = pair_weights(features())
            degree = kernel.sum(axis=1)
            weights += compat * kernel / np.sqrt(degree[:, None] * degree[None])
    energy = unary.reshape(len(unary), -1).astype(np.float64)
    q = softmax(-energy)
    for _ in range(iterations):
        q = softmax(-energy + q @ weights)
    return q.reshape(unary.shape)


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=0))
    return powers / powers.sum(axis=0)


def plain_simplex(point: np.ndarray) -> tuple[list[tuple[int, ...]], list[float], np.ndarray]:
    """Compute the vertices around a point, their weights, and the elevated point.

    Adams, Baek, Davis 2010, section 3.
    """
    d = len(point)
    deviation = math.sqrt(2 / 3) * (d + 1)
    scaled = [point[i] * deviation / math.sqrt((i + 1) * (i + 2)) for i in range(d)]
    elevated = np.array(
        [sum(scaled[i:]) - (i * scaled[i - 1] if i else 0) for i in range(d + 1)], np.float64
    )
    nearest = np.round(elevated / (d + 1)) * (d + 1)
    while nearest.sum() > 0:
        nearest[np.argmin(elevated - nearest)] -= d + 1
    while nearest.sum() < 0:
        nearest[np.argmax(elevated - nearest)] += d + 1
    remainder = elevated - nearest
    order = np.argsort(remainder)
    vertices, weights = [], []
    for r in range(d + 1):
        vertex = nearest + r
        vertex[order[:r]] -= d + 1
        vertices.append(tuple(int(c) for c in vertex))
        before = remainder[order[r - 1]] if r else remainder[order[d]] - (d + 1)
        weights.append((remainder[order[r]] - before) / (d + 1))
    return vertices, weights, elevated


def plain_lattice_filter(points: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, int]:
    """Splat, blur and slice with a dictionary of vertices.

    Args:
        points: (N, d).
        values: (N,).

    Returns:
        (N,) filtered values; the number of vertices.
    """
    d = points.shape[1]
    located = [plain_simplex(point) for point in points]
    held = dict.fromkeys((v for vertices, _, _ in located for v in vertices), 0.0)
    for (vertices, weights, _), value in zip(located, values, strict=True):
        for vertex, weight in zip(vertices, weights, strict=True):
            held[vertex] += weight * value
    for axis in range(d + 1):
        step = np.ones(d + 1, int)
        step[axis] -= d + 1
        held = {
            vertex: value
            + 0.5 * held.get(tuple(np.add(vertex, step).tolist()), 0.0)
            + 0.5 * held.get(tuple(np.subtract(vertex, step).tolist()), 0.0)
            for vertex, value in held.items()
        }
    filtered = [
        sum(weight * held[vertex] for vertex, weight in zip(vertices, weights, strict=True))
        for vertices, weights, _ in located
    ]
    return np.array(filtered) / (1 + 2.0**-d), len(held)
