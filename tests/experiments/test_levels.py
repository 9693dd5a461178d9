"""Runs at two levels: what they say, that they go on where they were stopped, and what is refused."""

import json

import numpy as np
import pytest
from tiny import two_texts_config, two_texts_root

from dynadapt.experiments import guarded
from dynadapt.experiments.config import ConfigError, EvalConfig
from dynadapt.experiments.dyneval import Interrupted, RunOptions, run

FAST = {"segment": 16, "rank": 2, "dtype": "fp32", "memory": 12, "backend": "cpu", "reset": "document"}
SLOW = {"levels": "fast,slow", "slow_every": 40, "slow_lr": 0.1}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return two_texts_root(tmp_path_factory.mktemp("levels"))


def config(root, **changes) -> EvalConfig:
    return two_texts_config(root, **{**FAST, **changes})


def test_what_a_run_says(root, tmp_path):
    plain = run(config(root), tmp_path / "plain", RunOptions(checkpoint=0))
    both = run(config(root, **SLOW), tmp_path / "both", RunOptions(checkpoint=0))
    assert both["levels"] == "fast,slow" and both["slow_updates"] > 2
    assert "levels" not in plain and "slow_updates" not in plain
    assert both["nll"] != plain["nll"] and both["flops"]["backward"] > plain["flops"]["backward"]
    assert json.loads((tmp_path / "both" / "config.json").read_text())["slow_every"] == 40
    alone = run(config(root, adapt="none", reset="never", **{**SLOW, "levels": "slow"}), tmp_path / "slow", RunOptions(checkpoint=0))
    assert alone["updates"] == 0 and alone["slow_updates"] == both["slow_updates"]


def test_stopped_and_gone_on_with(root, tmp_path):
    settings, options = config(root, streams=2, **SLOW), RunOptions(scores=True, checkpoint=2)
    run(settings, tmp_path / "whole", options)
    with pytest.raises(Interrupted):
        run(settings, tmp_path / "stopped", options, progress=lambda event: event["segment"] < 5)
    run(settings, tmp_path / "stopped", RunOptions(resume=True, scores=True, checkpoint=2))
    a, b = (np.load(tmp_path / name / "scores.npy") for name in ("whole", "stopped"))
    assert np.array_equal(a, b)


def test_commands_that_refuse_a_guard_refuse_levels(root):
    with pytest.raises(ConfigError, match="levels 'fast,slow' here"):
        guarded.refuse(config(root, **SLOW), "here")


def test_refused(root):
    for changes, names in (
        ({"adapt": "full"}, "levels 'fast,slow' with adapt 'full'"),
        ({"levels": "slow"}, "levels 'slow' with adapt 'lora'"),
        ({"guard": "exact"}, "levels 'fast,slow' with guard 'exact'"),
        ({"rates": "0.1,0.2"}, "levels 'fast,slow' with rates"),
        ({"slow_every": 0}, "slow_every 0"),
        ({"levels": "both"}, "levels 'both'"),
    ):
        with pytest.raises(ConfigError, match=names):
            config(root, **{**SLOW, **changes})
