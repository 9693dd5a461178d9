"""The driver: what it scores, what it writes, and that a run can be stopped anywhere and goes on with the same numbers."""

import errno
import json
import math
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from run_files import Killed, scores_of, without_time
from tiny import english, eval_config, tiny_directory, tiny_tokenizer

import dynadapt.model
from dynadapt.engine.report import send
from dynadapt.experiments.config import ConfigError, EvalConfig
from dynadapt.experiments.dyneval import RunOptions, build_engine, run
from dynadapt.runs import rundir
from dynadapt.runs.append_only import Growing, read_metrics
from dynadapt.runs.document_streams import Feed
from dynadapt.runs.rundir import DiskError, RunError
from dynadapt.runs.stopping import Interrupted
from dynadapt.runs.text import Document, Source, TextError, streaming_tokenizer

KEYS = {
    "nll",
    "perplexity",
    "bits_per_byte",
    "tokens",
    "bytes",
    "seconds",
    "tokens_per_second",
    "flops",
    "flops_per_token",
    "peak_memory_bytes",
    "learned_parameters",
    "updates",
    "skipped_updates",
    "backend",
    "dtype",
}


@pytest.fixture(scope="module")
def model_directory(tmp_path_factory) -> Path:
    return tiny_directory(tmp_path_factory.mktemp("model"))


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


# ------------------------------------------------------------------------------------------------------------------- feed


def gathered(feed: Feed, documents: int) -> list[list[int]]:
    """Each document's tokens as the segments hold them: the first input, then the targets."""
    read: list[list[int]] = [[] for _ in range(documents)]
    while (segment := feed.next()) is not None:
        for stream, document in enumerate(segment.documents):
            if document is None:
                assert segment.lengths[stream] == 0
                continue
            length = int(segment.lengths[stream])
            row = segment.tokens[stream, : length + 1].tolist()
            if stream in segment.entered:
                assert not read[document] and segment.positions[stream] == 1
                read[document].append(row[0])
            assert read[document][-1] == row[0] and len(read[document]) == segment.positions[stream]
            read[document] += row[1:]
    return read


@pytest.mark.parametrize("streams", [1, 2, 3, 7])
def test_every_document_is_read_once_and_whole(streams, tmp_path):
    tokenizer = streaming_tokenizer(tiny_tokenizer())
    texts = [english(n, seed=n) for n in (3, 40, 11, 7, 100)]
    paths = [write(tmp_path / f"{i}.txt", text) for i, text in enumerate(texts)]
    feed = Feed([Document(Source(str(path))) for path in paths], tokenizer, streams, 16, None)
    assert gathered(feed, len(texts)) == [tokenizer.encode(text).ids for text in texts]


@pytest.mark.parametrize("limit", [2, 16, 17, 18, 33, 50])
def test_a_limit_counts_tokens_read(limit, tmp_path):
    tokenizer = streaming_tokenizer(tiny_tokenizer())
    text = english(100)
    feed = Feed([Document(Source(str(write(tmp_path / "a", text))))], tokenizer, 1, 16, limit)
    assert gathered(feed, 1) == [tokenizer.encode(text).ids[:limit]]


@pytest.mark.parametrize("length", [17, 33, 34])
def test_a_document_that_ends_with_a_segment_makes_room_at_once(length, tmp_path):
    """17 tokens are one whole segment of 16 targets: the next step belongs to the next document."""
    tokenizer = streaming_tokenizer(tiny_tokenizer())
    ids = tokenizer.encode(english(200)).ids[:length]
    text = tokenizer.decode(ids)
    assert tokenizer.encode(text).ids == ids
    paths = [write(tmp_path / name, text) for name in "ab"]
    feed = Feed([Document(Source(str(path))) for path in paths], tokenizer, 1, 16, None)
    steps = 0
    while (segment := feed.next()) is not None:
        assert segment.lengths[0] > 0
        steps += 1
    assert steps == 2 * math.ceil((length - 1) / 16)


# -------------------------------------------------------------------------------------------------------------------- run


