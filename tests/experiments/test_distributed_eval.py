"""Evaluation in several processes: documents shared out, results merged, the same scores as one process, bit for bit."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from run_files import Killed, kill_at
from tiny import english, tiny_directory

from dynadapt.experiments.config import ConfigError, EvalConfig
from dynadapt.experiments.distributed_eval import _check, _check_begun, merged_lines, merged_scores, shared_out
from dynadapt.experiments.dyneval import RunOptions, run
from dynadapt.runs.append_only import read_metrics
from dynadapt.runs.rundir import SCORE, RunDirectory, RunError
from dynadapt.runs.text import TextError

pytestmark = pytest.mark.usefixtures("one_thread")

SHARES = [[0, 3], [1, 2, 4]]
WORDS = (400, 90, 310, 30, 50)  # the two longest go to different processes


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> EvalConfig:
    root = tmp_path_factory.mktemp("parts")
    tiny_directory(root / "model")
    for number, words in enumerate(WORDS):
        (root / f"{number}.txt").write_text(english(words, seed=number))
    return EvalConfig(
        model=str(root / "model"),
        text=tuple(str(root / f"{number}.txt") for number in range(5)),
        segment=16,
        streams=2,
        memory=16,
        rank=2,
        reset="document",
        backend="cpu",
        dtype="fp32",
        lr=0.01,
    )


def torchrun(config: EvalConfig, *words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "dynadapt", "eval"]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run([*command, *config.arguments(), *words], env=environment, capture_output=True, text=True, timeout=300)


def test_two_processes_score_as_one_bit_for_bit(config, tmp_path):
    """And go on where they were stopped: one part is killed before, by a run of it alone."""
    whole = run(config, tmp_path / "whole", RunOptions(scores=True))
    assert shared_out([Path(text).stat().st_size for text in config.text], 2) == SHARES
    directory = RunDirectory(tmp_path / "two", config.to_dict(), False, True)
    directory.begin()
    directory.close()
    second = replace(config, text=tuple(config.text[i] for i in SHARES[1]))
    with pytest.raises(Killed):
        run(second, tmp_path / "two" / "parts" / "1-of-2", RunOptions(scores=True, checkpoint=2), kill_at(segment=3))
    log = ("--log-to", "tensorboard") if find_spec("tensorboard") else ()
    done = torchrun(config, "--out", str(tmp_path / "two"), "--scores", "--resume", *log)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "two").rglob("events.out.tfevents.*"))) == (1 if log else 0)  # the whole run's, and no part's
    assert done.stderr.count("loading ") == 1
    assert done.stdout.count("written to") == 1 and done.stdout.count("100%") <= 1, done.stdout
    summary = json.loads((tmp_path / "two" / "summary.json").read_text())
    assert summary["documents"] == whole["documents"]
    assert [document["name"] for document in summary["documents"]] == [f"{number}.txt" for number in range(5)]
    same = ("tokens", "bytes", "updates", "skipped_updates", "resets", "learned_parameters", "dtype")
    assert {name: summary[name] for name in same} == {name: whole[name] for name in same} and summary["processes"] == 2
    assert set(whole) < set(summary)
    for name in ("nll", "perplexity", "bits_per_byte"):
        assert summary[name] == pytest.approx(whole[name], rel=1e-12)
    assert summary["flops"] == pytest.approx(whole["flops"], rel=0.01)  # other neighbours: rows are filled up to other lengths
    one, two = (np.load(tmp_path / name / "scores.npy") for name in ("whole", "two"))
    assert np.array_equal(np.sort(one, order=("document", "position")), two)
    lines = read_metrics(tmp_path / "two")
    assert [line["segment"] for line in lines] == list(range(len(lines))) and {line["process"] for line in lines} == {0, 1}
    assert sum(line["tokens"] for line in lines) == lines[-1]["total_tokens"] == whole["tokens"]
    assert lines[-1]["total_nll"] == pytest.approx(whole["nll"], rel=1e-12)
    assert lines[-1]["total_bits_per_byte"] == pytest.approx(whole["bits_per_byte"], rel=1e-12)
    adapted = run(replace(config, adapt="none", reset="never"), tmp_path / "static")
    assert whole["nll"] < adapted["nll"] - 0.1  # resetting at each document is no accident of learning nothing


@pytest.mark.parametrize(
    "changes, said",
    [
        (dict(reset="never"), "reset 'never' with 2 processes: .* --reset document"),
        (dict(reset="auto"), "reset 'auto' with 2 processes"),
        (dict(tokens=100), "tokens 100 with 2 processes"),
        (dict(text=("0.txt",)), "text: 1 with 2 processes"),
        (dict(text=("-", "-")), "text '-' with 2 processes: a pipe"),
    ],
)
def test_what_makes_documents_depend_on_each_other_is_refused(changes, said, config):
    if changes.get("text") == ("0.txt",):
        changes = dict(text=config.text[:1])
    with pytest.raises(ConfigError, match=said):
        _check(replace(config, **changes), 2)


def test_a_text_of_its_own_is_not_split_and_none_is_missing(config, tmp_path):
    with pytest.raises(ConfigError, match="split with 2 processes"):
        _check(replace(config, text=config.text[:1], split=True, streams=2), 2)
    with pytest.raises(TextError, match="no such file"):
        _check(replace(config, text=(*config.text, str(tmp_path / "none.txt"))), 2)
    assert [fact["bytes"] for fact in _check(replace(config, adapt="none", reset="never"), 2)[1]] == [
        Path(text).stat().st_size for text in config.text
    ]


def test_as_many_processes_go_on_as_began(tmp_path):
    (tmp_path / "parts" / "0-of-2").mkdir(parents=True)
    _check_begun([tmp_path / "parts" / f"{rank}-of-2" for rank in range(2)])
    with pytest.raises(RunError, match="begun with 2 processes, not with 3"):
        _check_begun([tmp_path / "parts" / f"{rank}-of-3" for rank in range(3)])


@pytest.mark.parametrize(
    "sizes, count, shares", [([5, 1, 1, 1, 1], 2, [[0], [1, 2, 3, 4]]), ([1, 2, 3], 3, [[2], [1], [0]]), ([4, 4, 4], 2, [[0, 2], [1]])]
)
def test_shares_are_even_by_size(sizes, count, shares):
    assert shared_out(sizes, count) == shares


def test_merged_lines_and_scores():
    def line(index: int, total: int, nll: float) -> dict:
        return {"segment": index, "documents": [0, None], "bytes": 10, "total_tokens": total, "total_nll": nll, "total_seconds": total / 4}

    merged = merged_lines([[line(0, 4, 1.0), line(1, 8, 2.0)], [line(0, 2, 4.0)]], [[2], [0, 1]])
    assert [(of["process"], of["documents"], of["total_tokens"], of["total_nll"]) for of in merged] == [
        (0, [2, None], 4, 1.0),
        (1, [0, None], 6, 2.0),
        (0, [2, None], 10, 2.4),
    ]
    assert [of["total_seconds"] for of in merged] == [1.0, 1.0, 2.0]
    row = lambda document, position, nll: (document, position, nll, 7, position, position + 1)  # noqa: E731
    parts = [np.array([row(0, 2, 0.5), row(0, 1, 0.25)], SCORE), np.array([row(1, 1, 4.0), row(0, 1, 3.0)], SCORE)]
    assert merged_scores(parts, [[1], [0, 2]]).tolist() == [row(0, 1, 3.0), row(1, 1, 0.25), row(1, 2, 0.5), row(2, 1, 4.0)]
