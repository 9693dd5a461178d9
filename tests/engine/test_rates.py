"""Learning rates of linears and of B: those of torch's parameter groups over PEFT's adapters, and nothing else of a step."""

import json

import pytest
import torch
from helpers import to_transformers, token_rows
from safetensors.torch import load_file

from dynadapt import RMS, SGD, Adam, AdamW, Engine, Lion, LoRA, Muon
from dynadapt.adapt.methods import rates_differ
from dynadapt.adapt.targets import adapted_parts, rate_factors
from dynadapt.bench.plan.work import step_work
from dynadapt.engine.learners.peft import adapted_modules, write_adapter
from dynadapt.model import ModelError, random_model, tiny_config
from dynadapt.ops import update as update_op

pytestmark = pytest.mark.filterwarnings("ignore")
T = 12
PATTERN = {"q": 0.5, r"layers\.[12]\..*down_proj": 0.0, "down": 4}
RATES = dict(rank=3, alpha=5, targets=["q", "v", "up", "down"], rank_pattern={"q": 5}, rate_pattern=PATTERN, b_rate=8)
MODEL = random_model(tiny_config("llama"), seed=1, std=0.1)


def engine(m=MODEL, optimizer=None, adapt=None, **more):
    optimizer = SGD(lr=0.25, clip=0.0) if optimizer is None else optimizer
    adapt = LoRA(**RATES) if adapt is None else adapt
    return Engine(m, **{"adapt": adapt, "optimizer": optimizer, "segment": T, "dtype": "fp64", "backend": "reference", **more})


def text(seed=2, rows=1, segments=1):
    return token_rows(rows, segments * T + 1, seed=seed)


