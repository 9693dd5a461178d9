"""The command line: its options, its errors, its progress, pipes, export."""

import io
import json
import re
import subprocess
import sys
from dataclasses import fields
from functools import partial
from pathlib import Path

import pytest
from command_line import EVENT, call, words_of
from tiny import english, tiny_directory

from dynadapt.cli import build_parser, main
from dynadapt.commands.settings import config_from
from dynadapt.common.options import settings_of
from dynadapt.experiments.config import ConfigError, EvalConfig
from dynadapt.experiments.guarded import ADDED
from dynadapt.runs.progress import Lines

CONTRACT = """--model --text --tokens --adapt --rank --targets --layers --density --segment --memory --sinks --refresh --context --every
    --optimizer --lr --decay --clip --reset --streams --split --dtype --backend --seed --out --resume""".split()


small = partial(words_of, "eval")


@pytest.fixture(scope="module")
def model_directory(tmp_path_factory) -> Path:
    return tiny_directory(tmp_path_factory.mktemp("model"))


@pytest.fixture
def text(tmp_path) -> Path:
    path = tmp_path / "a.txt"
    path.write_text(english(200))
    return path


def test_one_run_reads_its_model_once(model_directory, text, tmp_path, monkeypatch, capsys):
    """Memory that nobody gave asks the model for its positions before the run begins; a large vocabulary takes seconds each time."""
    import dynadapt.model

    loaded, load = [], dynadapt.model.load
    monkeypatch.setattr(dynadapt.model, "load", lambda name: loaded.append(name) or load(name))
    given = ["--text", str(text), "--model", str(model_directory), "--tokens", "40", "--segment", "16", "--out", str(tmp_path / "run")]
    assert call("eval", *given) == 0
    assert [name for name in loaded if isinstance(name, str)] == [str(model_directory)] and "memory" in capsys.readouterr().out


def test_help_names_every_option_and_default(capsys):
    assert call("eval", "--help") == 0
    text = " ".join(capsys.readouterr().out.split())
    for option in CONTRACT:
        assert option in text
    for field in fields(EvalConfig):
        if field.name in (
            "text",
            "tokens",
            "rank_pattern",
            "alpha_pattern",
            "rslora",
            "keep_a",
            "rate_pattern",
            "b_rate",
            "also",
            "dora",
            "layers",
            "lr",
            "split",
            "accumulate",
            "recompute",
            *ADDED,
            "learn_from",
            "keep_prior",
            "hypergradient",
        ):
            continue
        if field.name == "memory":  # settled when the model is known
            assert re.search(r"--memory .*?\(default: 512; fewer or none where", text)
            continue
        if field.name in ("betas", "weight_decay"):  # the optimizer's own
            assert re.search({"betas": r"--betas .*?0\.9,0\.999\)", "weight_decay": r"--weight-decay .*?0\.01\)"}[field.name], text)
            continue
        if field.name == "alpha":  # follows the rank
            assert re.search(r"--alpha .*?twice the rank", text)
            continue
        assert re.search(rf"--{field.name} .*?\(default: {re.escape(str(field.default))}\)", text), field.name
    for command in ("eval", "sweep", "plot", "demo", "fetch", "info", "explain", "export"):
        assert call(command, "--help") == 0


def test_without_options_the_configuration_is_the_default():
    arguments = build_parser().parse_args(["eval", "--text", "a", "b"])
    assert config_from(arguments) == EvalConfig(text=("a", "b"))


@pytest.mark.parametrize(
    "changes",
    [{}, {"layers": (2, 5)}, {"reset": 4096}, {"reset": "auto", "split": True, "streams": 3}, {"lr": 1e-5, "clip": 0.0, "adapt": "full"}],
)
def test_a_configuration_survives_the_command_line_and_json(changes):
    config = EvalConfig(**{"text": ("a.txt",), **changes})
    assert config_from(build_parser().parse_args(["eval", *config.arguments()])) == config
    content = json.loads(json.dumps(config.to_dict()))
    assert EvalConfig.from_dict(content).to_dict() == config.to_dict()


