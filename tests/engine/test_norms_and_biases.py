"""Full(targets="norms"), "biases" or both: torch's gradients of these and of nothing else, their FLOPs, the engine's invariants."""

import pytest
import torch
from helpers import to_transformers
from test_invariants import SEGMENT, engine, learned_step, scores, text
from test_whole_model import every_parameter_moves, expected_gradients, invariants_hold
from torch.utils.flop_counter import FlopCounterMode

from dynadapt import RMS, SGD, Adam, AdamW, Engine, Full, Guard, Lion, LoRA, Muon
from dynadapt.bench.plan.work import step_work
from dynadapt.engine.weights import group_sizes
from dynadapt.model import from_state, hf_name, random_model, tiny_config
from dynadapt.model.layout import canonical_tensor, has_offset, hf_tensor

T = 21
NORMS, BIASES, BOTH = Full("norms"), Full("biases"), Full(["biases", "norms"])
FAMILIES = [
    "llama",
    "qwen2",
    "qwen3",
    "gpt2",
    "gemma2",
    "gemma3",
    "gptneox",
    "gptneox, one behind the other",
    "olmo2",
    "granite",
    "qwen3_5",
]
CASES = [(family, NORMS) for family in FAMILIES]
CASES += [(family, adapt) for family in ("qwen2", "gpt2", "gptneox", "gptneox, one behind the other") for adapt in (BIASES, BOTH)]


def model(case):
    family, _, rest = case.partition(",")
    return random_model(tiny_config(family, **({"parallel_residual": False} if rest else {})), seed=1, std=0.1)


def names_in(m, adapt) -> set[str]:
    """The canonical names of what learns, by the classes and names that transformers has."""
    live = to_transformers(m)
    norms = {
        f"{place}.{name}" for place, each in live.named_modules() if "Norm" in type(each).__name__ for name, _ in each.named_parameters()
    }
    biases = {name for name, _ in live.named_parameters() if name.endswith(".bias")}
    wanted = (norms if "norms" in adapt.targets else set()) | (biases if "biases" in adapt.targets else set())
    if adapt.layers is not None:
        wanted = {name for name in wanted if any(f".{i}." in name for i in adapt.layers)}
    return {name for name in m.names() if hf_name(m.config, name) in wanted}


def gradients(m, row, adapt, dtype="fp64", backend="reference", **options):
    """By canonical name: what a step of SGD with lr 1 takes away."""
    options = {"optimizer": SGD(lr=1.0, clip=0.0), "streams": len(row), "shared": True, "dtype": dtype, "backend": backend, **options}
    e = Engine(m, adapt=adapt, segment=row.shape[1] - 1, **options)
    before = e.learners[0].parameters()
    e.step(row)
    return {name: before[name] - value for name, value in e.learners[0].parameters().items()}


