"""dynadapt.evaluate: the command line's numbers from one call, whatever the model and the text are given as; nothing kept unless asked."""

import json
import os
import signal
import tempfile
from dataclasses import FrozenInstanceError
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import call
from helpers import to_transformers
from tiny import english, tiny_directory

import dynadapt
from dynadapt import RMS, SGD, Adam, AdamW, Full, Lion, LoRA, Muon, Overlap, RowSparse, SegmentMemory
from dynadapt.common.notes import RunNote
from dynadapt.experiments.config import LEARNING_RATES, ConfigError, EvalConfig
from dynadapt.experiments.dyneval import adapt_of, optimizer_of
from dynadapt.experiments.evaluation_settings import settings_from
from dynadapt.model import ModelError, load
from dynadapt.runs.append_only import read_metrics
from dynadapt.runs.rundir import RunError
from dynadapt.runs.text import TextError

FAST = dict(segment=32, rank=2, lr=0.01, dtype="fp32", memory=0)
WORDS = ["--segment", "32", "--rank", "2", "--lr", "0.01", "--dtype", "fp32", "--memory", "0"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_directory(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def texts(tmp_path):
    for name, seed in (("a.txt", 1), ("b.txt", 2)):
        (tmp_path / name).write_text(english(150, seed))
    return [tmp_path / "a.txt", tmp_path / "b.txt"]


def numbers(summary: dict) -> dict:
    """What must not depend on how the run was asked for."""
    return {
        name: value
        for name, value in summary.items()
        if name not in ("seconds", "tokens_per_second", "files", "model", "documents") and "peak" not in name
    }


def scored(documents):
    return [{name: value for name, value in d.items() if name != "name"} for d in documents]


@pytest.mark.parametrize("how", ["lora", "full, two streams", "static with memory"])
def test_the_numbers_are_the_command_lines_bit_for_bit(model, texts, tmp_path, how):
    words, settings = {
        "lora": ([], {}),
        "full, two streams": (["--adapt", "full", "--streams", "2"], {"adapt": Full(), "streams": 2}),
        "static with memory": (["--adapt", "none", "--memory", "64"], {"adapt": None, "memory": SegmentMemory(64)}),
    }[how]
    assert call("eval", "--model", model, "--text", *texts, *WORDS, *words, "--scores", "--out", tmp_path / "cli", "--quiet") == 0
    summary = json.loads((tmp_path / "cli" / "summary.json").read_text())
    rows = np.load(tmp_path / "cli" / "scores.npy")
    settings = {**FAST, **settings}
    if how == "full, two streams":
        settings["rank"] = 2
    ways = {
        "paths": dict(model=model, text=texts),
        "strings": dict(model=str(model), string=[t.read_text() for t in texts]),
        "a loaded model": dict(model=load(model), text=[str(t) for t in texts]),
        "a run directory": dict(model=model, text=texts, out=tmp_path / "api"),
    }
    for way, given in ways.items():
        result = dynadapt.evaluate(**given, scores=True, **settings)
        assert numbers(result.summary) == numbers(summary), way
        assert scored(result.documents) == scored(summary["documents"]) and np.array_equal(result.scores, rows), way
        assert (result.nll, result.bits_per_byte, result.tokens, result.bytes) == tuple(
            summary[k] for k in ("nll", "bits_per_byte", "tokens", "bytes")
        )
        assert result.perplexity == summary["perplexity"] and result.flops == summary["flops"]
    config = [json.loads((tmp_path / run / "config.json").read_text()) for run in ("cli", "api")]
    assert config[0] == config[1]


def test_a_live_model_and_its_tokenizer(model, texts):
    live = to_transformers(load(model))
    expected = dynadapt.evaluate(model, texts[0], **FAST)
    with pytest.raises(RunError, match="no tokenizer"):
        dynadapt.evaluate(live, texts[0], **FAST)
    assert dynadapt.evaluate(live, texts[0], tokenizer=load(model).tokenizer, **FAST).nll == expected.nll
    with pytest.raises(ConfigError, match="tokenizer='x': expected a dynadapt.model.Tokenizer"):
        dynadapt.evaluate(model, texts[0], tokenizer="x", **FAST)


def test_nothing_is_kept_without_out(model, texts, tmp_path, monkeypatch):
    (work := tmp_path / "work").mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setattr(tempfile, "tempdir", str(work))
    result = dynadapt.evaluate(model, string=[texts[0].read_text(), "the old cat ran"], **FAST)
    assert not list(work.rglob("*")) and result.out is None and result.scores is None
    assert [d["name"] for d in result.documents] == ["string[0]", "string[1]"]
    assert dynadapt.evaluate(model, string="the old cat ran", **FAST).documents[0]["name"] == "string"


def test_the_engine_goes_on_where_the_text_ended(model, texts, tmp_path):
    for out in (None, tmp_path / "run"):
        result = dynadapt.evaluate(model, texts[0], out=out, **FAST)
        ids = torch.tensor([load(model).tokenizer.encode(english(40, 9))[:33]])
        fresh = dynadapt.Engine(load(model), segment=32, dtype="fp32")
        assert result.engine.updates == result.summary["updates"] > 0
        assert result.engine.score(ids).mean() < fresh.score(ids).mean() - 0.3
        assert result.engine.generate("the cat", 4).ids
    again = dynadapt.evaluate(model, texts[0], out=tmp_path / "run", resume=True, **FAST)  # finished: read, and its engine restored
    assert again.nll == result.nll and torch.equal(again.engine.score(ids), result.engine.score(ids))


def test_a_stopped_run_goes_on(model, texts, tmp_path):
    whole = dynadapt.evaluate(model, texts, scores=True, **FAST)
    with pytest.raises(KeyboardInterrupt, match=r"evaluate\(..., out='.*run', resume=True\) goes on"):
        dynadapt.evaluate(
            model,
            texts,
            out=tmp_path / "run",
            scores=True,
            **FAST,
            on_segment=lambda line: line["segment"] == 2 and os.kill(os.getpid(), signal.SIGINT),
        )
    with pytest.raises(RunError, match="unfinished"):
        dynadapt.evaluate(model, texts, out=tmp_path / "run", scores=True, **FAST)
    result = dynadapt.evaluate(model, texts, out=tmp_path / "run", scores=True, resume=True, **FAST)
    assert result.nll == whole.nll and np.array_equal(result.scores, whole.scores)


def test_every_segment_is_told(model, texts, tmp_path, capsys):
    told = []
    result = dynadapt.evaluate(model, texts[0], out=tmp_path / "run", on_segment=told.append, **FAST)
    lines = list(read_metrics(tmp_path / "run"))
    assert [{k: v for k, v in line.items() if k not in ("fraction", "gain")} for line in told] == lines
    assert told[-1]["total_nll"] == result.nll and 0 < told[0]["fraction"] < told[-1]["fraction"] <= 1
    assert capsys.readouterr() == ("", "")
    dynadapt.evaluate(model, texts[0], progress=True, **FAST)
    assert "nll" in capsys.readouterr().out


def test_settings_may_be_what_an_engine_takes():
    adapts = [
        LoRA(),
        LoRA(rank=3, alpha=5.0, targets="mlp", layers=range(1, 2)),
        RowSparse(density=0.3, targets="attn"),
        RowSparse(select="contrast"),
        Full(),
        Full(targets="model"),
        LoRA,
        None,
    ]
    for adapt in adapts:
        settings = settings_from({"adapt": adapt})
        assert adapt_of(EvalConfig.from_dict(settings)) == (adapt() if isinstance(adapt, type) else adapt)
    for optimizer, adapt in (
        (Adam(lr=0.1, clip=0.5), "lora"),
        (SGD(lr=1.0, decay=0.1), "full"),
        (AdamW(), "rows"),
        (RMS(lr=1e-5), "full"),
        (Lion(lr=1e-4), "lora"),
        (Muon(lr=1e-3, decay=0.1), "full"),
        (SGD, "lora"),
    ):
        config = EvalConfig.from_dict(settings_from({"optimizer": optimizer, "adapt": adapt}))
        assert optimizer_of(config) == (SGD(lr=LEARNING_RATES["lora"]["sgd"]) if optimizer is SGD else optimizer)  # a class is its word
    for memory, said in (
        (SegmentMemory(100, 2, "reproject"), {"memory": 100, "sinks": 2, "refresh": "reproject"}),
        (Overlap(64), {"memory": 0, "context": 64}),
        (None, {"memory": 0}),
        (7, {"memory": 7}),
    ):
        assert settings_from({"memory": memory}) == said


@pytest.mark.parametrize(
    "given,said",
    [
        ({"adapt": LoRA(rank=4), "rank": 8}, r"rank=8 with adapt=LoRA\(rank=4.*says rank=4: give one of them"),
        ({"optimizer": Adam(lr=0.1), "lr": 0.2}, "lr=0.2 with optimizer=Adam"),
        ({"memory": SegmentMemory(8, 2), "sinks": 4}, "sinks=4 with memory=Segment"),
        ({"adapt": RowSparse(every=4)}, "adapt=RowSparse.*every is no setting of a run, and stays 16; an Engine takes it"),
        ({"optimizer": Adam(betas=(0.8, 0.9))}, "betas is no setting"),
        ({"optimizer": SGD(momentum=0.9)}, "momentum is no setting"),
        ({"adapt": 5}, "adapt=5: expected one of 'lora'"),
        ({"adapt": Adam()}, "adapt=Adam"),
        ({"optimizer": None}, "optimizer=None"),
        ({"adapt": "peft"}, "adapt 'peft'"),
        ({"memry": 5}, "unknown setting 'memry'; did you mean memory?"),
        ({"memory": "big"}, "memory 'big'"),
        ({"segment": 0}, "segment 0"),
        ({"resume": True}, "resume=True without out"),
        ({"on_segment": 5}, "on_segment=5: expected a function"),
    ],
)
def test_settings_that_do_not_fit_are_named(model, given, said):
    with pytest.raises(ConfigError, match=said):
        dynadapt.evaluate(model, string="the cat sat", **given)


def test_settings_without_effect_are_named(model):
    with pytest.warns(RunNote) as notes:
        dynadapt.evaluate(model, string="the cat sat", adapt=None, rank=2, memory=SegmentMemory(8), segment=8)
    assert [str(note.message) for note in notes if note.category is RunNote] == ["rank 2 has no effect with adapt 'none'"]


@pytest.mark.parametrize(
    "given,error,said",
    [
        ({"text": "Once upon a time there was a cat"}, TextError, "no such file; if this is the text itself, give it as string=..."),
        ({"text": "line\nline\n" * 1000}, TextError, "string=..."),
        ({"text": "a\0b"}, TextError, "string=..."),
        ({"text": ""}, TextError, "string=..."),
        ({"text": Path("/no/such/file.txt")}, TextError, "no such file"),
        ({"text": ["/no/such/file.txt"]}, TextError, "no such file"),
        ({"text": [[1, 2, 3]]}, ConfigError, "token ids to Engine.step"),
        ({"text": torch.arange(5)}, ConfigError, "expected a path"),
        ({"text": b"the cat"}, ConfigError, "string"),
        ({"text": 5}, ConfigError, "text=5"),
        ({}, ConfigError, "text: none given"),
        ({"text": []}, ConfigError, "text: none given"),
        ({"string": []}, ConfigError, "text: none given"),
        ({"text": "builtin:nothing"}, TextError, "no such built-in text"),
        ({"string": b"x"}, ConfigError, "string=b'x'"),
        ({"string": ["a", 3]}, ConfigError, "string="),
        ({"string": {"a": "b"}}, ConfigError, "string="),
        ({"string": ""}, TextError, "^string is empty"),
        ({"string": ["the cat", ""]}, TextError, r"string\[1\] is empty"),
        ({"string": "x"}, TextError, "^string has 1 token: too short"),
        ({"string": "\ud800"}, TextError, "string is not valid Unicode"),
        ({"string": "a b", "text": "x"}, ConfigError, "text and string: give one"),
        ({"string": "a b", "out": "x"}, ConfigError, "string with out"),
    ],
)
def test_texts_that_are_none_are_refused_with_what_to_do(model, given, error, said):
    with pytest.raises(error, match=said):
        dynadapt.evaluate(model, **given, **FAST)


def test_models_that_are_none(texts):
    for given, said in ((5, "model is a int"), ("smollm2-135n", "did you mean 'smollm2-135m'"), (None, "model is a NoneType")):
        with pytest.raises(ModelError, match=said):
            dynadapt.evaluate(given, texts[0])


def test_a_run_that_diverges_says_so_without_a_directory(model):
    with pytest.raises(RunError, match=r"adaptation diverged at lr 1e\+20.*--dtype fp32$"):
        dynadapt.evaluate(model, string=english(300), optimizer="sgd", clip=0.0, **{**FAST, "lr": 1e20})


def test_gain_and_what_it_says_of_itself(model, texts):
    adapted, static = (dynadapt.evaluate(model, texts, scores=True, **{**FAST, "adapt": adapt}) for adapt in ("lora", "none"))
    assert adapted.gain_over(static) == static.nll - adapted.nll == -static.gain_over(adapted) > 0.1
    for other, said in (
        (dynadapt.evaluate(model, texts[0], **FAST), "other scored other tokens"),
        (5, "other=5: expected what evaluate returned"),
    ):
        with pytest.raises(ValueError, match=said):
            adapted.gain_over(other)
    assert f"nll={adapted.nll:.4f}" in repr(adapted) and "LoRA of rank 2" in repr(adapted) and len(repr(adapted)) < 200
    assert "static" in repr(static)
    page = adapted._repr_html_()
    assert page.startswith("<table>") and f"{adapted.nll:.4f}" in page and "&lt;" not in page
    with pytest.raises(FrozenInstanceError):
        adapted.nll = 0.0


@pytest.mark.model
def test_the_real_model_by_its_name():
    result = dynadapt.evaluate("smollm2-135m", "builtin:python-reference", tokens=600, segment=256, rank=4)
    assert result.config.model == "smollm2-135m" and 2 < result.nll < 5 and result.tokens == 599
    assert result.engine.generate("The capital of France is", 8).text.lstrip().startswith("Paris")
