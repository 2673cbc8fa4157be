"""Passes of a frame, and the masks that it depends on."""

from __future__ import annotations

import pytest

from mpn.runtime.session.schedule import BackwardPass, Direction, GivenMask, Schedule


def schedule(first: int = 0, **masks: str) -> Schedule:
    """Return a schedule of masks ``f10="both:1,2"``: frame, direction and object ids."""
    given = {}
    for name, text in masks.items():
        direction, _, ids = text.partition(":")
        chosen: Direction = direction  # type: ignore[assignment]
        given[int(name[1:])] = GivenMask(ids, tuple(map(int, ids.split(","))), chosen)
    return Schedule(first, given)


def test_one_mask_at_the_first_frame_has_no_backward_pass() -> None:
    one = schedule(first=3, f3="both:1")
    assert one.backward_passes == ()
    assert one.forward_frames == (3,)


def test_mask_in_the_middle_is_propagated_both_ways() -> None:
    one = schedule(f10="both:1,2")
    assert one.backward_passes == (BackwardPass(10, 0, (1, 2), None),)
    assert [one.is_forward(k) for k in (9, 10, 11)] == [False, True, True]


def test_frames_between_masks_have_an_anchor() -> None:
    one = schedule(f0="both:1,2", f10="both:2,3", f20="forward:1", f30="both:3")
    assert one.backward_passes == (
        BackwardPass(10, 1, (2,), 0),  # 3 appears at 10
        BackwardPass(30, 21, (3,), 20),
    )
    assert [one.backward_passes[0].progress_at(k) for k in (1, 5, 9)] == [0.1, 0.5, 0.9]


@pytest.mark.parametrize(
    ("masks", "passes", "forward"),
    [
        ({"f10": "forward:1"}, (), (10,)),
        ({"f10": "backward:1"}, (BackwardPass(10, 0, (1,), None),), ()),
        # A new object of a mask that is backward only is followed backward.
        ({"f0": "both:1", "f9": "backward:5"}, (BackwardPass(9, 1, (5,), 0),), (0,)),
        (
            {"f4": "backward:1", "f9": "both:1"},
            (BackwardPass(4, 0, (1,), None), BackwardPass(9, 5, (1,), None)),
            (9,),
        ),
        ({"f0": "both:1", "f1": "both:1"}, (), (0, 1)),
        ({"f0": "both:1", "f9": "both:5"}, (), (0, 9)),
    ],
)
def test_schedule_follows_the_directions(
    masks: dict[str, str], passes: tuple[BackwardPass, ...], forward: tuple[int, ...]
) -> None:
    one = schedule(**masks)
    assert one.backward_passes == passes
    assert one.forward_frames == forward


def changed(before: Schedule, after: Schedule) -> list[int]:
    return [k for k in range(40) if before.inputs_of(k) != after.inputs_of(k)]


def test_inputs_change_in_the_frames_that_depend_on_a_mask() -> None:
    before = schedule(f0="both:1", f20="both:1")
    assert changed(before, schedule(f0="both:1", f20="both:1")) == []
    assert changed(before, schedule(f0="both:1,2", f20="both:1")) == [*range(40)]
    # A backward mask: between the mask before it and itself; the next segment begins there.
    assert changed(before, schedule(f0="both:1", f20="both:1", f10="backward:1")) == [*range(1, 20)]
    assert changed(before, schedule(f0="both:1", f20="both:1", f30="backward:1")) == [
        *range(21, 31)
    ]
    # A forward mask: itself and all frames after it.
    assert changed(before, schedule(f0="both:1", f20="both:1", f30="forward:1")) == [*range(30, 40)]
    assert changed(before, schedule(f0="both:1", f20="both:1", f30="both:1")) == [*range(21, 40)]
    assert changed(before, schedule(f0="both:1", f20="forward:1")) == [*range(1, 20)]


def test_passes_for_frames_reach_down_to_the_first_of_them() -> None:
    one = schedule(f5="both:1", f20="both:1")
    assert one.passes_for({12, 15}) == (BackwardPass(20, 12, (1,), 5),)
    assert one.passes_for({2}) == (BackwardPass(5, 2, (1,), None),)
    assert one.passes_for({5, 25}) == ()