def test_a_static_run_scores_what_the_model_says(model_directory, tmp_path):
    text = english(200)
    config = eval_config(model_directory, [write(tmp_path / "a.txt", text)], adapt="none")
    summary = run(config, tmp_path / "run", RunOptions(scores=True))
    model = dynadapt.model.load(str(model_directory))
    ids = model.tokenizer.encode(text)
    engine = build_engine(model, config)
    expected = []
    for start in range(0, len(ids) - 1, 16):
        row = torch.tensor([ids[start : start + 17]])
        expected += engine.step(row)[0].tolist()
    scores = scores_of(tmp_path / "run")
    assert scores["nll"].tolist() == expected
    assert scores["position"].tolist() == list(range(1, len(ids))) and not scores["document"].any()
    assert set(summary) >= KEYS and summary == json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["tokens"] == len(ids) - 1
    assert summary["bytes"] == len(text.encode()) - len(model.tokenizer.decode(ids[:1]).encode())
    assert summary["nll"] == pytest.approx(np.mean(expected), abs=1e-6)
    assert summary["bits_per_byte"] == pytest.approx(np.sum(expected) / math.log(2) / summary["bytes"], rel=1e-6)
    assert summary["learned_parameters"] == summary["updates"] == 0
    assert summary["flops"]["forward"] > 0 and summary["flops"]["backward"] == summary["flops"]["update"] == 0
    lines = read_metrics(tmp_path / "run")
    assert [line["segment"] for line in lines] == list(range(len(lines)))
    assert lines[-1]["total_nll"] == summary["nll"] and sum(line["tokens"] for line in lines) == summary["tokens"]
    assert "hostname" not in (tmp_path / "run" / "env.json").read_text()


@pytest.mark.parametrize("adapt, targets", [("lora", "all"), ("rows", "all"), ("full", "all"), ("full", "model")])
def test_learning_lowers_the_loss_and_reports_the_gain(adapt, targets, model_directory, tmp_path):
    text = write(tmp_path / "a.txt", english(600))
    static = run(eval_config(model_directory, [text], adapt="none"), tmp_path / "static")
    events = []
    learned = run(eval_config(model_directory, [text], adapt=adapt, targets=targets, density=0.5), tmp_path / adapt, progress=events.append)
    assert learned["nll"] < static["nll"] - 0.1
    assert events[-1]["gain"] == pytest.approx(static["nll"] - learned["nll"])
    assert events[-1]["fraction"] == pytest.approx(1.0, abs=0.02)
    assert learned["updates"] == len(events) and learned["flops"]["update"] > 0


@pytest.mark.parametrize("streams, settings", [(3, {}), (1, {"every": 3}), (1, {"every": 3, "accumulate": True})], ids=str)
def test_documents_beside_each_other_equal_documents_alone(streams, settings, model_directory, tmp_path):
    paths = [write(tmp_path / f"{i}.txt", english(60 + 20 * i, seed=i)) for i in range(3)]
    config = eval_config(model_directory, paths, streams=streams, reset="document", **settings)
    together = run(config, tmp_path / "together", RunOptions(scores=True))
    rows = scores_of(tmp_path / "together")
    for i, path in enumerate(paths):
        alone = run(eval_config(model_directory, [path], **settings), tmp_path / str(i), RunOptions(scores=True))
        np.testing.assert_allclose(rows["nll"][rows["document"] == i], scores_of(tmp_path / str(i))["nll"], rtol=1e-4)
        assert together["documents"][i]["tokens"] == alone["tokens"] and together["documents"][i]["bytes"] == alone["bytes"]


