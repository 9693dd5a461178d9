"""LoRA(also=...): norms and biases beside adapters, with torch's gradients of both, each stream's own, in PEFT's files."""

import json

import peft
import pytest
import torch
from helpers import nll_of, peft_model, to_transformers
from test_invariants import SEGMENT, engine, scores, text
from test_norms_and_biases import names_in
from test_whole_model import invariants_hold
from torch.utils.flop_counter import FlopCounterMode

from dynadapt import SGD, Adam, AdamW, Alarm, Engine, Full, Guard, Lion, LoRA, Muon, Slow, attach
from dynadapt.bench.plan.work import step_work
from dynadapt.model import ModelError, hf_name, random_model, tiny_config
from dynadapt.model.layout import canonical_order

pytestmark = pytest.mark.filterwarnings("ignore")
T = 21
CASES = [("llama", ["norms"]), ("qwen2", ["norms", "biases"]), ("qwen2", ["biases"]), ("gpt2", ["biases", "norms"]), ("gpt2", ["biases"])]
CASES += [("gemma3", ["norms"]), ("gptneox", ["norms", "biases"]), ("olmo2", ["norms"]), ("qwen3", ["norms"])]


def model(family):
    return random_model(tiny_config(family), seed=1, std=0.1)


def rows(m, count=2):
    return torch.randint(1, m.config.vocab_size, (count, T + 1), generator=torch.Generator().manual_seed(2))


def lora(family, also, **options):
    return LoRA(**{"rank": 3, "alpha": 6, "targets": ["qkv" if family in ("gpt2", "gptneox") else "q", "down"], "also": also, **options})


def endings(family):
    return {"gpt2": ["c_attn", "mlp.c_proj"], "gptneox": ["query_key_value", "dense_4h_to_h"]}.get(family, ["q_proj", "down_proj"])


def named(e):
    """By canonical name, what learns beside the adapters, as views of the masters."""
    learner = e.learners[0]
    return learner.beside.canonical(lambda name: learner.layout.view(learner.state.master[0], name))


@pytest.mark.parametrize("family,also", CASES, ids=str)
@pytest.mark.parametrize("backend,dtype,tolerance", [("reference", "fp64", 1e-6), ("cpu", "fp32", 5e-5)])  # theirs has float32 norms
def test_gradients_are_autograds_of_adapters_and_of_these(tmp_path, family, also, backend, dtype, tolerance):
    """With adapters that add something."""
    m = model(family)
    row, make = (
        rows(m),
        lambda also: Engine(m, lora(family, also), SGD(lr=1.0, clip=0.0), segment=T, streams=2, shared=True, dtype=dtype, backend=backend),
    )
    live = peft_model(m, target_modules=endings(family))
    live.save_pretrained(tmp_path)
    plain, e = make([]), make(also)
    plain.load_adapter(tmp_path)
    adapters = plain.learners[0].state.master[0]
    e.learners[0].start(0, torch.cat([adapters, e.learners[0].initial[len(adapters) :]]))
    before = e.learners[0].state.master[0].clone()
    plain.step(row), e.step(row)
    moved = before - e.learners[0].state.master[0]
    torch.testing.assert_close(moved[: len(adapters)], before[: len(adapters)] - plain.learners[0].state.master[0], atol=1e-6, rtol=1e-5)

    live = live.double().requires_grad_(True).eval()
    logits = live(row[:, :-1]).logits.double()
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), row[:, 1:].flatten()).backward()
    theirs = {name.replace("base_model.model.", "").replace(".base_layer", ""): p.grad for name, p in live.named_parameters()}
    learner = e.learners[0]
    ours = learner.beside.canonical(lambda name: learner.layout.view(moved, name))
    assert ours.keys() == names_in(m, Full(also)) and ours
    for name, value in ours.items():
        expected = canonical_order(m.config, name, theirs[hf_name(m.config, name)])
        assert expected.abs().max() > 1e-6, name
        assert (value.double() - expected).abs().max() < tolerance * max(1, expected.abs().max()), name


@pytest.mark.parametrize(
    "family,also,memory", [("llama", ["norms"], "keep"), ("gpt2", ["norms", "biases"], "overlap"), ("qwen2", ["biases"], "reproject")]
)
@pytest.mark.parametrize("backend,dtype", [("reference", "fp32"), ("cpu", "fp32"), ("cpu", "bf16")])
def test_invariants(family, also, memory, backend, dtype, tmp_path):
    invariants_hold(family, lora(family, also), memory, backend, dtype, tmp_path)


