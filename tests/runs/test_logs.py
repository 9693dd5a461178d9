"""Logs of other packages see what metrics.jsonl holds, whole, from whichever process; none of them can harm a run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import call, words_of
from tiny import config_of, english, tiny_root

from dynadapt.experiments.config import ConfigError
from dynadapt.experiments.dyneval import RunOptions, run
from dynadapt.runs import logs
from dynadapt.runs.append_only import read_metrics
from dynadapt.runs.logs import LOGS, Log, check_logs, series_of, step_of
from dynadapt.runs.rundir import RunDirectory, RunError, RunNote, read_json
from dynadapt.runs.stopping import Interrupted, StopRun


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tiny_root(tmp_path_factory.mktemp("logs"), 60)


class Recorded(Log):
    """A log that keeps what it is told, in order."""

    package = "json"  # one that is installed
    made: list["Recorded"] = []
    failing: str | None = None

    def __init__(self):
        self.calls = []
        Recorded.made.append(self)

    def _called(self, name, *arguments):
        if self.failing == name:
            raise ConnectionError("no route\nto host")
        self.calls.append((name, *arguments))

    def open(self, path, config):
        self._called("open", path, config)

    def line(self, series, step):
        self._called("line", series, step)

    def finish(self, summary, step):
        self._called("finish", summary, step)

    def close(self, finished):
        self._called("close", finished)


@pytest.fixture
def recorded(monkeypatch):
    monkeypatch.setattr(Recorded, "made", [])
    monkeypatch.setattr(Recorded, "failing", None)
    monkeypatch.setitem(LOGS, "recorded", Recorded)
    return Recorded


def lines_of(log: Recorded) -> list[tuple[dict, int]]:
    return [call[1:] for call in log.calls if call[0] == "line"]


def wanted_lines(out) -> list[tuple[dict, int]]:
    return [(series_of(line), step_of(line)) for line in read_metrics(out)]


def stop_at(segment: int):
    return lambda event: event["segment"] != segment


def test_a_log_sees_every_line_and_the_summary(root, tmp_path, recorded):
    summary = run(config_of(root), tmp_path / "run", RunOptions(log=("recorded",)))
    [log] = recorded.made
    assert log.calls[0] == ("open", tmp_path / "run", config_of(root).to_dict())
    assert lines_of(log) == wanted_lines(tmp_path / "run")
    assert log.calls[-2][0] == "finish" and log.calls[-2][1]["nll"] == summary["nll"] and log.calls[-2][2] == summary["tokens"]
    assert log.calls[-1] == ("close", True)


def test_a_resumed_run_shows_its_log_the_earlier_lines_first(root, tmp_path, recorded):
    """Whether the process before logged or not, and though it had gone beyond its last checkpoint."""
    with pytest.raises(Interrupted):
        run(config_of(root), tmp_path / "run", RunOptions(checkpoint=2), stop_at(4))
    run(config_of(root), tmp_path / "run", RunOptions(resume=True, log=("recorded",)))
    [log] = recorded.made
    assert lines_of(log) == wanted_lines(tmp_path / "run") and len(lines_of(log)) > 5
    run(config_of(root), tmp_path / "run", RunOptions(resume=True, log=("recorded",)))  # finished: it is shown all the same
    assert recorded.made[1].calls[1:] == log.calls[1:]


def test_a_log_that_has_the_first_lines_is_not_shown_them_again(tmp_path, recorded, monkeypatch):
    monkeypatch.setattr(Recorded, "start", 32)
    opened = logs.open_logs(["recorded"], tmp_path, {}, [{"total_tokens": n, "nll": 1.0} for n in (16, 32, 48)])
    opened.close()
    assert [step for _, step in lines_of(recorded.made[0])] == [32, 48]


@pytest.mark.parametrize("failing", ["line", "finish", "close"])
def test_a_log_that_fails_harms_no_run(root, tmp_path, recorded, monkeypatch, failing):
    run(config_of(root), tmp_path / "plain", RunOptions(scores=True))
    monkeypatch.setattr(Recorded, "failing", failing)
    with pytest.warns(RunNote, match="log 'recorded' failed and is given up, the run goes on: ConnectionError: no route to host") as notes:
        run(config_of(root), tmp_path / "logged", RunOptions(scores=True, log=("recorded",)))
    assert len(notes) == 1
    assert (tmp_path / "plain/scores.npy").read_bytes() == (tmp_path / "logged/scores.npy").read_bytes()
    assert read_json(tmp_path / "logged/summary.json")["nll"] == read_json(tmp_path / "plain/summary.json")["nll"]


def test_a_log_that_cannot_be_opened_is_refused_before_anything_is_scored(root, tmp_path, recorded, monkeypatch):
    monkeypatch.setattr(Recorded, "failing", "open")
    with pytest.raises(RunError, match="log 'recorded' can't be opened: no route to host"):
        run(config_of(root), tmp_path / "run", RunOptions(log=("recorded",)))
    monkeypatch.setattr(Recorded, "failing", None)
    run(config_of(root), tmp_path / "run", RunOptions(log=("recorded",)))  # begun anew


def test_a_log_is_refused_whose_package_is_not_installed(tmp_path, monkeypatch, capsys):
    class Absent(Log):
        package = "no_such_package_here"

    monkeypatch.setitem(LOGS, "absent", Absent)
    with pytest.raises(
        ConfigError, match="log 'absent': the package no_such_package_here is not installed: pip install no_such_package_here"
    ):
        check_logs(["absent"])
    assert call("eval", "--text", "x", "--log", "absent") == 2
    assert "pip install no_such_package_here (see dynadapt eval --help)" in capsys.readouterr().err
    (tmp_path / "no_such_package_here").mkdir()  # what such a log leaves in the working directory is not the package
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="not installed"):
        check_logs(["absent"])
    with pytest.raises(ConfigError, match="log 'wnadb': give wandb, trackio, tensorboard"):
        check_logs(["wnadb"])


def test_series_of_a_line():
    line = {
        "segment": 3,
        "total_tokens": 64,
        "nll": 1.5,
        "flops": {"forward": 8, "backward": 0},
        "stream_nll": [1.0, None, 2.0],
        "grad_norm": [0.5],
        "updated": [True, False, True],
        "documents": [0, None, 1],
        "lengths": [16, 0, 16],
        "kind": "step",
        "rows": [["a", 1]],
        "notes": ["x"],
        "skipped": False,
        "velocity": None,
        "weights": {"a": 0.25},
        "by_k": [1.0] * 17,
    }
    assert series_of(line) == {
        "total_tokens": 64,
        "nll": 1.5,
        "flops/forward": 8,
        "flops/backward": 0,
        "stream_nll": 1.5,
        "stream_nll/0": 1.0,
        "stream_nll/2": 2.0,
        "grad_norm": 0.5,
        "updated": 2,
        "skipped": 0,
        "weights/a": 0.25,
        "by_k": 1.0,
    }
    assert step_of(line) == 64 and step_of({"step": 7}) == 7


# -------------------------------------------------------------------------------------------------------------- the commands


SMALL = ("--segment", 16, "--dtype", "fp32", "--backend", "reference")


def test_reweighting_logs_steps_and_evaluations(root, tmp_path, recorded, capsys):
    (tmp_path / "lines.jsonl").write_text("".join(json.dumps({"text": english(60, seed=i)}) + "\n" for i in range(12)))
    words = f"reweight train --domains a={tmp_path / 'lines.jsonl'} --model {root / 'model'}".split()
    options = "--rows 2 --steps 3 --evaluate 2 --heldout-rows 2 --adapt lora --optimizer adam --log recorded".split()
    assert call(*words, *SMALL, *options, "--out", tmp_path / "run") == 0
    [log] = recorded.made
    assert lines_of(log) == wanted_lines(tmp_path / "run")
    assert {"loss", "losses/a", "weights/a", "heldout/a", "mean", "flops/heldout"} <= {
        name for series, _ in lines_of(log) for name in series
    }
    assert log.calls[-2][1]["heldout/a"] == read_json(tmp_path / "run/summary.json")["heldout"]["a"]


def test_icl_logs_by_step_and_a_number_is_still_the_steps_between_lines(tmp_path, recorded, capsys):
    options = "--steps 20 --points 4 --layers 1 --hidden 32 --device cpu --log 10 --log recorded".split()
    assert call("icl", "train", "demo", *options, "--out", tmp_path / "run") == 0
    [log] = recorded.made
    assert [step for _, step in lines_of(log)] == [10, 20] and lines_of(log) == wanted_lines(tmp_path / "run")
    assert call("icl", "train", "demo", "--log", "wnadb") == 2
    assert "log 'wnadb': give wandb" in capsys.readouterr().err


def test_a_diagnosis_logs_its_scorings_and_then_its_summary(root, tmp_path, recorded, capsys):
    (tmp_path / "held-out.txt").write_text(english(80, seed=9))
    words = words_of(
        "diagnose", root / "model", tmp_path / "held-out.txt", tmp_path / "out", "--learn", root / "a.txt", "--log", "recorded"
    )
    assert call(*words) == 0
    opened = {log.calls[0][1].relative_to(tmp_path).as_posix(): log for log in recorded.made}
    assert list(opened)[:3] == ["out/learn", "out/before", "out/after"] and list(opened)[-1] == "out"
    for name in ("learn", "before", "after"):
        assert lines_of(opened[f"out/{name}"]) == wanted_lines(tmp_path / "out" / name)
    change = read_json(tmp_path / "out/summary.json")["change"]
    assert [call[0] for call in opened["out"].calls] == ["open", "finish", "close"] and opened["out"].calls[1][1]["change"] == change
    assert logs._group(tmp_path / "out" / "learn") == "out" and logs._group(Path("/some/runs/x")) is None


def test_a_sweep_hands_its_logs_to_its_cells(root, tmp_path, monkeypatch, recorded, capsys):
    from dynadapt.experiments import sweep

    asked = []
    monkeypatch.setattr(sweep, "_run_child", lambda words: (asked.append(words), (1, "no"))[1])
    (tmp_path / "sweep.yaml").write_text(f"out: {tmp_path}\nbase: {{text: {root / 'a.txt'}}}\ncells: [{{adapt: none}}]\n")
    assert call("sweep", tmp_path / "sweep.yaml", "--log", "recorded", "--log", "recorded") == 1
    assert asked[0][-2:] == ["--log", "recorded"] and asked[0].count("--log") == 1


# ----------------------------------------------------------------------------------------------------- the packages themselves

NAMES = [
    pytest.param(name, marks=pytest.mark.skipif(not __import__("importlib.util").util.find_spec(name), reason=f"needs {name}"))
    for name in ("tensorboard", "wandb", "trackio")
]


def read_tensorboard(out: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(out / "tensorboard"), size_guidance={"scalars": 0})
    found.Reload()
    return {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def records(content: bytes, block: int = 32768):
    """Of a file in LevelDB's log format: parts of [checksum 4, length 2, kind 1], none across a block; the file's own header is 7 bytes."""
    at, whole = 7, b""
    while at + 7 <= len(content):
        if block - at % block < 7:
            at += block - at % block
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        whole += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # full, or the last part
            yield whole
            whole = b""


def read_wandb(out: Path) -> dict[str, list[tuple[int, float]]]:
    """Of the last process: its file has the whole run."""
    from wandb.proto import wandb_internal_pb2

    [*_, file] = sorted((out / "wandb").glob("offline-run-*/*.wandb"))
    series = {}
    for data in records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            values = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            for name, value in values.items():
                if not name.startswith("_"):
                    series.setdefault(name, []).append((record.history.step.num or values["_step"], value))
    return series


def read_trackio(out: Path) -> dict[str, list[tuple[int, float]]]:
    script = """
