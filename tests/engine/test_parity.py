"""Same numbers as transformers and PEFT: scores, adapter gradients, adapter files (invariant 6)."""

import json

import pytest
import torch
from helpers import to_transformers

from dynadapt import SGD, Adam, Engine, Full, LoRA, SegmentMemory
from dynadapt.engine.learners.peft import adapter_row, write_adapter
from dynadapt.model import random_model, tiny_config
from dynadapt.model.rope_settings import yarn

FAMILIES = ["llama", "qwen2", "qwen3", "gpt2", "gemma2", "gemma3", "granite", "phi3", "gptneox", "olmo2", "qwen3_5"]
T = 21
LONGROPE = {"rope_type": "longrope", "short_factor": (1.0,) * 5, "long_factor": (1.0, 1.5, 2.0, 3.0, 4.0)}
CONFIGS = {family: tiny_config(family) for family in FAMILIES} | {
    "mistral, windows": tiny_config("llama", windows=(7, 7, 7)),
    "qwen2, windows": tiny_config("qwen2", windows=(None, 9, 9)),
    "qwen3, windows": tiny_config("qwen3", windows=(6, None, 6)),
    "smollm3": tiny_config("smollm3"),
    "smollm3, windows": tiny_config("smollm3", rotated=(False, True, True, False), windows=(6, None, None, 6)),
    "olmo3": tiny_config("olmo2", windows=(None, 7, 7), window_rope_theta=5e4, rope_scaling=yarn(4.0, 16, beta_fast=2.0)),
    "yarn": tiny_config("llama", rope_scaling=yarn(4.0, 16, beta_fast=2.0)),
    "longrope": tiny_config("llama", rope_scaling=LONGROPE | {"attention_factor": 1.2, "original_max_position_embeddings": 16}),
    "phi3, longrope": tiny_config(
        "phi3", hidden_size=84, rope_scaling=LONGROPE | {"attention_factor": 1.2, "original_max_position_embeddings": 16}
    ),
    "dynamic, beyond its positions": tiny_config("llama", rope_scaling={"rope_type": "dynamic", "factor": 4.0}, max_positions=12),
}
SPECIAL = [name for name in CONFIGS if name not in FAMILIES]  # what a family may have besides
ADAPTED = [*FAMILIES, "mistral, windows", "smollm3", "olmo3"]
pytestmark = pytest.mark.filterwarnings("ignore:window of 21 tokens")


def model(family):
    return random_model(CONFIGS[family], seed=1, std=0.1)


def tokens(family, rows=1, length=T + 1):
    return torch.randint(CONFIGS[family].vocab_size, (rows, length), generator=torch.Generator().manual_seed(2))


def nll_of(live, row):
    logits = live(row[:, :-1]).logits.double()
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), row[:, 1:].flatten(), reduction="none").view(row.shape[0], -1)


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_static_nll_equals_transformers(family, backend):
    m, row = model(family), tokens(family, 2)
    with torch.no_grad():
        expected = nll_of(to_transformers(m), row)
    ours = Engine(m, segment=T, streams=2, dtype="fp32", backend=backend).step(row)
    assert torch.allclose(ours.double(), expected, atol=5e-5)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "qwen3_5"])  # test_hybrid.py: over several models
def test_bf16_is_no_further_from_float64_than_transformers(family):
    """Over three models: of one the two errors differ by chance, either way."""
    ours, theirs = [], []
    for seed in (1, 2, 3):
        m = random_model(tiny_config(family), seed=seed, std=0.1, dtype=torch.bfloat16)
        row = tokens(family, 8)
        with torch.no_grad():
            exact, nll = (nll_of(to_transformers(m, dtype), row) for dtype in (torch.float64, torch.bfloat16))
        theirs.append(nll - exact)
        ours.append(Engine(m, segment=T, streams=8, dtype="bf16", backend="cpu").step(row).double() - exact)
    error = lambda differences: torch.cat(differences).square().mean().sqrt()  # noqa: E731
    assert error(ours) <= error(theirs) + 1e-4


@pytest.mark.parametrize("family", ["olmo2", *SPECIAL])
def test_memory_as_long_as_the_past_equals_transformers(family):
    """Segments of any length, with sinks in front, score what one forward over the text scores; where the rotations depend on a length
    it is that of the window."""
    m, row = model(family), tokens(family)
    with torch.no_grad():
        expected = nll_of(to_transformers(m), row)
    e = Engine(m, segment=7, memory=SegmentMemory(12, sinks=2), dtype="fp32", backend="cpu")
    assert e.window == T
    ours = torch.cat([e.step(row[:, start : start + 8]) for start in range(0, T, 7)], 1)
    assert torch.allclose(ours.double(), expected, atol=5e-5)


def peft_twin(m, e):
    """A PEFT model with the engine's adapter (B made non-zero on both sides, so that every gradient is)."""
    import peft

    learner = e.learners[0]
    generator = torch.Generator().manual_seed(7)
    state = learner.state
    state.master += 0.02 * torch.randn(state.master.shape, generator=generator)
    state.working = None  # products read the masters: float32
    learner.bind()
    return peft, learner


@pytest.mark.parametrize("family", ADAPTED)
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
        adapter_row(tmp_path, make(rank=4), m)
    with pytest.raises(ValueError, match="lora_alpha=6"):
        adapter_row(tmp_path, make(rank=3, alpha=8), m)
    with pytest.raises(ValueError, match="does not cover"):
        adapter_row(tmp_path, make(rank=3, targets="mlp"), m)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings | {"use_dora": True}))
    with pytest.raises(ValueError, match="use_dora"):
        adapter_row(tmp_path, make(rank=3), m)


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
