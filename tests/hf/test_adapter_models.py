"""A PEFT adapter's directory as the model: scores are those of PEFT's own model, whatever then adapts it."""

import json
from pathlib import Path

import pytest
import torch
from command_line import call
from helpers import nll_of, peft_model, to_transformers, token_rows
from safetensors.torch import load_file, save_file
from tiny import english, tiny_directory

import dynadapt
from dynadapt import Adam, Engine, Full, LoRA
from dynadapt.model import ModelError, load

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
T = 16


def ids(rows=2):
    return token_rows(rows, T + 1, seed=2)


def adapter_of(base: Path, to: Path, **settings):
    """(PEFT's model, its adapter's directory) of a trained-looking adapter of the model in ``base``."""
    live = peft_model(load(base), **settings)
    live.save_pretrained(to)
    change(to, base_model_name_or_path=str(base))
    return live.eval(), to


def change(adapter: Path, **fields):
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gpt2", "granite", "phi3", "gptneox"])
def test_scores_are_pefts_own(tmp_path, family):
    live, adapter = adapter_of(tiny_directory(tmp_path / "base", family), tmp_path / "adapter")
    model, base = load(adapter), load(tmp_path / "base")
    found = Engine(model, segment=T, dtype="fp32").score(ids()).double()
    assert torch.allclose(found, nll_of(live, ids()), atol=5e-5)
    assert (found - Engine(base, segment=T, dtype="fp32").score(ids())).abs().max() > 0.01
    merged = live.merge_and_unload().state_dict()
    for name in model.names():
        from dynadapt.model import hf_name
        from dynadapt.model.layout import canonical_order

        expected = canonical_order(model.config, name, merged[hf_name(model.config, name)])
        assert torch.allclose(model.tensor(name), expected, rtol=1e-6, atol=1e-7), name
    assert model.tokenizer.encode("the cat") == base.tokenizer.encode("the cat") and model.name == "adapter"
    assert model.fingerprint() != base.fingerprint() and model.fingerprint() == load(adapter / "adapter_model.safetensors").fingerprint()


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "phi3", "gptneox"])
def test_dora_is_pefts_own(tmp_path, family):
    live, adapter = adapter_of(tiny_directory(tmp_path / "base", family), tmp_path / "adapter", use_dora=True)
    tensors = load_file(adapter / "adapter_model.safetensors")
    for name in tensors:
        if "magnitude" in name:
            tensors[name] *= 1 + 0.2 * torch.rand(tensors[name].shape, generator=torch.Generator().manual_seed(len(name)))
    save_file(tensors, adapter / "adapter_model.safetensors")
    live = peft.PeftModel.from_pretrained(to_transformers(load(tmp_path / "base")), adapter).eval()
    found = Engine(load(adapter), segment=T, dtype="fp32").score(ids()).double()
    assert torch.allclose(found, nll_of(live, ids()), atol=5e-5)
    change(adapter, use_dora=False)
    with pytest.raises(ModelError, match="has the tensor .*lora_magnitude_vector"):
        load(adapter)
    change(adapter, use_dora=True)
    engine = Engine(load(tmp_path / "base"), adapt=LoRA(rank=3, alpha=6), optimizer=Adam(), segment=T, dtype="fp32")
    with pytest.raises(ModelError, match="use_dora=True"):
        engine.load_adapter(adapter, 0)
    gone = next(name for name in tensors if "magnitude" in name)
    save_file({name: t for name, t in tensors.items() if name != gone}, adapter / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="use_dora=True, and of .* not all of lora_A, lora_B and lora_magnitude_vector"):
        load(adapter)


@pytest.mark.parametrize(
    "settings",
    [{"target_modules": ["q_proj", "v_proj"]}, {"use_rslora": True}, {"layers_to_transform": [1]}, {"r": 8, "lora_alpha": 3}]
    + [{"alpha_pattern": {"q_proj": 2, "layers.1.mlp.*": 9}}, {"rank_pattern": {"q_proj": 1, "down_proj": 5}, "use_rslora": True}],
)
def test_settings_that_peft_reads(tmp_path, settings):
    live, adapter = adapter_of(tiny_directory(tmp_path / "base"), tmp_path / "adapter", **settings)
    assert torch.allclose(Engine(load(adapter), segment=T, dtype="fp32").score(ids()).double(), nll_of(live, ids()), atol=5e-5)


