"""The plan of a step: which rows go together, who learns, who updates, who goes back; from counters and lengths alone."""

import dataclasses
from types import SimpleNamespace

import pytest

from dynadapt.engine.plan import LossWeights, StreamState, plan

SETTINGS = {
    "streams": 4,
    "batch": None,
    "shared": False,
    "every": 1,
    "accumulate": False,
    "reset": "never",
    "learns": True,
    "owns_weights": False,
}


def made(lengths, streams=None, weights=None, fixed=False, states=None, **settings):
    """Plans that neither change what they read nor can be changed."""
    settings, streams = (
        SimpleNamespace(**{**SETTINGS, "apart": settings.get("owns_weights", False), **settings}),
        streams or list(range(len(lengths))),
    )
    states = states or [StreamState() for _ in range(settings.streams)]
    before = [dataclasses.replace(s) for s in states]
    passes = plan(settings, states, streams, lengths, weights, fixed)
    assert states == before
    for p in passes:
        assert len({len(p.rows), len(p.streams), len(p.counts), len(p.due), len(p.shares), len(p.moves)}) == 1
        assert p.backward >= p.update
        with pytest.raises(dataclasses.FrozenInstanceError):
            p.update = True
    return passes


def test_rows_that_rest_are_in_no_ragged_pass_and_rest_in_place_in_a_fixed_one():
    (ragged,), (fixed,) = made([3, 0, 5, 0]), made([3, 0, 5, 0], fixed=True)
    assert ragged.rows == (0, 2) and ragged.counts == (3, 5) and ragged.due == (True, True)
    assert fixed.rows == (0, 1, 2, 3) and fixed.counts == (3, 0, 5, 0) and fixed.due == (True, False, True, False)
    assert fixed.shares == (1 / 3, 0.0, 1 / 5, 0.0)
    assert made([0, 0]) == made([0, 0], fixed=True) == []


def test_rows_go_in_the_order_of_their_streams_or_of_the_call():
    assert made([2, 4, 1], [3, 0, 2])[0].streams == (0, 2, 3) and made([2, 4, 1], [3, 0, 2])[0].rows == (1, 2, 0)
    assert made([2, 4, 1], [3, 0, 2], fixed=True)[0].streams == (3, 0, 2)


@pytest.mark.parametrize("fixed", [False, True])
def test_passes_are_of_batch_rows_and_of_one_where_weights_are_the_streams_own(fixed):
    assert [p.rows for p in made([1, 1, 1, 1], batch=3, fixed=fixed)] == [(0, 1, 2), (3,)]
    assert [p.rows for p in made([1, 0, 1, 1], owns_weights=True, fixed=fixed)] == [(0,), (2,), (3,)]
    assert [p.rows for p in made([1, 1, 1, 1], owns_weights=True, shared=True, fixed=fixed)] == [(0, 1, 2, 3)]
    assert [p.rows for p in made([0, 0, 1, 1], batch=2, fixed=fixed)] == [(2, 3)]


def test_streams_at_different_segments_are_due_at_different_steps():
    states = [StreamState(segments=n) for n in (0, 1, 2, 3)]
    due, waiting = made([2, 2, 2, 2], states=states, every=2)
    assert due.streams == (1, 3) and due.update and due.backward
    assert waiting.streams == (0, 2) and not waiting.backward and waiting.shares == (0.0, 0.0)
    (together,) = made([2, 2, 2, 2], states=states, every=2, fixed=True)
    assert together.due == (False, True, False, True) and together.shares == (0.0, 0.5, 0.0, 0.5)
    _, adding = made([2, 2, 2, 2], states=states, every=2, accumulate=True)
    assert adding.backward and not adding.update and adding.shares == (0.5, 0.5)


@pytest.mark.parametrize("fixed", [False, True])
def test_shared_weights_are_due_when_the_first_active_stream_is(fixed):
    states = [StreamState(segments=n) for n in (1, 0, 1, 1)]
    (p,) = made([0, 2, 6], states=states, every=2, shared=True, fixed=fixed)
    assert not any(p.due) and not p.backward
    (p,) = made([2, 6], [2, 1], states=states, every=1, shared=True, weights=LossWeights([1.0, 3.0], [2, 6]), fixed=fixed)
    assert all(p.due) and sorted(p.shares) == [1 / 8, 3 / 8]


@pytest.mark.parametrize("fixed", [False, True])
def test_streams_go_back_behind_the_segment_that_fills_their_count(fixed):
    states = [StreamState(since_reset=n) for n in (0, 6, 7, 0)]
    (p,) = made([3, 3, 3], states=states, reset=10, fixed=fixed)
    assert p.resets == (2,) and p.moves == (True, True, False) and p.update
    (alone,) = made([3], [2], states=states, reset=10, fixed=fixed)
    assert alone.resets == (2,) and not alone.backward and not alone.update
    assert made([3], [2], states=states, reset=10, learns=False, fixed=fixed)[0].resets == ()


def test_a_pass_that_only_rests_beside_a_reset_has_no_backward():
    states = [StreamState(since_reset=9), StreamState()]
    (p,) = made([3, 0], states=states, reset=10, accumulate=True, streams=[0, 1], fixed=True)
    assert p.resets == (0,) and not p.backward


@pytest.mark.parametrize("fixed", [False, True])
def test_a_mean_is_over_the_tokens_that_count(fixed):
    own = sorted(made([4, 4], weights=LossWeights([1.0, 1.0], [2, 4]), fixed=fixed)[0].shares)
    shared = made([4, 4], weights=LossWeights([1.0, 1.0], [2, 4]), shared=True, fixed=fixed)[0].shares
    assert own == [1 / 4, 1 / 2] and shared == (1 / 6, 1 / 6)


def test_a_row_that_learns_nothing_does_not_move_and_pays_for_no_backward():
    masked = LossWeights([1.0, 1.0], [0, 4])
    learning, scoring = made([4, 4], weights=masked)
    assert learning.rows == (1,) and learning.update and scoring.rows == (0,) and not scoring.backward
    (fixed,) = made([4, 4], weights=masked, fixed=True)
    assert fixed.moves == (False, True) and fixed.shares == (0.0, 1 / 4)
    for p in (*made([4, 4], weights=LossWeights([1.0, 1.0], [0, 0])), *made([4, 4], weights=LossWeights([1.0, 1.0], [0, 0]), shared=True)):
        assert not p.backward and not p.update
    (shared,) = made([4, 4], weights=masked, shared=True)
    assert shared.moves == (True, True) and shared.shares == (0.0, 1 / 4)


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_a_gradient_that_waits_is_used_when_its_update_is_due_whatever_the_last_segment_weighs(fixed, shared):
    nothing, options = LossWeights([1.0], [0]), {"every": 2, "accumulate": True, "shared": shared, "fixed": fixed}
    (p,) = made([4], weights=nothing, states=[StreamState(segments=1, waiting=True)], **options)
    assert p.backward and p.update and p.moves == (True,) and p.shares == (0.0,)
    (p,) = made([4], weights=nothing, states=[StreamState(segments=1)], **options)
    assert not p.backward and not p.update
