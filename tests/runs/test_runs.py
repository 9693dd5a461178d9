"""dynadapt runs: what is listed, told apart and removed; dynadapt.read_run; tables of a run for other programs."""

import csv
import fcntl
import json
import os
import random
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from command_line import call
from made_up_runs import checkpoint, diagnosis, eval_run, icl_run, reweight_run, write
from tiny import english, tiny_directory

import dynadapt
from dynadapt.cli import parse
from dynadapt.experiments.config import EvalConfig
from dynadapt.runs.columns import columns
from dynadapt.runs.differ import differences
from dynadapt.runs.find import find_runs, last_line
from dynadapt.runs.listing import SORT, chosen, count, disk, duration
from dynadapt.runs.prune import removable, remove
from dynadapt.runs.rundir import RunDirectory, RunError, locked


@pytest.fixture
def folder(tmp_path) -> Path:
    """Runs of every kind and state, and what is none."""
    root = tmp_path / "runs"
    eval_run(root / "static", adapt="none")
    eval_run(root / "sweep" / "lr=0.1" / "deep", memory=512)
    eval_run(root / "stopped", segments=3, of=12, finished=False)
    eval_run(root / "failed", segments=0, finished=False)
    reweight_run(root / "even")
    reweight_run(root / "odm", mixer="odm", finished=False, steps=6)
    icl_run(root / "icl", finished=False, steps=1000, done=300)
    diagnosis(root / "diagnosis")
    eval_run(root / "diagnosis" / "before", adapt="none")
    (eval_run(root / "damaged") / "summary.json").write_text('{"nll": ')
    (root / "model").mkdir()
    (root / "model" / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 8}))
    (root / "notes.txt").write_text("mine")
    (root / "link").symlink_to(root, target_is_directory=True)
    return root


def state(root: Path) -> dict[str, str]:
    return {row.name: row.state for row in find_runs(root)}


def test_every_run_is_a_row_and_nothing_else_is(folder):
    rows = {row.name: row for row in find_runs(folder)}
    assert {name: (row.kind, row.state) for name, row in rows.items()} == {
        "static": ("eval", "finished"),
        "sweep/lr=0.1/deep": ("eval", "finished"),
        "stopped": ("eval", "stopped"),
        "failed": ("eval", "failed"),
        "even": ("reweight", "finished"),
        "odm": ("reweight", "stopped"),
        "icl": ("icl", "stopped"),
        "diagnosis": ("diagnose", "finished"),
        "damaged": ("eval", "damaged"),
    }
    assert rows["stopped"].fraction == pytest.approx(3 / 10)  # of the text's bytes, which ends before 12 segments do
    assert rows["icl"].fraction == pytest.approx(0.3) and rows["odm"].fraction == 1.0
    assert rows["static"].result == ("NLL", 3.0, "nats/token") and rows["static"].what == "static on a.txt"
    assert rows["odm"].result[:1] == ("held-out",) and rows["odm"].result[1] > 1
    assert rows["icl"].result[:2] == ("error", pytest.approx(1 / 300)) and rows["diagnosis"].result[:2] == ("change", -0.1)
    assert "summary.json" in rows["damaged"].why and all(row.bytes > 0 for row in rows.values())
    assert {row.name for row in find_runs(folder, depth=1)} == set(rows) - {"sweep/lr=0.1/deep"}
    assert [row.name for row in find_runs(folder / "static")] == ["static"]


