"""Runs with a guard and at several rates: what they write, that they go on where they were stopped, and where they are refused."""

import json
import math

import numpy as np
import pytest
from command_line import call
from tiny import two_texts_config, two_texts_root

import dynadapt
from dynadapt import Alarm, Guard, RateMixture
from dynadapt.adapt.mixture import regret
from dynadapt.experiments import guarded
from dynadapt.experiments.config import ConfigError, EvalConfig
from dynadapt.experiments.distributed_eval import _check
from dynadapt.experiments.dyneval import Interrupted, RunOptions, run
from dynadapt.experiments.tune.driver import _check as check_tune
from dynadapt.interop.lm_eval import _config as lm_eval_config
from dynadapt.runs.append_only import read_metrics

FAST = {"segment": 16, "rank": 2, "dtype": "fp32", "memory": 12, "backend": "cpu"}
RATES = "0.0,0.003,100.0"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return two_texts_root(tmp_path_factory.mktemp("guarded"))


def config(root, **changes) -> EvalConfig:
    return two_texts_config(root, **{**FAST, "reset": "document", **changes})


def without_time(summary: dict) -> dict:
    return {name: value for name, value in summary.items() if not name.startswith(("seconds", "tokens_per", "peak", "files"))}


def mean(documents, name):
    return math.fsum(d[name] * d["tokens"] for d in documents) / sum(d["tokens"] for d in documents)


def test_beside_the_runs_that_it_mixes(root, tmp_path):
    """The static and the adapted score of a guarded run are those of runs of their own, and its own is within the bound of both."""
    options = RunOptions(checkpoint=0)
    found = run(config(root, guard="exact", lr=0.5), tmp_path / "guarded", options)
    adapted = run(config(root, lr=0.5), tmp_path / "adapted", options)
    static = run(config(root, adapt="none"), tmp_path / "static", options)
    assert found["nll_static"] == pytest.approx(static["nll"], abs=1e-12)
    assert found["nll_adapted"] == pytest.approx(adapted["nll"], abs=1e-12)
    assert "nll_static" not in adapted
    assert found["flops"]["forward"] == adapted["flops"]["forward"] + static["flops"]["forward"]
    for document in found["documents"]:
        bound = regret(document["tokens"], 2, 1e-4) / document["tokens"]
        assert document["guard_bound"] == pytest.approx(bound)
        assert document["nll"] <= min(document["nll_static"], document["nll_adapted"]) + bound + 1e-6
    for name in ("nll", "nll_static", "nll_adapted", "guard_bound"):
        assert found[name] == pytest.approx(mean(found["documents"], name)), name
    assert (found["guard_tokens"], found["guard_nll"]) == (found["tokens"], pytest.approx(found["nll"]))
    lines = read_metrics(tmp_path / "guarded")
    for name in ("nll_static", "nll_adapted"):
        assert math.fsum(line[name] * line["tokens"] for line in lines) / found["tokens"] == pytest.approx(found[name])


@pytest.mark.parametrize("changes", [{"guard": 3}, {"rates": RATES, "guard": 2, "halve": 2, "streams": 2}], ids=str)
def test_stopped_and_gone_on_with(root, tmp_path, changes):
    settings, options = config(root, **changes), RunOptions(scores=True, checkpoint=2)
    whole = run(settings, tmp_path / "whole", options)
    with pytest.raises(Interrupted):
        run(settings, tmp_path / "stopped", options, progress=lambda event: event["segment"] < 6)
    again = run(settings, tmp_path / "stopped", RunOptions(resume=True, scores=True, checkpoint=2))
    assert without_time(again) == without_time(whole)
    a, b = (np.load(tmp_path / name / "scores.npy") for name in ("whole", "stopped"))
    assert np.array_equal(a, b) and a["nll"].sum(dtype=np.float64) == pytest.approx(whole["nll"] * whole["tokens"])
    assert 0 < whole["guard_tokens"] <= whole["tokens"]


def test_rates(root, tmp_path):
    found = run(config(root, rates=RATES), tmp_path / "rates", RunOptions(checkpoint=0))
    assert list(found["nll_adapted"]) == ["0", "0.003", "100"] and "nll_static" not in found
    static = run(config(root, adapt="none"), tmp_path / "static", RunOptions(checkpoint=0))
    middle = run(config(root, lr=0.003), tmp_path / "one", RunOptions(checkpoint=0))
    assert found["nll_adapted"]["0"] == pytest.approx(static["nll"], abs=1e-12)
    assert found["nll_adapted"]["0.003"] == pytest.approx(middle["nll"], abs=1e-12)
    assert found["nll"] <= min(value for value in found["nll_adapted"].values() if value is not None) + found["guard_bound"]
    assert found["updates"] == 3 * middle["updates"] - found["skipped_updates"]
    line = read_metrics(tmp_path / "rates")[0]
    assert len(line["nll_adapted"]) == 3 and len(line["updated"]) == 3


def test_a_rate_that_diverges_is_none_of_the_score(root, tmp_path):
    found = run(config(root, rates="0.003,1e30", optimizer="sgd", clip=0.0), tmp_path / "run", RunOptions(checkpoint=2))
    assert found["nll_adapted"]["1e+30"] is None and math.isfinite(found["nll"])
    assert found["nll"] <= found["nll_adapted"]["0.003"] + found["guard_bound"]