@pytest.mark.parametrize("reset, every", [(16, 1), (32, 4), (17, 2)])
@pytest.mark.parametrize("accumulate", [False, True])
def test_resets_that_leave_no_update_are_said(reset, every, accumulate, model_directory, tmp_path):
    config = eval_config(model_directory, [write(tmp_path / "a.txt", english(200))], every=every, accumulate=accumulate and every > 1)
    said = f"reset {reset} with segments of 16{f' and every {every}' * (every > 1)}: weights go back before any update counts; nothing is learned"
    static = run(config.with_(adapt="none"), tmp_path / "static")
    with pytest.warns(UserWarning, match=f"^{said}$"):
        assert run(config.with_(reset=reset), tmp_path / "nothing")["nll"] == static["nll"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run(config.with_(reset=33, every=4), tmp_path / "some")["nll"] != static["nll"]


def test_split_makes_streams_of_one_text(model_directory, tmp_path):
    path = write(tmp_path / "a.txt", english(300))
    summary = run(eval_config(model_directory, [path], streams=4, split=True, tokens=200), tmp_path / "run")
    assert len(summary["documents"]) == 4 and summary["tokens"] == 196  # each part's first token is not scored
    assert {line["tokens"] for line in summary["documents"]} == {49}


def test_rms_takes_its_statistics_from_another_text(model_directory, tmp_path):
    paths = [write(tmp_path / name, english(200, seed)) for seed, name in enumerate(["a.txt", "b.txt"])]
    config = eval_config(model_directory, paths[:1], adapt="full", optimizer="rms", statistics=str(paths[1]), lr=1e-3)
    assert run(config, tmp_path / "run")["updates"] > 0
    with pytest.raises(ConfigError, match="statistics"):
        run(config.with_(statistics=str(paths[0])), tmp_path / "other")


def test_rows_are_chosen_beside_the_statistics_text(model_directory, tmp_path):
    """--select: as an engine that has gathered the same statistics; rows by their gradient alone are others."""
    paths = [write(tmp_path / name, english(200, seed)) for seed, name in enumerate(["a.txt", "b.txt", "c.txt"])]
    config = eval_config(model_directory, paths[:1], adapt="rows", density=0.2, select="contrast", statistics=str(paths[1]), lr=1e-2)
    found = {}
    for name, changes in (
        ("contrast", {}),
        ("other text", {"statistics": str(paths[2])}),
        ("gradient", {"select": "gradient"}),
        ("fixed", {"select": "fixed"}),
    ):
        found[name] = run(config.with_(**changes), tmp_path / name)["nll"]
    assert len(set(found.values())) == 4
    assert json.loads((tmp_path / "contrast" / "config.json").read_text())["select"] == "contrast"
    assert "select" not in json.loads(
        (tmp_path / "gradient" / "config.json").read_text()
    )  # as in runs that were begun before there was one
    with pytest.raises(ConfigError, match="statistics"):
        run(config.with_(statistics=str(paths[0])), tmp_path / "never")
    with pytest.raises(ConfigError, match="select 'contrast' with optimizer 'rms': its rows are chosen once"):
        config.with_(optimizer="rms")


# ------------------------------------------------------------------------------------------------------- stopping and resuming


def command(config: EvalConfig, out, *extra: str) -> list[str]:
    return [sys.executable, "-m", "dynadapt", "eval", *config.arguments(), "--out", str(out), "--scores", "--checkpoint", "3", *extra]


def stop_after(lines: int, number: int, words: list[str], out: Path, stdin=None) -> subprocess.CompletedProcess:
    process = subprocess.Popen(words, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    metrics, deadline = out / "metrics.jsonl", time.monotonic() + 60
    while not metrics.exists() or metrics.read_bytes().count(b"\n") < lines:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.002)
    process.send_signal(number)
    output, errors = process.communicate()
    return subprocess.CompletedProcess(words, process.returncode, output, errors)


def test_accumulate_learns_from_every_segment(model_directory, tmp_path):
    """Scores before the first update are those without it, scores behind it are not."""
    config = eval_config(model_directory, [write(tmp_path / "a.txt", english(300))], every=3, accumulate=True)
    found = {}
    for accumulate in (True, False):
        run(config.with_(accumulate=accumulate), tmp_path / str(accumulate), RunOptions(scores=True))
        found[accumulate] = scores_of(tmp_path / str(accumulate))["nll"]
    first = 3 * config.segment
    assert np.array_equal(found[True][:first], found[False][:first]) and not np.array_equal(found[True][first:], found[False][first:])
    assert build_engine(dynadapt.load(model_directory), config).accumulate
    kept = config.to_dict()
    assert EvalConfig.from_dict(kept).accumulate and "accumulate" not in config.with_(accumulate=False).to_dict()


CASES = {
    "lora and memory": dict(memory=20, sinks=2, words=(1500,)),
    "documents in streams": dict(streams=2, reset="document", words=(200, 500, 150, 300)),
    "rows by contrast": dict(adapt="rows", density=0.3, select="contrast", statistics="builtin:python-source", words=(1500,)),
    "from all segments since the last update": dict(every=4, accumulate=True, words=(1500,)),  # saved at every third: one to three wait
    "rows, every, auto reset, pipe": dict(adapt="rows", density=0.5, every=2, reset="auto", words=(1500,), pipe=True),
}


@pytest.mark.parametrize("case", CASES)
def test_a_killed_run_goes_on_with_the_same_scores(case, model_directory, tmp_path):
    settings = dict(CASES[case])
    words, pipe = settings.pop("words"), settings.pop("pipe", False)
    paths = [write(tmp_path / f"{i}.txt", english(count, seed=i)) for i, count in enumerate(words)]
    config = eval_config(model_directory, ["-"] if pipe else paths, **settings)
    feed = (lambda: open(paths[0], "rb")) if pipe else (lambda: None)
    run(config.with_(text=tuple(map(str, paths))), tmp_path / "whole", RunOptions(scores=True))
    out = tmp_path / "killed"
    killed = stop_after(10, signal.SIGKILL, command(config, out), out, feed())
    assert killed.returncode == -signal.SIGKILL and not (out / "summary.json").exists()
    seen = scores_of(out)["nll"]
    interrupted = stop_after(len(read_metrics(out)) // 3 * 3 + 4, signal.SIGINT, command(config, out, "--resume"), out, feed())
    assert interrupted.returncode == 130 and "--resume" in interrupted.stderr and "Traceback" not in interrupted.stderr
    resumed = subprocess.run(command(config, out, "--resume"), stdin=feed(), capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stderr
    expected = scores_of(tmp_path / "whole")
    assert np.array_equal(scores_of(out), expected)
    assert np.array_equal(seen, expected["nll"][: len(seen)])
    assert without_time(read_metrics(out)) == without_time(read_metrics(tmp_path / "whole"))
    assert run(config, out, RunOptions(resume=True)) == json.loads((out / "summary.json").read_text())  # finished: stays as it is


@pytest.mark.parametrize("backend, dtype", [("reference", "fp32"), ("cpu", "bf16")])
def test_a_run_can_stop_at_every_segment(backend, dtype, model_directory, tmp_path):
    """The same in one process, for every place to stop: an exception in the step stands for the kill."""
    texts = [write(tmp_path / "a.txt", english(70)), write(tmp_path / "b.txt", english(25))]
    config = eval_config(model_directory, texts, memory=16, streams=2, backend=backend, dtype=dtype)
    options = RunOptions(scores=True, checkpoint=2)
    run(config, tmp_path / "whole", options)
    segments = len(read_metrics(tmp_path / "whole"))

    for at in range(segments):

        def make(model, config):
            engine = build_engine(model, config)
            step, count = engine.step, len(read_metrics(out)) if (out / "metrics.jsonl").exists() else 0

            def stopping(*arguments):
                nonlocal count
                count += 1
                if count > at:
                    raise Killed
                return step(*arguments)

            engine.step = stopping
            return engine

        out = tmp_path / f"killed-{at}"
        with pytest.raises(Killed):
            run(config, out, options, make_engine=make)
        run(config, out, RunOptions(resume=True, scores=True, checkpoint=2))
        assert np.array_equal(scores_of(out), scores_of(tmp_path / "whole"))


def test_a_directory_with_another_configuration_is_refused(model_directory, tmp_path):
    config = eval_config(model_directory, [write(tmp_path / "a.txt", english(50))], adapt="none")
    run(config, tmp_path / "run")
    for resume in (False, True):
        with pytest.raises(RunError, match="segment is 16 there and 8 here"):
            run(config.with_(segment=8), tmp_path / "run", RunOptions(resume=resume))
    with pytest.raises(RunError, match="finished"):
        run(config, tmp_path / "run")
    (tmp_path / "other").mkdir()
    write(tmp_path / "other" / "thesis.tex", "mine")
    with pytest.raises(RunError, match="holds no run"):
        run(config, tmp_path / "other")


def test_a_text_that_changed_is_refused_on_resume(model_directory, tmp_path):
    path = write(tmp_path / "a.txt", english(200))
    config = eval_config(model_directory, [path])
    write(tmp_path / "a.txt", english(200))
    with pytest.raises(RuntimeError, match="stop here"):
        run(config, tmp_path / "run", RunOptions(checkpoint=1), progress=_raise_at(3))
    write(path, english(200, seed=5))
    with pytest.raises(TextError, match="has changed"):
        run(config, tmp_path / "run", RunOptions(resume=True))


def _raise_at(segment: int):
    def progress(event):
        if event["segment"] == segment:
            raise RuntimeError("stop here")

    return progress


# ------------------------------------------------------------------------------------------------------------------ trouble


def test_a_full_disk_is_said_and_keeps_what_was_scored(model_directory, tmp_path, monkeypatch):
    config = eval_config(model_directory, [write(tmp_path / "a.txt", english(400))])
    options = RunOptions(scores=True, checkpoint=2)
    run(config, tmp_path / "whole", options)
    for what, limit in (("metrics", 5000), ("checkpoint", 5)):
        out = tmp_path / what
        with monkeypatch.context() as patch:
            if what == "metrics":
                append = Growing.append

                def full(self, record):
                    if self.size > limit:
                        self.file.write(record[:7])  # a part of the record had room
                        self.file.truncate(self.size)
                        self.file.seek(self.size)
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                    append(self, record)

                patch.setattr(Growing, "append", full)
            else:
                fsync, calls = os.fsync, iter(range(1000))

                def full(descriptor):
                    if next(calls) > 30:
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                    fsync(descriptor)

                patch.setattr(os, "fsync", full)
            with pytest.raises(DiskError, match="no space left.*--resume"):
                run(config, out, options)
        expected = without_time(read_metrics(tmp_path / "whole"))
        kept = without_time(read_metrics(out))
        assert kept and kept == expected[: len(kept)]
        run(config, out, RunOptions(resume=True, scores=True, checkpoint=2))
        assert np.array_equal(scores_of(out), scores_of(tmp_path / "whole"))


@pytest.mark.skipif(not os.access("/dev/full", os.W_OK), reason="no /dev/full")
def test_a_write_that_fails_names_the_file():
    with open("/dev/full", "wb", buffering=0) as file:
        growing = object.__new__(Growing)
        growing.file, growing.size = file, 0
        with pytest.raises(OSError) as error:
            growing.append(b"x")
    assert "no space left" in str(rundir.disk_error(error.value, Path("runs/a/metrics.jsonl")))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(value, tmp_path):
    healthy = tiny_directory(tmp_path / "healthy")
    weight = dynadapt.model.load(str(healthy)).tensor("layers.1.up.weight").clone()
    weight[3, 5] = value
    broken = tiny_directory(tmp_path / "broken", **{"layers.1.up.weight": weight})
    with pytest.raises(ValueError, match="layers.1.up.weight"):
        run(eval_config(broken, [write(tmp_path / "a.txt", english(50))]), tmp_path / "run")


def test_divergence_is_said(model_directory, tmp_path):
    config = eval_config(model_directory, [write(tmp_path / "a.txt", english(300))], optimizer="sgd", lr=1e30, clip=0.0)
    with pytest.raises(RunError, match="diverged at lr 1e\\+30"):
        run(config, tmp_path / "run")


@pytest.mark.parametrize("content, words", [("", "is empty"), ("a", "too short to score"), (None, "no such file")])
def test_a_text_with_nothing_to_score_is_refused_before_any_work(content, words, model_directory, tmp_path):
    path = tmp_path / "a.txt"
    if content is not None:
        path.write_text(content)
    with pytest.raises(TextError, match=words):
        run(eval_config(model_directory, [path]), tmp_path / "run")


def test_a_text_shorter_than_a_segment_is_scored(model_directory, tmp_path):
    summary = run(eval_config(model_directory, [write(tmp_path / "a.txt", "the cat sat")], segment=64), tmp_path / "run")
    assert summary["segments"] == 1 and 1 <= summary["tokens"] < 16


def test_a_text_that_turns_out_empty_leaves_no_directory(model_directory, tmp_path):
    with pytest.raises(TextError, match="text '/dev/null'"):
        run(eval_config(model_directory, ["/dev/null"]), tmp_path / "made" / "run")
    assert not (tmp_path / "made" / "run").exists()


# ------------------------------------------------------------------------------------------------- scores read one step late


@pytest.fixture
def device(monkeypatch):
    """An engine on the CPU that the driver takes for one on a device; the order in which steps begin and scores are read."""
    from dynadapt.experiments.eval_run import EvalRun

    seen, run_of, step, wait = [], EvalRun.__init__, EvalRun._step, EvalRun._count_in

    def as_on_a_device(self, *arguments):
        run_of(self, *arguments)
        self.late = True

    def stepped(self, segment):
        seen.append(("step", len([what for what, _ in seen if what == "step"])))
        return step(self, segment)

    def read(self, *arguments):
        seen.append(("read", len([what for what, _ in seen if what == "read"])))
        return wait(self, *arguments)

    for name, function in (("__init__", as_on_a_device), ("_step", stepped), ("_count_in", read)):
        monkeypatch.setattr(EvalRun, name, function)
    return seen


@pytest.mark.parametrize("checkpoint", [0, 3])
def test_scores_are_read_behind_the_launch_of_the_next_step(checkpoint, model_directory, tmp_path, device, monkeypatch):
    config = eval_config(model_directory, [write(tmp_path / "text.txt", english(100))])
    options, folders = RunOptions(scores=True, checkpoint=checkpoint), [tmp_path / name for name in ("late", "at once")]
    run(config, folders[0], options)
    steps = [n for what, n in device if what == "step"]
    assert len(steps) > 7 and steps == [n for what, n in device if what == "read"]
    for n in steps[:-1]:
        behind = device.index(("read", n)) > device.index(("step", n + 1))
        assert behind == (not checkpoint or (n + 1) % checkpoint != 0), "a checkpoint has the state behind its own segment"
    monkeypatch.undo()
    run(config, folders[1], options)
    assert len({json.dumps(without_time(read_metrics(folder))) for folder in folders}) == 1
    assert np.array_equal(*map(scores_of, folders))
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in folders]
    assert summaries[0]["nll"] == summaries[1]["nll"] and summaries[0]["updates"] == summaries[1]["updates"]


def test_a_report_that_was_sent_says_what_it_would_have_said(model_directory):
    model = dynadapt.model.load(str(model_directory))
    engines = [build_engine(model, eval_config(model_directory, ["text"], reset="auto")) for _ in range(2)]
    tokens = torch.arange(17)[None]
    for engine in engines:
        engine.step(tokens)
    send(engines[0].last)
    sent, plain = (engine.last for engine in engines)
    assert (sent.updated, sent.skipped, sent.was_reset, sent.grad_norm) == (plain.updated, plain.skipped, plain.was_reset, plain.grad_norm)


def test_a_stopped_run_with_a_step_in_flight_goes_on_with_the_same_numbers(model_directory, tmp_path, device):
    config = eval_config(model_directory, [write(tmp_path / "text.txt", english(100))])
    run(config, tmp_path / "whole", RunOptions(scores=True, checkpoint=0))

    with pytest.raises(Interrupted):
        run(config, tmp_path / "stopped", RunOptions(scores=True, checkpoint=64), lambda line: line["segment"] < 2)
    assert len(read_metrics(tmp_path / "stopped")) == 4, "the step that was in flight is counted too"
    run(config, tmp_path / "stopped", RunOptions(scores=True, checkpoint=64, resume=True))
    assert np.array_equal(scores_of(tmp_path / "whole"), scores_of(tmp_path / "stopped"))
