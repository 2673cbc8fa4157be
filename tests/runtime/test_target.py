from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Event

import numpy as np
import pytest
from scipy.optimize import minimize
from threadpoolctl import ThreadpoolController

from mpn.errors import EngineError
from mpn.runtime.options import ResolvedTarget
from mpn.runtime.target import (
    MAX_GIVEN,
    NO_SCORE,
    Targets,
    cell_shares,
    class_weights,
    on_one_blas_thread,
    target_scores,
    with_confident_frame,
    with_given_frame,
)
from mpn.types import Float32Array

OPTIONS = ResolvedTarget()
GRID = (9, 13)
RNG = np.random.default_rng(0)
NOISE = RNG.normal(size=(4, *GRID)).astype(np.float32)


def share_of(rows: slice, columns: slice) -> Float32Array:
    share = np.zeros(GRID, np.float32)
    share[rows, columns] = 1
    return share.ravel()


BOX = share_of(slice(2, 6), slice(3, 8))
OTHER = share_of(slice(4, 9), slice(8, 13))


def features_of(share: Float32Array, channel: int = 0, seed: int = 1) -> Float32Array:
    """Return features in which one channel is high inside an object."""
    noise = np.random.default_rng(seed).normal(size=(4, *GRID))
    noise[channel] += 4 * share.reshape(GRID)
    return noise.astype(np.float32)


def solved(share: Float32Array = BOX) -> Targets:
    return with_given_frame(None, features_of(share), {1: share}, options=OPTIONS)


def iou_of(targets: Targets, features: Float32Array, share: Float32Array, k: int = 1) -> float:
    found = target_scores(targets, features, [k])[0].ravel() > 0.5
    return float((found & (share > 0.5)).sum() / (found | (share > 0.5)).sum())


@pytest.mark.parametrize(("area", "has_classifier"), [(0.45, False), (0.55, True)])
def test_classifier_of_less_than_half_a_cell_is_zero(area: float, has_classifier: bool) -> None:
    share = np.zeros(GRID, np.float32)
    share[3, 4:6] = area / 2
    shares = {1: share.ravel(), 2: OTHER}
    targets = with_given_frame(None, features_of(OTHER), shares, options=OPTIONS)
    updated = with_confident_frame(
        targets, features_of(OTHER, seed=2), shares, {1: 1.0, 2: 1.0}, options=OPTIONS
    )
    for of in (targets, updated):
        scores = target_scores(of, features_of(OTHER, seed=3), [1, 2])
        assert bool((scores[0] == NO_SCORE).all()) is not has_classifier
        assert scores[1].std() > 0.1
    alone = with_given_frame(None, features_of(BOX), {1: shares[1]}, options=OPTIONS)
    assert len(alone.given) == has_classifier


def test_solved_classifier_finds_object_elsewhere() -> None:
    targets = solved()
    assert iou_of(targets, features_of(OTHER, seed=2), OTHER) > 0.75
    assert iou_of(targets, features_of(OTHER, seed=2), BOX) < 0.1
    assert iou_of(targets, features_of(OTHER, channel=2, seed=2), OTHER) < 0.3


def test_solved_weights_minimise_documented_loss() -> None:
    targets, features = solved(), features_of(BOX)
    rows = (features.reshape(4, -1) - targets.mean[:, None]) / targets.std[:, None]
    balance = class_weights(BOX).astype(np.float64)

    def loss(weights: np.ndarray) -> float:
        logits = weights[:-1] @ rows + weights[-1]
        entropy = np.logaddexp(0, logits) - BOX * logits
        return float((balance * entropy).sum() + OPTIONS.ridge / 2 * (weights[:-1] ** 2).sum())

    best = minimize(loss, np.zeros(5), method="BFGS", options={"gtol": 1e-8}).x
    assert np.abs(targets.weights[1] - best).max() < 2e-3 * np.abs(best).max()
    assert np.abs(np.roll(targets.weights[1], 1) - best).max() > 0.1 * np.abs(best).max()


def test_class_weights_balance_by_square_root() -> None:
    weights = class_weights(BOX)
    rare, common = weights[BOX > 0][0], weights[BOX == 0][0]
    background = len(BOX) - BOX.sum()
    assert weights.sum() == pytest.approx(1, abs=1e-6)
    assert rare / common == pytest.approx(np.sqrt(background / BOX.sum()), rel=1e-5)


def test_update_learns_changed_appearance() -> None:
    targets = solved()
    changed = features_of(OTHER, channel=1, seed=3)
    assert iou_of(targets, changed, OTHER) < 0.3
    for _ in range(6):
        targets = with_confident_frame(targets, changed, {1: OTHER}, {1: 1.0}, options=OPTIONS)
    assert iou_of(targets, changed, OTHER) > 0.6
    assert iou_of(targets, features_of(BOX), BOX) > 0.5, "the given frame is not forgotten"


