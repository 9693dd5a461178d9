"""Same numbers as transformers and PEFT: scores, adapter gradients, adapter files (invariant 6)."""

import json

import pytest
import torch
from helpers import to_transformers

from dynadapt import SGD, Adam, Engine, Full, LoRA, SegmentMemory
from dynadapt.engine.learners.peft import read_adapter, write_adapter
from dynadapt.model import random_model, tiny_config

FAMILIES = ["llama", "qwen2", "qwen3", "gpt2", "gemma3", "granite", "phi3", "gptneox", "qwen3_5"]
T = 21


def model(family):
    return random_model(tiny_config(family), seed=1, std=0.1)


def tokens(family, rows=1, length=T + 1):
    return torch.randint(tiny_config(family).vocab_size, (rows, length), generator=torch.Generator().manual_seed(2))


def nll_of(live, row):
    logits = live(row[:, :-1]).logits.double()
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), row[:, 1:].flatten(), reduction="none").view(row.shape[0], -1)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_static_nll_equals_transformers(family, backend):
    m, row = model(family), tokens(family, 2)
    with torch.no_grad():
        expected = nll_of(to_transformers(m), row)
    ours = Engine(m, segment=T, streams=2, dtype="fp32", backend=backend).step(row)
    assert torch.allclose(ours.double(), expected, atol=5e-5)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "qwen3_5"])  # test_hybrid.py: over several models
def test_bf16_is_no_further_from_float64_than_transformers(family):
    m = random_model(tiny_config(family), seed=1, std=0.1, dtype=torch.bfloat16)
    row = tokens(family, 8)
    with torch.no_grad():
        exact, theirs = (nll_of(to_transformers(m, dtype), row) for dtype in (torch.float64, torch.bfloat16))
    ours = Engine(m, segment=T, streams=8, dtype="bf16", backend="cpu").step(row).double()
    error = lambda nll: (nll - exact).square().mean().sqrt()  # noqa: E731
    assert error(ours) <= error(theirs) + 1e-4


def peft_twin(m, e):
    """A PEFT model with the engine's adapter (B made non-zero on both sides, so that every gradient is)."""
    import peft

    learner = e.learners[0]
    generator = torch.Generator().manual_seed(7)
    state = learner.state
    state.master += 0.02 * torch.randn(state.master.shape, generator=generator)
    state.working = None  # products read the masters: float32
    learner._bind()
    return peft, learner


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("targets", ["all", "attn", "mlp"])
def test_adapter_step_equals_peft(tmp_path, family, backend, targets):
    m, row = model(family), tokens(family)
    what = LoRA(rank=3, alpha=5, targets=targets)
    e = Engine(m, adapt=what, optimizer=SGD(lr=0.5, clip=0.0), segment=T, dtype="fp32", backend=backend)
    peft, learner = peft_twin(m, e)
    write_adapter(tmp_path / "before", learner, m.config, 0, "tiny")
    live = peft.PeftModel.from_pretrained(to_transformers(m), tmp_path / "before", is_trainable=True)
    loss = nll_of(live, row).mean()
    loss.backward()
    nll = e.step(row)
    assert float(nll.mean()) == pytest.approx(loss.item(), abs=2e-5)
    write_adapter(tmp_path / "after", learner, m.config, 0, "tiny")
    from safetensors.torch import load_file

    after = load_file(str(tmp_path / "after" / "adapter_model.safetensors"))
    trained = {n: p for n, p in live.named_parameters() if p.requires_grad}
    assert len(trained) == len(after)
    for name, parameter in trained.items():
        expected = parameter.detach() - 0.5 * parameter.grad
        ours = after[name.replace(".default", "")]
        assert torch.allclose(ours, expected, atol=2e-5), name
        assert parameter.grad.abs().max() > 1e-6


@pytest.mark.parametrize("family", FAMILIES)
def test_full_update_equals_autograd(family):
    m, row = model(family), tokens(family)
    e = Engine(m, adapt=Full(), optimizer=SGD(lr=0.5, clip=0.0), segment=T, dtype="fp32", backend="reference")
    live = to_transformers(m)
    nll_of(live, row).mean().backward()
    e.step(row)
    from dynadapt.model import hf_name, layout
    from dynadapt.model.layout import canonical_order

    parameters = dict(live.named_parameters())
    for name, weight in e.learners[0].weights().items():
        layer, group, part = name.split(".")
        canonical = f"layers.{layer}.{layout(m.config, int(layer))[group][int(part)]}.weight"
        parameter = parameters[hf_name(m.config, canonical)]
        grad = canonical_order(m.config, canonical, parameter.grad)
        assert torch.allclose(weight, m.tensor(canonical) - 0.5 * grad, atol=2e-5), canonical


@pytest.mark.parametrize("family", FAMILIES)
def test_adapter_files_round_trip(tmp_path, family):
    m, row = model(family), tokens(family, 2)
    options = dict(adapt=LoRA(rank=3, alpha=5), optimizer=Adam(lr=0.02), segment=T, dtype="fp32", backend="reference")
    e = Engine(m, streams=2, **options)
    for _ in range(3):
        e.step(row)
    e.save(tmp_path)
    import peft

    live = peft.PeftModel.from_pretrained(to_transformers(m), tmp_path / "adapter-1").eval()
    with torch.no_grad():
        theirs = nll_of(live, row[1:])
    fresh = Engine(m, **options)
    fresh.load_adapter(tmp_path / "adapter-1")
    assert torch.allclose(fresh.step(row[1:]).double(), theirs, atol=5e-5)
    assert torch.allclose(e.step(row)[1].double(), theirs[0], atol=5e-5)


def test_reading_another_adapter_is_refused_by_name(tmp_path):
    m = model("llama")
    make = lambda **o: Engine(m, adapt=LoRA(**o), segment=T, dtype="fp32", backend="reference").learners[0]  # noqa: E731
    write_adapter(tmp_path, make(rank=3), m.config, 0, "tiny")
    with pytest.raises(ValueError, match="r=3.*has 4"):
        read_adapter(tmp_path, make(rank=4), m.config, 0)
    with pytest.raises(ValueError, match="lora_alpha=6"):
        read_adapter(tmp_path, make(rank=3, alpha=8), m.config, 0)
    with pytest.raises(ValueError, match="does not cover"):
        read_adapter(tmp_path, make(rank=3, targets="mlp"), m.config, 0)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings | {"use_dora": True}))
    with pytest.raises(ValueError, match="use_dora"):
        read_adapter(tmp_path, make(rank=3), m.config, 0)


def test_memory_is_refused_for_learned_positions():
    with pytest.raises(ValueError, match="Overlap"):
        Engine(model("gpt2"), memory=SegmentMemory(16), segment=T, backend="reference")


def test_adapter_of_a_layer_range_reads_in_peft(tmp_path):
    import peft

    for family in ("llama", "gpt2"):
        m = model(family)
        learner = Engine(m, adapt=LoRA(rank=2, layers=range(1, 2)), segment=T, dtype="fp32", backend="reference").learners[0]
        write_adapter(tmp_path / family, learner, m.config, 0, "tiny")
        live = peft.PeftModel.from_pretrained(to_transformers(m), tmp_path / family, is_trainable=True)
        layers = {n.split("lora_")[0] for n, p in live.named_parameters() if p.requires_grad}
        assert layers and all(".1." in n for n in layers)