def rows(m):
    return torch.randint(m.config.vocab_size, (2, T + 1), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("case,adapt", CASES, ids=str)
@pytest.mark.parametrize("backend,dtype,tolerance", [("reference", "fp64", 1e-6), ("cpu", "fp32", 2e-5)])  # theirs has float32 norms
def test_gradients_are_autograds_of_these_and_of_nothing_else(case, adapt, backend, dtype, tolerance):
    m = model(case)
    row = rows(m)
    expected = expected_gradients(m, row, torch.float64)
    ours = gradients(m, row, adapt, dtype, backend)
    assert set(ours) == names_in(m, adapt) and ours
    for name, value in ours.items():
        scale = expected[name].abs().max()
        assert scale > 1e-6, name
        assert (value.double() - expected[name]).abs().max() < tolerance * max(1, scale), name


@pytest.mark.parametrize("family", ["gemma2", "gemma3", "qwen3_5"])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_norm_weight_of_one_plus_w_is_not_rounded_to_bfloat16(family, backend):
    """Not where it is frozen, not where it learns, not in what is saved: w, which the file has in bfloat16, comes back to the bit."""
    m = random_model(tiny_config(family), seed=1, std=0.1)
    state = {name: hf_tensor(m.config, name, m.tensor(name)).bfloat16() for name in m.names()}  # as a file has them
    stored = from_state(m.config, {name: canonical_tensor(m.config, name, value) for name, value in state.items()}, dtype=torch.bfloat16)
    of_one = {name for name in m.names() if has_offset(m.config, name)}
    assert {name for name in of_one if not torch.equal(stored.tensor(name).bfloat16().float(), stored.tensor(name))}
    options = dict(segment=T, dtype="bf16", backend=backend)
    frozen, learning = Engine(stored, adapt=LoRA(rank=2), **options), Engine(stored, adapt=NORMS, optimizer=SGD(lr=0.0), **options)
    for e in (frozen, learning):
        weight = (e.weights if e is frozen else e.learners[0].weights_view).final_norm[0]
        assert weight.dtype == torch.float32 and torch.equal(weight, state["norm.weight"].float() + 1)
    row = rows(m)[:1]
    assert torch.equal(frozen.step(row), learning.step(row))
    learning.reset(0)
    for name, value in learning.learners[0].parameters().items():
        assert torch.equal(hf_tensor(m.config, name, value).bfloat16(), state[name]), name


@pytest.mark.parametrize(
    "case,adapt", [("llama", "norms"), ("gemma3", "norms"), ("gpt2", "biases"), ("gptneox", "biases"), ("olmo2", "norms")]
)
@pytest.mark.parametrize("recompute", [False, True])
def test_of_some_layers_they_are_the_same(case, adapt, recompute):
    m, some = model(case), Full(adapt, range(1, 2))
    row = rows(m)
    whole, part = gradients(m, row, Full(adapt)), gradients(m, row, some, recompute=recompute)
    assert set(part) == names_in(m, some) < set(whole)
    assert all(torch.equal(value, whole[name]) for name, value in part.items())


@pytest.mark.parametrize(
    "case,adapt,place",
    [
        ("llama", NORMS, "attn_norm"),
        ("qwen2", BIASES, "qkv"),
        ("olmo2", NORMS, "qkv"),
        ("gpt2", BIASES, "attn_norm"),
        ("gptneox", BOTH, "attn_norm"),
        ("llama", Full("norms", range(1, 3)), "attn_norm"),
        ("qwen2", Full("biases", range(1, 3)), "qkv"),
    ],
    ids=str,
)
def test_flops_are_those_of_input_gradients_alone(case, adapt, place):
    """Beside what every linear weight costs that learns: no weight's gradient, and the input's of a lowest group where a norm precedes it."""
    m = model(case)
    make = lambda adapt: Engine(m, adapt=adapt, segment=T, dtype="fp64", backend="reference", optimizer=SGD(lr=0.1))  # noqa: E731
    e, weights = make(adapt), make(Full("all", adapt.layers))
    first = 0 if adapt.layers is None else adapt.layers.start
    assert e.lowest == (first, place)
    row = rows(m)[:1]
    with FlopCounterMode(display=False) as counter:
        e.step(row)
    weights.step(row)
    assert counter.get_total_flops() == sum(count for phase, count in e.flops.items() if phase != "update")
    sizes = {key: 2 * T * k * sum(parts) for key, (k, parts) in group_sizes(m.config).items()}
    learning = sum(count for (layer, _), count in sizes.items() if adapt.layers is None or layer in adapt.layers)
    assert e.flops["forward"] == weights.flops["forward"]
    beneath = ["qkv", *["mlp_in"] * m.config.parallel_residual] if place == "attn_norm" else []  # with a norm in front
    assert e.flops["backward"] == weights.flops["backward"] - learning + sum(sizes[first, group] for group in beneath)
    planned = step_work(m.config, adapt, SGD(lr=0.1), segment=T, dtype=torch.float32)
    assert planned.flops == e.flops and planned.learned_parameters == e.learned_parameters
    ran = set(e.explain().split())
    assert "weight_gradient" not in ran and "cross_entropy_weight_gradient" not in ran and "embedding_backward" not in ran
    assert ("bias_gradient" in ran) == ("biases" in adapt.targets)
    assert f"backward stops at layer {first}, {place}" in e.explain()


@pytest.mark.parametrize(
    "family,adapt,memory",
    [
        ("llama", NORMS, "keep"),
        ("qwen2", BIASES, "reproject"),
        ("qwen3", NORMS, "reproject"),
        ("gpt2", BOTH, "overlap"),
        ("gemma3", NORMS, "keep"),
    ],
)
def test_gradient_equals_finite_differences(family, adapt, memory):
    tokens, h = text(family=family), 1e-5
    _, gradient, window = learned_step(family, adapt, memory, tokens)
    along = gradient / gradient.norm()
    up, down = (learned_step(family, adapt, memory, tokens, along, sign * h, window)[0] for sign in (1, -1))
    assert (up - down) / (2 * h) == pytest.approx(float(gradient.norm()), rel=1e-5)


@pytest.mark.parametrize("family,adapt,memory", [("llama", NORMS, "keep"), ("gpt2", BOTH, "overlap"), ("qwen2", BIASES, "nothing")])
@pytest.mark.parametrize("backend,dtype", [("reference", "fp32"), ("cpu", "fp32"), ("cpu", "bf16")])
def test_invariants(family, adapt, memory, backend, dtype, tmp_path):
    invariants_hold(family, adapt, memory, backend, dtype, tmp_path)


@pytest.mark.parametrize(
    "optimizer",
    [SGD(lr=0.5, momentum=0.9), Adam(lr=5e-2), AdamW(lr=5e-2, decay=0.01), RMS(lr=1e-3, decay=1e-3), Lion(lr=1e-2), Muon(lr=5e-2)],
    ids=lambda o: o.kind,
)
@pytest.mark.parametrize("family,adapt", [("llama", NORMS), ("gpt2", BOTH)])
def test_every_optimizer_moves_every_parameter(optimizer, family, adapt):
    every_parameter_moves(optimizer, family, adapt)


def test_muon_moves_them_by_adamw():
    row = text(length=SEGMENT + 1)
    rule = dict(lr=2**-6, betas=(0.9, 0.95), weight_decay=0.25, clip=0.0)
    moved = [engine("llama", NORMS, dtype="fp64", optimizer=kind(**rule)) for kind in (Muon, AdamW)]
    for _ in range(3):
        for e in moved:
            e.step(row)
    assert torch.allclose(*(e.learners[0].state.master for e in moved), atol=1e-12)


@pytest.mark.parametrize("reset", ["never", "auto"])
def test_a_guard_looks_at_the_model_as_it_was(reset):
    tokens = text(1)
    e = engine("llama", NORMS, "keep", "cpu", optimizer=Adam(lr=0.3), guard=Guard(), reset=reset)
    static = engine("llama", "none", "keep", "cpu")
    for start in range(0, 2 * SEGMENT, SEGMENT):
        part = tokens[:, start : start + SEGMENT + 1]
        e.step(part)
        assert torch.equal(e.last.nll_static, static.step(part))


def test_fixed_shapes_do_the_same():
    tokens = text(2, family="gpt2")
    eager, fixed = (engine("gpt2", BOTH, optimizer=Adam(lr=0.02), streams=2, static=static) for static in (False, True))
    assert torch.allclose(scores(eager, tokens), scores(fixed, tokens), atol=1e-5)
    assert "because gradients of norms, biases" in fixed.explain()


@pytest.mark.parametrize("base,backend", [("int8", "cpu"), ("float8", "reference")])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_base_in_few_bits_stays_one(base, backend, dtype):
    tokens = text(1, family="qwen2")
    static = engine("qwen2", "none", backend=backend, dtype=dtype, base=base)
    e = engine("qwen2", BOTH, backend=backend, dtype=dtype, base=base, optimizer=Adam(lr=0.02))
    assert torch.equal(e.step(tokens[:, : SEGMENT + 1]), static.step(tokens[:, : SEGMENT + 1]))
    first, *_, last = [e.step(tokens[:, : SEGMENT + 1]).mean() for _ in range(6)]
    assert last < first


def test_what_does_not_fit_is_named():
    make = lambda family, adapt, **o: Engine(model(family), adapt=adapt, segment=T, **o)  # noqa: E731
    for adapt in (BIASES, BOTH):
        with pytest.raises(ValueError, match="llama has no biases; expected norms, or a model that has biases"):
            make("llama", adapt)
    with pytest.raises(ValueError, match="layers=2:9: the model has layers 0:3"):
        make("llama", Full("norms", range(2, 9)))
    for wrong in ([], ["norms", "mlp"], ["model"], [3]):
        with pytest.raises(
            ValueError, match="targets=.*: expected one of all, attn, mlp, model, norms, biases, or a list of norms and biases"
        ):
            Full(wrong)
    with pytest.raises(ValueError, match="targets='norms': expected one of"):
        LoRA(targets="norms")
    with pytest.raises(ValueError, match="gemma3 multiplies with 1 . w .* use weight_decay=0, or decay"):
        make("gemma3", NORMS, optimizer=AdamW(lr=1e-3))
    with pytest.raises(ValueError, match="streams that differ have adapters; expected LoRA"):
        make("llama", [NORMS, LoRA()], streams=2)
    assert Full(["biases"]) == BIASES and Full(["norms", "biases", "norms"]) == BOTH
