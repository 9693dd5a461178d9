"""Sweeps (one directory a cell, finished cells kept), and pictures from files alone."""

import csv
import json
import shutil
import signal
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import matplotlib.image
import psutil
import pytest
from command_line import call
from tiny import english, tiny_directory

from dynadapt.experiments import sweep
from dynadapt.experiments.config import ConfigError, EvalConfig
from dynadapt.experiments.plot import plot_runs
from dynadapt.experiments.sweep import expand, read_sweep, run_sweep
from dynadapt.runs.append_only import read_metrics
from dynadapt.runs.labels import labels_of, plain_static
from dynadapt.runs.metrics import read_run
from dynadapt.runs.rundir import RunError, RunNote


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "a.txt").write_text(english(300))
    return {
        "model": str(tiny_directory(folder / "model")),
        "text": str(folder / "a.txt"),
        "segment": 16,
        "rank": 2,
        "density": 0.5,
        "backend": "reference",
        "dtype": "fp32",
    }


def test_a_grid_is_every_combination_and_then_the_cells():
    cells = expand({"text": "a.txt"}, {"lr": [0.001, 0.002], "memory": [0, 512]}, [{"adapt": "none"}, {"lr": 0.001, "memory": 0}])
    assert [cell.name for cell in cells] == [
        "lr=0.001,memory=0",
        "lr=0.001,memory=512",
        "lr=0.002,memory=0",
        "lr=0.002,memory=512",
        "adapt=none",
    ]
    assert cells[1].config == EvalConfig(text=("a.txt",), lr=0.001, memory=512)


