"""LoRA(dora=True): PEFT's values, gradients, steps and files in float64; the engine's invariants; what it does not go with."""

import peft
import pytest
import torch
from helpers import nll_of, peft_model, seeded, to_transformers
from test_invariants import SEGMENT, engine, scores, text
from test_lora_beside import counts_are_torchs_and_a_plans
from test_whole_model import invariants_hold

from dynadapt import SGD, Adam, AdamW, Engine, Guard, Lion, LoRA, Muon, Slow, attach, load
from dynadapt.engine.learners.peft import adapted_modules, halves_of
from dynadapt.model import ModelError, random_model, tiny_config
from dynadapt.model.layout import to_hf_rows

pytestmark = pytest.mark.filterwarnings("ignore")
T = 21
FAMILIES = ["llama", "qwen2", "gpt2", "gemma3", "gptneox", "olmo2"]
ENDINGS = {"gpt2": ["c_attn", "mlp.c_proj"], "gptneox": ["query_key_value", "dense_4h_to_h"]}


def model(family="llama"):
    return random_model(tiny_config(family), seed=1, std=0.1)


def rows(m, count=2):
    return torch.randint(1, m.config.vocab_size, (count, T + 1), generator=torch.Generator().manual_seed(2))


def dora(family="llama", **options):
    targets = ["qkv", "down"] if family in ENDINGS else ["q", "v", "down"]
    return LoRA(**{"rank": 3, "alpha": 6, "targets": targets, "dora": True, **options})


def theirs(m, **settings):
    """PEFT's model in float64 with adapters that add something and lengths that are not the weights' own."""
    live = (
        peft_model(m, target_modules=ENDINGS.get(m.config.family, ["q_proj", "v_proj", "down_proj"]), use_dora=True, **settings)
        .double()
        .eval()
    )
    for name, p in live.named_parameters():
        if "magnitude" in name:
            p.data *= 1 + 0.2 * torch.rand(p.shape, generator=seeded(7), dtype=p.dtype)
    return live


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("backend,dtype,tolerance", [("reference", "fp64", 1e-6), ("cpu", "fp32", 5e-5)])  # theirs has float32 norms
def test_two_steps_are_pefts_in_float64(tmp_path, family, backend, dtype, tolerance):
    """Scores, every gradient, and the scores behind a step, by other lengths n."""
    m = model(family)
    row, live = rows(m), theirs(m)
    live.save_pretrained(tmp_path)
    e = Engine(m, dora(family), SGD(lr=0.5, clip=0.0), segment=T, streams=2, shared=True, dtype=dtype, backend=backend)
    e.load_adapter(tmp_path)
    learner, torchs = e.learners[0], torch.optim.SGD([p for p in live.parameters() if p.requires_grad], lr=0.5)
    for _ in range(2):
        before, truth = learner.state.master[0].clone(), nll_of(live, row)
        assert (e.step(row).double() - truth).abs().max() < 100 * tolerance
        torchs.zero_grad()
        logits = live(row[:, :-1]).logits.double()
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), row[:, 1:].flatten()).backward()
        torchs.step()
        grads = {name: p.grad for name, p in live.named_parameters() if p.grad is not None}
        moved = 2 * (before - learner.state.master[0]).double()
        for adapted in adapted_modules(learner, m.config):
            A, Bt = halves_of(learner, moved, adapted)
            lengths = learner.layout.view(moved, f"{adapted.layer}.{adapted.group}.m")[adapted.columns]
            ours = {
                "lora_A": A,
                "lora_B": to_hf_rows(m.config, adapted.part, Bt.t()),
                "lora_magnitude_vector": to_hf_rows(m.config, adapted.part, lengths),
            }
            for kind, value in ours.items():
                expected = grads[f"base_model.model.{adapted.module}.{kind}.default.weight"]
                assert expected.abs().max() > 1e-5
                assert (value - expected).abs().max() < tolerance * max(1, expected.abs().max()), (adapted.module, kind)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_it_begins_as_the_model_is(dtype):
    """To the bit: m / n is 1 where B is zero."""
    m = model("qwen2")
    make = lambda adapt: Engine(m, adapt, segment=T, dtype=dtype, backend="cpu")  # noqa: E731
    e = make(dora(targets="all"))
    assert torch.equal(e.score(rows(m, 1)), make(LoRA(rank=3)).score(rows(m, 1)))
    assert e.learned_parameters == make(LoRA(rank=3)).learned_parameters + sum(sum(sizes) for _, sizes in e.decoder.sizes.values())


