"""Full(targets="model"): gradients of every parameter, the engine's invariants, and training from scratch."""

import pytest
import torch
from helpers import to_transformers
from test_invariants import SEGMENT, engine, learned_step, scores, text
from torch.utils.flop_counter import FlopCounterMode

from dynadapt import RMS, SGD, Adam, AdamW, Engine, Full, Lion, Muon
from dynadapt.engine.batch import Batch
from dynadapt.model import from_state, hf_name, random_model, tiny_config
from dynadapt.model.layout import canonical_order

MODEL = Full(targets="model")
T = 21
CASES = {
    "llama, tied": {"tied_head": True},
    "llama, untied": {"tied_head": False},
    "llama, biases": {"attention_bias": True, "mlp_bias": True},
    "qwen2": {},
    "qwen3": {},
    "gpt2": {},
    "gpt2, untied": {"tied_head": False},
    "gemma3": {},
    "gemma3, untied": {"tied_head": False},
    "granite": {},
    "phi3": {},
    "gptneox": {"activation": "gelu"},
    "gptneox, tied, one behind the other": {"tied_head": True, "parallel_residual": False},
    "olmo2": {},
    "olmo2, tied": {"tied_head": True, "attention_bias": True},
}


def model(case):
    return random_model(tiny_config(case.split(",")[0], **CASES.get(case, {})), seed=1, std=0.1)


def gradients(m, row, dtype, backend, **options):
    """The engine's gradient of every parameter by canonical name: what a step of SGD with lr 1 takes away."""
    e = Engine(
        m,
        adapt=MODEL,
        optimizer=SGD(lr=1.0, clip=0.0),
        segment=row.shape[1] - 1,
        streams=len(row),
        shared=True,
        dtype=dtype,
        backend=backend,
        **options,
    )
    before = e.learners[0].parameters()
    e.step(row)
    return {name: before[name] - value for name, value in e.learners[0].parameters().items()}


def expected_gradients(m, row, dtype):
    live = to_transformers(m, dtype)
    live.get_input_embeddings().padding_idx = None  # Gemma's has one, whose row would get no gradient
    logits = live(row[:, :-1]).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), row[:, 1:].flatten()).backward()
    parameters = dict(live.named_parameters())
    named = {}
    for name in m.names():
        named[name] = canonical_order(m.config, name, parameters[hf_name(m.config, name)].grad)
    return named


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("backend,dtype,tolerance", [("reference", "fp64", 1e-6), ("cpu", "fp32", 2e-5)])  # theirs has float32 norms
def test_every_gradient_equals_autograd(case, backend, dtype, tolerance):
    m = model(case)
    row = torch.randint(m.config.vocab_size, (2, T + 1), generator=torch.Generator().manual_seed(2))
    expected = expected_gradients(m, row, torch.float64)
    ours = gradients(m, row, dtype, backend)
    assert set(ours) == set(m.names()) == set(expected)
    for name, value in expected.items():
        scale = value.abs().max()
        assert scale > 1e-6, name
        assert (ours[name].double() - value).abs().max() < tolerance * max(1, scale), name


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "gptneox", "olmo2"])
def test_memory_saving_backward_gives_the_same_gradients(family):
    m, row = model(family), text(2, T + 1, family=family)
    plain, again = (gradients(m, row, "fp64", "reference", recompute=recompute) for recompute in (False, True))
    assert all(torch.equal(plain[name], again[name]) for name in plain)


def test_norms_of_one_and_w_do_not_decay_to_zero():
    with pytest.raises(ValueError, match="gemma3 multiplies with 1 . w .* use weight_decay=0, or decay"):
        Engine(model("gemma3"), adapt=MODEL, optimizer=AdamW(lr=1e-3), segment=T)
    Engine(model("gemma3"), adapt=MODEL, optimizer=AdamW(lr=1e-3, decay=0.1, weight_decay=0), segment=T)
    Engine(model("gemma3"), adapt=Full(), optimizer=AdamW(lr=1e-3), segment=T)


@pytest.mark.parametrize(
    "family,memory",
    [
        ("llama", "keep"),
        ("qwen2", "reproject"),
        ("qwen3", "reproject"),
        ("gpt2", "overlap"),
        ("gemma3", "reproject"),
        ("granite", "reproject"),
        ("gptneox", "keep"),
        ("smollm3", "keep"),
        ("olmo2", "reproject"),
    ],
)
def test_gradient_equals_finite_differences(family, memory):
    tokens, h = text(family=family), 1e-5
    _, gradient, window = learned_step(family, MODEL, memory, tokens)
    along = gradient / gradient.norm()
    up, down = (learned_step(family, MODEL, memory, tokens, along, sign * h, window)[0] for sign in (1, -1))
    assert (up - down) / (2 * h) == pytest.approx(float(gradient.norm()), rel=1e-5)


