"""The demo: what it plans for fast and slow machines, that its table, picture and page come, and that it goes on after a stop."""

import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import matplotlib.image
import psutil
import pytest
from rich.console import Console
from tiny import english, tiny_directory

from dynadapt.experiments import plot
from dynadapt.experiments.config import EvalConfig
from dynadapt.experiments.demo import TOKENS, VARIANTS, run_demo
from dynadapt.experiments.demo import run as module
from dynadapt.experiments.demo.cells import CellFailed, Cells
from dynadapt.experiments.demo.plan import LEAST, Pace, Plan, make_plan
from dynadapt.experiments.demo.show import Filling
from dynadapt.experiments.demo.variants import BY_WEIGHT, COMPARED, CORE, COST, demo_cells
from dynadapt.runs.rundir import RunError


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("demo")
    (folder / "a.txt").write_text(english(300))
    return {
        "model": str(tiny_directory(folder / "model")),
        "text": (str(folder / "a.txt"),),
        "rank": 2,
        "density": 0.5,
        "backend": "reference",
        "dtype": "fp32",
    }


# ---- the plan


def test_tables_of_the_variants_fit_together():
    assert sorted(BY_WEIGHT) == sorted(VARIANTS) == sorted(COST) and set(COMPARED) <= set(BY_WEIGHT[:CORE])
    for cell in demo_cells(BY_WEIGHT, TOKENS, 512, dtype="fp32"):
        assert cell.config.open == ("bos",)  # what README prints does not move with the defaults


def test_a_familys_rates_are_by_what_learns():
    for cell in demo_cells(BY_WEIGHT, TOKENS, 512, {"lora": 2.5e-4, "full": 1e-5}, dtype="fp32"):
        assert cell.config.lr == {"lora": 2.5e-4, "full": 1e-5}.get(cell.config.adapt)


@pytest.mark.parametrize(
    "plan,rates",
    [({"rates": {"full": 1e-5}}, {"full": 1e-5}), ({"rates": {}}, {}), ({"lr": 2.5e-4}, {"lora": 2.5e-4}), ({"lr": None}, {}), ({}, {})],
)
def test_a_plan_of_before_goes_on_at_its_rates(plan, rates):
    assert module.kept_rates(plan) == rates


def test_a_plan_fits_the_time_or_says_that_it_does_not():
    for seed in range(500):
        draw = random.Random(seed)
        static = 10 ** draw.uniform(-2, 1.5)
        pace, seconds = Pace(static, static * draw.uniform(1.5, 5), 10 ** draw.uniform(-0.5, 1)), draw.choice((60.0, 180.0, 600.0))
        plan = make_plan(pace, seconds, 512)
        segments = (plan.tokens - 1) // 512
        assert plan.names == BY_WEIGHT[: len(plan.names)] and len(plan.names) >= CORE
        assert plan.tokens == segments * 512 + 1 and LEAST <= segments <= 24
        assert plan.seconds <= 0.81 * seconds or (len(plan.names) == CORE and segments == LEAST)
        faster = make_plan(Pace(pace.static / 2, pace.lora / 2, pace.start / 2), seconds, 512)
        assert len(faster.names) >= len(plan.names)  # and with as many variants, as much text
        assert len(faster.names) > len(plan.names) or faster.tokens >= plan.tokens


@pytest.mark.parametrize("slower, names, segments", [(1, 10, 24), (2, 10, 12), (4, 4, 12), (8, 4, 8)])
def test_plans_of_machines_as_they_are(slower, names, segments):
    """512 tokens in 0.2 s static and 0.48 s learning are what README's table has; the slowest two-core machines take eight times that."""
    plan = make_plan(Pace(0.2 * slower, 0.48 * slower, 1.0 + 0.3 * slower), 180.0, 512)
    assert len(plan.names) >= names and (plan.tokens - 1) // 512 >= segments
    assert plan.seconds <= 0.8 * 180


def test_a_short_text_is_planned_as_it_is():
    assert make_plan(Pace(0.001, 0.002, 0.1), 180.0, 16, most=81).tokens == 81
    assert make_plan(Pace(0.001, 0.002, 0.1), 180.0, 512, most=100).tokens == 100