@pytest.mark.parametrize("family,memory", [("llama", "keep"), ("gpt2", "overlap"), ("qwen2", "reproject")])
@pytest.mark.parametrize("backend,dtype", [("reference", "fp32"), ("cpu", "fp32"), ("cpu", "bf16")])
def test_invariants(family, memory, backend, dtype, tmp_path):
    invariants_hold(family, dora(family), memory, backend, dtype, tmp_path)


@pytest.mark.parametrize("batch", [None, 1, 2])
def test_a_stream_alone_has_the_bits_that_it_has_beside_others(batch, steps=8, segment=8):
    """Of a family, a rank and widths for which torch's product of several small matrices rounds in another way than that of one."""
    m = random_model(tiny_config("gemma3"), seed=1, std=0.1)
    options = dict(adapt=LoRA(rank=5, dora=True), optimizer=Adam(lr=0.02), segment=segment, dtype="fp32")
    for seed in range(4):
        beside, alone = Engine(m, streams=3, batch=batch, **options), [Engine(m, **options) for _ in range(3)]
        tokens = torch.randint(m.config.vocab_size, (3, steps * segment + 1), generator=torch.Generator().manual_seed(seed))
        for start in range(0, steps * segment, segment):
            part = tokens[:, start : start + segment + 1]
            found = beside.step(part)
            for stream, engine_alone in enumerate(alone):
                assert torch.equal(found[stream], engine_alone.step(part[stream : stream + 1])[0]), (seed, start, stream)


@pytest.mark.parametrize(
    "optimizer", [SGD(lr=0.5, momentum=0.9), Adam(lr=5e-2), AdamW(lr=5e-2, decay=0.01), Lion(lr=1e-2), Muon(lr=5e-2)], ids=lambda o: o.kind
)
def test_every_optimizer_moves_it(optimizer):
    e, row = engine("llama", dora(), optimizer=optimizer, backend="cpu"), text(length=SEGMENT + 1)
    first, *_, last = [e.step(row).mean() for _ in range(12)]
    lengths = [e.learners[0].layout.view(e.learners[0].state.master[0] - e.learners[0].initial, f"{i}.down.m") for i in range(3)]
    assert last < first - 0.05 and all((moved != 0).double().mean() > 0.5 for moved in lengths)


@pytest.mark.parametrize("adapt", [dora(), dora(targets="all", also=["norms"]), dora(layers=range(1, 3), rank_pattern={"q": 5})], ids=str)
def test_flops_are_torchs_and_a_plans(adapt):
    counts_are_torchs_and_a_plans(model(), adapt)


