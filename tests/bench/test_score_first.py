"""The verdicts of benchmarks/score_first.py follow from its rules, and its two ways of reading see the same."""

import json
from pathlib import Path

import pytest
import torch

import benchmarks.score_first as script
from dynadapt.model import random_model, tiny_config

ROOT = Path(__file__).resolve().parents[2]


def rows_of(differences, ratio):
    pair = lambda d: {"window again": {"bits_per_byte": 2.0, "flops": ratio}, "memory": {"bits_per_byte": 2.0 + d, "flops": 1}}  # noqa: E731
    return [{"arms": {script.name(reads, 1e-4): run for reads, run in pair(d).items()}} for d in differences]


@pytest.mark.parametrize(
    "differences, ratio, verdict",
    [
        ([0.0, 0.0001, -0.0001], 10, "confirmed"),
        ([-0.1, -0.1001, -0.1002], 20, "confirmed"),
        ([0.0, 0.0001, -0.0001], 9.9, "refuted"),
        ([0.01, 0.0101, 0.0102], 20, "refuted"),
        ([0.01, -0.01, 0.0], 20, "open"),
        ([0.01], 20, "open"),
    ],
)
def test_verdicts(differences, ratio, verdict):
    found = script.compared(rows_of(differences, ratio), 1e-4)
    assert found["verdict"] == verdict and found["documents"] == len(differences)
    assert found["memory_less_window_again"]["mean"] == pytest.approx(sum(differences) / len(differences))


def test_page_has_a_row_for_each_rate():
    rows = script.page(json.loads((ROOT / "benchmarks/results/score-first.json").read_text())["results"]).splitlines()[2:]
    assert rows[0] == "| none | 2.3898 | 2.3899 | +0.0000 (-0.0001 to +0.0002) | 15.8 | 36 | - |"
    assert rows[1:] == [
        "| 0.0001 | 2.3349 | 2.3361 | +0.0011 (+0.0007 to +0.0016) | 16.6 | 36 | refuted |",
        "| 0.001 | 2.1835 | 2.1776 | -0.0059 (-0.0093 to -0.0025) | 16.6 | 36 | confirmed |",
    ]
    assert "(no interval)" in script.page({"0.0001": script.compared(rows_of([0.01], 20), 1e-4)})


def test_without_learning_both_read_the_same_where_nothing_has_been_dropped(monkeypatch):
    monkeypatch.setattr(script, "TOKENS", 4 * script.CHUNK)
    sizes = {**script.SIZES, "hidden_size": 64, "layers": 2, "heads": 2, "kv_heads": 2, "head_dim": 32, "ffn_size": 96}
    model = random_model(tiny_config("llama", vocab_size=256, **sizes), seed=0, std=0.1)
    ids = torch.randint(256, (script.TOKENS + 1,), generator=torch.Generator().manual_seed(0))
    document = script.Document("made up", ids, 2 * script.TOKENS)
    again, memory = (script.arm(model, reads, None, document) for reads in script.READS)
    assert memory["bits_per_byte"] == pytest.approx(again["bits_per_byte"], abs=1e-5) and memory["flops"] < again["flops"] / 2
    learned = [script.arm(model, reads, 1e-2, document)["bits_per_byte"] for reads in script.READS]
    assert learned[0] != pytest.approx(learned[1], abs=1e-5), "gradients go through the window in one of them"
