"""Adapters go into real peft and come back without loss; what this package can't run exactly is refused by name."""

from functools import partial

import pytest
import torch
from helpers import LINEARS, nll_of, peft_model, to_transformers, token_rows

from dynadapt import Adam, Engine, LoRA
from dynadapt.model import ModelError, random_model, tiny_config
from dynadapt.model.peft import read_settings

FAMILIES = ["llama", "qwen2", "qwen3", "gpt2", "gemma2", "gemma3", "granite", "phi3", "gptneox", "qwen3_5"]
T = 16
peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def model(family="llama"):
    return random_model(tiny_config(family), seed=1, std=0.1)


ids = partial(token_rows, 1, T + 1, seed=2)


def engine(m, streams=1):
    return Engine(m, adapt=LoRA(rank=3, alpha=6), optimizer=Adam(lr=0.02), streams=streams, segment=T, dtype="fp32")


def lora_tensors(live):
    return {n: p.detach() for n, p in live.named_parameters() if "lora_" in n}


@pytest.mark.parametrize("family", FAMILIES)
def test_from_peft_and_back_bit_for_bit(tmp_path, family):
    theirs, m = peft_model(model(family)), model(family)
    theirs.save_pretrained(tmp_path / "theirs")
    e = engine(m, streams=2)
    e.load_adapter(tmp_path / "theirs", stream=1)
    assert torch.allclose(e.score(ids(), stream=1).double(), nll_of(theirs.eval(), ids()), atol=5e-5)
    e.save(tmp_path / "ours")
    again = peft.PeftModel.from_pretrained(to_transformers(m), tmp_path / "ours" / "adapter-1")
    ours, expected = lora_tensors(again), lora_tensors(theirs)
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[n], expected[n]) for n in expected)
    assert not any(
        t.any()
        for n, t in lora_tensors(peft.PeftModel.from_pretrained(to_transformers(m), tmp_path / "ours" / "adapter-0")).items()
        if "lora_B" in n
    )  # the other stream's is its own


@pytest.mark.parametrize("family", FAMILIES)
def test_to_peft_and_back_bit_for_bit(tmp_path, family):
    m = model(family)
    e = engine(m)
    for _ in range(3):
        e.step(ids())
    e.save(tmp_path / "ours")
    live = peft.PeftModel.from_pretrained(to_transformers(m), tmp_path / "ours" / "adapter").eval()
    assert torch.allclose(e.score(ids()).double(), nll_of(live, ids()), atol=5e-5)
    live.save_pretrained(tmp_path / "theirs")
    fresh = engine(m)
    fresh.load_adapter(tmp_path / "theirs")
    assert torch.equal(fresh.learners[0].state.master, e.learners[0].state.master)
    assert e.learners[0].state.master.abs().max() > 0


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(use_rslora=True), "use_rslora=True"),
        (dict(use_dora=True), "use_dora=True"),
        (dict(rank_pattern={"q_proj": 2}), "rank_pattern={'q_proj': 2}"),
        (dict(alpha_pattern={"q_proj": 2}), "alpha_pattern={'q_proj': 2}"),
        (dict(modules_to_save=["lm_head"]), "modules_to_save"),
        (dict(bias="lora_only"), "bias='lora_only'"),
        (dict(lora_bias=True), "lora_bias=True"),
        (dict(init_lora_weights="pissa"), "init_lora_weights='pissa'"),
        (dict(r=4), "r=4.*has 3"),
        (dict(lora_alpha=7), "lora_alpha=7.*has 6"),
        (dict(target_modules=["q_proj", "v_proj"]), "has no .*k_proj.*lora_A"),
        (dict(target_modules=LINEARS + ["lm_head"]), "lm_head.lora_A.weight .*does not cover"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_peft_wrote_and_the_engine_can_not_run(tmp_path, settings, message):
    family = "qwen2" if settings.get("bias") else "llama"
    peft_model(model(family), **settings).save_pretrained(tmp_path)
    e = engine(model(family))
    before = e.learners[0].state.master.clone()
    with pytest.raises(ModelError, match=message):
        e.load_adapter(tmp_path)
    assert torch.equal(e.learners[0].state.master, before)


def test_another_kind_of_adapter(tmp_path):
    config = peft.IA3Config(target_modules=["k_proj", "down_proj"], task_type="CAUSAL_LM", feedforward_modules=["down_proj"])
    peft.get_peft_model(to_transformers(model()), config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="of type 'IA3'"):
        read_settings(tmp_path)
    with pytest.raises(ModelError, match="adapter_config.json: cannot be read .No such file"):
        read_settings(tmp_path / "nowhere")