def test_fixed_shapes_resets_rates_and_gradients_that_wait():
    tokens, row = text(2), text(length=SEGMENT + 1)
    eager, fixed = (engine("llama", dora(), optimizer=Adam(lr=0.02), streams=2, static=static) for static in (False, True))
    assert torch.allclose(scores(eager, tokens), scores(fixed, tokens), atol=1e-5)
    assert "because the gradient of DoRA's lengths" in fixed.explain()
    e = engine("llama", dora(keep_a=True, rate_pattern={"down": 0.0}), backend="cpu", guard=Guard())
    learner, before = e.learners[0], e.score(row)
    e.step(row), e.step(row)
    view = lambda name: learner.layout.view(learner.state.master[0] - learner.initial, name)  # noqa: E731
    assert not view("0.down.m").any() and view("0.qkv.m").any()
    e.reset(0)
    assert torch.equal(e.score(row), before) and not view("0.qkv.m").any() and view("0.qkv.A").any()
    make = lambda lr: engine("llama", dora(), backend="cpu", optimizer=SGD(lr=lr, clip=0.0), streams=2)  # noqa: E731
    whole, twice = make(0.5), make(0.25)
    whole.step(tokens[:, : SEGMENT + 1])
    twice.forward_backward(tokens[:, : SEGMENT + 1]), twice.forward_backward(tokens[:, : SEGMENT + 1])
    twice.optim_step()
    torch.testing.assert_close(twice.learners[0].state.master, whole.learners[0].state.master, atol=1e-6, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_files_are_pefts_both_ways(tmp_path, family):
    m = model(family)
    row, make = rows(m, 1), lambda: Engine(m, dora(family), Adam(lr=0.02), segment=T, dtype="fp32", backend="cpu")
    e = make()
    for _ in range(3):
        e.step(row)
    e.save(tmp_path / "ours")
    live = peft.PeftModel.from_pretrained(to_transformers(m), tmp_path / "ours" / "adapter").eval()
    assert torch.allclose(nll_of(live, row), e.score(row).double(), atol=5e-5)
    live.save_pretrained(tmp_path / "theirs")
    fresh = make()
    fresh.load_adapter(tmp_path / "theirs")
    assert torch.equal(fresh.score(row), e.score(row))


def test_what_does_not_fit_is_refused_by_name(tmp_path):
    m = model()
    make = lambda adapt, **o: Engine(m, adapt, segment=T, dtype="fp32", **{"backend": "cpu", **o})  # noqa: E731
    for options, message in (
        ({"backend": "triton"}, "backend='triton' with adapt=LoRA.*dora=True.*no kernels for the lengths of rows"),
        ({"base": "int8"}, "base='int8' with adapt=LoRA.*dora=True.*the lengths are those of weights as floats"),
        ({"slow": Slow()}, "slow=Slow.* with adapt=LoRA.*dora=True"),
    ):
        with pytest.raises(ValueError, match=message):
            make(dora(), **options)
    for targets in (["q", "head"], ["embed"]):
        with pytest.raises(ValueError, match="DoRA is for the linears of layers; leave head and embed out of targets"):
            make(dora(targets=targets))
    with pytest.raises(ValueError, match="streams that differ have adapters alone; leave also and dora out"):
        make([dora(), LoRA(rank=2)], streams=2)
    with pytest.raises(ValueError, match="slow.adapt=.*LoRA without also and dora"):
        make(LoRA(), slow=Slow(dora()))
    with pytest.raises(ValueError, match="a session has plain adapters"):
        attach(to_transformers(m), dora())
    with pytest.raises(ValueError, match="dora=1: expected True or False"):
        LoRA(dora=1)
    theirs(m).save_pretrained(tmp_path / "with")
    with pytest.raises(ModelError, match="use_dora=True, which is not supported"):
        make(dora(dora=False)).load_adapter(tmp_path / "with")
    peft_model(m, target_modules=["q_proj", "v_proj", "down_proj"]).save_pretrained(tmp_path / "without")
    with pytest.raises(ModelError, match="adapter has use_dora=False; the engine's LoRA has dora=True"):
        make(dora()).load_adapter(tmp_path / "without")


def test_a_written_adapters_directory_is_a_model(tmp_path):
    m = model()
    to_transformers(m).save_pretrained(tmp_path / "base")
    base = load(tmp_path / "base")
    e = Engine(base, dora(), Adam(lr=0.02), segment=T, dtype="fp32", backend="cpu")
    for _ in range(3):
        e.step(rows(m, 1))
    e.save(tmp_path / "saved")
    merged = Engine(load(tmp_path / "saved" / "adapter"), None, segment=T, dtype="fp32", backend="cpu")
    assert torch.allclose(merged.score(rows(m, 1)), e.score(rows(m, 1)), atol=5e-5)
