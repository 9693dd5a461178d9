"""Runs that keep what the model says of another text: that they are the engine's, what they say, that they go on, and what is refused."""

import json

import numpy as np
import pytest
import torch
from tiny import english, two_texts_config, two_texts_root

import dynadapt
from dynadapt import KeepPrior
from dynadapt.commands.settings import unmixed
from dynadapt.experiments.audit import audit_run
from dynadapt.experiments.audit.report import PASSED
from dynadapt.experiments.config import ConfigError, EvalConfig
from dynadapt.experiments.distributed_eval import _check
from dynadapt.experiments.dyneval import Interrupted, RunOptions, build_engine, run
from dynadapt.experiments.kept_prior import reference_of, rows
from dynadapt.runs.kinds import learns
from dynadapt.runs.text import TextError

FAST = {"segment": 8, "rank": 2, "dtype": "fp32", "memory": 12, "backend": "cpu", "lr": 0.02}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = two_texts_root(tmp_path_factory.mktemp("keep_prior"))
    (root / "other, too.txt").write_text(english(200, 7))
    (root / "short.txt").write_text("a cat")
    return root


def kept(root, more=",weight=0.5,tokens=6"):
    return f"{root / 'other, too.txt'}{more}"


def config(root, **changes) -> EvalConfig:
    return two_texts_config(root, **{**FAST, **changes})


def test_words_have_one_form():
    assert EvalConfig(keep_prior="a,b.txt,tokens=64,weight=.5,first=100").keep_prior == "a,b.txt,weight=0.5,first=100"
    assert reference_of("a.txt").word == "a.txt" and (reference_of("a.txt").weight, reference_of("a.txt").first) == (0.1, 4096)
    again = reference_of("a.txt,weight=0.30000000000000004")
    assert reference_of(again.word) == again
    for words in ("", ",weight=1", "a,weight=0", "a,weight=nan", "a,tokens=0", "a,tokens=64,first=64", "a,wieght=1", "a,tokens=1.5"):
        with pytest.raises(ConfigError, match="keep_prior .*: give FILE or FILE,NAME=VALUE"):
            reference_of(words)
    for words in ("a,tokens=2,tokens=3", "a,first=262145", 0.1):
        with pytest.raises(ConfigError, match="keep_prior .*: give FILE"):
            EvalConfig(keep_prior=words)


def test_a_run_scores_as_the_engine_does_and_says_how_far_it_went(root, tmp_path):
    settings = config(root, keep_prior=kept(root), every=2)
    found = run(settings, tmp_path / "kept", RunOptions(scores=True, checkpoint=0))
    model = dynadapt.load(str(root / "model"))
    encode = lambda name: torch.tensor(model.tokenizer.encode((root / name).read_text()))  # noqa: E731
    keep = KeepPrior(encode("other, too.txt")[:4096], weight=0.5, tokens=6)
    plain = build_engine(model, config(root, every=2))
    engine = dynadapt.Engine(
        model, keep=keep, adapt=plain.adapt, optimizer=plain.optimizer, memory=plain.memory, segment=8, every=2, dtype="fp32"
    )
    scores, divergences = [], []
    for name in ("a.txt", "b.txt"):
        engine.enter(0)
        ids = encode(name)
        for start in range(0, len(ids) - 1, 8):
            part = ids[None, start : start + 9]
            row = torch.zeros(1, 9, dtype=torch.int64)
            row[:, : part.shape[1]] = part
            scores.append(engine.step(row, [part.shape[1] - 1])[0, : part.shape[1] - 1].numpy())
            if engine.last.updated[0]:
                divergences.append(engine.keeping.divergence[0])
    assert np.array_equal(np.load(tmp_path / "kept" / "scores.npy")["nll"], np.concatenate(scores))
    lines = [json.loads(line) for line in (tmp_path / "kept" / "metrics.jsonl").read_text().splitlines()]
    assert [line["divergence"][0] for line in lines if line["updated"][0]] == divergences
    assert all(line["divergence"] == [None] for line in lines if not line["updated"][0])
    of = found["divergence"]
    assert of["updates"] == found["updates"] == len(divergences) and of["last"] == divergences[-1] > 0
    assert of["mean"] == pytest.approx(np.mean(divergences), rel=1e-12)
    ((name, said),) = rows(found)
    assert name == "divergence" and f"{of['mean']:.4f} nats" in said
    assert json.loads((tmp_path / "kept" / "config.json").read_text())["keep_prior"] == kept(root)
    assert learns(settings.to_dict()) == "LoRA r2, keeping the prior"
    without = run(config(root, every=2), tmp_path / "plain", RunOptions(checkpoint=0))
    assert without["nll"] != found["nll"] and "divergence" not in without and not rows(without)
    assert "keep_prior" not in json.loads((tmp_path / "plain" / "config.json").read_text())
    assert sum(found["flops"].values()) > sum(without["flops"].values())


