"""The campaign's stages of tests: each verdict as it comes, what fails again alone, what has passed not again."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton")
ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from benchmarks.gpu import campaign, checks, summary, verdicts  # noqa: E402
from benchmarks.gpu.campaign import Campaign, Record  # noqa: E402
from benchmarks.gpu.verdicts import Verdicts  # noqa: E402

TESTS = """
import time, pytest
def test_good(): pass
def test_bad(): assert 1 == 2, "off by 1"
@pytest.mark.skip
def test_left_out(): pass
@pytest.fixture
def broken():
    yield
    raise RuntimeError("behind it")
def test_broken(broken): pass
def test_hangs(): time.sleep({seconds})
def test_later(): pass
"""


def stage(tmp_path, files, resume=False, seconds=600.0):
    record = Record(tmp_path / "core.json", "core", "cpu", resume)
    checks._correctness(Campaign(tmp_path, "cpu", seconds), record, [str(file) for file in files])
    return record.data


def test_a_stopped_run_keeps_every_verdict_and_the_next_goes_on(tmp_path, monkeypatch):
    file = tmp_path / "test_made.py"
    file.write_text(TESTS.format(seconds=60))
    monkeypatch.setattr(checks, "LEAST", 0.0)
    cut = stage(tmp_path, [file], seconds=checks.GRACE + 6)
    (row,) = cut["rows"]
    assert row["status"] == 1 and [f["test"] for f in row["failures"]] == ["test_bad", "test_broken"]
    assert "off by 1" in row["failures"][0]["message"] and "behind it" in row["failures"][1]["message"]
    assert (row["tests"], row["collected"], row["skipped"], row["unfinished"]) == (4, 6, 1, ["test_hangs"])
    assert "test_bad; test_broken; test_hangs (did not end)" in summary.TABLES["core"](cut["rows"])
    file.write_text(TESTS.format(seconds=0).replace("1 == 2", "1 == 1").replace("raise RuntimeError", "RuntimeError"))
    (row,) = stage(tmp_path, [file], resume=True)["rows"]
    assert row["status"] == 0 and row["tests"] == row["collected"] == 6 and row["failed_beside_others"] == ["test_bad", "test_broken"]
    started = [json.loads(line) for line in (tmp_path / "tests.jsonl").read_text().splitlines() if '"started"' in line]
    again = [line["test"].split("::")[-1] for line in started]
    assert again.count("test_good") == 1 and again.count("test_bad") == again.count("test_hangs") == 2
    assert stage(tmp_path, [file], resume=True)["rows"][0]["status"] == 0


def test_a_test_that_hangs_costs_its_limit(tmp_path, monkeypatch):
    pytest.importorskip("pytest_timeout")
    pytest.importorskip("xdist")
    file = tmp_path / "test_made.py"
    file.write_text(TESTS.format(seconds=60))
    monkeypatch.setattr(Campaign, "tiny", False)
    monkeypatch.setattr(checks, "WORKERS", 2)
    monkeypatch.setattr(checks, "LIMIT", 3)
    (row,) = stage(tmp_path, [file])["rows"]
    failed = {failure["test"]: failure["message"] for failure in row["failures"]}
    assert set(failed) == {"test_bad", "test_broken", "test_hangs"} and "crashed" in failed["test_hangs"]
    assert row["tests"] == row["collected"] == 6 and row["unfinished"] == []


def pretended(monkeypatch, outcome):
    """Runs of pytest as ``outcome(files, test)`` says; the files of each."""
    runs = []

    def child(command, device, seconds, **variables):
        files = [Path(c).name for c in command if Path(c).name.startswith("test_")]
        runs.append(files)
        passed = json.loads(Path(variables[verdicts.PASSED]).read_text())
        tests = [t for f in files for t in (f"tests/gpu/{f}::test_a", f"tests/gpu/{f}::test_b") if t not in passed]
        lines = [{"collected": tests}, *({"test": t, "outcome": o} for t in tests if (o := outcome(files, t)))]
        with open(variables[verdicts.VERDICTS], "a") as file:
            file.write("".join(json.dumps(line) + "\n" for line in lines))
        found = {line.get("outcome") for line in lines}
        return (None if "started" in found else 1 if "failed" in found else 0), "said"

    monkeypatch.setattr(checks, "child", child)
    return runs


NAMES = [f"tests/gpu/test_{name}.py" for name in ("linear", "memory", "norm", "step", "update")]


def run(tmp_path, resume=False, stage="core", left=1e9):
    record = Record(tmp_path / f"{stage}.json", stage, "cpu", resume)
    checks._correctness(SimpleNamespace(out=tmp_path, device="cpu", tiny=False, left=left, room=lambda most: most), record, NAMES)
    return {row["file"]: row["status"] for row in record.data["rows"]}


def test_the_step_goes_first_and_only_what_failed_runs_again(tmp_path, monkeypatch):
    monkeypatch.setattr(checks, "BATCH", 4)
    alone_too = lambda files, t: "failed" if "memory" in t or "norm" in t and len(files) > 1 else "passed"  # noqa: E731
    runs = pretended(monkeypatch, alone_too)
    found = run(tmp_path)
    together = ["test_linear.py", "test_memory.py", "test_norm.py", "test_update.py"]
    assert runs == [["test_step.py"], together, ["test_memory.py"], ["test_norm.py"]]
    assert found == {"test_step.py": 0, "test_linear.py": 0, "test_memory.py": 1, "test_norm.py": 0, "test_update.py": 0}
    runs.clear()
    assert run(tmp_path, resume=True) == found and runs == [["test_memory.py"]]


def test_what_did_not_end_in_its_time_is_no_failure_and_runs_in_the_next_call(tmp_path, monkeypatch):
    runs = pretended(monkeypatch, lambda files, t: {"a": "passed", "b": "started"}[t[-1]] if "norm" in t else "passed")
    assert run(tmp_path)["test_norm.py"] == "stopped"
    assert json.loads((tmp_path / "core.json").read_text())["status"] == "out of time"
    runs = pretended(monkeypatch, lambda files, t: "passed")
    assert set(run(tmp_path, resume=True).values()) == {0} and runs == [["test_norm.py"]]


def test_what_has_passed_with_other_code_runs_again(tmp_path, monkeypatch):
    """A kernel that was mended between two calls has no verdict yet."""
    runs = pretended(monkeypatch, lambda files, t: "failed" if "update" in t else "passed")
    assert run(tmp_path)["test_update.py"] == 1
    monkeypatch.setattr(campaign.code, "digest", lambda: "mended")
    runs = pretended(monkeypatch, lambda files, t: "passed")
    assert set(run(tmp_path, resume=True).values()) == {0}
    assert runs == [["test_step.py"], ["test_linear.py", "test_memory.py", "test_norm.py", "test_update.py"]]
    assert set(run(tmp_path, resume=True).values()) == {0} and len(runs) == 2


def test_what_one_stage_has_passed_the_other_does_not_run_again(tmp_path, monkeypatch):
    runs = pretended(monkeypatch, lambda files, t: "failed" if "update" in t else "passed")
    run(tmp_path)
    runs.clear()
    assert run(tmp_path, resume=True, stage="correctness")["test_step.py"] == 0 and runs == [["test_update.py"]]


def test_what_failed_before_a_cut_has_failed(tmp_path, monkeypatch):
    """Also where the next call ends before it comes to it."""
    pretended(monkeypatch, lambda files, t: "failed" if "update" in t else "passed")
    run(tmp_path)
    assert run(tmp_path, resume=True, left=1.0) == {**dict.fromkeys((Path(name).name for name in NAMES), 0), "test_update.py": 1}
    assert json.loads((tmp_path / "core.json").read_text())["status"] == "out of time"


def test_the_code_that_is_measured_is_told_from_another(tmp_path):
    for folder in campaign.code.FOLDERS:
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "kernels" / "norm.py").write_text("a")
    (tmp_path / "kernels" / "choices.json").write_text("{}")
    digest = campaign.code.digest.__wrapped__
    before = digest(tmp_path)
    (tmp_path / "kernels" / "choices.json").write_text("measured")
    assert digest(tmp_path) == before != campaign.code.digest()
    (tmp_path / "kernels" / "norm.py").write_text("b")
    assert digest(tmp_path) != before


def test_files_of_verdicts_are_read_as_they_are_cut(tmp_path):
    (tmp_path / "v").write_text(
        '{"collected": ["t.py::a", "t.py::b"]}\n{"test": "t.py::a", "outcome": "passed"}\n{"test": "t.py::b", "outc'
    )
    assert Verdicts.read(tmp_path / "v").tests == {"t.py::a": "passed", "t.py::b": "collected"}
    assert Verdicts.read(tmp_path / "absent").tests == {}


def test_core_has_the_tests_of_what_a_step_launches(monkeypatch):
    """In either form of its linears, with its gradients together and alone."""
    from triton.runtime import interpreter

    from dynadapt import Adam, Engine, LoRA, SegmentMemory
    from dynadapt.kernels import choices, lora_gradient
    from dynadapt.model import random_model, tiny_config

    launched = set()
    noted = lambda executor, *_, **__: launched.add(executor.fn.__module__.rsplit(".", 1)[-1])  # noqa: E731
    monkeypatch.setattr(interpreter.GridExecutor, "__call__", noted)
    options = {"adapt": LoRA(2), "optimizer": Adam(), "memory": SegmentMemory(3), "segment": 3, "dtype": "fp32", "backend": "triton"}
    for form in choices.FORMS:
        monkeypatch.setattr(lora_gradient, "linears_fit", lambda *_: form == "fused")  # noqa: B023
        with choices.force(form):
            e = Engine(random_model(tiny_config("llama"), seed=0, std=0.1), **options)
            for _ in range(2):
                e.step(torch.ones(1, 4, dtype=torch.int64))
    covered = [name.removeprefix("test_") for name in checks.CORE]
    assert "linear_fused" in launched and "low_rank" in launched
    assert not [name for name in launched - {"low_rank"} if not name.startswith(tuple(covered))]
    names = [Path(file).stem for file in checks.test_files()]
    assert set(checks.CORE) <= set(names) and "test_rounding" not in names
    assert len(checks.batches([f for f in checks.test_files() if Path(f).stem in checks.CORE])) == 2


def test_the_tests_are_found_without_optional_plugins():
    """One file that pytest refuses ends a whole batch."""
    left_out = ["-p", "no:timeout", "-p", "no:xdist", "-p", "no:cacheprovider"]
    files = [file for file in checks.test_files() if "timeout" in (ROOT / file).read_text()]
    command = [sys.executable, "-m", "pytest", *files, "--collect-only", "-q", *left_out]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert files and ran.returncode == 0, ran.stdout[-2000:] + ran.stderr


def test_a_process_that_lost_the_device_ends_behind_its_test(monkeypatch):
    """Every later test of it would fail, and fast, so that it would take them from the others."""
    ended, worker = [], verdicts._Worker()
    monkeypatch.setattr(verdicts.os, "_exit", ended.append)

    def one(text, failed=True):
        protocol = worker.pytest_runtest_protocol(None)
        next(protocol)
        worker.pytest_runtest_logreport(SimpleNamespace(failed=failed, longreprtext=text))
        with pytest.raises(StopIteration):
            protocol.send(True)

    one("assert 1 == 2")
    one("CUDA error in a name", failed=False)
    assert not ended
    one("RuntimeError: CUDA error: an illegal memory access was encountered")
    assert ended == [70]


def test_tests_that_go_on_leave_the_goal_open_and_one_that_failed_misses_it():
    core = lambda *statuses: {"device": "cuda", "status": "complete", "rows": [{"file": "f", "status": s} for s in statuses]}  # noqa: E731
    assert summary.goals({"core": core(0)})["correct"][0] == "open"  # the rest of tests/gpu has not run
    assert summary.goals({"core": core(0), "correctness": core(0)})["correct"][0] == "met"
    assert summary.goals({"core": core(0), "correctness": {**core(0, "stopped"), "status": "out of time"}})["correct"][0] == "open"
    assert summary.goals({"core": core(0, 1)})["correct"][0] == "missed"