@pytest.mark.parametrize(
    "optimizer", [SGD(lr=0.5, momentum=0.9), Adam(lr=5e-2), AdamW(lr=5e-2, decay=0.01), Lion(lr=1e-2), Muon(lr=5e-2)], ids=lambda o: o.kind
)
@pytest.mark.parametrize("family,also", [("llama", ["norms"]), ("gpt2", ["norms", "biases"])])
def test_every_optimizer_moves_all_of_it(optimizer, family, also):
    e, row = engine(family, lora(family, also), optimizer=optimizer, backend="cpu"), text(length=SEGMENT + 1, family=family)
    before = {name: value.clone() for name, value in named(e).items()}
    first, *_, last = [e.step(row).mean() for _ in range(12)]
    assert last < first - 0.05 and all(not torch.equal(value, before[name]) for name, value in named(e).items())
    adapters = engine(family, lora(family, []), backend="cpu").learned_parameters
    assert e.learned_parameters == adapters + sum(value.numel() for value in before.values())


def counts_are_torchs_and_a_plans(m, adapt):
    """The FLOPs of a step and what learns; the engine."""
    e, row = Engine(m, adapt, Adam(lr=0.01), segment=T, dtype="fp64", backend="reference"), rows(m, 1)
    with FlopCounterMode(display=False) as counter:
        e.step(row)
    assert counter.get_total_flops() == sum(count for phase, count in e.flops.items() if phase != "update")
    planned = step_work(m.config, adapt, Adam(lr=0.01), segment=T, dtype=torch.float32)
    assert planned.flops == e.flops and planned.learned_parameters == e.learned_parameters
    return e


@pytest.mark.parametrize("family,adapt,lowest", [
    ("llama", lora("llama", ["norms"]), (0, "attn_norm")),
    ("qwen2", lora("qwen2", ["biases"]), (0, "qkv")),
    ("llama", lora("llama", ["norms"], targets=["embed", "head"]), (-1, "embed")),
    ("llama", lora("llama", ["norms"], layers=range(1, 3)), (1, "attn_norm")),
], ids=str)  # fmt: skip
def test_flops_are_torchs_and_a_plans(family, adapt, lowest):
    assert counts_are_torchs_and_a_plans(model(family), adapt).lowest == lowest


def test_fixed_shapes_do_the_same_and_a_base_in_few_bits_stays_one():
    adapt, tokens = lora("qwen2", ["norms", "biases"]), text(2, family="qwen2")
    eager, fixed = (engine("qwen2", adapt, optimizer=Adam(lr=0.02), streams=2, static=static) for static in (False, True))
    assert torch.allclose(scores(eager, tokens), scores(fixed, tokens), atol=1e-5)
    assert "because gradients of norms, biases" in fixed.explain()
    e = engine("qwen2", adapt, backend="cpu", base="int8", optimizer=Adam(lr=0.02))
    first, *_, last = [e.step(tokens[:1, : SEGMENT + 1]).mean() for _ in range(6)]
    assert last < first


def test_a_guard_looks_at_the_model_as_it_was():
    tokens = text(1)
    e = engine("llama", lora("llama", ["norms"]), "keep", "cpu", optimizer=Adam(lr=0.1), guard=Guard())
    static = engine("llama", "none", "keep", "cpu")
    for start in range(0, 2 * SEGMENT, SEGMENT):
        part = tokens[:, start : start + SEGMENT + 1]
        e.step(part)
        assert torch.equal(e.last.nll_static, static.step(part))


def test_resets_rates_and_gradients_that_wait():
    row = text(length=SEGMENT + 1)
    e = engine("llama", lora("llama", ["norms"], keep_a=True, rate_pattern={"q": 0.0, "down": 0.0}), backend="cpu", optimizer=Adam(lr=0.05))
    start, before = e.learners[0].initial.clone(), e.score(row)
    e.step(row)
    norms = torch.cat([value.flatten() for value in named(e).values()])
    adapters = e.learners[0].layout.offsets[next(iter(e.learners[0].beside.shapes))]
    assert torch.equal(e.learners[0].state.master[0, :adapters], start[:adapters])
    assert ((norms - start[adapters:][start[adapters:] != 0]).abs() > 0.01).all()
    e.reset(0)
    assert torch.equal(e.score(row), before)

    make = lambda lr: engine("llama", lora("llama", ["norms"]), backend="cpu", optimizer=SGD(lr=lr, clip=0.0))  # noqa: E731
    whole, twice = make(0.5), make(0.25)
    whole.step(row)
    twice.forward_backward(row), twice.forward_backward(row)
    twice.optim_step()
    torch.testing.assert_close(twice.learners[0].state.master, whole.learners[0].state.master, atol=1e-6, rtol=0)
    fresh = make(0.5)  # a step's gradient is its own: nothing of the one before is in it
    fresh.learners[0].start(0, whole.learners[0].state.master[0])
    whole.step(row), fresh.step(row)
    assert torch.equal(fresh.learners[0].state.master, whole.learners[0].state.master)