@pytest.mark.parametrize(
    "family,memory,options",
    [
        ("llama", "nothing", {}),
        ("llama", "reproject", {"streams": 2}),
        ("qwen3", "keep", {"every": 2, "accumulate": True}),
        ("gpt2", "overlap", {"streams": 2, "shared": True}),
        ("qwen2", "nothing", {"every": 2}),
        ("gpt2", "nothing", {"recompute": True}),
        ("gemma3", "keep", {}),
        ("olmo2", "keep", {"recompute": True}),
    ],
    ids=str,
)
def test_ledger_equals_torchs_flop_counter(family, memory, options):
    e = engine(family, MODEL, memory, **options)
    with FlopCounterMode(display=False) as counter:
        scores(e, text(options.get("streams", 1), 3 * SEGMENT + 6, family=family))
    assert e.flops["forward"] + e.flops["backward"] + e.flops["recompute"] == counter.get_total_flops()
    assert e.flops["recompute"] > 0 and e.flops["update"] > 0


def invariants_hold(family, adapt, memory, backend, dtype, folder):
    """Score before learning; lr 0 is static evaluation; streams together are streams alone; restored is uninterrupted; back is back."""
    tokens, where = text(2, family=family), {"family": family, "backend": backend, "dtype": dtype, "memory": memory}
    make = lambda adapt=adapt, **o: engine(adapt=adapt, **{"optimizer": AdamW(lr=0.01, decay=0.01), **where, **o})  # noqa: E731
    same = torch.equal if backend == "cpu" else lambda a, b: torch.allclose(a, b, atol=2e-5)  # torch's products depend on the rows
    static = scores(engine(adapt="none", streams=2, **where), tokens)
    assert same(static, scores(make(optimizer=Adam(lr=0.0), streams=2), tokens))
    whole = make(streams=2, reset=20)
    first = scores(whole, tokens[:, : 2 * SEGMENT + 1])
    assert same(first[:, :SEGMENT], static[:, :SEGMENT]) and not same(first, static[:, : 2 * SEGMENT])
    whole.save(folder)
    resumed = make(streams=2, reset=20)
    resumed.restore(folder)
    kept = whole.snapshot(1)
    rest = scores(whole, tokens[:, 2 * SEGMENT :])
    assert torch.equal(rest, scores(resumed, tokens[:, 2 * SEGMENT :])) and resumed.flops == whole.flops
    for stream in range(2):
        alone = scores(make(reset=20), tokens[stream : stream + 1])[0]
        assert same(alone, torch.cat([first, rest], 1)[stream])
    whole.rollback(1, kept)
    again = whole.step(tokens[:, 2 * SEGMENT : 3 * SEGMENT + 1], [0, SEGMENT])
    assert same(again[1], rest[1, :SEGMENT])
    whole.reset(0)
    whole.enter(0)
    again = whole.step(tokens[:, : SEGMENT + 1], [SEGMENT, 0])
    assert same(again[0], static[0, :SEGMENT])


@pytest.mark.parametrize("family,memory", [("llama", "keep"), ("gpt2", "overlap")])
@pytest.mark.parametrize("backend,dtype", [("reference", "fp32"), ("cpu", "fp32"), ("cpu", "bf16")])
def test_invariants(family, memory, backend, dtype, tmp_path):
    invariants_hold(family, MODEL, memory, backend, dtype, tmp_path)


def every_parameter_moves(optimizer, family, adapt):
    """Twelve steps on one text lower its score and leave nothing that learns where it was."""
    e = engine(family, adapt, optimizer=optimizer, backend="cpu")
    row = text(length=SEGMENT + 1, family=family)
    if optimizer.kind == "rms":
        assert e.gather_statistics(text(3, SEGMENT + 1, seed=5, family=family)) == 3
    before = e.learners[0].parameters()
    first, *_, last = [e.step(row).mean() for _ in range(12)]
    assert last < first - 0.05
    after = e.learners[0].parameters()
    assert all(not torch.equal(before[name], after[name]) for name in before)
    assert e.learned_parameters == sum(t.numel() for t in before.values())


