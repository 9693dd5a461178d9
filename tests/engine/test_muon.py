"""Muon in an engine: which matrices it moves and how, streams, drivers, saved states, what it costs."""

import pytest
import torch
from helpers import token_rows

from dynadapt import SGD, Engine, Full, LoRA, Muon, RowSparse, SegmentMemory
from dynadapt.bench.plan.work import step_work
from dynadapt.distributed.sharded import ShardedState
from dynadapt.engine.learners.peft import adapted_modules
from dynadapt.model import random_model, tiny_config
from dynadapt.ops.matrix_update import product_flops

T = 8
MODEL = random_model(tiny_config("llama"), seed=0, std=0.1)
MIXED = LoRA(3, targets=["q", "v", "o", "up"], rank_pattern={"q": 5, "up": 2})
BASE = {
    "segment": T,
    "backend": "reference",
    "dtype": "fp64",
    "adapt": LoRA(2),
    "optimizer": Muon(lr=2**-6, clip=0.0),
}  # a rate that float32 holds


def engine(**options):
    return Engine(MODEL, **{**BASE, **options})


def text(seed=0, rows=1):
    return token_rows(rows, T + 1, seed)


def matrices(e) -> dict[str, torch.Tensor]:
    """{name: view into the masters} of every matrix of layers, each found otherwise than by the layout's own list."""
    learner = e.learners[0]
    master = learner.state.master[0]
    if isinstance(e.adapt, LoRA):
        found = {}
        for each in adapted_modules(learner, e.config):
            A, Bt = (learner.layout.view(master, f"{each.layer}.{each.group}.{half}") for half in ("A", "Bt"))
            found[f"{each.module}.A"], found[f"{each.module}.B"] = (half for half in each.halves(A, Bt))
        return found
    return {name: learner.layout.view(master, name) for *_, name in learner._parts()}


@pytest.mark.parametrize("adapt", [LoRA(2), MIXED, Full("mlp"), RowSparse(0.3, "fixed")], ids=str)
def test_every_linears_matrix_moves_as_torchs_muon_moves_it(adapt, monkeypatch):
    """Gradients are those that a twin with plain SGD descends by."""

    def in_float64(grad, coefficients, steps, eps):
        (a, b, c), x = coefficients, grad / grad.norm().clamp(min=eps)
        for _ in range(steps):
            gram = x @ x.T
            x = a * x + (b * gram + c * gram @ gram) @ x
        return x

    monkeypatch.setattr("torch.optim._muon._zeropower_via_newtonschulz", in_float64)
    e, twin = engine(adapt=adapt), engine(adapt=adapt, optimizer=SGD(lr=1.0, clip=0.0))
    if isinstance(adapt, LoRA):  # B from another value than zero, so that A has a gradient from the first step on
        for name, t in matrices(e).items():
            if name.endswith(".B"):
                t.copy_(0.1 * torch.randn(t.shape, generator=torch.Generator().manual_seed(1)))
    parameters = {name: torch.nn.Parameter(t.clone()) for name, t in matrices(e).items()}
    theirs = torch.optim.Muon(parameters.values(), lr=2**-6, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    for seed in range(3):
        snapshot = e.learners[0].slot_copy(0)
        here = twin.learners[0].slot_copy(0)
        twin.learners[0].slot_load(0, {**here, **{name: t for name, t in snapshot.items() if name in here}})
        before = {name: t.clone() for name, t in matrices(twin).items()}
        twin.step(text(seed))
        for name, t in matrices(twin).items():
            parameters[name].grad = before[name] - t
        theirs.step()
        e.step(text(seed))
        for name, t in matrices(e).items():
            assert torch.allclose(t, parameters[name].data, atol=1e-10), (seed, name)
            assert not torch.equal(t, before[name])


@pytest.mark.parametrize("adapt", [LoRA(2), MIXED, Full(), RowSparse(0.3)], ids=str)
@pytest.mark.parametrize("how", [{"dtype": "fp32"}, {"backend": "cpu", "dtype": "bf16"}, {"static": True, "dtype": "fp32"}], ids=str)
def test_streams_stand_alone_and_go_on_from_a_saved_state(adapt, how, tmp_path):
    options = {"adapt": adapt, "memory": SegmentMemory(6, 1), "reset": 5 * T, **how}
    e, alone = engine(streams=3, **options), engine(streams=3, **options)
    for seed in range(3):
        e.step(text(seed, 3))
        alone.step(text(seed, 3)[1:2], streams=[1])
    for name, t in e.learners[-1 if e.settings.owns_weights else 0].state.tensors().items():
        assert torch.isfinite(t).all(), name
    if how.get("backend") == "cpu":
        assert torch.equal(e.step(text(5, 3))[1], alone.step(text(5, 3)[1:2], streams=[1])[0])
    e.save(tmp_path)
    again, taken = engine(streams=3, **options), e.snapshot(1)
    again.restore(tmp_path)
    first = [e.step(text(seed, 3)) for seed in (6, 7, 8)]
    assert all(torch.equal(again.step(text(seed, 3)), scores) for seed, scores in zip((6, 7, 8), first))
    e.rollback(1, taken)
    assert torch.equal(e.step(text(6, 3))[1], first[0][1])


def test_the_static_step_is_the_step():
    options = {"adapt": MIXED, "dtype": "fp32", "streams": 2, "optimizer": Muon(lr=0.02)}
    host, static = engine(static=False, **options), engine(static=True, **options)
    for seed in range(4):
        assert torch.allclose(host.step(text(seed, 2)), static.step(text(seed, 2)), atol=1e-4)
    assert host.flops == static.flops
    assert "a launch of its own, because Muon is not in the gradient kernels" in static.explain()
    assert "24 matrices of 5 shapes a stream are turned by torch's products" in static.explain()


@pytest.mark.parametrize("adapt", [LoRA(2), MIXED, Full("attn"), Full("model"), RowSparse(0.3)], ids=str)
def test_the_ledger_and_the_plan_count_its_products(adapt):
    e = engine(adapt=adapt, dtype="fp32", optimizer=Muon(lr=0.01))
    e.step(text())
    learner = e.learners[0]
    products = product_flops(learner.layout.parts.matrices)
    assert e.flops["update"] == learner.learned_parameters * (2 + 1 + 13 + 1) + products > products > 0
    assert len(learner.layout.parts.matrices) == len(matrices(e))
    planned = step_work(e.config, adapt, e.optimizer, segment=T, dtype=torch.float32)
    assert planned.flops == e.flops


def test_a_second_moment_is_kept_where_something_is_no_matrix():
    lora, whole = engine(dtype="fp32").learners[0].state, engine(dtype="fp32", adapt=Full("model")).learners[0]
    assert lora.second is None and whole.state.second is not None and whole.layout.parts.elsewhere
    names = {name for name, start in whole.layout.offsets.items() if any(start == span[0] for span in whole.layout.parts.elsewhere)}
    assert names == set(whole.around)  # norms, the embedding, the head


def test_shards_are_refused():
    with pytest.raises(ValueError, match="optimizer=Muon with shard: it moves matrices as wholes"):
        ShardedState(engine(adapt=Full("model"), dtype="fp32").learners[0].state, None, None, False)