@pytest.mark.parametrize("family,also", CASES, ids=str)
def test_files_are_pefts_both_ways(tmp_path, family, also):
    m = model(family)
    row, make = rows(m, 1), lambda: Engine(m, lora(family, also), Adam(lr=0.02), segment=T, dtype="fp32", backend="cpu")
    e = make()
    for _ in range(3):
        e.step(row)
    e.save(tmp_path / "ours")
    live = peft.PeftModel.from_pretrained(to_transformers(m), tmp_path / "ours" / "adapter").eval()
    assert (nll_of(live, row) - make().score(row).double()).abs().max() > 1e-2
    assert torch.allclose(nll_of(live, row), e.score(row).double(), atol=5e-5)
    live.save_pretrained(tmp_path / "theirs")
    fresh = make()
    fresh.load_adapter(tmp_path / "theirs")
    torch.testing.assert_close(fresh.learners[0].state.master, e.learners[0].state.master, atol=1e-7, rtol=1e-7)  # Gemma's 1 + w rounds


def test_what_does_not_fit_is_refused_by_name(tmp_path):
    m = model("llama")
    make = lambda adapt, **o: Engine(m, adapt, segment=T, dtype="fp32", backend="cpu", **o)  # noqa: E731
    for wrong in ("head", ["norms", 3], 1):
        with pytest.raises(ValueError, match="also=.*: expected some of norms and biases in a list, or none"):
            LoRA(also=wrong)
    assert LoRA(also="norms") == LoRA(also=["norms"]) and LoRA(also=["biases", "norms"]).also == ("norms", "biases")
    with pytest.raises(ValueError, match="llama has no biases; expected norms"):
        make(LoRA(also="biases"))
    with pytest.raises(ValueError, match="streams that differ have adapters alone; leave also and dora out"):
        make([LoRA(also="norms"), LoRA(rank=2)], streams=2)
    with pytest.raises(ValueError, match="slow.adapt=.*LoRA without also"):
        make(LoRA(), slow=Slow(LoRA(also="norms")))
    with pytest.raises(ValueError, match="adapt=.* with slow=.*more than adapters"):
        make(LoRA(also="norms"), slow=Slow())
    with pytest.raises(ValueError, match="a session has plain adapters, or norms and biases; leave also and dora out"):
        attach(to_transformers(m), LoRA(also="norms"))
    with pytest.raises(ValueError, match="reset=Alarm.* only adapters go part of the way back"):
        make(LoRA(also="norms"), guard=Guard(), reset=Alarm(ring=2))
    with pytest.raises(ValueError, match="gemma3 multiplies with 1 . w .* use weight_decay=0, or decay"):
        Engine(model("gemma3"), LoRA(also="norms"), AdamW(lr=1e-3), segment=T)

    e = make(lora("llama", ["norms"]))
    e.step(rows(m, 1))
    e.save(tmp_path)
    adapter = tmp_path / "adapter"
    with pytest.raises(ModelError, match="modules_to_save"):
        make(lora("llama", [])).load_adapter(adapter)
    settings = json.loads((adapter / "adapter_config.json").read_text())
    for changes, message in (
        ({"bias": "all"}, r"has bias='all'; LoRA\(also=\['norms'\]\) needs 'none'"),
        ({"modules_to_save": ["model.norm"]}, r"has modules_to_save=\['model.norm'\], which are model.norm; .* has model.layers.0.input"),
        ({"modules_to_save": [*settings["modules_to_save"], "lm_head"]}, "which are lm_head, "),
    ):
        (adapter / "adapter_config.json").write_text(json.dumps({**settings, **changes}))
        with pytest.raises(ModelError, match=message):
            make(lora("llama", ["norms"])).load_adapter(adapter)
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    make(lora("llama", ["norms"])).load_adapter(adapter)
    other = make(lora("llama", ["norms"], layers=range(1, 2)))
    with pytest.raises(ModelError):
        other.load_adapter(adapter)