def test_merged_in_float32_and_rounded_once(tmp_path):
    _, adapter = adapter_of(tiny_directory(tmp_path / "base"), tmp_path / "adapter")
    wide, narrow = load(adapter), load(adapter, torch.bfloat16)
    for name in wide.names():
        assert wide.tensor(name).dtype == torch.float32 and torch.equal(narrow.tensor(name), wide.tensor(name).bfloat16())


@pytest.mark.parametrize("adapt", [LoRA(rank=2), Full()], ids=["lora", "full"])
def test_anything_adapts_it_further(tmp_path, adapt):
    _, adapter = adapter_of(tiny_directory(tmp_path / "base"), tmp_path / "adapter")
    engine = Engine(load(adapter), adapt=adapt, optimizer=Adam(lr=0.01), segment=T, dtype="fp32")
    first, *_, last = [engine.step(ids(1)).mean() for _ in range(6)]
    assert last < first - 0.1


def test_what_a_run_learned_is_a_model(tmp_path, capsys):
    base, text = tiny_directory(tmp_path / "base"), tmp_path / "a.txt"
    text.write_text(english(400))
    result = dynadapt.evaluate(base, text, out=tmp_path / "run", rank=2, lr=0.01, segment=32, dtype="fp32", memory=0)
    assert call("export", tmp_path / "run", "--out", tmp_path / "exported") == 0
    result.engine.save(tmp_path / "saved")
    expected = result.engine.score(ids())
    live = peft.PeftModel.from_pretrained(to_transformers(load(base)), tmp_path / "exported").eval()
    for adapter in (tmp_path / "exported", tmp_path / "saved" / "adapter"):
        found = Engine(load(adapter), segment=32, dtype="fp32").score(ids())
        assert torch.allclose(found, expected, atol=5e-5) and torch.allclose(found.double(), nll_of(live, ids()), atol=5e-5)
    options = "--adapt none --segment 32 --dtype fp32 --memory 0 --quiet".split()
    assert call("eval", "--model", tmp_path / "exported", "--text", text, *options, "--out", tmp_path / "again") == 0
    static = dynadapt.evaluate(base, text, adapt=None, segment=32, dtype="fp32", memory=0)
    assert json.loads((tmp_path / "again" / "summary.json").read_text())["nll"] < static.nll - 0.05


def test_the_base_is_found_and_refused_by_name(tmp_path, monkeypatch):
    base = tiny_directory(tmp_path / "base")
    _, adapter = adapter_of(base, tmp_path / "adapter")
    change(adapter, base_model_name_or_path="../base")  # as seen from the adapter
    monkeypatch.chdir("/")
    load(adapter)
    for name, said in (
        (None, "base_model_name_or_path is None, so the adapter does not say"),
        ("", "base_model_name_or_path is ''"),
        ("org/model", "base_model_name_or_path 'org/model': .*hf download org/model"),
        (str(adapter), "is an adapter itself"),
        ("../absent", "base_model_name_or_path '../absent': .*does not exist"),
        ("smollm2-999m", "did you mean 'smollm2-135m'"),
    ):
        change(adapter, base_model_name_or_path=name)
        with pytest.raises(ModelError, match=said):
            load(adapter)
    change(adapter, base_model_name_or_path=str(tiny_directory(tmp_path / "gpt2", "gpt2")))
    with pytest.raises(ModelError, match="no linear weight of a layer of this model"):
        load(adapter)


@pytest.mark.parametrize(
    "fields,said",
    [
        ({"use_dora": True}, "use_dora=True, and of .* not all of"),
        ({"use_dora": 1}, "use_dora=1"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"bias": "all"}, "bias='all'"),
        ({"peft_type": "IA3"}, "type 'IA3'"),
        ({"r": 4}, "r=4"),
    ],
)
def test_kinds_that_are_more_than_one_product_are_refused_by_name(tmp_path, fields, said):
    _, adapter = adapter_of(tiny_directory(tmp_path / "base"), tmp_path / "adapter")
    change(adapter, **fields)
    with pytest.raises(ModelError, match=said):
        load(adapter)


def test_directories_that_are_half_an_adapter(tmp_path):
    base = tiny_directory(tmp_path / "base")
    _, adapter = adapter_of(base, tmp_path / "adapter")
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(ModelError, match="without adapter_model.safetensors .adapter_model.bin is a pickle"):
        load(adapter)
    (base / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="an adapter .* and a whole model"):
        load(base)