@pytest.mark.parametrize(
    "words, message",
    [
        (["--memory", "8", "--context", "8"], "memory 8 and context 8"),
        (["--layers", "7:3"], "layers '7:3'"),
        (["--targets", "model"], "targets 'model' with adapt 'lora'"),
        (["--reset", "often"], "never, document, auto, with a guard"),
        (["--density", "0"], "density 0.0"),
        (["--segment", "0"], "segment 0"),
        (["--streams", "2", "--split", "--tokens", "3"], "streams 2 with split: the text has at most"),
        (["--tokens", "1"], "at least 2"),
        (["--lr", "-1"], "lr -1.0"),
        (["--adapt", "prefix"], "invalid choice"),
        (["--text", "/nowhere.txt"], "no such file"),
        (["--text", "/"], "is a directory"),
        (["--model", "/nowhere"], "/nowhere"),
        (["--optimizer", "rms"], "adam, adamw, sgd, lion or muon"),
    ],
)
def test_errors_are_one_line_and_exit_2(words, message, model_directory, text, tmp_path, capsys):
    assert call(*small(model_directory, text, tmp_path / "run"), *words) == 2
    captured = capsys.readouterr()
    *before, error = captured.err.splitlines()
    assert error.startswith("dynadapt: error: ")
    assert before == ([f"loading {model_directory}, to score {text}"] if "--split" in words else [])  # found only when tokens are known
    assert message in captured.err and "Traceback" not in captured.err


def test_debug_shows_the_traceback(model_directory, tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        main(["eval", "--text", "/nowhere.txt", "--debug"])


def test_unknown_settings_are_refused_by_name():
    with pytest.raises(ConfigError, match="'rnak'"):
        EvalConfig.from_dict({"rnak": 4})
    for name, accepted in ((name, said.choices) for name, said in settings_of(EvalConfig).items() if said.choices):
        with pytest.raises(ConfigError, match=accepted[-1]):
            EvalConfig(**{name: "nonsense"})


def test_eval_prints_a_summary_and_names_its_directory(model_directory, text, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [word for word in small(model_directory, text, "x") if word not in ("--out", "x")]
    assert call(*words) == 0
    assert call(*words) == 0  # a second run of the same gets a directory of its own
    output = capsys.readouterr().out
    assert "bits per byte" in output
    names = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert len(names) == 2 and names[1] == names[0] + "-2" and "-a-lora" in names[0]
    assert call(*words, "--resume") == 0
    assert "finished" in capsys.readouterr().out


def test_a_pipe_through_the_command_line(model_directory, text, tmp_path):
    words = [sys.executable, "-m", "dynadapt", *map(str, small(model_directory, "-", tmp_path / "piped"))]
    with subprocess.Popen(["cat", str(text)], stdout=subprocess.PIPE) as cat:
        done = subprocess.run(words, stdin=cat.stdout, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert call(*small(model_directory, text, tmp_path / "file")) == 0
    piped, file = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("piped", "file"))
    assert piped["nll"] == file["nll"] and piped["tokens"] == file["tokens"]


def test_lines_of_progress():
    stream = io.StringIO()
    with Lines(stream, every=3600) as lines:
        lines(EVENT)
        lines({**EVENT, "segment": 1, "total_tokens": 200, "total_seconds": 1.0, "fraction": 0.5, "gain": 0.25})
    first, last = stream.getvalue().splitlines()
    assert "segment 1" in first and "25%" in first and "200 tokens/s" in first and "left 0:02" in first
    assert "segment 2" in last and "gain +0.2500" in last and "100%" in last and "left 0:00" in last


def test_export_gives_a_peft_directory(model_directory, text, tmp_path, capsys):
    assert call(*small(model_directory, text, tmp_path / "run")) == 0
    assert call("export", tmp_path / "run", "--out", tmp_path / "adapter") == 0
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["r"] == 2
    (tmp_path / "mine.tmp").mkdir()
    (tmp_path / "mine.tmp" / "notes.txt").write_text("mine")
    assert call("export", tmp_path / "run", "--out", tmp_path / "mine") == 0
    assert (tmp_path / "mine.tmp" / "notes.txt").read_text() == "mine" and not list(tmp_path.glob(".mine*"))
    capsys.readouterr()
    assert call("export", tmp_path / "run", "--out", tmp_path / "adapter") == 2
    assert call("export", tmp_path / "run", "--stream", 1, "--out", tmp_path / "other") == 2
    assert call(*small(model_directory, text, tmp_path / "static"), "--adapt", "none") == 0
    assert call("export", tmp_path / "static", "--out", tmp_path / "other") == 2
    errors = capsys.readouterr().err
    assert "exists" in errors and "streams 0 to 0" in errors and "--adapt none" in errors


def test_explain_and_info(model_directory, capsys):
    assert call("explain", "--model", model_directory, "--backend", "reference", "--dtype", "fp32") == 0
    assert "reference" in capsys.readouterr().out
    assert call("info") == 0
    output = capsys.readouterr().out
    for word in ("dynadapt", "OpenMP", "torch", "native", "backends"):
        assert word in output
