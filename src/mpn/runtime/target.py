"""Solve and update the target model: a linear classifier per object.

The features are the maps of a frozen ImageNet trunk. The classifier of an object is a logistic
regression, solved by Newton's method on the frames that the user gave, and updated from frames
with a confident mask. Everything here is NumPy: no gradient descent, no weight file.

Source of the idea: A. Robinson et al., "Learning Fast and Robust Target Models for Video Object
Segmentation", CVPR 2020; G. Bhat et al., "Learning What to Learn for Video Object Segmentation",
ECCV 2020. Both solve a convolution by Gauss-Newton or steepest descent.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, wraps
from threading import Lock
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import cv2
import numpy as np
import numpy.typing as npt
from scipy.linalg import lu_factor, lu_solve

from mpn.engines.spec import FEATURES_STRIDE as STRIDE
from mpn.errors import EngineError
from mpn.runtime.options import ResolvedTarget
from mpn.types import Float32Array

if TYPE_CHECKING:
    from threadpoolctl import ThreadpoolController

MAX_GIVEN = 8
"""Most frames given by the user that are kept: the first, and the newest."""

_SOLVE_STEPS = 8
_UPDATE_STEPS = 3
"""Newton steps for a new object, and for an update, which starts from the last weights."""

NO_SCORE = 0.5
"""Score in each pixel if the target model is not in use, or has no classifier for the object."""

_LEAST_CELLS = 0.5
"""Least area of an object in a sample, in cells. The classifier of a smaller one separates nothing:
a disc of 13 px grew over the whole frame."""

_MIN_CURVATURE = 2e-3
_TINY = 1e-3
_MIN_STD = 1e-6
_MAX_LOGIT = 30.0


P = ParamSpec("P")
R = TypeVar("R")

_LIMITING = Lock()
"""The number of BLAS threads belongs to the process: two threads that set it and set it back would
leave it at one."""


def on_one_blas_thread(function: Callable[P, R]) -> Callable[P, R]:
    """Return the function with one thread of BLAS in the process while it runs.

    Threads of BLAS wait for each other actively: if other threads use the cores, the small products
    here take a hundred times longer. One thread also gives the same sums for any number of cores.
    """

    @wraps(function)
    def limited(*args: P.args, **kwargs: P.kwargs) -> R:
        with _LIMITING, _blas_libraries().limit(limits=1, user_api="blas"):
            return function(*args, **kwargs)

    return limited


@cache
def _blas_libraries() -> ThreadpoolController:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


@dataclass(frozen=True)
class TargetFrame:
    """One frame that the classifiers are trained on.

    Attributes:
        features: (C + 1, N) float32, standardised, the last row 1.
        shares: Object id -> (N,) float32, share of the object in each cell, 0..1.
        weights: Object id -> weight of the frame for the object, above 0.
        hessians: Object id -> (C + 1, C + 1) float32 of the loss in this frame, at the classifier
            of the time when the frame was added.
    """

    features: Float32Array
    shares: Mapping[int, Float32Array]
    weights: Mapping[int, float]
    hessians: Mapping[int, Float32Array] = field(default_factory=dict)


@dataclass(frozen=True)
class Targets:
    """Classifiers of all objects of a video. Replaced as a whole, never changed.

    Attributes:
        mean: (C,) float32 of the features of the first frame.
        std: (C,) float32 of the same.
        weights: Object id -> (C + 1,) float32 on standardised features, the last one the bias.
        given: Frames that the user gave, the first one first.
        recent: Frames with confident masks, the oldest first.
    """

    mean: Float32Array
    std: Float32Array
    weights: Mapping[int, Float32Array]
    given: tuple[TargetFrame, ...] = ()
    recent: tuple[TargetFrame, ...] = ()


def grid_hw(size_hw: tuple[int, int]) -> tuple[int, int]:
    """Return (gh, gw) of the grid for an input of (height, width)."""
    return ((size_hw[0] - 1) // STRIDE + 1, (size_hw[1] - 1) // STRIDE + 1)


def cell_shares(prob: Float32Array, size_hw: tuple[int, int]) -> Float32Array:
    """Average probabilities over the cell around each grid point.

    Args:
        prob: (K, h, w) float32, 0..1, at working size.
        size_hw: (height, width) of the features engine's input.

    Returns:
        (K, N) float32, 0..1. The grid point (i, j) is at pixel (8 i, 8 j) of the input.
    """
    rows, columns = grid_hw(size_hw)
    shares = np.empty((len(prob), rows * columns), np.float32)
    for plane, out in zip(prob, shares, strict=True):
        resized = cv2.resize(plane, (size_hw[1], size_hw[0]), interpolation=cv2.INTER_AREA)
        mean = cv2.blur(resized, (STRIDE, STRIDE), borderType=cv2.BORDER_REPLICATE)
        out[:] = mean[::STRIDE, ::STRIDE].ravel()
    return shares


@on_one_blas_thread
def with_given_frame(
    targets: Targets | None,
    features: Float32Array,
    shares: Mapping[int, Float32Array],
    *,
    options: ResolvedTarget,
) -> Targets:
    """Add a frame with masks of the user, and solve the classifiers of its objects.

    Args:
        targets: Classifiers so far; None for the first frame of a video.
        features: (C, gh, gw) float32 of the frame.
        shares: Object id -> (N,) float32 of :func:`cell_shares`, of each object that the user gave
            in this frame.
        options: Options in force.

    Returns:
        The classifiers; those of objects that are not in ``shares`` do not change. That of an
        object of less than half of a cell is 0: its score is :data:`NO_SCORE` everywhere.

    Raises:
        EngineError: If a feature is not finite.
    """
    if targets is None:
        flat = features.reshape(len(features), -1)
        mean, std = flat.mean(axis=1), flat.std(axis=1) + np.float32(_MIN_STD)
        targets = Targets(mean, std, {})
    large = _large_enough(shares)
    frame = _frame(targets, features, large, dict.fromkeys(large, 1.0))
    given = (*targets.given, frame) if large else targets.given
    if len(given) > MAX_GIVEN:
        given = _dropped_second(given)
    targets = replace(targets, given=given)
    for object_id in shares:
        if object_id not in large:
            nothing = np.zeros(len(targets.mean) + 1, np.float32)
            targets = replace(targets, weights={**targets.weights, object_id: nothing})
            continue
        # Frames before a correction may hold the error that the user corrects.
        targets = _solved(_without_recent(targets, object_id), object_id, options)
    return targets


@on_one_blas_thread
def with_confident_frame(
    targets: Targets,
    features: Float32Array,
    shares: Mapping[int, Float32Array],
    weights: Mapping[int, float],
    *,
    options: ResolvedTarget,
) -> Targets:
    """Add a frame with masks of the pipeline, and update its objects.

    Memory is bounded: of ``options.memory`` frames the oldest is dropped. The steps use the exact
    gradient, and for the other frames the Hessians of the time when they were added: a Hessian
    takes a hundred times longer than a gradient.

    Args:
        targets: Classifiers so far.
        features: (C, gh, gw) float32 of the frame.
        shares: Object id -> (N,) float32 of :func:`cell_shares`.
        weights: Object id -> weight of the frame for the object, above 0.
        options: Options in force.

    Raises:
        EngineError: If a feature is not finite.
    """
    shares = _large_enough(shares)
    if not shares:
        return targets
    frame = _frame(targets, features, shares, weights)
    hessians = {k: _derivatives(frame, k, targets.weights[k])[1] for k in shares}
    recent = (*targets.recent, replace(frame, hessians=hessians))[-options.memory :]
    targets = _with_new_hessians(replace(targets, recent=recent), shares)
    solved = _updated(targets, tuple(shares), options)
    return replace(targets, weights={**targets.weights, **solved})


@on_one_blas_thread
def target_scores(
    targets: Targets, features: Float32Array, object_ids: Sequence[int]
) -> Float32Array:
    """Compute the probability of each object at each grid point.

    Args:
        targets: The classifiers.
        features: (C, gh, gw) float32 of a frame.
        object_ids: The K ids.

    Returns:
        (K, gh, gw) float32, 0..1.
    """
    gains, biases = raw_weights(targets, object_ids)
    logits = gains @ features.reshape(len(features), -1) + biases[:, None]
    return _sigmoid(logits).reshape(len(gains), *features.shape[1:])


def raw_weights(targets: Targets, object_ids: Sequence[int]) -> tuple[Float32Array, Float32Array]:
    """Return the classifiers as weights of features that are not standardised.

    Args:
        targets: The classifiers.
        object_ids: The K ids.

    Returns:
        (K, C) float32 and (K,) float32: logit = weights @ features + bias.
    """
    stacked = np.stack([targets.weights[object_id] for object_id in object_ids])
    gains = stacked[:, :-1] / targets.std
    at_mean: Float32Array = np.matmul(gains, targets.mean)
    biases: Float32Array = stacked[:, -1] - at_mean
    return gains, biases


def _frame(
    targets: Targets,
    features: Float32Array,
    shares: Mapping[int, Float32Array],
    weights: Mapping[int, float],
) -> TargetFrame:
    flat = features.reshape(len(features), -1)
    if not (np.isfinite(flat.max()) and np.isfinite(flat.min())):
        raise EngineError(
            "the features engine returned values that are not finite: export it again in fp32"
        )
    rows = np.empty((len(flat) + 1, flat.shape[1]), np.float32)
    np.subtract(flat, targets.mean[:, None], out=rows[:-1])
    rows[:-1] /= targets.std[:, None]
    rows[-1] = 1
    return TargetFrame(rows, dict(shares), dict(weights))


def _dropped_second(given: tuple[TargetFrame, ...]) -> tuple[TargetFrame, ...]:
    """Drop the second frame. An object that only it has keeps its classifier."""
    return (given[0], *given[2:])


def _without_recent(targets: Targets, object_id: int) -> Targets:
    """Drop an object from the frames with masks of the pipeline."""
    recent = tuple(
        replace(frame, shares={k: v for k, v in frame.shares.items() if k != object_id})
        for frame in targets.recent
    )
    return replace(targets, recent=tuple(frame for frame in recent if frame.shares))


def _weighted_frames(
    targets: Targets, object_id: int, options: ResolvedTarget
) -> list[tuple[TargetFrame, float]]:
    """Return the frames of an object with their weights, which sum to 1."""
    given = [frame for frame in targets.given if object_id in frame.shares]
    recent = [frame for frame in targets.recent if object_id in frame.shares]
    weight_recent = 1 - options.given_weight if recent and given else float(not given)
    weighted = []
    for frames, share in ((given, 1 - weight_recent), (recent, weight_recent)):
        total = sum(frame.weights[object_id] for frame in frames)
        weighted += [(frame, share * frame.weights[object_id] / total) for frame in frames]
    return weighted


def _solved(targets: Targets, object_id: int, options: ResolvedTarget) -> Targets:
    """Minimise the weighted loss of an object by Newton steps from zero."""
    frames = _weighted_frames(targets, object_id, options)
    weights = np.zeros(len(targets.mean) + 1, np.float32)
    ridge = _ridge(len(weights), options)
    found: dict[int, Float32Array] = {}
    for _ in range(_SOLVE_STEPS):
        hessian, gradient = np.diag(ridge), ridge * weights
        for frame, share in frames:
            slope, curvature = _derivatives(frame, object_id, weights)
            found[id(frame)] = curvature
            gradient += share * slope
            hessian += share * curvature
        weights = weights - np.linalg.solve(hessian, gradient).astype(np.float32)
    given = tuple(
        replace(frame, hessians={**frame.hessians, object_id: found[id(frame)]})
        if id(frame) in found
        else frame
        for frame in targets.given
    )
    return replace(targets, weights={**targets.weights, object_id: weights}, given=given)


def _with_new_hessians(targets: Targets, object_ids: Collection[int]) -> Targets:
    """Compute the Hessians of the first frame again: it has the largest weight."""
    if not targets.given:
        return targets
    first = targets.given[0]
    new = {
        k: _derivatives(first, k, targets.weights[k])[1] for k in object_ids if k in first.shares
    }
    first = replace(first, hessians={**first.hessians, **new})
    return replace(targets, given=(first, *targets.given[1:]))


def _updated(
    targets: Targets, object_ids: Sequence[int], options: ResolvedTarget
) -> Mapping[int, Float32Array]:
    """Reduce the weighted losses of objects by steps with stored Hessians.

    Products of one row each: for the few rows here OpenBLAS needs up to twice as long for all of
    them at once.
    """
    weights = np.stack([targets.weights[object_id] for object_id in object_ids])
    ridge = _ridge(weights.shape[1], options)
    hessians = np.tile(np.diag(ridge), (len(object_ids), 1, 1))
    frames: dict[int, tuple[TargetFrame, list[int], list[Float32Array]]] = {}
    for k, object_id in enumerate(object_ids):
        for frame, share in _weighted_frames(targets, object_id, options):
            hessians[k] += share * frame.hessians[object_id]
            _, rows, balances = frames.setdefault(id(frame), (frame, [], []))
            rows.append(k)
            balances.append(class_weights(frame.shares[object_id]) * np.float32(share))
    factors = [lu_factor(hessian, overwrite_a=True, check_finite=False) for hessian in hessians]
    for _ in range(_UPDATE_STEPS):
        gradients = ridge * weights
        for frame, rows, balances in frames.values():
            for k, balance in zip(rows, balances, strict=True):
                error = _sigmoid(weights[k] @ frame.features)
                error -= frame.shares[object_ids[k]]
                error *= balance
                gradients[k] += frame.features @ error
        steps = [
            lu_solve(factor, gradient, check_finite=False)
            for factor, gradient in zip(factors, gradients, strict=True)
        ]
        weights = weights - np.stack(steps).astype(np.float32)
    return dict(zip(object_ids, weights, strict=True))


def _ridge(count: int, options: ResolvedTarget) -> npt.NDArray[np.float64]:
    ridge = np.full(count, options.ridge, np.float64)
    ridge[-1] = _MIN_STD  # the bias is free
    return ridge


def _derivatives(
    frame: TargetFrame, object_id: int, weights: Float32Array
) -> tuple[Float32Array, Float32Array]:
    """Return gradient and Hessian of the loss of a frame, a weighted cross entropy.

    A cell on the wrong side has the curvature of a quadratic bound of the loss instead of
    p (1 - p), which is almost 0 far from the boundary and would make the step too long. Cells of
    almost no curvature are left out of the Hessian: there are many.

    Source of the bound: T. Jaakkola and M. Jordan, "A Variational Approach to Bayesian Logistic
    Regression Models and Their Extensions", AISTATS 1997.
    """
    share = frame.shares[object_id]
    balance = class_weights(share)
    logits = np.clip(weights @ frame.features, -_MAX_LOGIT, _MAX_LOGIT)
    prob = _sigmoid(logits)
    error = prob - share
    one = np.float32(1)
    bound = (prob - np.float32(0.5)) / np.where(np.abs(logits) < _TINY, one, logits)
    curvature: Float32Array = np.where(np.abs(error) > np.float32(0.5), bound, prob * (one - prob))
    chosen = np.flatnonzero(curvature > _MIN_CURVATURE)
    rows = frame.features[:, chosen] * np.sqrt((balance * curvature)[chosen])
    hessian: Float32Array = rows @ rows.T  # of one array, so that NumPy computes one half only
    return frame.features @ (balance * error), hessian


def _large_enough(shares: Mapping[int, Float32Array]) -> dict[int, Float32Array]:
    """Return the objects that are large enough for a sample."""
    return {k: share for k, share in shares.items() if share.sum() >= _LEAST_CELLS}


def class_weights(share: Float32Array) -> Float32Array:
    """Weigh cells by the square root of the rarity of their class.

    Args:
        share: (N,) float32, share of the object in each cell.

    Returns:
        (N,) float32 that sum to 1.
    """
    foreground = max(float(share.sum()), 1.0)
    background = max(len(share) - foreground, 1.0)
    half = len(share) / 2
    weights = share * np.sqrt(half / foreground) + (1 - share) * np.sqrt(half / background)
    normalised: Float32Array = (weights / weights.sum()).astype(np.float32)
    return normalised


def _sigmoid(logits: Float32Array) -> Float32Array:
    clipped = np.clip(logits, -_MAX_LOGIT, _MAX_LOGIT)
    prob: Float32Array = np.float32(1) / (np.float32(1) + np.exp(-clipped))
    return prob