# ---- the whole of it


def test_the_demo_compares_and_draws(base, tmp_path, capfd, monkeypatch):
    out = tmp_path / "demo"
    assert run_demo(str(out), tokens=81, segment=16, **base) == 0
    output = capfd.readouterr().out
    for title, _ in VARIANTS.values():
        assert output.count(f"\n{title}  ") == 2  # as it comes, and in the table at the end
    runs = json.loads((out / "results.json").read_text())["runs"]
    assert [run["name"] for run in runs] == list(VARIANTS)
    assert {run["summary"]["tokens"] for run in runs} == {80}
    assert matplotlib.image.imread(out / "loss_against_flops.png").std() > 0.02
    page = (out / "compare.html").read_text()
    assert "<canvas" in page and len(page) > 10_000
    last = output.splitlines()
    assert last[-1].startswith(str(out / "compare.html")) and "browser" in last[-1]
    assert any(line.startswith("worked ") for line in last)
    # again: everything is there, and nothing runs
    before = {path: path.stat().st_mtime_ns for path in out.rglob("summary.json")}
    assert len(before) == 10 and run_demo(str(out), tokens=81, segment=16, **base) == 0
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("summary.json")}
    # another length has runs of its own, and the first ones stay
    monkeypatch.setattr(module, "whole_plan", lambda tokens: Plan(COMPARED, tokens))
    assert run_demo(str(out), tokens=49, segment=16, **base) == 0
    assert {run["summary"]["tokens"] for run in json.loads((out / "results.json").read_text())["runs"]} == {48}
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_the_clock_shortens_and_leaves_out(base, tmp_path, capfd, monkeypatch):
    """Too little time for anything: the four that matter most on four segments, and that is said."""
    out = tmp_path / "demo"
    monkeypatch.setattr(plot, "plot_cost", lambda runs, path, titles: path)
    monkeypatch.setattr(module._Demo, "_compare", lambda self, there: "")
    assert run_demo(str(out), segment=16, minutes=0.001, **base) == 0
    output = capfd.readouterr().out
    assert "the least that shows anything" in output and "4 variants of 10" in output and "s of 0 planned" in output
    runs = json.loads((out / "results.json").read_text())["runs"]
    assert [run["name"] for run in runs] == [name for name in VARIANTS if name in BY_WEIGHT[:CORE]]
    assert {run["summary"]["tokens"] for run in runs} == {LEAST * 16}
    plan = json.loads((out / "plan.json").read_text())
    assert plan["pace"]["static"] > 0 and plan["pace"]["lora"] > 0
    assert run_demo(str(out), segment=16, minutes=0.001, **base) == 0
    assert "goes on with its plan" in capfd.readouterr().out
    assert json.loads((out / "plan.json").read_text())["pace"] == plan["pace"]  # nothing was timed again


def test_what_no_longer_fits_is_left_out_and_run_by_the_same_command(base, tmp_path, capfd, monkeypatch):
    out = tmp_path / "demo"
    monkeypatch.setattr(plot, "plot_cost", lambda runs, path, titles: path)  # drawn and compared in the first test
    monkeypatch.setattr(module._Demo, "_compare", lambda self, there: "")
    monkeypatch.setattr(module, "make_plan", lambda *of: Plan(BY_WEIGHT[: CORE + 2], 65, 1.0))
    monkeypatch.setattr(module, "fits", lambda pace, name, *rest: name == "static-overlap")
    assert run_demo(str(out), segment=16, minutes=2, **base) == 0
    output = capfd.readouterr().out
    assert "left out for want of time: static, 4x windows; the same command runs them" in output
    assert len(json.loads((out / "results.json").read_text())["runs"]) == CORE + 1
    monkeypatch.setattr(module, "fits", lambda *of: True)
    assert run_demo(str(out), segment=16, minutes=2, **base) == 0
    assert "left out" not in capfd.readouterr().out
    assert len(json.loads((out / "results.json").read_text())["runs"]) == CORE + 2


