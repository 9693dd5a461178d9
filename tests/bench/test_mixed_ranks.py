"""benchmarks/heterogeneous.py: it holds every stream against an engine of its own, times in turns, and writes whole results."""

import json
import sys
from pathlib import Path

import pytest
import torch
from tiny import tiny_directory

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import heterogeneous


def test_it_times_what_it_has_checked(tmp_path, capsys):
    model = tiny_directory(tmp_path / "model")
    command = ["--model", str(model), "--ranks", "1", "2", "6", "--targets", "all", "attn", "--optimizers", "adam", "sgd"]
    result = heterogeneous.main([*command, "--segment", "8", "--rounds", "3", "--dtype", "fp32", "--out", str(tmp_path / "out" / "r.json")])
    assert json.loads((tmp_path / "out" / "r.json").read_text()) == json.loads(json.dumps(result))
    flops = {name: row["flops_per_step"] for name, row in result["rows"].items()}
    assert flops["mixed"] < flops["largest rank"] and result["mixed_by_mean_rank"]["median"] > 0
    printed = capsys.readouterr()
    assert "mixed / mean rank" in printed.out and "making engines of rank 3 and 6, then 3 rounds" in printed.err
    with pytest.raises(SystemExit):
        heterogeneous.arguments(["--ranks", "1", "2"])


def test_nothing_is_timed_where_a_stream_differs():
    class Fake:
        def __init__(self, value):
            self.value = value

        def step(self, tokens):
            return torch.full((len(tokens), 4), self.value)

    rows = [torch.zeros(2, 5, dtype=torch.int64)]
    heterogeneous.check(Fake(1.0), [Fake(1.0), Fake(1.0)], rows)
    with pytest.raises(SystemExit, match="stream 1 has other scores"):
        heterogeneous.check(Fake(1.0), [Fake(1.0), Fake(2.0)], rows)
