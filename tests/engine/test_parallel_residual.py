"""Attention and feed-forward beside each other (GPT-NeoX): what is learned, and what of backward is run, whatever learns."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dynadapt import SGD, Engine, Full, LoRA, SegmentMemory
from dynadapt.adapt.methods import GROUPS
from dynadapt.model import random_model, tiny_config

T = 17
MODEL = random_model(tiny_config("gptneox"), seed=1, std=0.1)
CHOICES = [
    dict(targets="all"),
    dict(targets="attn"),
    dict(targets="mlp"),
    dict(targets=["o"]),
    dict(targets=["down"]),
    dict(targets=["qkv", "down"]),
    dict(targets=["up", "o"]),
    dict(targets="mlp", layers=range(1, 3)),
    dict(targets="attn", layers=range(1, 2)),
    dict(targets=["qkv"], layers=range(2, 3)),
]
ids = lambda choice: "-".join(map(str, choice.values()))  # noqa: E731


def tokens(rows=1, length=2 * T + 1):
    return torch.randint(MODEL.config.vocab_size, (rows, length), generator=torch.Generator().manual_seed(2))


def engine(adapt, backend="reference", dtype="fp64", **options):
    return Engine(MODEL, adapt=adapt, optimizer=SGD(lr=0.5, clip=0.0), segment=T, dtype=dtype, backend=backend, **options)


def learned(adapt, **options):
    """{(layer, group): what a step adds to B} of adapters whose B was zero: their gradients do not depend on what else learns."""
    e = engine(adapt, **options)
    learner = e.learners[0]
    for layer, group in learner.sizes:
        A = learner.layout.view(learner.state.master, f"{layer}.{group}.A")
        A.copy_(0.3 * torch.randn(A.shape, generator=torch.Generator().manual_seed(10 * layer + GROUPS.index(group))))
    e.step(tokens(length=T + 1))
    return {key: learner.adapter(*key)[1][0].double().clone() for key in learner.sizes}


@pytest.mark.parametrize("choice", CHOICES, ids=ids)
@pytest.mark.parametrize("backend,dtype,tolerance", [("reference", "fp64", 1e-12), ("cpu", "fp32", 2e-5)])
@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_do_not_depend_on_what_else_learns(choice, backend, dtype, tolerance, recompute):
    expected = learned(LoRA(rank=3))
    found = learned(LoRA(rank=3, **choice), backend=backend, dtype=dtype, recompute=recompute)
    assert set(found) <= set(expected) and found
    for key, value in found.items():
        assert value.abs().max() > 1e-6 and (value - expected[key]).abs().max() <= tolerance, key


@pytest.mark.parametrize("choice", CHOICES, ids=ids)
@pytest.mark.parametrize("memory", [None, SegmentMemory(11, 2), SegmentMemory(11, 2, "reproject")], ids=str)
@pytest.mark.parametrize("recompute", [False, True])
def test_ledger_equals_torchs_flop_counter(choice, memory, recompute):
    e = engine(LoRA(rank=3, **choice), memory=memory, recompute=recompute)
    row = tokens()
    with FlopCounterMode(display=False) as counter:
        e.step(row[:, : T + 1])
        e.step(row[:, T:])
    flops = e.flops
    assert flops["forward"] + flops["backward"] + flops["recompute"] == counter.get_total_flops()


def test_the_lowest_layer_goes_as_far_as_what_learns_in_it():
    """With nothing below, feed-forward is left out where attention alone learns, and attention where feed-forward does."""
    c, rank, costs = MODEL.config, 3, {}
    for name in ("qkv", "o", "up", "down"):
        e = engine(LoRA(rank=rank, targets=[name], layers=range(2, 3)))
        e.step(tokens(length=T + 1))
        costs[name] = e.flops["backward"] - 2 * T * c.hidden_size * c.vocab_size  # the head's
    width, out = c.heads * c.head_dim, c.hidden_size
    adapter = lambda k, o: 2 * T * rank * (o + k + o)  # noqa: E731  dU, dA, dB
    attention = 8 * T * T * width
    assert costs["o"] == adapter(width, out) and costs["down"] == adapter(c.ffn_size, out)
    assert costs["up"] == adapter(out, c.ffn_size) + 2 * T * out * c.ffn_size
    assert costs["qkv"] == adapter(out, 3 * width) + 2 * T * out * width + attention


@pytest.mark.parametrize("memory", [None, SegmentMemory(11, 2, "reproject")], ids=str)
def test_streams_and_threads_see_nothing_of_each_other(memory):
    row = tokens(2)
    both = engine(LoRA(rank=2), "cpu", "bf16", streams=2, memory=memory)
    found = torch.cat([both.step(row[:, : T + 1]), both.step(row[:, T:])], 1)
    for s in range(2):
        one = engine(LoRA(rank=2), "cpu", "bf16", memory=memory)
        alone = torch.cat([one.step(row[s : s + 1, : T + 1]), one.step(row[s : s + 1, T:])], 1)
        assert torch.equal(alone[0], found[s])


def test_everything_learns_with_memory_saving_backward():
    row, found = tokens(length=T + 1), []
    for recompute in (False, True):
        e = engine(Full("model"), recompute=recompute)
        e.step(row)
        found.append(e.learners[0].parameters())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
