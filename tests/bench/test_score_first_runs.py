"""benchmarks/score_first.py at a tiny size: training goes on where it was stopped, and documents know their bytes."""

import json
import sys
from pathlib import Path

import pytest
import torch
from tiny import english

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks import score_first  # noqa: E402

SMALL = dict(hidden_size=32, layers=2, heads=2, kv_heads=2, head_dim=16, ffn_size=48, max_positions=24, tied_head=True)


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    for name, value in dict(WINDOW=24, CHUNK=8, TOKENS=40, EACH=2, WORDS=300, ROWS=2, UPDATES=4, WARM=1, PIECE=2, SIZES=SMALL).items():
        monkeypatch.setattr(score_first, name, value)
    for domain in ("a", "b"):
        (tmp_path / domain).mkdir()
        for part, texts in (("train", 6), ("heldout", 3)):
            lines = [json.dumps({"text": english(200, 10 * i + len(domain + part)) + "é"}) for i in range(texts)]
            (tmp_path / domain / f"{part}.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path


def weights(model) -> dict[str, torch.Tensor]:
    return {name: model.tensor(name) for name in model.names()}


def test_training_goes_on_to_the_same_model(corpus, tmp_path, monkeypatch):
    whole, _, facts = score_first.trained(corpus, ["a", "b"], tmp_path / "whole")
    assert facts["parameters"] == sum(value.numel() for value in weights(whole).values()) and facts["training_tokens"] == 4 * 2 * 24
    step, done = score_first.Engine.step, []

    def stopping(engine, tokens):
        if len(done) == 3:  # behind the state of two updates
            raise KeyboardInterrupt
        done.append(1)
        return step(engine, tokens)

    monkeypatch.setattr(score_first.Engine, "step", stopping)
    with pytest.raises(KeyboardInterrupt):
        score_first.trained(corpus, ["a", "b"], tmp_path / "parts")
    monkeypatch.setattr(score_first.Engine, "step", step)
    parts, _, again = score_first.trained(corpus, ["a", "b"], tmp_path / "parts")
    assert again == facts and all(torch.equal(value, weights(whole)[name]) for name, value in weights(parts).items())
    assert [path.name for path in (tmp_path / "parts").glob("state-*")] == ["state-4"]


def test_documents_and_what_is_measured_of_them(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(score_first, "READS", {"window again": score_first.Overlap(16), "memory": score_first.SegmentMemory(16, sinks=0)})
    model, words, _ = score_first.trained(corpus, ["a", "b"], tmp_path / "whole")
    found = score_first.documents(corpus, ["a", "b"], words)
    assert [d.name for d in found] == ["a, 0", "b, 0", "a, 1", "b, 1"]
    for document in found:
        assert document.ids.shape == (41,) and len(words.decode(document.ids[1:].tolist()).encode()) == document.bytes
    static = [score_first.arm(model, reads, None, found[0]) for reads in score_first.READS]
    learned = score_first.arm(model, "memory", 1e-3, found[0])
    assert static[0]["bits_per_byte"] == pytest.approx(static[1]["bits_per_byte"], rel=0.05) and static[0]["flops"] > static[1]["flops"]
    assert learned["bits_per_byte"] != static[1]["bits_per_byte"]
    with pytest.raises(SystemExit, match="a holds out 2 documents of more than 40 tokens; 3 are needed"):
        monkeypatch.setattr(score_first, "EACH", 3)
        (corpus / "a" / "heldout.jsonl").write_text("".join(json.dumps({"text": english(200, i)}) + "\n" for i in range(2)))
        score_first.documents(corpus, ["a", "b"], words)