def live(e):
    """Every B drawn, so that every gradient is there."""
    for learner in e.learners:
        drawn = torch.randn(learner.state.master.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
        learner.state.master += 0.02 * drawn.to(learner.state.master.dtype)
    return e


def factor(name: str) -> float:
    """Of PEFT's parameter, found otherwise than by the engine's patterns."""
    kind = name.split(".self_attn.")[-1].split(".mlp.")[-1]
    own = 0.5 if kind.startswith("q_proj") else 1.0
    if kind.startswith("down_proj"):
        own = 4.0 if ".layers.0." in name else 0.0
    return own * (8 if "lora_B" in name else 1)


OPTIMIZERS = {
    "adamw": (AdamW(lr=2**-6, weight_decay=0.5, clip=0.5), lambda groups: torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8)),
    "momentum": (SGD(lr=2**-3, momentum=0.5, clip=0.5), lambda groups: torch.optim.SGD(groups, momentum=0.5)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_are_those_of_torchs_parameter_groups(tmp_path, name):
    import peft

    optimizer, make = OPTIMIZERS[name]
    e = live(engine(optimizer=optimizer))
    learner = e.learners[0]
    write_adapter(tmp_path / "before", learner, MODEL.config, 0, "tiny")
    twin = peft.PeftModel.from_pretrained(to_transformers(MODEL), tmp_path / "before", is_trainable=True).double()
    trained = {name.replace(".default", ""): p for name, p in twin.named_parameters() if p.requires_grad}
    for adapted in adapted_modules(learner, MODEL.config):  # float64 as the engine has them, not as files do
        A, Bt = (learner.layout.view(learner.state.master[0], f"{adapted.layer}.{adapted.group}.{half}") for half in ("A", "Bt"))
        A, Bt = adapted.halves(A, Bt)
        trained[f"base_model.model.{adapted.module}.lora_A.weight"].data.copy_(A)
        trained[f"base_model.model.{adapted.module}.lora_B.weight"].data.copy_(Bt.t())
    decays = {"weight_decay": getattr(optimizer, "weight_decay", 0.0)}
    torchs = make([{"params": [p], "lr": optimizer.lr * factor(name), **decays} for name, p in trained.items()])
    for seed in (2, 3, 4):
        row = text(seed)
        loss = torch.nn.functional.cross_entropy(twin(row[:, :-1]).logits.flatten(0, 1), row[:, 1:].flatten())
        torchs.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained.values(), optimizer.clip)
        torchs.step()
        e.step(row)
    write_adapter(tmp_path / "after", learner, MODEL.config, 0, "tiny")
    after, before = (load_file(str(tmp_path / when / "adapter_model.safetensors")) for when in ("after", "before"))
    assert after.keys() == trained.keys()
    for key, parameter in trained.items():
        assert torch.allclose(after[key].double(), parameter.detach(), atol=1e-5), key  # transformers norms in float32
        assert torch.equal(after[key], before[key]) == (factor(key) == 0), key


@pytest.mark.parametrize("backend, dtype", [("reference", "fp32"), ("cpu", "fp32"), ("cpu", "bf16")])
@pytest.mark.parametrize(
    "optimizer", [SGD(lr=0.1, clip=0.0), Adam(lr=0.02, decay=0.1), AdamW(lr=0.02), Lion(lr=1e-3), Muon(lr=0.02, decay=0.1)], ids=str
)
def test_every_optimizer_moves_by_factors_of_its_own_step(optimizer, backend, dtype):
    """One step from one place: each linear moves by its factor times what it moves by without, beside the decay."""
    mild = {**RATES, "rate_pattern": {"q": 0.5, "down": 0.0}, "b_rate": 2}
    e, plain = (
        live(engine(optimizer=optimizer, adapt=LoRA(**{**mild, **changes}), backend=backend, dtype=dtype))
        for changes in ({}, {"rate_pattern": {}, "b_rate": 1})
    )
    before = plain.learners[0].state.master.clone()
    prior = plain.learners[0].initial
    assert torch.equal(e.step(text()), plain.step(text()))  # scores are before learning
    decayed = before + optimizer.decay * (prior - before)
    ours, theirs = (x.learners[0].state.master - decayed for x in (e, plain))
    view = e.learners[0].layout.view
    for key, factors in rate_factors(e.adapt, e.config, e.learners[0].parts_of).items():
        A, Bt = (tuple(view(moved, "{}.{}.{}".format(*key, half))[0] for moved in (ours, theirs)) for half in ("A", "Bt"))
        sizes, ranks = list(e.learners[0].sizes[key][1]), e.learners[0].ranks[key]
        for own, (a, a_plain), (b, b_plain) in zip(
            factors, zip(*(half.split(ranks) for half in A)), zip(*(half.split(sizes, dim=1) for half in Bt))
        ):
            assert torch.allclose(a, own * a_plain, atol=1e-6) and torch.allclose(b, 2 * own * b_plain, atol=1e-6)


def test_factors_of_one_are_a_step_without_them():
    same = LoRA(**{**RATES, "rate_pattern": {"q": 1, "down": 1.0}, "b_rate": 1.0})
    e, plain = (
        engine(adapt=same, backend="cpu", dtype="bf16"),
        engine(adapt=LoRA(**{**RATES, "rate_pattern": {}, "b_rate": 1}), backend="cpu", dtype="bf16"),
    )
    assert not rates_differ(same) and e.learners[0].state.rate_factor is None
    for seed in (2, 3):
        assert torch.equal(e.step(text(seed)), plain.step(text(seed)))
    assert torch.equal(e.learners[0].state.master, plain.learners[0].state.master) and e.flops == plain.flops


def test_streams_that_differ_have_their_own_rates():
    adapts = [LoRA(**RATES), LoRA(**{**RATES, "b_rate": 1}), LoRA(2)]
    rows = text(rows=3)
    together = engine(adapt=adapts, streams=3, backend="cpu", dtype="fp32", optimizer=Adam(lr=0.02))
    alone = [engine(adapt=adapt, backend="cpu", dtype="fp32", optimizer=Adam(lr=0.02)) for adapt in adapts]
    for _ in range(3):
        together.step(rows)
        for i, e in enumerate(alone):
            e.step(rows[i : i + 1])
    for learner, e in zip(together.learners, alone):
        assert torch.equal(learner.state.master, e.learners[0].state.master)


def test_a_saved_state_goes_on_and_holds_the_rates(tmp_path):
    make = lambda **changes: engine(optimizer=Adam(lr=0.02), backend="cpu", dtype="fp32", adapt=LoRA(**{**RATES, **changes}))  # noqa: E731
    e = make()
    e.step(text())
    e.save(tmp_path / "state")
    again = make()
    again.restore(tmp_path / "state")
    snapshot = e.snapshot(0)
    assert torch.equal(again.step(text(3)), e.step(text(3)))
    assert torch.equal(again.learners[0].state.master, e.learners[0].state.master)
    e.rollback(0, snapshot)
    e.step(text(3))
    assert torch.equal(again.learners[0].state.master, e.learners[0].state.master)
    with pytest.raises(ModelError, match="saved with adapt="):
        make(rate_pattern={"q": 2}).restore(tmp_path / "state")
    assert "rate_pattern" in json.dumps(e.describe()) and "rate_pattern" not in json.dumps(engine(adapt=LoRA(2)).describe())
    write_adapter(tmp_path / "adapter", e.learners[0], MODEL.config, 0, "tiny")
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert not {"rate_pattern", "b_rate"} & settings.keys()
    make(rate_pattern={}, b_rate=1).load_adapter(tmp_path / "adapter")


def test_what_it_costs_is_counted():
    e, plain = engine(), engine(adapt=LoRA(**{**RATES, "rate_pattern": {}, "b_rate": 1}))
    e.step(text())
    plain.step(text())
    count = e.learned_parameters
    assert e.flops["update"] - plain.flops["update"] == count
    assert {**e.flops, "update": 0} == {**plain.flops, "update": 0}
    assert e.flops["update"] == update_op.flops(count, e.optimizer.rule(), rate_factor=True)
    work = step_work(MODEL.config, LoRA(**RATES), SGD(lr=0.25, clip=0.0), segment=T, dtype=torch.float32)
    assert work.flops["update"] == e.flops["update"]


def test_the_gradient_kernels_do_not_update_then_and_it_is_said():
    fixed = dict(static=True, dtype="fp32")
    e = engine(**fixed)
    assert not e.static.step.fused
    assert "a launch of its own, because rate_pattern or b_rate gives linears rates of their own" in e.explain()
    assert engine(adapt=LoRA(2), **fixed).static.step.fused
    eager = engine(dtype="fp32")
    for seed in (2, 3):
        assert torch.allclose(e.step(text(seed)), eager.step(text(seed)), atol=1e-5)
    assert torch.allclose(e.learners[0].state.master, eager.learners[0].state.master, atol=1e-6)


def test_the_first_pattern_that_fits_counts():
    config = tiny_config("llama")
    adapt = LoRA(**{**RATES, "rate_pattern": {r"layers\.0\..*": 3, "q": 0.5}})
    found = rate_factors(adapt, config, adapted_parts(adapt, config))
    assert found[0, "qkv"] == [3.0, 3.0, 3.0] and found[1, "qkv"] == [0.5, 1.0, 1.0] and found[2, "down"] == [1.0]


@pytest.mark.parametrize(
    "lora, message",
    [
        (dict(rate_pattern={"q": -0.5}), r"rate_pattern\['q'\]=-0.5: expected a finite number >= 0"),
        (dict(rate_pattern={"q": float("inf")}), r"rate_pattern\['q'\]=inf: expected a finite number >= 0"),
        (dict(rate_pattern={"(": 1}), r"rate_pattern has '\(', which is no regular expression"),
        (dict(b_rate=0), "b_rate=0: expected a positive number"),
    ],
)
def test_what_is_refused(lora, message):
    with pytest.raises(ValueError, match=message):
        LoRA(**lora)


def test_what_a_model_lacks_is_refused():
    with pytest.raises(ValueError, match="rate_pattern has 'o', which fits no linear that learns"):
        engine(adapt=LoRA(targets=["q"], rate_pattern={"o": 2}))
    with pytest.raises(ValueError, match="optimizer=RMS with adapt=LoRA"):
        engine(optimizer=RMS())