def test_update_without_weight_of_given_forgets_it() -> None:
    options = replace(OPTIONS, given_weight=0.0)
    targets = solved()
    changed = features_of(OTHER, channel=1, seed=3)
    for _ in range(6):
        targets = with_confident_frame(targets, changed, {1: OTHER}, {1: 1.0}, options=options)
    assert iou_of(targets, features_of(BOX), BOX) < 0.3


def test_update_memory_stays_bounded() -> None:
    options = replace(OPTIONS, memory=3)
    targets = solved()
    for seed in range(5):
        frame = features_of(BOX, seed=seed)
        targets = with_confident_frame(targets, frame, {1: BOX}, {1: 1.0}, options=options)
    assert len(targets.recent) == 3
    newest = targets.recent[-1].features[0] * targets.std[0] + targets.mean[0]
    assert np.allclose(newest, features_of(BOX, seed=4)[0].ravel(), atol=1e-5)


def test_given_frames_stay_bounded_and_keep_first() -> None:
    targets = solved()
    first = targets.given[0]
    for seed in range(MAX_GIVEN + 3):
        targets = with_given_frame(targets, features_of(BOX, seed=seed), {1: BOX}, options=OPTIONS)
    assert len(targets.given) == MAX_GIVEN
    assert targets.given[0].features is first.features


def test_correction_drops_frames_of_pipeline() -> None:
    targets = solved()
    wrong = share_of(slice(0, 3), slice(9, 13))
    targets = with_confident_frame(targets, features_of(BOX), {1: wrong}, {1: 1.0}, options=OPTIONS)
    assert targets.recent
    targets = with_given_frame(targets, features_of(OTHER, seed=5), {1: OTHER}, options=OPTIONS)
    assert not targets.recent
    assert iou_of(targets, features_of(BOX, seed=6), BOX) > 0.7


def test_added_object_leaves_others_unchanged() -> None:
    targets = solved()
    frame = features_of(OTHER, channel=2, seed=7)
    both = with_given_frame(targets, frame, {5: OTHER}, options=OPTIONS)
    assert np.array_equal(both.weights[1], targets.weights[1])
    assert iou_of(both, frame, OTHER, k=5) > 0.7


def test_functions_do_not_change_their_arguments() -> None:
    targets = solved()
    weights, given = dict(targets.weights), targets.given
    before = {k: v.copy() for k, v in weights.items()}
    with_confident_frame(targets, features_of(BOX), {1: BOX}, {1: 1.0}, options=OPTIONS)
    assert targets.given is given
    assert not targets.recent
    assert all(np.array_equal(targets.weights[k], v) for k, v in before.items())


def test_features_not_finite_raise() -> None:
    broken = features_of(BOX)
    broken[0, 0, 0] = np.nan
    with pytest.raises(EngineError, match="not finite"):
        with_given_frame(None, broken, {1: BOX}, options=OPTIONS)


def test_cell_shares_are_centred_on_grid_points() -> None:
    prob = np.zeros((1, 65, 97), np.float32)
    prob[0, 28:36, 44:52] = 1  # the cell around pixel (32, 48)
    shares = cell_shares(prob, (65, 97)).reshape(GRID)
    assert shares[4, 6] == pytest.approx(1, abs=1e-6)
    assert shares.sum() == pytest.approx(1, abs=1e-5)
    whole = cell_shares(np.ones((2, 130, 194), np.float32), (65, 97))
    assert np.allclose(whole, 1)


def test_blas_has_one_thread_while_solving() -> None:
    def threads() -> set[int]:
        infos = ThreadpoolController().info()
        return {info["num_threads"] for info in infos if info["user_api"] == "blas"}

    with ThreadpoolController().limit(limits=2, user_api="blas"):
        before = threads()
        inside = on_one_blas_thread(threads)()
        after = threads()
    assert (before, inside, after) == ({2}, {1}, {2})


def test_solving_in_two_threads_restores_blas_threads() -> None:
    entered, leave = Event(), Event()

    def slow() -> None:
        entered.set()
        leave.wait(10)

    def threads() -> set[int]:
        infos = ThreadpoolController().info()
        return {info["num_threads"] for info in infos if info["user_api"] == "blas"}

    with ThreadpoolController().limit(limits=2, user_api="blas"), ThreadPoolExecutor(2) as pool:
        first = pool.submit(on_one_blas_thread(slow))
        assert entered.wait(10)
        second = pool.submit(on_one_blas_thread(slow))
        leave.set()
        first.result()
        second.result()
        assert threads() == {2}