@pytest.mark.parametrize(
    "content, message",
    [
        ("base: {}", "give base: and grid: or cells:"),
        ("grid: {lr: 0.1}", "lr is 0.1"),
        ("grid: {rnak: [1]}", "'rnak'"),
        ("cells: [{memory: 8, context: 8}]", "memory 8 and context 8"),
        ("cells: [3]", "list of settings"),
        ("cells: []\nspeed: 3", "unknown key 'speed'"),
        ("a: [", "not readable as YAML"),
    ],
)
def test_a_sweep_file_that_does_not_fit_is_refused(content, message, tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_sweep(path)


def test_cells_that_compute_the_same_are_told(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text("base: {text: a.txt, rank: 4}\ngrid: {adapt: [none, lora], lr: [0.1, 0.2]}\ncells: [{adapt: rows, alpha: 3}]")
    with pytest.warns(RunNote) as notes:
        assert len(read_sweep(path).cells) == 5
    assert [str(note.message) for note in notes] == [
        "alpha 3 has no effect with adapt 'rows'",
        "cells adapt=none,lr=0.1, adapt=none,lr=0.2 compute the same: without effect are lr with adapt 'none'",
    ]


@pytest.fixture
def in_process(monkeypatch):
    """Cells run in this process: what starting one costs is of no interest here."""

    monkeypatch.setattr(sweep, "_run_child", lambda words: (call(*words), "it said so above"))


def test_a_sweep_runs_and_a_second_time_only_what_is_missing(base, tmp_path, capfd):
    out, path = tmp_path / "out", tmp_path / "s.yaml"
    path.write_text(json.dumps({"out": str(out), "base": base, "grid": {"adapt": ["none", "lora"]}, "cells": [{"adapt": "none"}]}))
    assert run_sweep(str(path)) == 0
    summaries = {cell: (out / cell / "summary.json").stat().st_mtime_ns for cell in ("adapt=none", "adapt=lora")}
    (out / "adapt=lora" / "summary.json").unlink()
    assert run_sweep(str(path)) == 0
    output = capfd.readouterr().out
    assert "finished before" in output and "peak memory" in output
    again = {cell: (out / cell / "summary.json").stat().st_mtime_ns for cell in summaries}
    assert {cell for cell in summaries if again[cell] != summaries[cell]} == {"adapt=lora"}
    runs = json.loads((out / "sweep.json").read_text())["runs"]
    assert [run["name"] for run in runs] == ["adapt=none", "adapt=lora"]
    rows = list(csv.DictReader(open(out / "sweep.csv")))
    assert [float(row["nll"]) for row in rows] == [run["summary"]["nll"] for run in runs]


def test_a_table_has_the_settings_that_some_cells_leave_out(tmp_path):
    """config.json says accumulate, learn_from and the like only where they are set, and the first cell may be one that does not."""
    cells = [EvalConfig(every=4, **more) for more in ({}, {"accumulate": True}, {"learn_from": "below=0.3", "bos": "yes"})]
    summary = defaultdict(int)
    runs = [SimpleNamespace(name=str(i), config=cell.to_dict(), summary=summary) for i, cell in enumerate(cells)]
    for order in (runs, runs[::-1]):
        sweep.write_results(order, tmp_path / "sweep.json", tmp_path / "sweep.csv")
        rows = sorted(csv.DictReader(open(tmp_path / "sweep.csv")), key=lambda row: row["name"])
        assert [(row["every"], row["accumulate"], row["learn_from"], row["bos"]) for row in rows] == [
            ("4", "False", "", "no"),
            ("4", "True", "", "no"),
            ("4", "False", "below=0.3", "yes"),
        ]


def test_cells_keep_scores_and_checkpoints_as_the_file_or_the_command_says(in_process, base, tmp_path, capfd, monkeypatch):
    said = []
    child = sweep._run_child
    monkeypatch.setattr(sweep, "_run_child", lambda words: (said.append(words), child(words))[1])

    def swept(content, *options):
        path = tmp_path / "s.yaml"
        path.write_text(json.dumps({"base": {**base, "tokens": 100}, "cells": [{"adapt": "none"}], **content}))
        return call("sweep", path, *options), capfd.readouterr().err

    assert swept({"out": str(tmp_path / "file"), "scores": True, "checkpoint": 2})[0] == 0
    assert (tmp_path / "file" / "adapt=none" / "scores.npy").exists() and said[-1][-3:] == ["--scores", "--checkpoint", "2"]
    assert swept({"out": str(tmp_path / "words"), "checkpoint": 2}, "--scores", "--checkpoint", "0")[0] == 0
    assert (tmp_path / "words" / "adapt=none" / "scores.npy").exists() and said[-1][-2:] == ["--checkpoint", "0"]
    assert swept({"out": str(tmp_path / "bare")})[0] == 0
    assert not (tmp_path / "bare" / "adapt=none" / "scores.npy").exists() and "--checkpoint" not in said[-1]
    code, errors = swept({"out": str(tmp_path / "bare")}, "--scores")  # finished, and without what is asked for
    assert code == 1 and "finished without scores" in errors
    for content, message in (
        ({"scores": "yes"}, "scores is 'yes'; give true or false"),
        ({"checkpoint": -1}, "checkpoint is -1"),
        ({"checkpoint": True}, "checkpoint is True"),
        ({"score": True}, "unknown key 'score'; there are out, scores, checkpoint"),
    ):
        code, errors = swept(content)
        assert code == 2 and message in errors


def test_a_cell_that_fails_does_not_stop_the_others(in_process, base, tmp_path, capfd):
    path = tmp_path / "s.yaml"
    path.write_text(
        json.dumps({"out": str(tmp_path / "out"), "base": {**base, "tokens": 100}, "cells": [{"model": "/nowhere"}, {"adapt": "none"}]})
    )
    assert run_sweep(str(path)) == 1
    assert "cell model=nowhere failed" in capfd.readouterr().err
    assert (tmp_path / "out" / "adapt=none" / "summary.json").exists()


def write_sweep(folder: Path, content: dict) -> Path:
    path = folder / "s.yaml"
    path.write_text(json.dumps({"out": str(folder / "out"), **content}))
    return path


def test_a_killed_cell_is_a_failed_one_and_goes_on_the_next_time(base, tmp_path, capfd, monkeypatch):
    """The first cell is killed at its start, as the kernel does when memory runs out; the second is run all the same."""
    path = write_sweep(tmp_path, {"base": {**base, "tokens": 100}, "cells": [{"adapt": "lora"}, {"adapt": "none"}]})
    started = subprocess.Popen

    def killed_at_once(command, **options):
        child = started(command, **options)
        if any(word.endswith("adapt=lora") for word in command):
            child.kill()
        return child

    with monkeypatch.context() as patched:
        patched.setattr(sweep.subprocess, "Popen", killed_at_once)
        assert run_sweep(str(path)) == 1
    error = capfd.readouterr().err
    assert "cell adapt=lora failed: killed by SIGKILL; the kernel does that when memory runs out." in error and "Traceback" not in error
    assert [run["name"] for run in json.loads((tmp_path / "out" / "sweep.json").read_text())["runs"]] == ["adapt=none"]
    assert run_sweep(str(path)) == 0
    assert len(json.loads((tmp_path / "out" / "sweep.json").read_text())["runs"]) == 2


def test_a_child_that_is_stopped_alone_does_not_stop_the_sweep(base, tmp_path, capfd, monkeypatch):
    answers = iter([(130, "dynadapt: stopped"), (-15, "killed by SIGTERM"), (0, "")])
    monkeypatch.setattr(sweep, "_run_child", lambda words: next(answers))
    path = write_sweep(tmp_path, {"base": base, "grid": {"lr": [0.1, 0.2, 0.3]}})
    assert run_sweep(str(path)) == 1
    assert "cell lr=0.1 failed: dynadapt: stopped" in (said := capfd.readouterr().err) and "cell lr=0.2 failed: killed by SIGTERM" in said


def wait_for(condition, seconds=60.0):
    """What `condition` returns, once it is true."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
    return found


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_cell_ends_with_its_sweep(number, base, tmp_path):
    path = write_sweep(tmp_path, {"base": {**base, "text": "builtin:python-reference"}, "cells": [{"lr": 0.001}, {"lr": 0.002}]})
    parent = psutil.Popen([sys.executable, "-m", "dynadapt", "sweep", str(path)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    metrics = tmp_path / "out" / "lr=0.001" / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and metrics.stat().st_size)
    (child,) = parent.children()
    parent.send_signal(number)
    parent.wait(60)
    child.wait(60)
    assert not (tmp_path / "out" / "lr=0.002").exists()
    assert (tmp_path / "out" / "lr=0.001" / "checkpoint").exists()  # it stopped in order, and saved


def test_cells_import_nothing_from_the_working_directory(base, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    for name in ("torch", "random", "yaml", "numpy", "dynadapt", "sitecustomize", "tokenizers"):
        (tmp_path / "here" / f"{name}.py").write_text("raise SystemExit('imported from the working directory')\n")
    monkeypatch.chdir(tmp_path / "here")
    assert run_sweep(str(write_sweep(tmp_path, {"base": {**base, "tokens": 100}, "cells": [{"adapt": "none"}]}))) == 0


def made_up_run(path, **config):
    """A run's files, without a run."""
    settings = EvalConfig(text=("a.txt",), **config)
    gain = (
        {"none": 0.0, "lora": 0.2, "rows": 0.1, "full": 0.25}[settings.adapt] + 0.1 * bool(settings.memory) + 0.05 * bool(settings.context)
    )
    cost = (
        3e8 * {"none": 1, "lora": 2.2, "rows": 2.1, "full": 3}[settings.adapt] * (2 if settings.context else 1.05 if settings.memory else 1)
    )
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(settings.to_dict()))
    lines = []
    for i in range(1, 17):
        nll = 3.5 + 0.5 / i - gain * (1 - 1 / i)
        lines.append({"total_tokens": 512 * i, "total_nll": nll, "nll": nll, "total_seconds": i * cost / 1e9})
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (path / "summary.json").write_text(
        json.dumps({"nll": lines[-1]["total_nll"], "seconds": lines[-1]["total_seconds"], "tokens": 8192, "flops_per_token": cost})
    )
    return str(path)


def test_pictures_need_the_files_only(tmp_path):
    paths = [
        made_up_run(tmp_path / "runs" / f"{adapt}-{memory}", adapt=adapt, memory=memory)
        for adapt in ("none", "lora")
        for memory in (0, 512)
    ]
    (tmp_path / "runs" / "lora-0" / "summary.json").unlink()  # unfinished: its stream is drawn all the same
    assert plot_runs(paths) == [tmp_path / "runs" / "plot.png"]
    assert matplotlib.image.imread(tmp_path / "runs" / "plot.png").std() > 0.02
    for name in ("p.svg", "p.pdf"):
        assert plot_runs(paths[:1], str(tmp_path / name))[0].stat().st_size > 1000
    with pytest.raises(RunError, match="end"):
        plot_runs(paths, str(tmp_path / "p.gif"))
    with pytest.raises(RunError, match="no such run"):
        plot_runs([str(tmp_path / "missing")])
    (tmp_path / "runs" / "mine").mkdir()
    with pytest.warns(RunNote) as said:  # as the shell gives runs/*, with the picture of the last time
        plot_runs([*map(str, paths), str(tmp_path / "runs" / "plot.png"), str(tmp_path / "runs" / "mine")])
    assert [str(note.message).rpartition("/")[2] for note in said] == [
        "plot.png is a file; left out",
        "mine is no run (no config.json); left out",
    ]


def test_differences_are_to_the_plain_static_run_with_the_shortest_segments(tmp_path):
    settings = [{"segment": 2048}, {"segment": 512, "memory": 512}, {"segment": 512}, {"segment": 512, "adapt": "lora"}]
    runs = [read_run(made_up_run(tmp_path / str(i), **{"adapt": "none", **changes})) for i, changes in enumerate(settings)]
    assert plain_static(runs) is runs[2]
    assert plain_static(runs[3:]) is None


def test_a_label_says_what_counts(tmp_path):
    runs = [{"adapt": "none"}, {"adapt": "lora", "rank": 2}, {"adapt": "lora", "rank": 2, "accumulate": True}]
    runs.append({"adapt": "none", "accumulate": True, "memory": 8})
    labels = labels_of([read_run(made_up_run(tmp_path / str(i), segment=16, every=4, **changes)) for i, changes in enumerate(runs)])
    assert labels == ["static", "LoRA r2", "LoRA r2, accumulate", "static, memory 8"]


def test_a_cut_last_line_is_left_out(tmp_path):
    path = made_up_run(tmp_path / "run")
    file = tmp_path / "run" / "metrics.jsonl"
    whole = read_metrics(path)
    file.write_bytes(file.read_bytes()[:-5])
    assert read_metrics(path) == whole[:-1]
    file.write_bytes(b"{]\n" + file.read_bytes())
    with pytest.raises(RunError, match="line 1"):
        read_metrics(path)
    shutil.rmtree(path)
