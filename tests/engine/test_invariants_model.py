"""Invariants 1, 3 and 6 on SmolLM2-135M itself, with the native kernels."""

import pytest
import torch

import dynadapt
from dynadapt import Adam, Engine, LoRA, SegmentMemory
from dynadapt.runs.text import BUILTINS

pytestmark = pytest.mark.model
LENGTH = 257


@pytest.fixture(scope="module")
def smollm2(smollm2_directory):
    return dynadapt.load(smollm2_directory)


@pytest.fixture(scope="module")
def tokens(smollm2):
    ids = smollm2.tokenizer.encode(BUILTINS["python-reference"]()[:4000])
    return torch.tensor(ids[:LENGTH])[None]


def scores(engine, tokens, segment):
    return torch.cat([engine.step(tokens[:, a : a + segment + 1]) for a in range(0, tokens.shape[1] - 1, segment)], 1)


def adapting(model, lr, **options):
    return Engine(model, adapt=LoRA(rank=16), optimizer=Adam(lr=lr), segment=64, **options)


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_score_before_learning(smollm2, tokens, dtype):
    memory = SegmentMemory(96, 4)
    changed, at = tokens.clone(), 100
    changed[:, at:] = changed[:, at:].flip(1)
    a, b = (scores(adapting(smollm2, 2e-3, memory=memory, dtype=dtype), t, 64) for t in (tokens, changed))
    assert torch.equal(a[:, : at - 1], b[:, : at - 1]) and not torch.equal(a[:, at:], b[:, at:])
    static = scores(Engine(smollm2, memory=memory, segment=64, dtype=dtype), tokens, 64)
    assert torch.equal(static, scores(adapting(smollm2, 0.0, memory=memory, dtype=dtype), tokens, 64))
    assert torch.equal(static[:, :64], a[:, :64]) and not torch.equal(static[:, 64:128], a[:, 64:128])


@pytest.mark.parametrize("dtype,tolerance", [("fp32", 2e-3), ("bf16", 0.6)])
def test_segmenting_is_invisible(smollm2, tokens, dtype, tolerance):
    whole = scores(Engine(smollm2, segment=256, dtype=dtype), tokens, 256)
    for segment in (64, 100):
        pieces = scores(Engine(smollm2, memory=SegmentMemory(256, 4), segment=segment, dtype=dtype), tokens, segment)
        assert (whole - pieces).abs().max() < tolerance and abs(float(whole.mean() - pieces.mean())) < tolerance / 20


def test_same_numbers_as_transformers(smollm2, smollm2_directory, tokens):
    from transformers import AutoModelForCausalLM

    live = AutoModelForCausalLM.from_pretrained(smollm2_directory, dtype=torch.float32)
    with torch.no_grad():
        logits = live(tokens[:, :-1]).logits[0]
    theirs = torch.nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="none")
    ours = scores(Engine(smollm2, segment=256, dtype="fp32"), tokens, 256)[0]
    assert (ours - theirs).abs().max() < 2e-3
