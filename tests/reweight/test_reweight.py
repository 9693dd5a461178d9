"""The driver: what it trains on, what it writes, that a run can be stopped anywhere, and what it refuses."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from command_line import call
from corpora import write_manifest
from run_files import Killed, final_state, kill_at, without_time
from safetensors.torch import load_file
from tiny import english, reweight_settings, tiny_directory

import dynadapt
from dynadapt import Adam, Engine, Full, LoRA, SegmentMemory
from dynadapt.distributed import Processes
from dynadapt.experiments.config import ConfigError
from dynadapt.experiments.corpus import CorpusError
from dynadapt.experiments.dyneval import Interrupted
from dynadapt.experiments.mixers import MIXERS, MixerError
from dynadapt.experiments.reweight import ReweightConfig, ReweightOptions, draw, fit_run, run
from dynadapt.experiments.reweight.domains import read_domains
from dynadapt.experiments.scaling_fit import ScalingError
from dynadapt.model import random_model, tiny_config
from dynadapt.model.tokenizer import Tokenizer
from dynadapt.runs.append_only import read_metrics
from dynadapt.runs.rundir import RunError, write_json

pytestmark = pytest.mark.usefixtures("one_thread")

DOMAINS = ("code", "prose", "manual")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A tiny model and three domains: a directory of files, a .jsonl file, and one split by its maker."""
    root = tmp_path_factory.mktemp("reweight")
    tiny_directory(root / "model")
    (root / "code").mkdir()
    for i in range(8):
        (root / "code" / f"{i}.txt").write_text(english(120, seed=i))
    lines = [json.dumps({"id": str(i), "text": english(60, seed=50 + i)}) for i in range(12)]
    (root / "prose.jsonl").write_text("\n".join(lines) + "\n")
    (root / "manual").mkdir()
    for part, count, seed in (("train", 6, 80), ("heldout", 3, 90)):
        (root / "manual" / f"{part}.jsonl").write_text(
            "".join(json.dumps({"text": english(100, seed=seed + i)}) + "\n" for i in range(count))
        )
    return root


def config_for(root, **changes) -> ReweightConfig:
    domains = {"code": root / "code", "prose": root / "prose.jsonl", "manual": root / "manual"}
    return ReweightConfig(**reweight_settings(root / "model", domains, **{"steps": 10, "heldout_rows": 4, **changes}))


# ------------------------------------------------------------------------------------------------------------ the run

