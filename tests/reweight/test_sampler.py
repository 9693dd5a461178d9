"""Which rows come: the mixer's shares, every row once a pass, and the same rows after a stop."""

import json

import numpy as np
import pytest

from dynadapt.experiments.mixers import Exhausted
from dynadapt.experiments.reweight.sampler import Sampler, heldout_order

SIZES = {"code": 50, "prose": 30, "manual": 20}
WEIGHTS = {"code": 0.2, "prose": 0.5, "manual": 0.3}


def test_domains_come_with_the_weights_and_a_domain_without_weight_never():
    sampler = Sampler(SIZES, "repeat", 0)
    drawn = [name for step in range(500) for name, _ in sampler.draw(step, 8, {**WEIGHTS, "manual": 0.0, "prose": 0.8})]
    shares = {name: drawn.count(name) / len(drawn) for name in SIZES}
    assert shares["manual"] == 0 and shares["code"] == pytest.approx(0.2, abs=4 * np.sqrt(0.16 / 4000))


@pytest.mark.parametrize("policy", ["stop", "repeat", "renormalise"])
def test_every_row_is_read_once_before_any_is_read_again(policy):
    sampler = Sampler(SIZES, policy, 3)
    read = {name: [] for name in SIZES}
    try:
        for step in range(40):
            for name, row in sampler.draw(step, 4, WEIGHTS):
                read[name].append(row)
    except Exhausted:
        assert policy != "repeat"
    for name, rows in read.items():
        for first in range(0, len(rows), SIZES[name]):
            part = rows[first : first + SIZES[name]]
            assert len(set(part)) == len(part) and max(part) < SIZES[name]
    if policy == "repeat":
        assert read["prose"][:30] != read["prose"][30:60] and len(read["prose"]) > 60  # another order in the second pass
    elif policy == "renormalise":
        assert sum(map(len, read.values())) == 100  # all there is
    else:
        assert sum(map(len, read.values())) < 100


def test_a_draw_that_fails_draws_nothing():
    sampler = Sampler({"code": 3}, "stop", 0)
    with pytest.raises(Exhausted, match="'code'"):
        sampler.draw(0, 4, {"code": 1.0})
    assert sampler.supply.left("code") == 3


def test_a_resumed_sampler_draws_the_same_rows_and_changed_weights_lose_none():
    whole, stopped = Sampler(SIZES, "repeat", 1), Sampler(SIZES, "repeat", 1)
    expected = [whole.draw(step, 5, WEIGHTS) for step in range(30)]
    first = [stopped.draw(step, 5, WEIGHTS) for step in range(12)]
    resumed = Sampler(SIZES, "repeat", 1)
    resumed.supply.load_state_dict(json.loads(json.dumps(stopped.supply.state_dict())))
    assert first + [resumed.draw(step, 5, WEIGHTS) for step in range(12, 30)] == expected
    changed = Sampler(SIZES, "repeat", 1)
    changed.supply.load_state_dict(stopped.supply.state_dict())
    rows = [
        pair
        for draws in first + [changed.draw(step, 5, {"code": 1.0, "prose": 0.0, "manual": 0.0}) for step in range(12, 20)]
        for pair in draws
    ]
    code = [row for name, row in rows if name == "code"]
    assert len(set(code[:50])) == len(code[:50]) > 40


def test_heldout_rows_are_distinct_and_fixed():
    rows = heldout_order(40, 16, 0, 1)
    assert rows == heldout_order(40, 16, 0, 1) != heldout_order(40, 16, 0, 2) and len(set(rows)) == 16
    assert heldout_order(3, 16, 0, 0) == [0, 1, 2]
