"""bench delta: every provider is the same layer, a wrong one is named, rows say how many times ours the best peer takes."""

import pytest
import torch
from made_worker import Made

from dynadapt.bench import delta, delta_worker
from dynadapt.bench.side_by_side import OURS

SIZES = dict(streams=2, tokens=70, key_heads=2, value_heads=4, key_dim=16, value_dim=8, taps=4)


def worker(provider, dtype="fp32"):
    make = delta_worker.Native if provider == OURS else delta_worker.Transformers
    return make({"provider": provider, "dtype": dtype, "threads": 1, "sizes": SIZES, "isa": None})


@pytest.mark.parametrize("provider", [OURS, "torch-eager"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("backward", [False, True])
def test_providers_are_the_layer(provider, dtype, backward):
    made = worker(provider, dtype)
    found = made.make(backward)
    assert found["error"] < delta_worker.LIMIT[made.dtype], found
    assert len(made.time(2)["seconds"]) == 2


def test_one_that_is_wrong_is_absent(monkeypatch):
    wrong = worker("torch-eager")
    wrong.layer = torch.nn.Sequential(wrong.layer, torch.nn.ReLU())
    assert "its result is off by" in wrong.make(False)["absent"]


def test_rows_are_by_threads_and_beside_the_best_peer(monkeypatch):
    monkeypatch.setattr(delta, "thread_choices", lambda: (2, 1))
    workers = {OURS: Made({1: 2.0, 2: 1.0}), "torch-eager": Made({1: 6.0, 2: 5.0}), "torch-compile": Made({1: 9.0, 2: 4.0})}
    one, two = delta.measure("forward", workers, 5)
    assert (one["threads"], one["best_peer"], one["speedup"]) == (1, "torch-eager", pytest.approx(3.0))
    assert (two["threads"], two["best_peer"], two["speedup"]) == (2, "torch-compile", pytest.approx(4.0))
    with pytest.raises(RuntimeError, match="forward: it is wrong; nothing was timed"):
        delta.measure("forward", {**workers, OURS: Made({}, {"absent": "it is wrong"})}, 5)
    with pytest.raises(RuntimeError, match="no peer"):
        delta.measure("forward", {OURS: workers[OURS], **dict.fromkeys(delta.PEERS, Made({}, {"absent": "not here"}))}, 5)