def test_a_stopped_demo_goes_on(base, tmp_path):
    (tmp_path / "long.txt").write_text(english(20000))
    settings = {**base, "text": (str(tmp_path / "long.txt"),)}
    code = f"import sys; from dynadapt.experiments.demo import run_demo; sys.exit(run_demo({str(tmp_path / 'demo')!r}, tokens=6001, segment=16, **{settings!r}))"
    for number in (signal.SIGTERM, signal.SIGINT):
        child = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        folder = tmp_path / "demo" / "model-6001-tokens-fp32-segment-16"
        begun, deadline = time.time(), time.monotonic() + 100
        while not any(path.stat().st_mtime > begun and path.stat().st_size for path in folder.glob("*/metrics.jsonl")):
            assert child.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        workers = psutil.Process(child.pid).children(recursive=True)
        os.killpg(child.pid, number) if number == signal.SIGINT else child.send_signal(number)  # a terminal's goes to all
        output, errors = child.communicate(timeout=60)
        assert child.returncode == 130 and "the same command goes on" in errors, errors
        assert not psutil.wait_procs(workers, timeout=20)[1]
    assert json.loads((tmp_path / "demo" / "plan.json").read_text())["worked"] > 0


def test_each_cell_is_a_process_of_its_own_and_a_failure_ends_only_itself(base, tmp_path):
    with Cells() as cells:

        def ask(**changes):
            config = EvalConfig(**{**base, "segment": 16, "memory": 0, "tokens": 100, **changes})
            cells.ask(what="cell", config=config.to_dict(), out=str(tmp_path / f"run-{len(list(tmp_path.iterdir()))}"))

        events = []
        ask(adapt="none")
        with pytest.raises(CellFailed, match="no such file"):
            ask(text=("/nowhere.txt",))
        with pytest.raises(CellFailed, match="/nowhere"):
            ask(model="/nowhere")
        kill = EvalConfig(**{**base, "segment": 1, "memory": 0})

        def killing(event):
            if not events:
                events.append(event)
                for child in psutil.Process(cells.process.pid).children():
                    child.kill()

        with pytest.raises(CellFailed, match="killed by SIGKILL"):
            cells.ask(killing, what="cell", config=kill.to_dict(), out=str(tmp_path / "killed"))
        assert events and 0 < events[0]["fraction"] < 1
        ask(adapt="none")
        ask(adapt="full")
    records = {path.parent.name: json.loads(path.read_text()) for path in tmp_path.glob("run-*/summary.json")}
    assert len(records) == 3
    memory = [record["peak_memory_bytes"] for record in records.values()]
    assert min(memory) > 50e6 and len(set(memory)) > 1


def test_what_cannot_be_begun_is_said_in_the_cells_words(base, tmp_path, monkeypatch):
    def refuse(self, *of, **request):
        raise CellFailed("model 'smollm2-135m' is not in the cache yet: run `dynadapt fetch smollm2-135m`")

    monkeypatch.setattr(Cells, "ask", refuse)
    with pytest.raises(RunError, match="dynadapt fetch smollm2-135m"):
        run_demo(str(tmp_path / "demo"), tokens=81, segment=16)
    assert not (tmp_path / "demo" / "plan.json").exists()


@pytest.mark.parametrize("columns", [80, 140])
def test_on_a_terminal_the_table_fills_in_place(columns, base, tmp_path):
    console = Console(file=io.StringIO(), force_terminal=True, width=columns, height=40)
    summary = {"nll": 2.5, "bits_per_byte": 0.9, "flops_per_token": 3e8, "tokens_per_second": 1000.0, "peak_memory_bytes": 1e9}
    with Filling(BY_WEIGHT, console) as table:
        table.status("static: 50%, NLL 2.5, 1,000 tokens/s; worked 10 s of 180 s" + " and more" * 20)
        table.row("static", summary)
        table.row("full-memory", {**summary, "nll": 2.25})
    shown = console.file.getvalue()
    assert "\u00b7" in shown and "2.2500" in shown and "1,000 MB" in shown
    plain = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line) for line in re.split("[\r\n]", shown)]
    assert max(map(len, plain)) <= columns