def test_a_run_that_a_process_writes_is_running(folder):
    with open(folder / "stopped" / ".lock", "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert locked(folder / "stopped") and state(folder)["stopped"] == "running"
    assert not locked(folder / "stopped")


def test_looking_does_not_keep_a_run_from_going_on(folder):
    """A look at the lock is shorter than a run waits for it."""
    config = json.loads((folder / "failed" / "config.json").read_text())
    with open(folder / "failed" / ".lock", "rb") as look:
        fcntl.flock(look, fcntl.LOCK_SH)
        import threading

        threading.Timer(0.015, look.close).start()
        RunDirectory(folder / "failed", config, True, False).close()


def test_damage_of_any_kind_is_a_row(folder):
    """Files cut, filled with bytes or replaced, seeded: a row or no run, never an error."""
    random_, broken = random.Random(0), 0
    files = [
        path for name in ("static", "odm", "icl", "diagnosis") for path in (folder / name).iterdir() if path.suffix in (".json", ".jsonl")
    ]
    for path in files:
        whole = path.read_bytes()
        for content in (
            b"",
            whole[: random_.randrange(len(whole))] if whole else b"",
            random_.randbytes(50),
            b"[]",
            b"null",
            b"3\n",
            b'{"files": {"scores.npy": 3}}\n',
        ):
            path.write_bytes(content)
            rows = find_runs(folder)
            broken += sum(row.state == "damaged" for row in rows) - 1
            for row in rows:
                json.dumps(row.to_dict(), allow_nan=False)
        path.write_bytes(whole)
    assert broken > 20


def test_the_last_line_is_found_from_the_end(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for first, last, cut in ((b"", b"", b""), (b'{"a": 1}\n' * 9, b'{"b": 2}\n', b'{"c"'), (b"", b'{"b": "' + b"x" * 300 + b'"}\n', b"")):
        path.write_bytes(first + last + cut)
        assert last_line(path, block=7) == (json.loads(last) if last else {})


@pytest.mark.parametrize("width", [80, 140])
def test_the_table_fits_the_terminal(folder, width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    eval_run(folder / ("a-name-without-end-" * 6) / "x[red]\x1b[31m", text=("b\nc.txt",))
    assert call("runs", folder) == 0
    output = capsys.readouterr().out
    assert max(map(len, output.splitlines())) <= width and "\x1b" not in output
    assert "stopped 30%" in output and "NLL 3.0000" in output and "10 runs: 6 finished, 2 stopped" not in output
    assert re.search(r"10 runs: 5 finished, 3 stopped, 1 failed, 1 damaged; ", output)


def test_filters_and_orders(folder, capsys):
    def names(*words):
        assert call("runs", folder, "--json", *words) == 0
        return [row["name"] for row in json.loads(capsys.readouterr().out)["runs"]]

    assert names("--sort", "name") == sorted(state(folder))
    assert names("--sort", "name", "--reverse") == sorted(state(folder), reverse=True)
    assert set(names("--unfinished")) == {"stopped", "failed", "odm", "icl", "damaged"}
    assert set(names("--kind", "reweight", "icl")) == {"even", "odm", "icl"}
    os.utime(folder / "static" / "metrics.jsonl", (2e9, 2e9))
    assert names()[-1] == "static"
    rows = find_runs(folder)
    for by in SORT:
        assert sorted(row.name for row in chosen(rows, sort=by)) == sorted(state(folder))
    assert call("runs", folder, "--kind", "advise") == 0 and "none of its 9 runs" in capsys.readouterr().out


def test_numbers_are_short():
    assert [count(n) for n in (None, 0, 999, 1000, 12_289, 999_600, 2_000_000)] == ["-", "0", "999", "1k", "12.3k", "1M", "2M"]
    assert [duration(s) for s in (None, 0.2, 59.4, 60, 3599, 3660, 400_000)] == ["-", "0s", "59s", "1m", "1h00", "1h01", "4d"]
    assert [disk(n) for n in (12, 999_999, 5_500_000, 2 * 10**9)] == ["12 B", "1 MB", "5.5 MB", "2 GB"]


@pytest.mark.parametrize(
    "words, message",
    [
        (["runs", "/nowhere/at/all"], "no such directory"),
        (["runs", "prun"], "did you mean dynadapt runs prune?"),
        (["runs", "diff", "a"], "OTHER (see dynadapt runs diff --help)"),
        (["runs", "--sort", "szie"], "did you mean size?"),
    ],
)
def test_mistakes_get_a_line_that_helps(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert call(*words) == 2
    assert message in capsys.readouterr().err


def test_a_directory_may_have_the_name_of_a_command(tmp_path, monkeypatch):
    assert parse(["runs", "./diff"]).dir == "./diff" and parse(["runs", "diff", "a", "b"]).other == "b"
    assert parse(["runs", "prune", "diff"]).dir == "diff" and parse(["runs"]).dir == "runs"


# ---- diff


def test_what_differs_is_told(folder, capsys):
    eval_run(folder / "lora", nll=2.5, rank=8)
    found = differences(folder / "static", folder / "lora")
    assert found["settings"] == {"adapt": ["none", "lora"], "rank": [16, 8], "lr": [0.0, 2e-3]} and not found["inputs"]
    assert found["results"]["nll"] == [3.0, 2.5, -0.5] and next(iter(found["results"])) == "nll" and not found["notes"]
    eval_run(folder / "other", sha="b" * 64)
    assert differences(folder / "static", folder / "other")["inputs"] == {"text 'a.txt'": ["a" * 64, "b" * 64]}
    assert "has other contents" in differences(folder / "static", folder / "other")["notes"][0]
    assert "not of one kind" in differences(folder / "static", folder / "even")["notes"][0]
    assert "not finished" in differences(folder / "static", folder / "stopped")["notes"][0]
    eval_run(folder / "shorter", tokens=32, adapt="none")
    assert "other parts" in differences(folder / "static", folder / "shorter")["notes"][0]
    assert call("runs", "diff", folder / "static", folder / "lora") == 0
    output = capsys.readouterr().out
    assert re.search(r"rank +16 +8", output) and re.search(r"nll +3 +2\.5 +-0\.5", output) and "environment: the same" in output
    for one, other in (("static", "even"), ("static", "stopped"), ("odm", "diagnosis")):
        assert call("runs", "diff", folder / one, folder / other) == 0
        assert call("runs", "diff", folder / one, folder / other, "--json") == 0
    for none in ("model", "missing", "damaged"):
        assert call("runs", "diff", folder / "static", folder / none) == 2


# ---- prune


def everything(root: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(root)): path.read_bytes() if path.is_file() else None for path in root.rglob("*") if "link" not in path.parts
    }


def test_pruning_shows_first_and_removes_what_failed_alone(folder, capsys):
    before = everything(folder)
    assert call("runs", "prune", folder) == 0
    assert (
        f"would remove {folder / 'failed'} (" in (said := capsys.readouterr().out) and "1 to remove" in said and "--yes removes it" in said
    )
    assert everything(folder) == before
    assert call("runs", "prune", folder, "--yes") == 0
    assert everything(folder) == {name: content for name, content in before.items() if name.split("/")[0] != "failed"}
    assert call("runs", "prune", folder, "--yes") == 0 and "nothing to remove" in capsys.readouterr().out


def test_what_is_locked_or_not_its_own_stays(folder, capsys):
    (eval_run(folder / "mine", segments=0, finished=False) / "thesis.tex").write_text("years of work")
    with open(folder / "failed" / ".lock", "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert call("runs", "prune", folder, "--yes") == 0
        assert (folder / "failed").exists() and (folder / "mine" / "thesis.tex").exists()
        assert "it holds files of others" in capsys.readouterr().out
    found, _ = removable(folder)
    (folder / "failed" / "metrics.jsonl").write_text("{}\n")  # it has begun in the meantime
    with pytest.raises(RunError, match="in the meantime"):
        remove(found[0])
    (folder / "failed" / "metrics.jsonl").write_text("")
    with open(folder / "failed" / ".lock", "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(RunError, match="another process"):
            remove(found[0])


@pytest.mark.parametrize(
    "files, begun",
    [
        ({".lock": "", "env.json": '{"dynadapt": "0.1.0"}'}, True),
        ({".lock": ""}, False),
        ({".lock": "", "env.json": "{}"}, False),
        ({}, False),
        ({"config.json": "{}"}, False),
        ({"config.json": '{"model_type": "llama"}', ".lock": ""}, False),
        ({"env.json": '{"dynadapt": "0.1.0"}'}, False),
    ],
)
def test_only_what_is_certainly_a_run_is_removed(files, begun, tmp_path):
    (tmp_path / "x").mkdir()
    for name, content in files.items():
        (tmp_path / "x" / name).write_text(content)
    assert [removal.path.name for removal in removable(tmp_path)[0]] == ["x"] * begun


def test_a_failed_diagnosis_is_its_runs_too(tmp_path):
    diagnosis(tmp_path / "d", finished=False)
    eval_run(tmp_path / "d" / "before", segments=0, finished=False)
    assert state(tmp_path) == {"d": "failed"} and [removal.path.name for removal in removable(tmp_path)[0]] == ["d"]
    eval_run(tmp_path / "d" / "after", segments=2, finished=False)
    assert state(tmp_path) == {"d": "stopped"} and not removable(tmp_path)[0]


def test_checkpoints_that_nothing_reads_go_and_the_run_stays_what_it_was(tmp_path, capsys):
    for name, adapt in (("lora", "lora"), ("full", "full"), ("static", "none")):
        checkpoint(eval_run(tmp_path / name, adapt=adapt))
    checkpoint(reweight_run(tmp_path / "even"))
    checkpoint(icl_run(tmp_path / "icl"), 500)
    checkpoint(icl_run(tmp_path / "kept"), 500)
    (tmp_path / "kept" / "weights").mkdir()
    (tmp_path / "kept" / "weights" / "00000500.safetensors").touch()
    checkpoint(eval_run(tmp_path / "stopped", adapt="full", finished=False))
    assert not removable(tmp_path)[0]
    assert call("runs", "prune", tmp_path, "--checkpoints", "--yes") == 0
    assert {path.parent.name for path in tmp_path.glob("*/checkpoint")} == {"lora", "even", "icl", "stopped"}
    assert "export and publish read the adapter from it" in capsys.readouterr().out
    config = json.loads((tmp_path / "full" / "config.json").read_text())
    assert RunDirectory(tmp_path / "full", config, True, False).finished["nll"] == 3.0
    assert state(tmp_path)["full"] == "finished"


# ---- read_run and tables


def test_a_real_run_is_read_as_it_was_written(tmp_path, capsys):
    (tmp_path / "a.txt").write_text(english(80))
    words = [
        "--model",
        tiny_directory(tmp_path / "model"),
        "--text",
        tmp_path / "a.txt",
        "--segment",
        "16",
        "--rank",
        "2",
        "--backend",
        "reference",
        "--dtype",
        "fp32",
        "--scores",
        "--out",
        tmp_path / "run",
    ]
    assert call("eval", *words) == 0
    run = dynadapt.read_run(tmp_path / "run")
    frame, scores = run.frame(), run.scores()
    assert list(frame["nll"]) == [line["nll"] for line in run.metrics] and list(frame["flops.forward"]) == [
        line["flops"]["forward"] for line in run.metrics
    ]
    assert frame["stream_nll"].tolist() == [line["stream_nll"][0] for line in run.metrics]
    assert len(scores) == run.summary["tokens"] and scores["nll"].mean() == pytest.approx(run.summary["nll"], rel=1e-5)
    assert EvalConfig.from_dict(run.config).rank == 2 and run.kind == "eval" and run.state == "finished"
    assert "LoRA r2" in repr(run) and f"NLL {run.summary['nll']:.4f} nats/token" in repr(run)
    assert call("export", tmp_path / "run", "--csv", tmp_path / "m.csv", "--parquet", tmp_path / "m.parquet") == 0
    rows = list(csv.DictReader(open(tmp_path / "m.csv", newline="")))
    assert [float(row["nll"]) for row in rows] == [line["nll"] for line in run.metrics]
    assert call("export", tmp_path / "run", "--csv", tmp_path / "t.csv", "--parquet", tmp_path / "t.parquet", "--scores") == 0
    table = np.array([(int(row["token"]), float(row["nll"])) for row in csv.DictReader(open(tmp_path / "t.csv", newline=""))])
    assert (table[:, 0] == scores["token"]).all() and np.allclose(table[:, 1], scores["nll"], atol=0, rtol=1e-7)
    parquet = pytest.importorskip("pyarrow.parquet")
    assert parquet.read_table(tmp_path / "m.parquet")["nll"].to_pylist() == [line["nll"] for line in run.metrics]
    assert (parquet.read_table(tmp_path / "t.parquet")["token"].to_numpy() == scores["token"]).all()
    assert [row.state for row in find_runs(tmp_path / "run")] == ["finished"]


@pytest.mark.parametrize("make", [eval_run, reweight_run, icl_run, diagnosis])
@pytest.mark.parametrize("finished", [True, False])
def test_runs_of_every_kind_are_read_and_shown(make, finished, tmp_path):
    run = dynadapt.read_run(make(tmp_path / "x", finished=finished))
    assert len(run.frame()) == len(run.metrics) and run.kind in repr(run) and run.state == ("finished" if finished else "stopped")
    page = run._repr_html_()
    assert run.kind in page and ("<svg" in page) == (make is not diagnosis)
    if make is not eval_run:
        with pytest.raises(RunError, match="keep none"):
            run.scores()


class Page(HTMLParser):
    """What would be run or fetched."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.depth = set(), set(), 0
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attributes}
        self.depth += 1

    def handle_endtag(self, tag):
        self.depth -= 1


def test_a_run_in_a_notebook_is_escaped_and_fetches_nothing(tmp_path):
    name = 'x"><script>alert(1)<'
    run = dynadapt.read_run(eval_run(tmp_path / name, text=("</td><img src=x onerror=y>.txt",), model="<b>&amp;"))
    page = run._repr_html_()
    found = Page(page)
    assert found.tags <= {"div", "strong", "table", "tr", "th", "td", "svg", "polyline"} and found.depth == 0
    assert not {name for name in found.attributes if name.startswith("on") or name in ("src", "href")} and "http" not in page
    assert "&lt;b&gt;&amp;amp;" in page and "3.0000 nats/token" in page and "from 3.100 to 3.025" in page


def test_columns_of_uneven_lines():
    found = columns(
        [{"a": 1, "b": {"c": 2, "d": [1, 2]}, "e": [5], "f": ["x"]}, {"a": 2.5, "b": {"c": None, "d": [3]}, "e": [], "g": {}, "h": [[1]]}]
    )
    assert found == {
        "a": [1, 2.5],
        "b.c": [2, None],
        "b.d.0": [1, 3],
        "b.d.1": [2, None],
        "e": [5, None],
        "f": ['["x"]', None],
        "h": [None, "[[1]]"],
    }
    assert columns([]) == {}


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "nothing to write"),
        (["--scores"], "scores: with --csv"),
        (["--csv", "a", "--parquet", "a"], "a name of its own"),
        (["--csv", "x.csv", "--stream", "1"], "stream 1"),
        (["--csv", "x.csv", "--scores"], "run it again with --scores"),
        (["--csv", "."], "is a directory"),
    ],
)
def test_exports_that_can_not_be_are_refused(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert call("export", eval_run(tmp_path / "x"), *words) == 2
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x"]


def test_without_pyarrow_or_pandas_the_refusal_has_the_line_to_install(tmp_path, monkeypatch, capsys):
    run = eval_run(tmp_path / "x")
    for module in ("pyarrow", "pandas"):
        monkeypatch.setitem(sys.modules, module, None)
    assert call("export", run, "--parquet", tmp_path / "x.parquet") == 2
    assert "pip install pyarrow" in capsys.readouterr().err and not (tmp_path / "x.parquet").exists()
    with pytest.raises(ImportError, match="pip install pandas"):
        dynadapt.read_run(run).frame()
    assert call("export", run, "--csv", tmp_path / "x.csv") == 0


def test_what_is_no_run_is_not_read(tmp_path):
    write(tmp_path / "model", {"model_type": "llama"}, [], None)
    with pytest.raises(RunError, match="is no run: its config.json"):
        dynadapt.read_run(tmp_path / "model")


def test_a_diagnosis_is_not_taken_for_an_evaluation(tmp_path):
    """Its configuration has all that one of eval has, and no metrics of its own."""
    from dynadapt.experiments.compare import read_compared
    from dynadapt.experiments.dyneval import find_baseline

    other = diagnosis(tmp_path / "a")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "adapt": "none", "segment": 16}))
    eval_run(tmp_path / "b", adapt="none", scores=True)
    assert find_baseline(tmp_path / "mine", EvalConfig(text=("a.txt",), segment=16)) == {16 * i: 3.1 for i in range(1, 5)}
    with pytest.raises(RunError, match="is a run of dynadapt diagnose; compare takes runs of dynadapt eval"):
        read_compared([tmp_path / "a", tmp_path / "b"])


def test_products_are_neither_runs_nor_texts(tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("words")
    run = eval_run(tmp_path / "run")
    content = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**content, "text": [str(text)]}))
    before = (run / "summary.json").read_bytes()
    for name, said in (
        (run / "summary.json", "lies in a run's directory"),
        (run / "new.csv", "lies in a run's directory"),
        (text, "is the text that was scored"),
    ):
        assert call("export", run, "--csv", name) == 2 and said in capsys.readouterr().err
    assert (run / "summary.json").read_bytes() == before and text.read_text() == "words"