RUNS = {
    "lora, weights from each step": dict(mixer="odm", adapt="lora", rank=2, optimizer="adam"),
    "full, weights from evaluations": dict(
        mixer="velocitune", target={"code": 1.0, "prose": 1.5, "manual": 0.5}, smoothing=0.1, warmup=3, schedule="cosine"
    ),
    "every parameter, the loss weighted": dict(mixer="doremi", targets="model", reference="model"),
    "rows, drawn by excess": dict(mixer="doremi", settings={"acts": "sampling"}, adapt="rows", density=0.5, reference="model"),
    "from scratch, a domain runs out": dict(
        mixer="fixed",
        weights={"code": 0.05, "prose": 0.05, "manual": 0.9},
        policy="renormalise",
        scratch="1x32",
        targets="model",
        rows=4,
        steps=14,
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_killed_run_goes_on_with_the_same_rows_losses_and_weights(name, root, tmp_path):
    changes = dict(RUNS[name])
    if "reference" in changes:
        changes["reference"] = str(root / "model")
    config = config_for(root, **changes)
    summary = run(config, tmp_path / "whole", ReweightOptions(checkpoint=3))
    with pytest.raises(Killed):
        run(config, tmp_path / "killed", ReweightOptions(checkpoint=3), kill_at(kind="step", step=8))
    resumed = run(config, tmp_path / "killed", ReweightOptions(resume=True, checkpoint=3))
    assert without_time(read_metrics(tmp_path / "killed")) == without_time(read_metrics(tmp_path / "whole"))
    whole, again = final_state(tmp_path / "whole"), final_state(tmp_path / "killed")
    assert whole.keys() == again.keys() and all(torch.equal(whole[key], again[key]) for key in whole)
    same = ("weights", "static_weights", "heldout", "tokens_by_domain", "flops", "ended", "updates")
    assert {key: resumed[key] for key in same} == {key: summary[key] for key in same}
    lines = [line for line in read_metrics(tmp_path / "whole") if line["kind"] == "step"]
    assert summary["mean"] < summary["mean_start"] and len(lines) == summary["steps"]
    moved = {json.dumps(line["weights"]) for line in lines}
    assert (len(moved) > 1) == (config.mixer != "fixed")


@pytest.mark.parametrize("mixer", MIXERS)
def test_every_mixer_trains(mixer, root, tmp_path):
    write_json(tmp_path / "summary.json", {"static_weights": dict.fromkeys(DOMAINS, 1 / 3)})
    write_json(tmp_path / "config.json", config_for(root, mixer="odm", steps=3).to_dict())
    changes = {
        "velocitune": {"target": dict.fromkeys(DOMAINS, 1.0)},
        "dynamic-batch-loading": {"target": dict.fromkeys(DOMAINS, 1.0)},
        "doremi": {"reference": str(root / "model")},
        "replay": {"settings": {"run": str(tmp_path)}},
    }
    summary = run(config_for(root, mixer=mixer, steps=3, evaluate=2, **changes.get(mixer, {})), tmp_path / "run")
    assert summary["mixer"] == mixer and sum(summary["static_weights"].values()) == pytest.approx(1) and summary["updates"] == 3


def test_a_reference_that_a_run_trained(root, tmp_path):
    """DoReMi against a reference that is the proxy as it starts: no token is behind, so the first weights stay."""
    trained = run(config_for(root, mixer="proportional", steps=1, lr=0.0, targets="model", scratch="1x32"), tmp_path / "reference")
    assert trained["heldout"] == trained["heldout_start"]
    run(
        config_for(
            root,
            mixer="doremi",
            steps=1,
            rows=12,
            targets="model",
            scratch="1x32",
            reference=str(tmp_path / "reference"),
            weights="uniform",
        ),
        tmp_path / "run",
    )
    line = read_metrics(tmp_path / "run")[1]
    assert min(line["drawn"].values()) > 0 and line["weights"] == pytest.approx(dict.fromkeys(DOMAINS, 1 / 3), abs=1e-6)


def test_what_a_run_writes(root, tmp_path):
    config = config_for(root, mixer="stratified", steps=6, evaluate=2)
    seen = []
    summary = run(config, tmp_path / "run", progress=seen.append)
    lines = read_metrics(tmp_path / "run")
    assert lines == seen and [line["kind"] for line in lines] == ["evaluation"] + ["step", "step", "evaluation"] * 3
    steps, evaluations = ([line for line in lines if line["kind"] == kind] for kind in ("step", "evaluation"))
    for line in steps:  # a step's loss is the mean of its domains', by tokens
        assert line["loss"] == pytest.approx(
            sum(line["drawn"][name] * loss for name, loss in line["losses"].items()) / config.rows, rel=1e-12
        )
        assert sum(line["drawn"].values()) == config.rows and len({tuple(pair) for pair in line["rows"]}) == config.rows
    assert summary["heldout"] == evaluations[-1]["heldout"] and summary["heldout_start"] == evaluations[0]["heldout"]
    assert sum(summary["tokens_by_domain"].values()) == summary["tokens"] == 6 * 3 * 16 == lines[-1]["total_tokens"]
    # held-out losses are counted by themselves: 4 + 4 + 4 rows an evaluation, at what the forward of a training row costs
    a_row = steps[0]["flops"]["forward"] // config.rows
    assert summary["flops"]["heldout"] == 4 * 12 * a_row and summary["flops"]["forward"] == 6 * 3 * a_row
    assert (tmp_path / "run" / "weights.png").exists() is False and draw(tmp_path / "run").stat().st_size > 10_000
    assert run(config, tmp_path / "run", ReweightOptions(resume=True)) == summary
    replayed = run(config_for(root, mixer="replay", settings={"run": str(tmp_path / "run")}, steps=6), tmp_path / "replay")
    assert replayed["weights"] == pytest.approx(summary["static_weights"])


def test_heldout_losses_are_those_of_the_model_as_it_is(root, tmp_path):
    """A run's first evaluation against transformers' own loss would need its tokens; the engine's static score has them."""
    config = config_for(root, steps=1)
    model = dynadapt.load(config.model)
    code = read_domains(config, model)[0]
    run(config, tmp_path / "run")
    static, total = Engine(model, segment=16, dtype="fp32", backend="reference"), []
    from dynadapt.experiments.reweight.sampler import heldout_order

    for row in heldout_order(len(code.heldout), 4, 0, 0):
        total.append(float(static.step(torch.from_numpy(code.heldout[row])[None]).double().mean()))
    assert read_metrics(tmp_path / "run")[0]["heldout"]["code"] == pytest.approx(sum(total) / len(total), abs=1e-5)


def test_a_tokenizer_is_read_through_once_for_all_domains(root, monkeypatch):
    """Its fingerprint takes 2.7 seconds of 262,144 ids: each of nine domains asked for two."""
    asked, plain = [], Tokenizer.fingerprint
    monkeypatch.setattr(Tokenizer, "fingerprint", lambda self: asked.append(self) or plain(self))
    assert len(read_domains(config_for(root), dynadapt.load(root / "model"))) > 1 and len(asked) == 1


def test_weights_changed_on_resume_hold_from_there_and_survive_another_kill(root, tmp_path):
    config, change = config_for(root, mixer="fixed", weights="uniform"), {"code": 1.0, "prose": 0.0, "manual": 0.0}
    for name in ("once", "twice"):
        with pytest.raises(Killed):
            run(config, tmp_path / name, ReweightOptions(checkpoint=2), kill_at(kind="step", step=5))
    summary = run(config, tmp_path / "once", ReweightOptions(resume=True, checkpoint=2, change=change))
    with pytest.raises(Killed):
        run(config, tmp_path / "twice", ReweightOptions(resume=True, checkpoint=2, change=change), kill_at(kind="step", step=8))
    run(config, tmp_path / "twice", ReweightOptions(resume=True, checkpoint=2))
    lines = [line for line in read_metrics(tmp_path / "once") if line["kind"] == "step"]
    assert [line["drawn"]["code"] == 3 for line in lines[4:]] == [True] * 6 and summary["changes"] == [{"step": 4, "weights": change}]
    assert without_time(read_metrics(tmp_path / "twice")) == without_time(read_metrics(tmp_path / "once"))
    with pytest.raises(RunError, match="changed weights"):
        run(config, tmp_path / "new", ReweightOptions(change=change))


def test_a_domain_that_runs_out_ends_the_run(root, tmp_path):
    summary = run(
        config_for(root, policy="stop", weights={"code": 0.1, "prose": 0.1, "manual": 0.8}, mixer="fixed", steps=200), tmp_path / "run"
    )
    assert "'manual' is out of data" in summary["ended"] and summary["steps"] < 200 and max(summary["epochs"].values()) <= 1
    last = read_metrics(tmp_path / "run")[-1]
    assert last["kind"] == "evaluation" and last["step"] == summary["steps"]


def test_a_signal_while_processes_agree_is_not_lost(root, tmp_path, monkeypatch):
    """They had agreed to go on when it came: they stop a step later."""
    agree, asked = Processes.any, []

    def slow(self, number):
        found = agree(self, number)
        asked.append(number)
        if len(asked) == 4:
            signal.raise_signal(signal.SIGTERM)
        return found

    monkeypatch.setattr(Processes, "any", slow)
    with pytest.raises(Interrupted, match="stopped by SIGTERM after step 4"):
        run(config_for(root), tmp_path / "run", ReweightOptions(checkpoint=3))
    assert asked == [0, 0, 0, 0, signal.SIGTERM]


def test_killed_for_real_on_the_command_line(root, tmp_path, capsys):
    words = [
        "reweight",
        "train",
        "--model",
        root / "model",
        "--domains",
        f"code={root / 'code'}",
        f"prose={root / 'prose.jsonl'}",
        "--mixer",
        "odm",
        "--segment",
        16,
        "--rows",
        2,
        "--steps",
        400,
        "--evaluate",
        200,
        "--checkpoint",
        40,
        "--dtype",
        "fp32",
        "--policy",
        "repeat",
        "--targets",
        "mlp",
    ]
    words = [str(word) for word in words]
    process = subprocess.Popen(
        [sys.executable, "-m", "dynadapt", *words, "--out", str(tmp_path / "run")],
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    saved = lambda: any(path.name.isdigit() and int(path.name) >= 80 for path in tmp_path.glob("run/checkpoint/*"))  # noqa: E731
    limit = time.monotonic() + 60
    while not saved() and time.monotonic() < limit and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL and not (tmp_path / "run" / "summary.json").exists()
    for out, extra in (("run", ["--resume"]), ("whole", [])):
        assert call(*words, "--out", tmp_path / out, *extra) == 0
    assert without_time(read_metrics(tmp_path / "run")) == without_time(read_metrics(tmp_path / "whole"))
    shown = capsys.readouterr().out
    assert "step 400/400" in shown and "held-out" in shown and (tmp_path / "whole" / "weights.png").exists()


@pytest.mark.parametrize(
    "changes", [dict(targets="model", scratch="1x32"), dict(adapt="full"), dict(adapt="rows", density=0.3), dict(adapt="lora", rank=2)]
)
def test_what_a_run_learned_leaves_it_as_files(changes, root, tmp_path, capsys):
    config = config_for(root, steps=4, **changes)
    summary = run(config, tmp_path / "run")
    assert call("export", tmp_path / "run", "--out", tmp_path / "out") == 0
    if config.adapt == "lora":
        assert (tmp_path / "out" / "adapter_model.safetensors").exists()
        return
    assert call("export", tmp_path / "run", "--out", tmp_path / "half", "--dtype", "bf16") == 0
    whole, half = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "half"))
    assert all(torch.equal(whole[name].bfloat16(), value) for name, value in half.items()) and whole.keys() == half.keys()
    model = dynadapt.load(tmp_path / "out")
    again = run(config_for(root, model=str(tmp_path / "out"), steps=1, lr=0.0), tmp_path / "again")
    assert again["heldout_start"] == pytest.approx(summary["heldout"], abs=1e-5) and model.tokenizer is not None
    assert call("export", tmp_path / "run", "--out", tmp_path / "out") == 2 and "exists" in capsys.readouterr().err
    assert call("plot", tmp_path / "run") == 0 and (tmp_path / "run" / "weights.png").exists()


# ------------------------------------------------------------------------------------------------------------ domains


def test_a_corpus_and_its_manifest(root, tmp_path):
    corpus = tmp_path / "corpus"
    for name in ("manual", "manual2"):
        (corpus / name).mkdir(parents=True)
        for part in ("train", "heldout"):
            (corpus / name / f"{part}.jsonl").write_text((root / "manual" / f"{part}.jsonl").read_text())
    write_manifest(corpus)
    config = config_for(root, domains={}, corpus=str(corpus), steps=2)
    assert set(run(config, tmp_path / "run")["heldout"]) == {"manual", "manual2"}
    damaged = corpus / "manual2" / "heldout.jsonl"
    damaged.write_text(damaged.read_text().replace("cat", "hat", 1))
    with pytest.raises(CorpusError, match="manual2/heldout.jsonl: its sha256 is .*, the manifest says"):
        run(config, tmp_path / "other")


def test_rows_hold_every_token_once_and_nothing_held_out(root):
    config, model = config_for(root), dynadapt.load(root / "model")
    for domain in read_domains(config, model):
        rows = [domain.train[row] for row in range(len(domain.train))]
        read = [rows[0][0], *(token for row in rows for token in row[1:])]
        assert read == domain.train.tokens[: len(read)].tolist() and len(domain.train.tokens) - len(read) < 16
        assert all(left[-1] == right[0] for left, right in zip(rows, rows[1:]))
    prose = read_domains(config, model)[1]
    training, held = (model.tokenizer.decode(part.tokens.tolist()) for part in (prose.train, prose.heldout))
    for i in range(12):
        assert (english(60, seed=50 + i) in training) != (english(60, seed=50 + i) in held)


def test_another_text_on_resume_is_refused(root, tmp_path):
    (tmp_path / "text").mkdir()
    for i in range(4):
        (tmp_path / "text" / f"{i}.txt").write_text(english(100, seed=i))
    config = config_for(root, domains={"text": str(tmp_path / "text")})
    with pytest.raises(Killed):
        run(config, tmp_path / "run", ReweightOptions(checkpoint=2), kill_at(kind="step", step=5))
    (tmp_path / "text" / "0.txt").write_text(english(100, seed=9))
    with pytest.raises(RunError, match="domain 'text' has changed"):
        run(config, tmp_path / "run", ReweightOptions(resume=True, checkpoint=2))


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    "changes, error, said",
    [
        (dict(weights={"code": 0.5, "prose": 0.3, "manual": 0.1}), MixerError, "sum to 0.9"),
        (dict(weights={"code": 0.5, "prosa": 0.5}), MixerError, "unknown domain 'prosa'"),
        (dict(weights={"code": 0.5, "prose": 0.5}), MixerError, "'manual' is missing"),
        (dict(mixer="velocitune"), MixerError, "target losses.*--target"),
        (dict(mixer="velocitune", target={"code": 1.0, "prose": 1.0}), MixerError, "'manual' is missing"),
        (dict(mixer="stratified", target={"code": 1.0}), MixerError, "uses none"),
        (dict(mixer="velocitune", target=dict.fromkeys(DOMAINS, 9.0)), MixerError, "headroom"),
        (dict(mixer="doremi"), ConfigError, "reference"),
        (dict(mixer="odm", reference="x"), ConfigError, "uses none"),
        (dict(mixer="best"), ConfigError, "mixer 'best'"),
        (dict(mixer="odm", settings={"speed": 1}), MixerError, "unknown setting 'speed'"),
        (dict(mixer="replay", settings={"run": "nowhere"}), MixerError, "not a finished run"),
        (dict(floor=0.5), MixerError, "floor"),
        (dict(domains={}), ConfigError, "none are given"),
        (dict(domains={"code": "no/such"}), ConfigError, "domain 'code'.*no such"),
        (dict(corpus="no/such", domains={}), CorpusError, "manifest"),
        (dict(scratch="2x32"), ConfigError, "scratch"),
        (dict(scratch="2by32", targets="model"), ConfigError, "LAYERSxHIDDEN"),
        (dict(segment=4096), ConfigError, "domain 'code': its training text .* too few"),
        (dict(steps=0), ConfigError, "steps 0"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(changes, error, said, root, tmp_path):
    with pytest.raises(error, match=said):
        run(config_for(root, **changes), tmp_path / "run")


def control_of(run_directory, out, *words) -> int:
    return call("reweight", "train", "--mixer", "replay", "--set", f"run={run_directory}", "--out", out, *words)


@pytest.fixture(scope="module")
def velocitune(root, tmp_path_factory) -> Path:
    """A finished run with settings of its own, of which a control is made."""
    out = tmp_path_factory.mktemp("controlled") / "velocitune"
    run(
        config_for(
            root,
            mixer="velocitune",
            target=dict.fromkeys(DOMAINS, 1.0),
            smoothing=0.2,
            steps=5,
            warmup=2,
            schedule="cosine",
            adapt="lora",
            rank=3,
            optimizer="adam",
            seed=7,
        ),
        out,
    )
    return out


def test_a_control_takes_steps_rates_and_domains_from_the_run_that_it_controls(velocitune, root, tmp_path):
    assert control_of(velocitune, tmp_path / "control") == 0
    there, here = (json.loads((path / "config.json").read_text()) for path in (velocitune, tmp_path / "control"))
    differing = {name for name in there if there[name] != here[name]}
    assert differing == {"mixer", "settings", "target", "smoothing"} and here["steps"] == 5
    steps = [[line for line in read_metrics(path) if line["kind"] == "step"] for path in (velocitune, tmp_path / "control")]
    assert [line["lr"] for line in steps[0]] == [line["lr"] for line in steps[1]]
    assert [line["total_tokens"] for line in steps[0]] == [line["total_tokens"] for line in steps[1]]
    average = json.loads((velocitune / "summary.json").read_text())["static_weights"]
    assert all(line["weights"] == pytest.approx(average) for line in steps[1])
    assert control_of(velocitune, tmp_path / "control", "--resume") == 0  # the same command goes on


@pytest.mark.parametrize(
    "words, said",
    [
        (["--steps", 9], "steps 9, there 5"),
        (["--lr", 0.5], "lr 0.5, there 0.01"),
        (["--rows", 1], "rows 1, there 3"),
        (["--seed", 0], "seed 0, there 7"),
        (["--schedule", "constant", "--warmup", 0], "schedule 'constant', there 'cosine'"),
        (["--adapt", "full"], "adapt 'full', there 'lora'"),
    ],
)
def test_a_control_that_differs_from_its_run_is_refused_by_name(words, said, velocitune, root, tmp_path, capsys):
    assert control_of(velocitune, tmp_path / "control", *words) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "control").exists()


def test_every_setting_of_a_run_is_one_that_a_control_takes_over_or_may_choose():
    """A new field of ReweightConfig is compared, unless it is named here."""
    from dynadapt.experiments.reweight.control import BY_CONTENT, EQUAL, FREE, OF_THE_MIXER

    assert {
        "steps",
        "rows",
        "segment",
        "lr",
        "decay",
        "clip",
        "warmup",
        "schedule",
        "optimizer",
        "adapt",
        "targets",
        "rank",
        "dtype",
        "seed",
    } < set(EQUAL)
    names = [*EQUAL, *BY_CONTENT, *FREE, *OF_THE_MIXER]
    assert sorted(names) == sorted(field.name for field in fields(ReweightConfig))


def test_a_control_on_other_texts_is_refused(velocitune, root, tmp_path, capsys):
    (tmp_path / "code").mkdir()
    for i in range(8):
        (tmp_path / "code" / f"{i}.txt").write_text(english(120, seed=200 + i))
    domains = [f"code={tmp_path / 'code'}", f"prose={root / 'prose.jsonl'}", f"manual={root / 'manual'}"]
    assert control_of(velocitune, tmp_path / "control", "--domains", *domains) == 2
    assert "the text of domain 'code'" in capsys.readouterr().err and not (tmp_path / "control").exists()


def test_a_control_has_the_steps_that_a_run_made_which_ran_out_of_text(root, tmp_path, capsys):
    changes = dict(
        mixer="fixed", weights={"code": 0.9, "prose": 0.05, "manual": 0.05}, policy="stop", steps=200, evaluate=200, segment=64, lr=1e-3
    )
    made = run(config_for(root, **changes), tmp_path / "run")["steps"]
    assert 1 <= made < 200
    assert control_of(tmp_path / "run", tmp_path / "control") == 0
    assert json.loads((tmp_path / "control" / "config.json").read_text())["steps"] == made
    run(config_for(root, schedule="cosine", **changes), tmp_path / "cosine")
    assert control_of(tmp_path / "cosine", tmp_path / "control-2") == 2
    assert f"make that run again with --steps {made}" in capsys.readouterr().err


def test_empty_and_single_documents_are_refused(root, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CorpusError, match="empty.* is empty"):
        run(config_for(root, domains={"code": str(root / "code"), "empty": str(tmp_path / "empty")}), tmp_path / "run")
    (tmp_path / "one.txt").write_text(english(500))
    with pytest.raises(ConfigError, match="domain 'one' has one document"):
        run(config_for(root, domains={"one": str(tmp_path / "one.txt")}), tmp_path / "run2")


@pytest.mark.parametrize(
    "words, said",
    [
        (["--domains", "code"], "NAME=PATH"),
        (["--domains", "a=x", "a=y"], "given twice"),
        (["--domains", "a=x", "--weights", "a=much"], "give a number"),
        (["--domains", "a=x", "--target", "no/such.json"], "no such file"),
        (["--domains", "a=x", "--checkpoint", "-1"], "checkpoint -1"),
    ],
)
def test_bad_words_on_the_command_line(words, said, tmp_path, capsys):
    import re

    assert call("reweight", "train", "--out", tmp_path / "run", *words) == 2
    error = capsys.readouterr().err
    assert re.search(said, error) and len(error.splitlines()) == 1


# ------------------------------------------------------------------------------------------------------------ targets


def recorded(path: Path, mixer: str, fall: float = 3.0) -> Path:
    """A run's files with held-out losses that follow the law, and a little noise."""
    path.mkdir()
    write_json(path / "config.json", {"kind": "reweight", "mixer": mixer})
    write_json(path / "summary.json", {})
    lines = [{"kind": "evaluation", "total_tokens": 0, "heldout": {"a": 6.0, "b": 6.0}}]
    for k in range(1, 13):
        n = 10_000 * k
        noise = 1e-3 * (-1) ** k
        lines.append(
            {
                "kind": "evaluation",
                "total_tokens": n,
                "heldout": {"a": 2.0 + fall * (n / 1e4) ** -0.5 + noise, "b": 1.0 + 2 * (n / 1e4) ** -0.3 - noise},
            }
        )
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_targets_from_a_run(tmp_path, root, capsys):
    found = fit_run(recorded(tmp_path / "sample", "proportional"), 400_000)
    assert (
        found["target"]["a"] == pytest.approx(2.0 + 3.0 * 40**-0.5, abs=0.02)
        and (tmp_path / "sample" / "targets.png").stat().st_size > 10_000
    )
    assert found["interval"]["a"][0] < found["target"]["a"] < found["interval"]["a"][1]
    assert found["form"]["a"] == "power" and 0 < found["backtest"]["a"] < 0.01
    from dynadapt.experiments.reweight.config import named_numbers

    assert named_numbers("target", [str(tmp_path / "sample" / "targets.json")]) == found["target"]
    with pytest.raises(RunError, match="weights move"):
        fit_run(recorded(tmp_path / "dynamic", "odm"), 400_000)
    with pytest.raises(ScalingError, match="domain 'a'.*at most 32 times"):
        fit_run(tmp_path / "sample", 1e9)
    with pytest.raises(ScalingError, match="domain 'a'.*no trend"):
        fit_run(recorded(tmp_path / "flat", "proportional", fall=0.0), 400_000)


# ------------------------------------------------------------------------------------------------------------ the engine's part


def tiny_engine(**changes) -> Engine:
    settings = dict(adapt=Full(), optimizer=Adam(lr=1e-2), streams=2, segment=12, shared=True, dtype="fp64", backend="reference")
    return Engine(random_model(tiny_config("llama", layers=2), seed=3, std=0.1), **{**settings, **changes})


def test_row_weights_are_factors_of_the_rows_losses():
    tokens = torch.randint(0, 90, (2, 13), generator=torch.Generator().manual_seed(0))
    weighted, alone, plain = tiny_engine(), tiny_engine(), tiny_engine()
    assert torch.equal(weighted.step(tokens, weights=[2.0, 0.0])[:1], alone.step(tokens, lengths=[12, 0])[:1])
    plain.step(tokens, weights=[1.0, 1.0])
    masters = [engine.learners[0].state.master for engine in (weighted, alone, plain)]
    assert torch.allclose(masters[0], masters[1], rtol=0, atol=1e-9) and (masters[0] - masters[2]).abs().max() > 1e-4
    usual = tiny_engine()
    usual.step(tokens)
    assert torch.equal(usual.learners[0].state.master, masters[2])
    for bad in ([1.0], [1.0, -1.0], [1.0, float("nan")]):
        with pytest.raises(ValueError, match="weights="):
            plain.step(tokens, weights=bad)


@pytest.mark.parametrize(
    "adapt, shared", [(None, False), (LoRA(rank=2), True), (LoRA(rank=2), False), (Full(targets="model"), True), (Full(), False)]
)
def test_score_is_what_the_next_step_scores_and_leaves_no_trace(adapt, shared):
    tokens = torch.randint(0, 90, (2, 13), generator=torch.Generator().manual_seed(0))
    settings = dict(adapt=adapt, optimizer=Adam(lr=1e-2) if adapt else None, shared=shared)
    if not shared:
        settings["memory"] = SegmentMemory(length=8)
    looked, plain = tiny_engine(**settings), tiny_engine(**settings)
    first = torch.cat([looked.score(tokens[:1], 0), looked.score(tokens[1:], 0 if shared else 1)])
    assert torch.allclose(first, plain.step(tokens), atol=1e-12) and looked.ledger.step["forward"] > 0 == looked.ledger.step["backward"]
    assert torch.allclose(looked.step(tokens), first, atol=1e-12)
    again = looked.score(tokens[[0, 1, 0]])
    assert again.shape == (3, 12) and torch.equal(again[0], again[2]) and torch.equal(again[:1], again[2:])
    assert ((again[0] - first[0]).abs().max() > 1e-3) == (adapt is not None)
    second = looked.step(tokens), plain.step(tokens)
    assert torch.equal(*second)
    with pytest.raises(ValueError, match="tokens has shape"):
        looked.score(tokens[0])