import json, sys
from trackio.sqlite_storage import SQLiteStorage
[name] = SQLiteStorage.get_runs("dynadapt")
print(json.dumps(SQLiteStorage.get_logs("dynadapt", name)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    series = {}
    for row in json.loads(done.stdout):
        for name, value in row.items():
            if name not in ("step", "timestamp"):
                series.setdefault(name, []).append((row["step"], value))
    return series


READ = {"tensorboard": read_tensorboard, "wandb": read_wandb, "trackio": read_trackio}


@pytest.mark.parametrize("name", NAMES)
def test_the_package_itself_holds_the_whole_run_after_a_stop(root, tmp_path, monkeypatch, name):
    """Offline. The command line, stopped in the middle by a kill and resumed, in processes of their own as a user's are."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (Path(__file__).parent, Path(__file__).parents[1]))))
    out = tmp_path / "run"
    script = f"""
import os, sys
from dynadapt.experiments.dyneval import RunOptions, run
from tiny import config_of
from pathlib import Path
def progress(event):
    if event["segment"] == 4 and sys.argv[1] == "kill":
        os._exit(9)
run(config_of(Path({str(root)!r})), {str(out)!r}, RunOptions(resume=True, scores=True, checkpoint=2, log=({name!r},)), progress)
"""
    for how, status in (("kill", 9), ("end", 0)):
        done = subprocess.run([sys.executable, "-c", script, how], capture_output=True, text=True, timeout=120)
        assert done.returncode == status, done.stderr
        assert "given up" not in done.stderr and not done.stdout.strip()
    series, lines = READ[name](out), read_metrics(out)
    for key in ("nll", "total_nll", "seconds", "total_bits_per_byte"):
        assert [step for step, _ in series[key]] == [line["total_tokens"] for line in lines]
        np.testing.assert_allclose([value for _, value in series[key]], [line[key] for line in lines], rtol=1e-6)
    assert [value for _, value in series["flops/forward"]] == pytest.approx([line["flops"]["forward"] for line in lines])
    if name != "wandb":  # there it is the run's summary
        assert series["summary/nll"][-1][1] == pytest.approx(read_json(out / "summary.json")["nll"])
    run(config_of(root), tmp_path / "plain", RunOptions(scores=True))
    assert (tmp_path / "plain/scores.npy").read_bytes() == (out / "scores.npy").read_bytes()
    assert not (set(os.listdir(out)) & {name}) - {"tensorboard", "wandb"}


# ------------------------------------------------------------------------------------------------------------------- callbacks


def test_a_callback_comes_after_the_scores_of_its_segment_are_written(root, tmp_path):
    seen = []

    def callback(event):
        assert read_metrics(tmp_path / "run")[-1]["segment"] == event["segment"]
        assert len(np.load(tmp_path / "run/scores.npy")) == event["total_tokens"]
        seen.append(event)

    run(config_of(root), tmp_path / "run", RunOptions(scores=True), callback)
    assert [event["segment"] for event in seen] == list(range(len(seen)))
    assert {"segment", "tokens", "nll", "total_tokens", "total_nll", "total_bits_per_byte", "seconds", "fraction", "gain"} <= set(seen[0])


class Own(Exception):
    pass


@pytest.mark.parametrize("raises, expected", [(StopRun, Interrupted), (None, Interrupted), (Own, Own), (KeyError, KeyError)])
def test_a_callback_can_stop_a_run_that_then_goes_on(root, tmp_path, raises, expected):
    """Saved at the very segment, wherever the checkpoints are, and the same to the bit as a run that nobody stopped."""

    def callback(event):
        if event["segment"] == 2:
            if raises is None:
                return False
            raise raises("enough")

    run(config_of(root), tmp_path / "whole", RunOptions(scores=True))
    with pytest.raises(expected, match="enough" if expected is not Interrupted else "stopped by its callback after segment 3"):
        run(config_of(root), tmp_path / "run", RunOptions(scores=True), callback)
    assert read_json(tmp_path / "run/checkpoint/00000003/state.json")["segments"] == 3
    resumed = []
    run(config_of(root), tmp_path / "run", RunOptions(resume=True, scores=True), lambda event: resumed.append(event["segment"]))
    assert resumed[0] == 3
    assert (tmp_path / "whole/scores.npy").read_bytes() == (tmp_path / "run/scores.npy").read_bytes()


def test_every_directory_is_closed_with_its_logs(tmp_path, recorded):
    directory = RunDirectory(tmp_path / "run", {}, False, False, ["recorded"])
    directory.begin()
    directory.append({"step": 1, "loss": 2.0})
    directory.close()
    assert recorded.made[0].calls[1:] == [("line", {"loss": 2.0}, 1), ("close", False)]