def test_as_a_call(root):
    found = dynadapt.evaluate(root / "model", root / "b.txt", guard=Guard(2), rates=[1e-3, 1e-2], halve=3, **FAST)
    assert (found.config.guard, found.config.rates, found.config.halve) == (2, "0.001,0.01", 3)
    assert set(found.engine.weights()) == {"prior", "0.001", "0.01"}
    assert "--rates 0.001,0.01 --halve 3 --guard 2" in " ".join(found.config.arguments())
    with pytest.raises(ConfigError, match="share is no setting of a run"):
        dynadapt.evaluate(root / "model", root / "b.txt", guard=Guard(share=0.01), **FAST)


def test_on_the_command_line(root, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["--model", str(root / "model"), "--text", str(root / "b.txt"), *(f"--{name}={value}" for name, value in FAST.items())]
    code = call("eval", *words, "--guard", "2", "--rates", RATES)
    said = capsys.readouterr().out
    assert code == 0
    for word in ("at 3 rates with a guard", "static", "tokens looked at, guarded", "adapted", "0.003: ", "above the best of these"):
        assert word in said, (word, said)
    (out,) = (tmp_path / "runs").iterdir()
    begun = json.loads((out / "config.json").read_text())
    assert (begun["guard"], begun["rates"]) == (2, RATES) and "halve" not in begun
    assert call("audit", str(out)) != 0
    assert f"rates {RATES!r} in the run: an audit goes back to where a stream was" in "".join(capsys.readouterr())
    assert call("export", str(out), "--out", "adapter") != 0 and not (tmp_path / "adapter").exists()
    assert f"ran at rates {RATES}: it ended with an adapter of each rate" in "".join(capsys.readouterr())
    assert call("eval", *words, "--adapt", "none", "--guard", "exact") == 0
    assert "guard 'exact' has no effect with adapt 'none'" in "".join(capsys.readouterr())
    (static,) = (run for run in (tmp_path / "runs").iterdir() if run != out)
    assert call("audit", str(static), "--positions", "4") == 0, "nothing was mixed there"


@pytest.mark.parametrize(
    "setting, value, accepted",
    [
        ("guard", "never", "give exact, or N"),
        ("guard", 0, "give exact, or N"),
        ("guard", True, "give exact, or N"),
        ("rates", "1e-3", "two or more different learning rates"),
        ("rates", [1e-3, 1e-3], "two or more different"),
        ("rates", "1e-3,fast", "two or more different"),
        ("rates", [1e-3, -1.0], "two or more different"),
        ("rates", 3, "two or more different"),
        ("halve", 0, "whole number of at least 1"),
    ],
)
def test_settings_that_do_not_fit(setting, value, accepted):
    with pytest.raises(ConfigError, match=f"^{setting} .*{accepted}"):
        EvalConfig(**{setting: value})


def test_alarms_in_words(root, tmp_path):
    """A configuration has an alarm as a word, which a guard is needed for; the run goes back where the word's engine does."""
    given = {"guard": "exact", "lr": 0.5}
    assert config(root, **given, reset="auto:slower=0.50,back=0.5").reset == "auto:back=0.5,slower=0.5"
    assert config(root, **given, reset=Alarm(2, ring=3)).reset == "auto:nats=2,ring=3"
    assert config(root, **given, reset="auto:back=1").reset == "auto"
    with pytest.raises(ConfigError, match="^reset 'auto:back=0.5' without a guard"):
        config(root, reset="auto:back=0.5")
    with pytest.raises(ConfigError, match="^reset='auto:speed=2'"):
        config(root, **given, reset="auto:speed=2")
    options = RunOptions(checkpoint=0)
    never, slower = (
        run(config(root, **given, reset=reset), tmp_path / reset[:5], options) for reset in ("never", "auto:nats=1,slower=0.0001")
    )
    assert slower["nll_static"] == never["nll_static"] and slower["nll_adapted"] != never["nll_adapted"]


def test_where_it_does_not_go(root):
    settings = config(root, guard=4)
    with pytest.raises(ConfigError, match="^guard 4 with 2 processes"):
        _check(settings, 2)
    check_tune(EvalConfig(rates="0.1,0.2"), 5.0)  # compares them
    with pytest.raises(ConfigError, match="^reset .auto:slower=0.5. with rates"):
        config(root, guard="exact", rates="0.1,0.2", reset="auto:slower=0.5")
    with pytest.raises(ValueError, match="^reset=Alarm.* with rates: each learner looks at its own score"):
        RateMixture("made up", [0.1, 0.2], guard="exact", reset=Alarm(slower=0.5))
    with pytest.raises(ConfigError, match="guard='exact': expected one of"):
        lm_eval_config("document", {"guard": "exact"})
    assert "guard" not in config(root).to_dict() and "rates" not in config(root).to_dict()
    assert guarded.parse_rates([5e-4, 2e-3]) == "0.0005,0.002" == guarded.parse_rates("5e-4,2e-3")