@pytest.mark.parametrize(
    "optimizer",
    [SGD(lr=0.5, momentum=0.9), Adam(lr=5e-3), AdamW(lr=5e-3, decay=0.01), RMS(lr=1e-4, decay=1e-3), Lion(lr=1e-3), Muon(lr=5e-3)],
    ids=lambda o: o.kind,
)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_every_optimizer_moves_every_parameter(optimizer, family):
    every_parameter_moves(optimizer, family, MODEL)


def test_accumulated_gradients_are_one_gradient_of_both_segments():
    tokens = text(2, SEGMENT + 1)
    together = engine(adapt=MODEL, optimizer=SGD(lr=1.0, clip=0.0), dtype="fp64", streams=2, shared=True)
    together.step(tokens)
    one = engine(adapt=MODEL, optimizer=SGD(lr=1.0, clip=0.0), dtype="fp64", every=2, accumulate=True)
    for s in range(2):
        one.step(tokens[s : s + 1])
    assert torch.allclose(together.learners[0].state.master, one.learners[0].state.master, atol=1e-12) and one.updates == 1


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_training_from_scratch_learns_a_repeating_text(dtype):
    config = tiny_config("llama", layers=2)
    m = random_model(config, seed=3)
    e = Engine(m, adapt=MODEL, optimizer=AdamW(lr=3e-3), shared=True, streams=4, segment=24, dtype=dtype, backend="cpu")
    period = torch.randint(config.vocab_size, (30,), generator=torch.Generator().manual_seed(0))
    stream = period.repeat(40)
    for step in range(200):
        nll = e.step(torch.stack([stream[(7 * step + 11 * s) % 30 :][:25] for s in range(4)]))
    assert nll.mean() < 0.1
    trained = from_state(config, e.learners[0].parameters())  # and what has learned is a model
    again = Engine(trained, segment=24, dtype=dtype, backend="cpu").step(stream[None, :25])
    assert again.mean() < 0.1


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_an_embedded_input_gets_its_gradient(backend):
    """The decoder between a read-in and a read-out of one's own: d of what went in, and no gradient of the table."""
    m = model("llama")
    e = Engine(m, adapt=MODEL, optimizer=SGD(lr=1.0), segment=T, streams=2, shared=True, dtype="fp32", backend=backend)
    embedded = torch.randn(2 * T, m.config.hidden_size, generator=torch.Generator().manual_seed(4))
    out = torch.randn(2 * T, m.config.hidden_size, generator=torch.Generator().manual_seed(5))
    live = to_transformers(m)
    leaf = embedded.clone().requires_grad_()
    hidden = live.model(inputs_embeds=leaf.view(2, T, -1)).last_hidden_state
    (hidden.flatten(0, 1) * out).sum().backward()
    slots = torch.arange(2, dtype=torch.int32)
    batch = Batch(torch.zeros(2, T, dtype=torch.int64), slots[:1], slots, (0, 1))
    learner = e.learners[0]
    ours = e.decoder.forward(batch, learner, e.lowest, embedded)
    assert torch.allclose(ours, hidden.detach().flatten(0, 1), atol=1e-4)
    d = e.decoder.backward(batch, learner, e.lowest, out, False)
    assert torch.allclose(d, leaf.grad, atol=1e-4 * leaf.grad.abs().max())
    grads = learner.gradient_view
    expected = live.model.layers[0].input_layernorm.weight.grad
    assert torch.allclose(grads.attn_norm[0][0], expected, atol=1e-4 * expected.abs().max())
    assert not grads.table.any() and not grads.head.any()


def test_what_does_not_fit_is_named():
    from dynadapt import LoRA
    from dynadapt.experiments.config import ConfigError, EvalConfig

    with pytest.raises(ValueError, match="targets='model': expected one of all, attn, mlp"):
        LoRA(targets="model")
    with pytest.raises(ValueError, match="layers=range.*targets='model'"):
        Full(targets="model", layers=range(1))
    with pytest.raises(ConfigError, match="targets 'model' with adapt 'rows'"):
        EvalConfig(text=("a",), adapt="rows", targets="model")
    with pytest.raises(ConfigError, match="layers 0:1 with targets 'model'"):
        EvalConfig(text=("a",), adapt="full", targets="model", layers=(0, 1))


def test_explain_says_so():
    said = engine("gpt2", MODEL).explain()
    assert "down to the embedding" in said and all(
        op in said for op in ("bias_gradient", "embedding_backward", "cross_entropy_weight_gradient")
    )
    assert "bias_gradient" not in engine("llama", MODEL).explain()
