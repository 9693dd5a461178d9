"""The step benchmark on a tiny model: it checks before it times, and what it writes adds up."""

import json

import pytest
import torch
from helpers import to_transformers

from dynadapt import bench
from dynadapt.model import random_model, tiny_config


@pytest.fixture
def directory(tmp_path):
    live = to_transformers(random_model(tiny_config("llama"), seed=0, std=0.1))
    live.save_pretrained(tmp_path / "tiny")
    return str(tmp_path / "tiny")


def segments(vocabulary, streams, segment):
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(vocabulary, (streams, segment + 1), generator=generator).tolist() for _ in range(4)]


@pytest.mark.parametrize("dtype,streams", [("fp32", 1), ("bf16", 2)])
def test_step_is_checked_then_timed(directory, monkeypatch, dtype, streams):
    monkeypatch.setattr(bench, "_segments", lambda model, s, t: segments(tiny_config("llama").vocab_size, s, t))
    result = bench.run_step(directory, ["peft-eager"], dtype, streams, 24, 3, rounds=2, say=lambda text: None)
    json.dumps(result)
    ours, theirs = result["providers"]["dynadapt"], result["providers"]["peft-eager"]
    for row in (ours, theirs):
        assert row["seconds"]["runs"] == 2 and row["seconds"]["p20"] <= row["seconds"]["median"] <= row["seconds"]["p80"]
        assert row["peak_memory_bytes"] > 5e7 and row["first_step_seconds"] > 0
        assert 0 < row["error"]["nll"] < 0.1 and 0 < row["error"]["gradient"] < 0.1
    assert result["flops_per_step"] > 0 and result["ceiling"]["gflops"] > 0
    assert theirs["speedup_of_dynadapt"] == pytest.approx(theirs["seconds"]["median"] / ours["seconds"]["median"])


def test_nothing_is_timed_when_the_step_is_wrong():
    row = {"error": {"nll": 0.5, "gradient": 1e-6}}
    with pytest.raises(RuntimeError, match="dynadapt: nll differs"):
        bench._check({"dynadapt": row}, {"nll": 0.1, "gradient": 1e-3})


def test_a_provider_that_dies_says_why(tmp_path):
    options = {"model": str(tmp_path / "absent"), "dtype": "fp32", "streams": 1, "segment": 8, "rank": 2, "tokens": []}
    with pytest.raises(RuntimeError, match="provider dynadapt ended with status 1(.|\n)*does not exist"):
        bench.Worker("dynadapt", options, 1)
