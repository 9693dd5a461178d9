"""Runs that learn from a part of what they score: what they say, that they go on where they were stopped, and what is refused."""

import json

import numpy as np
import pytest
from tiny import two_texts_config, two_texts_root

import dynadapt
from dynadapt import Hypergradient, Selection
from dynadapt.commands.evaluate import learned_from
from dynadapt.commands.settings import unmixed
from dynadapt.experiments.config import ConfigError, EvalConfig
from dynadapt.experiments.distributed_eval import _check
from dynadapt.experiments.dyneval import Interrupted, RunOptions, run
from dynadapt.runs.kinds import learns

FAST = {"segment": 8, "rank": 2, "dtype": "fp32", "memory": 12, "backend": "cpu"}
RULE = "below=0.4,above=2,tokens=0.2:0.9"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return two_texts_root(tmp_path_factory.mktemp("learn_from"))


def config(root, **changes) -> EvalConfig:
    return two_texts_config(root, **{**FAST, **changes})


def test_what_a_run_says(root, tmp_path):
    plain = run(config(root), tmp_path / "plain", RunOptions(checkpoint=0))
    part = run(config(root, learn_from=RULE), tmp_path / "part", RunOptions(checkpoint=0))
    of, lines = part["learned_from"], [json.loads(line) for line in (tmp_path / "part" / "metrics.jsonl").read_text().splitlines()]
    learned = [line["learned_tokens"][0] for line in lines]
    assert of["segments"] == part["updates"] == np.count_nonzero(learned) and of["tokens"] == sum(learned)
    assert of["of_segments"] == len(lines) == part["segments"] and of["share"] == of["segments"] / of["of_segments"]
    assert 0.3 < of["share"] < 1 and part["flops"]["backward"] < plain["flops"]["backward"]
    assert "learned_from" not in plain and "learned_tokens" not in (tmp_path / "plain" / "metrics.jsonl").read_text()
    assert json.loads((tmp_path / "part" / "config.json").read_text())["learn_from"] == RULE
    assert "learn_from" not in json.loads((tmp_path / "plain" / "config.json").read_text())
    ((name, said),) = learned_from(part)
    assert name == "from" and said == f"{of['share']:.0%} of {of['of_segments']} segments, {of['tokens']:,} tokens"
    assert not learned_from(plain)
    assert learns(config(root, learn_from=RULE).to_dict()) == f"LoRA r2 from {RULE}"


def test_only_due_updates_and_learners_of_a_text_are_counted(root):
    text = (root / "a.txt").read_text()
    settings = {**FAST, "string": text, "learn_from": Selection(below=0.4)}
    every, rates = (
        dynadapt.evaluate(str(root / "model"), every=2, **settings),
        dynadapt.evaluate(str(root / "model"), rates=[1e-3, 1e-2], **settings),
    )
    segments = every.summary["segments"]
    assert every.summary["learned_from"]["segments"] == every.summary["updates"] < segments / 2
    assert rates.summary["learned_from"]["of_segments"] == 2 * segments
    assert rates.summary["learned_from"]["segments"] == rates.summary["updates"]


def test_stopped_and_gone_on_with(root, tmp_path):
    settings, options = config(root, streams=2, learn_from=RULE, guard="exact"), RunOptions(scores=True, checkpoint=4)
    whole = run(settings, tmp_path / "whole", options)
    with pytest.raises(Interrupted):
        run(settings, tmp_path / "stopped", options, progress=lambda event: event["segment"] < 13)
    again = run(settings, tmp_path / "stopped", RunOptions(resume=True, scores=True, checkpoint=4))
    a, b = (np.load(tmp_path / name / "scores.npy") for name in ("whole", "stopped"))
    assert np.array_equal(a, b) and whole["learned_from"] == again["learned_from"]


def test_rates_that_move(root, tmp_path):
    plain, still, moving = (config(root, **more) for more in ({}, {"adapt": "none"}, {"hypergradient": "step=0.3", "streams": 2}))
    assert "hypergradient" not in plain.to_dict() and moving.to_dict()["hypergradient"] == "step=0.3"
    assert (
        EvalConfig(hypergradient=Hypergradient()).hypergradient == "on"
        and EvalConfig.from_dict(moving.to_dict()).hypergradient == "step=0.3"
    )
    whole = run(moving, tmp_path / "whole", RunOptions(checkpoint=4))
    with pytest.raises(Interrupted):
        run(moving, tmp_path / "stopped", RunOptions(checkpoint=4), progress=lambda event: event["segment"] < 6)
    again = run(moving, tmp_path / "stopped", RunOptions(resume=True, checkpoint=4))
    other = run(config(root, streams=2), tmp_path / "plain", RunOptions(checkpoint=0))
    assert whole["nll"] == again["nll"] != other["nll"] and whole["flops"]["update"] > other["flops"]["update"]
    assert run(still.with_(hypergradient="on"), tmp_path / "still", RunOptions(checkpoint=0))["updates"] == 0
    with pytest.raises(ConfigError, match="hypergradient='off': expected Hypergradient"):
        config(root, hypergradient="off")
    assert "hypergradient" not in unmixed()


def test_refused(root):
    for changes, names in (
        ({"learn_from": "half"}, "learn_from='half': expected NAME=VALUE"),
        ({"learn_from": "below=2"}, "learn_from='below=2': below=2"),
        ({"learn_from": 3}, "learn_from=3: expected Selection"),
    ):
        with pytest.raises(ConfigError, match=names):
            config(root, **changes)
    with pytest.raises(ConfigError, match="learn_from 'below=0.3' with accumulate True: .*; leave one of them out"):
        config(root, learn_from="below=0.3", every=2, accumulate=True)
    assert config(root, learn_from="below=0.3", every=2, accumulate=True, adapt="none").accumulate  # nothing learns
    with pytest.raises(ConfigError, match="learn_from .* with 2 processes"):
        _check(config(root, learn_from=RULE, reset="document"), 2)
    assert "learn_from" not in unmixed()
