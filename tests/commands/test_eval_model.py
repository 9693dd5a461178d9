"""The main job on SmolLM2-135M and a text that needs no download."""

import pytest
import torch
from helpers import to_transformers

import dynadapt.model
from dynadapt.experiments.config import EvalConfig
from dynadapt.experiments.dyneval import run
from dynadapt.runs.text import BUILTINS, Source, TokenReader, streaming_tokenizer

TEXT = "builtin:python-reference"
pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def model(smollm2_directory):
    return dynadapt.model.load(str(smollm2_directory))


def test_streamed_tokens_are_those_of_the_whole_text(model):
    for name, make in BUILTINS.items():
        reader, ids = TokenReader(Source(f"builtin:{name}"), streaming_tokenizer(model.tokenizer)), []
        size = 0
        while len((part := reader.read(5000))[0]):
            ids += part[0].tolist()
            size += int(part[1].sum())
        assert ids == model.tokenizer.encode(make()) and size == len(make().encode())


def test_the_static_score_is_that_of_transformers(model, smollm2_directory, tmp_path):
    """The same windows of 512 targets, float32."""
    config = EvalConfig(model=str(smollm2_directory), text=(TEXT,), tokens=1200, adapt="none", memory=0, dtype="fp32")
    summary = run(config, tmp_path / "run", model=model)
    live = to_transformers(model)
    ids = torch.tensor(model.tokenizer.encode(BUILTINS["python-reference"]()[:20000])[:1200])
    total = 0.0
    with torch.no_grad():
        for start in range(0, 1199, 512):
            window = ids[start : start + 513]
            total += torch.nn.functional.cross_entropy(live(window[None, :-1]).logits[0], window[1:], reduction="sum").item()
    assert summary["tokens"] == 1199
    assert summary["nll"] == pytest.approx(total / 1199, abs=0.002)


def test_learning_and_remembering_each_help_and_add_up(smollm2_directory, tmp_path):
    scores = {}
    for adapt in ("none", "lora"):
        for memory in (0, 512):
            config = EvalConfig(model=str(smollm2_directory), text=(TEXT,), tokens=3073, adapt=adapt, memory=memory)
            scores[adapt, memory] = run(config, tmp_path / f"{adapt}-{memory}")["nll"]
    assert scores["none", 512] < scores["none", 0] - 0.03
    assert scores["lora", 0] < scores["none", 0] - 0.03
    assert scores["lora", 512] < min(scores["none", 512], scores["lora", 0])