def test_stopped_and_gone_on_with(root, tmp_path):
    settings, options = config(root, streams=2, keep_prior=kept(root), guard="exact"), RunOptions(scores=True, checkpoint=4)
    whole = run(settings, tmp_path / "whole", options)
    with pytest.raises(Interrupted):
        run(settings, tmp_path / "stopped", options, progress=lambda event: event["segment"] < 13)
    again = run(settings, tmp_path / "stopped", RunOptions(resume=True, scores=True, checkpoint=4))
    a, b = (np.load(tmp_path / name / "scores.npy") for name in ("whole", "stopped"))
    assert np.array_equal(a, b) and whole["divergence"] == again["divergence"]


@pytest.mark.parametrize("guard", [None, "exact"])
def test_a_run_is_audited(root, tmp_path, guard):
    run(config(root, keep_prior=kept(root), guard=guard), tmp_path / "run", RunOptions(scores=True))
    found = {check.name: check.verdict for check in audit_run(tmp_path / "run", positions=6).checks}
    for name in ("record", "scored once", "repeatable", "later tokens", "own token", "distribution"):
        assert found[name] == PASSED, name


def test_a_text_that_changed_is_not_gone_on_with(root, tmp_path):
    file = tmp_path / "reference.txt"
    file.write_text(english(100, 3))
    settings = config(root, keep_prior=f"{file},tokens=6")
    with pytest.raises(Interrupted):
        run(settings, tmp_path / "run", RunOptions(checkpoint=4), progress=lambda event: event["segment"] < 6)
    file.write_text(english(100, 4))
    with pytest.raises(Exception, match="kept text .*reference.txt"):
        run(settings, tmp_path / "run", RunOptions(resume=True, checkpoint=4))


def test_nothing_learns_nothing_is_kept(root, tmp_path):
    found = run(config(root, adapt="none", keep_prior=kept(root)), tmp_path / "static", RunOptions(checkpoint=0))
    assert "divergence" not in found


@pytest.mark.parametrize(
    "changes,error,names",
    [
        ({"keep_prior": "ROOT/a.txt"}, ConfigError, "keep_prior '.*a.txt' is the text to be scored"),
        ({"keep_prior": "ROOT/none.txt"}, TextError, "keep_prior: text '.*none.txt'.* no such file"),
        ({"keep_prior": "-"}, ConfigError, "keep_prior '-': a pipe"),
        ({"keep_prior": "ROOT/short.txt"}, ConfigError, "keep_prior '.*short.txt' has . tokens: give a text of more than tokens=64"),
        ({"keep_prior": "ROOT/other, too.txt", "rates": "1e-3,1e-2"}, ConfigError, "keep_prior .* with rates"),
        ({"keep_prior": "ROOT/other, too.txt", "levels": "fast,slow"}, ConfigError, "levels .* with keep_prior"),
        ({"keep_prior": "ROOT/other, too.txt", "targets": "q,head"}, ValueError, "adapt=.* with keep=KeepPrior"),
        ({"keep_prior": "ROOT/other, too.txt,tokens=3000"}, ConfigError, "has .* tokens: give a text of more than tokens=3000"),
    ],
)
def test_refused_before_anything_is_written(root, tmp_path, changes, error, names):
    changes = {name: value.replace("ROOT", str(root)) for name, value in changes.items()}
    with pytest.raises(error, match=names):
        run(config(root, **changes), tmp_path / "run", RunOptions())
    assert not (tmp_path / "run" / "config.json").exists()


def test_refused_in_several_processes_and_where_it_is_not_known(root):
    with pytest.raises(ConfigError, match="keep_prior .* with 2 processes"):
        _check(config(root, keep_prior=kept(root), reset="document"), 2)
    assert "keep_prior" not in unmixed()
