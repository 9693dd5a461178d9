"""``every`` with ``accumulate``: of what an update is, and what becomes of a gradient that waits when documents, adapters or learning end."""

import pytest
import torch
from helpers import descended, descent_error

from dynadapt import SGD, Adam, Engine, Full, LoRA, RowSparse
from dynadapt.engine.explain import timed_steps
from dynadapt.engine.plan import StreamState
from dynadapt.model import random_model, tiny_config

MODELS = {family: random_model(tiny_config(family), seed=0, std=0.1) for family in ("llama", "gpt2")}
T = 8
KINDS = pytest.mark.parametrize("adapt", [LoRA(2), LoRA(2, also=("norms",)), RowSparse(0.3), Full()], ids=str)
HOW = pytest.mark.parametrize("how", [{"backend": "reference"}, {"backend": "cpu"}, {"backend": "reference", "static": True}], ids=str)


def engine(family="llama", **options):
    options = {"adapt": LoRA(2), "optimizer": Adam(lr=0.01), "segment": T, "backend": "reference", "dtype": "fp32", **options}
    return Engine(MODELS[family], **{"every": 3, "accumulate": True, **options})


def text(count, rows=1, seed=0):
    """[count, rows, T + 1] ids."""
    return torch.randint(90, (count, rows, T + 1), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("family", MODELS)
def test_segments_count_the_same_however_short_the_last_is(family):
    """By torch's autograd in float64: the mean of each segment's own mean, not that of all their tokens."""
    e, segments, lengths = engine(family, adapt=Full("model"), optimizer=SGD(lr=0.5, clip=0.0), dtype="fp64"), text(3), (T, 5, 1)
    for row, n in zip(segments, lengths):
        e.step(row, [n])
    assert e.updates == 1
    mean = lambda ids: lambda logits: torch.nn.functional.cross_entropy(logits.double(), ids)  # noqa: E731
    alone = [descended(MODELS[family], row[:, : n + 1], mean(row[0, 1 : n + 1])) for row, n in zip(segments, lengths)]
    for name, value in e.learners[0].parameters().items():
        expected = torch.stack([moved[name] for moved in alone]).mean(0)
        assert (value - expected).abs().max() <= descent_error(MODELS[family].config), name


@KINDS
@HOW
def test_a_document_that_resets_counts_its_segments_anew(adapt, how):
    """One that ended between two updates leaves nothing of itself, not its count either: the next scores as it does alone."""
    e, alone = engine(adapt=adapt, reset="document", **how), engine(adapt=adapt, reset="document", **how)
    for row in text(4, seed=1):  # one segment waits
        e.step(row)
    e.enter(0)
    for row in text(7):
        assert torch.equal(e.step(row), alone.step(row))
        assert e.last.updated == alone.last.updated
    assert e.updates == 3


def test_a_document_without_a_reset_goes_on_counting():
    """What waits is of its update, whichever documents it came from."""
    e, one = engine(), engine()
    for i, row in enumerate(text(7)):
        if i in (2, 4):
            e.enter(0)
        assert torch.equal(e.step(row), one.step(row))
    assert e.updates == 2


def test_an_adapter_that_is_given_counts_anew(tmp_path):
    e, alone = engine(), engine()
    e.save(tmp_path)
    for one, first in ((e, 4), (alone, 0)):
        for row in text(first, seed=1):
            one.step(row)
        one.enter(0, adapter=tmp_path / "adapter")
    for row in text(7):
        assert torch.equal(e.step(row), alone.step(row))


@KINDS
@HOW
def test_an_engine_that_learns_no_more_only_scores(adapt, how):
    """No backward, whose gradient no update would use; what waited waits on."""
    e, static = engine(adapt=adapt, **how), engine(adapt=None, optimizer=None, **how)
    first, second = text(2)
    e.step(first)
    static.step(first)
    e.learn_no_more()
    assert torch.equal(e.step(second), static.step(second))
    assert e.last.flops["forward"] and not e.last.flops["backward"] and not e.last.flops["recompute"]
    assert e.accumulate and e.settings.accumulate and e.state[0] == StreamState(segments=2, waiting=True)
    e.optim_step()
    assert e.updates == 1


@KINDS
@HOW
def test_a_gradient_that_is_not_finite_costs_its_own_update_alone(adapt, how):
    e = engine(adapt=adapt, streams=2, **how)
    for row in text(2, 2, seed=1):
        e.step(row)
    e.driver.step.learner(0).state.grad[0].fill_(torch.nan)
    e.step(text(1, 2, seed=2)[0])
    assert e.last.skipped == [True, False] and (e.updates, e.skipped_updates) == (1, 1)
    for row in text(3, 2, seed=3):
        assert e.step(row).isfinite().all()
    assert e.last.updated == [True, True] and e.skipped_updates == 1


def test_explain_says_what_an_update_is_of():
    said = "update every 3 segment(s) by the mean of their gradients; reset never"
    assert said in engine().explain() and "mean of their gradients" not in engine(accumulate=False).explain() + engine(every=1).explain()


def test_the_step_that_is_timed_updates_as_the_engines_do():
    """Not in the gradient kernels, which would be another step than the one that is explained."""
    e = engine(static=True, optimizer=SGD(lr=0.1, clip=0.0))
    twin, _, seconds = timed_steps(e, 1)
    assert not e.driver.step.fused and {"lora_gradient", "update"} <= seconds.keys() and twin.updates == 3
