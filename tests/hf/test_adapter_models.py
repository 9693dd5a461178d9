"""A PEFT adapter's directory as the model: scores are those of PEFT's own model, whatever then adapts it."""

import json
from pathlib import Path

import pytest
import torch
from helpers import to_transformers
from tiny import english, tiny_directory

import dynadapt
from dynadapt import Adam, Engine, Full, LoRA
from dynadapt.cli import main
from dynadapt.model import ModelError, load

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
T = 16


def ids(rows=2, seed=2):
    return torch.randint(100, (rows, T + 1), generator=torch.Generator().manual_seed(seed))


def nll_of(live, row):
    with torch.no_grad():
        scores = live(row[:, :-1]).logits.double()
    return torch.nn.functional.cross_entropy(scores.flatten(0, 1), row[:, 1:].flatten(), reduction="none").view(row.shape[0], -1)


def adapter_of(base: Path, to: Path, family="llama", **settings):
    """(PEFT's model, its adapter's directory) of a trained-looking adapter of the model in ``base``."""
    targets = ["c_attn", "c_proj", "c_fc"] if family == "gpt2" else LINEARS
    options = dict(r=3, lora_alpha=6, target_modules=targets, task_type="CAUSAL_LM", fan_in_fan_out=family == "gpt2")
    live = peft.get_peft_model(to_transformers(load(base)), peft.LoraConfig(**{**options, **settings}))
    generator = torch.Generator().manual_seed(5)
    for name, p in live.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.05, generator=generator)
    live.save_pretrained(to)
    change(to, base_model_name_or_path=str(base))
    return live.eval(), to


def change(adapter: Path, **fields):
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gpt2"])
def test_scores_are_pefts_own(tmp_path, family):
    live, adapter = adapter_of(tiny_directory(tmp_path / "base", family), tmp_path / "adapter", family)
    model, base = load(adapter), load(tmp_path / "base")
    found = Engine(model, segment=T, dtype="fp32").score(ids()).double()
    assert torch.allclose(found, nll_of(live, ids()), atol=5e-5)
    assert (found - Engine(base, segment=T, dtype="fp32").score(ids())).abs().max() > 0.01
    merged = live.merge_and_unload().state_dict()
    for name in model.names():
        from dynadapt.model import hf_name
        from dynadapt.model.layout import hf_transposed

        expected = merged[hf_name(model.config, name)]
        assert torch.allclose(model.tensor(name), expected.t() if hf_transposed(model.config, name) else expected, rtol=1e-6, atol=1e-7), (
            name
        )
    assert model.tokenizer.encode("the cat") == base.tokenizer.encode("the cat") and model.name == "adapter"
    assert model.fingerprint() != base.fingerprint() and model.fingerprint() == load(adapter / "adapter_model.safetensors").fingerprint()


@pytest.mark.parametrize(
    "settings", [{"target_modules": ["q_proj", "v_proj"]}, {"use_rslora": True}, {"layers_to_transform": [1]}, {"r": 8, "lora_alpha": 3}]
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
    main_ok(["export", str(tmp_path / "run"), "--out", str(tmp_path / "exported")])
    result.engine.save(tmp_path / "saved")
    expected = result.engine.score(ids())
    live = peft.PeftModel.from_pretrained(to_transformers(load(base)), tmp_path / "exported").eval()
    for adapter in (tmp_path / "exported", tmp_path / "saved" / "adapter"):
        found = Engine(load(adapter), segment=32, dtype="fp32").score(ids())
        assert torch.allclose(found, expected, atol=5e-5) and torch.allclose(found.double(), nll_of(live, ids()), atol=5e-5)
    main_ok(
        [
            "eval",
            "--model",
            str(tmp_path / "exported"),
            "--text",
            str(text),
            "--adapt",
            "none",
            "--segment",
            "32",
            "--dtype",
            "fp32",
            "--memory",
            "0",
            "--out",
            str(tmp_path / "again"),
            "--quiet",
        ]
    )
    static = dynadapt.evaluate(base, text, adapt=None, segment=32, dtype="fp32", memory=0)
    assert json.loads((tmp_path / "again" / "summary.json").read_text())["nll"] < static.nll - 0.05


def main_ok(words):
    with pytest.raises(SystemExit) as end:
        main(words)
    assert not end.value.code


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
        ({"use_dora": True}, "use_dora=True"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"alpha_pattern": {"q_proj": 2}}, "alpha_pattern"),
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
