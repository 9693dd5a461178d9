"""What the campaign does within its time, and what it carries from one call into the next."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton")
ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from benchmarks import gpu_campaign, native_build  # noqa: E402
from benchmarks.gpu import campaign, choice_table, kept, machine, ops, stacked, step, step_worker, timing  # noqa: E402
from benchmarks.gpu.campaign import Campaign, Record, child  # noqa: E402
from benchmarks.gpu.summary import goals, ops_table  # noqa: E402
from benchmarks.gpu_campaign import CALLS, STAGES, late, stage_function  # noqa: E402
from benchmarks.native_build import build_commands  # noqa: E402

CUT = 600  # seconds that a command may take
CARD = "NVIDIA H100 80GB HBM3"


# ---- calls


def through(monkeypatch, tmp_path, name, takes):
    """(seconds of a whole call, {stage: seconds it was given}); ``takes``: of what a stage is given, what it uses."""
    clock, given = [1000.0], {}

    def outside(args, stage, seconds):
        given[stage] = seconds
        clock[0] += takes(seconds)
        return True

    monkeypatch.setattr(gpu_campaign, "outside", outside)
    monkeypatch.setattr(gpu_campaign.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(gpu_campaign, "bundle", lambda *_: None)
    args = gpu_campaign.parse([name, "--resume", f"--out={tmp_path}"])
    failed, _ = gpu_campaign.run(args, tmp_path)
    assert not failed
    return clock[0] - 1000, given


@pytest.mark.parametrize("name", CALLS)
def test_a_call_is_over_in_its_time_though_every_stage_is_killed(name, monkeypatch, tmp_path):
    call = CALLS[name]
    assert call.seconds <= CUT - 20 and set(call.stages) <= set(STAGES) and "build" in call.stages
    worst, given = through(monkeypatch, tmp_path, name, late)
    assert worst <= call.seconds and "summary" in given
    used, given = through(monkeypatch, tmp_path, name, lambda seconds: seconds)  # as long as it may: no stage is robbed
    (*others, last) = call.stages
    assert used <= call.seconds and {stage: given[stage] for stage in others} == {stage: call.stages[stage] for stage in others}
    assert given[last] >= (80 if name == "quarter-hour-2" else call.stages[last])  # more where its build was done before
    _, given = through(monkeypatch, tmp_path, name, lambda seconds: 1.0)
    assert given[last] > 0.7 * call.seconds  # what the others leave


def test_what_decides_most_comes_first_and_has_the_time_it_needs():
    quarter = [CALLS[f"quarter-hour-{i}"] for i in (1, 2)]
    assert quarter[0].seconds <= 500 and quarter[1].seconds <= 240
    assert list(quarter[0].stages)[1:] == ["build", "ceilings", "core", "choices-135m", "step-135m"]
    for calls in (quarter, [call for name, call in CALLS.items() if name.startswith("first-half-hour")]):
        assert calls[0].stages["step-135m"] >= 150
        order = [stage for call in calls for stage in call.stages]
        assert order.index("core") < order.index("choices-135m") < order.index("step-135m")
    assert order.index("step-135m") < order.index("step-1b") < order.index("step-8b")
    assert {"ops-linear", "ops-head", "ops-rest", "profiles", "sanitizers", "real", "correctness", "ceilings"} <= set(order)
    assert CALLS["first-half-hour-4"].stages["step-8b"] >= 350
    assert stage_function("choices-1b", "cuda").keywords == {"model": "llama-3.2-1b"}


@pytest.mark.parametrize("broken,runs", [("environment", 7), ("build", 6)])
def test_a_build_that_fails_costs_what_needs_it(broken, runs, monkeypatch, tmp_path):
    """The step and its kernels are timed without the native engine."""
    ran = []
    monkeypatch.setattr(gpu_campaign, "outside", lambda args, stage, seconds: ran.append(stage) or stage != broken)
    failed, left_out = gpu_campaign.run(gpu_campaign.parse(["quarter-hour-1", f"--out={tmp_path}"]), tmp_path)
    assert failed == [broken] and len(ran) == runs and ran[-2:] == ["step-135m", "summary"]
    assert left_out == (["core"] if broken == "build" else [])


def test_the_gpus_step_needs_no_native_engine():
    """In a process that has none."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    ran = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert ran.returncode == 0, ran.stderr[-2000:]


ALONE = """
import sys; sys.modules["dynadapt._C"] = None
import torch
from benchmarks.gpu import ops, step_worker
from benchmarks.gpu.geometry import MODELS, random_weights
from dynadapt import Engine, LoRA, SegmentMemory
options = {"streams": 2, "segment": 4, "dtype": "fp32", "device": "cpu", "backend": "triton"}
e = Engine(random_weights("tiny", "cpu", torch.float32), adapt=LoRA(4), memory=SegmentMemory(4), **options)
assert e.step(step_worker.segments(MODELS["tiny"], 2, 4, "cpu")[0]).isfinite().all()
assert max(ops._errors("norm_forward", "tiny", 2, 4, "cpu", torch.float32)) < 1e-5
"""


def test_an_op_that_was_cut_between_its_cases_goes_on_with_the_next(tmp_path, monkeypatch):
    """Score and gradient are a case each, and a goal is about the second."""
    timed, cut = [], [True]

    def time_(record, timer, limits, base, case, *_):
        if timed and cut[0]:
            raise KeyboardInterrupt
        timed.append(case.label)
        record.add(**base, label=case.label, median_ms=1.0)

    monkeypatch.setattr(ops, "_time", time_)
    stage = lambda: ops.run(Campaign(tmp_path, "cpu"), Record(tmp_path / "ops-head.json", "ops-head", "cpu", True), ops.HEAD)  # noqa: E731
    with pytest.raises(KeyboardInterrupt):
        stage()
    cut[0] = False
    stage()
    assert len(timed) == len(set(timed)) == 2
    stage()
    assert len(timed) == 2


# ---- a child's end


ASKED = """
import time
print("began", flush=True)
try:
    time.sleep(60)
except KeyboardInterrupt:
    print("saved", flush=True)
"""
DEAF = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print('began', flush=True); time.sleep(60)"


def test_a_child_is_asked_before_it_is_killed(monkeypatch):
    start = time.monotonic()
    assert child([sys.executable, "-c", ASKED], "cpu", 2) == (None, "began\nsaved\n")
    letters = "import os; os.write(1, 'ncu \xe4'.encode('latin-1'))"  # of which not all are UTF-8
    assert child([sys.executable, "-c", letters], "cpu", 20) == (0, "ncu \ufffd")
    monkeypatch.setattr(campaign, "GRACE", 1.0)
    assert child([sys.executable, "-c", DEAF], "cpu", 2) == (None, "began\n")
    assert time.monotonic() - start < 20


KILLED = """
import sys
from benchmarks.gpu import campaign
sleeps = "import os, sys, time; print(os.getpid(), file=open(sys.argv[1], 'w'), flush=True); time.sleep(60)"
campaign.child([sys.executable, "-c", sleeps, sys.argv[1]], "cpu", 60)
"""


def test_nothing_goes_on_where_a_stage_was_killed(tmp_path):
    """Its children are in groups of their own, so that no signal to its group reaches them."""
    note = tmp_path / "pid"
    made = subprocess.Popen([sys.executable, "-c", KILLED, str(note)], cwd=ROOT)
    until(lambda: note.exists() and note.read_text().strip())
    made.kill()
    made.wait()
    until(lambda: not running(int(note.read_text())))


def until(holds) -> None:
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def running(pid: int) -> bool:
    state = Path(f"/proc/{pid}/stat")
    return state.exists() and state.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def test_a_build_that_is_stopped_has_failed(tmp_path, monkeypatch):
    """And it makes the Python module and what that needs, no library for C programs."""
    assert (made := build_commands(tmp_path, tmp_path))["build"][3:5] == ["--target", "_C"] and "-DDYNADAPT_STATIC=OFF" in made["configure"]
    monkeypatch.setattr(machine, "child", lambda *_, **__: (None, "[3/99] Building"))
    monkeypatch.setattr(machine, "link_kernels", lambda tree: None)
    monkeypatch.setattr(Campaign, "tiny", False)
    record = Record(tmp_path / "build.json", "build", "cpu")
    with pytest.raises(RuntimeError, match="build: configure was stopped at its time limit:\n.*Building"):
        machine.build(Campaign(tmp_path, "cpu"), record)
    machine.compile(Campaign(tmp_path, "cpu"), record)
    assert record.data["exit_status"] == "stopped" and "Building" in record.data["said"] and record.data["status"] == "out of time"


@pytest.mark.parametrize("version", [None, (2, 11, 1)])
def test_a_build_takes_the_headers_in_torchs_wheel_where_pybind11_will_not_do(version, monkeypatch, tmp_path):
    own = native_build.find_spec
    monkeypatch.setattr(native_build, "find_spec", lambda name: version if name == "pybind11" else own(name))
    if version:
        monkeypatch.setitem(sys.modules, "pybind11", SimpleNamespace(version_info=version))
    (given,) = [word for word in build_commands(tmp_path, tmp_path)["configure"] if "pybind11" in word.lower()]
    name, folder = given.split("=", 1)
    assert name == "-DDYNADAPT_PYBIND11_INCLUDE" and (Path(folder) / "pybind11" / "pybind11.h").exists()
    assert "DYNADAPT_PYBIND11_INCLUDE" in (ROOT / "CMakeLists.txt").read_text()


def test_a_package_of_the_same_name_does_not_hide_the_campaign(tmp_path):
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "__init__.py").write_text("")
    path = {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}", "PATH": os.environ["PATH"]}
    ran = subprocess.run([sys.executable, "-c", "import benchmarks.gpu.campaign"], capture_output=True, text=True, env=path, cwd="/")
    assert ran.returncode == 0, ran.stderr


# ---- choices, from call to call


def entry(form="fused", **change):
    return {"op": "linear_forward", "rows": 512, "k": 576, "o": 960, "rank": 16, "form": form, **change} | {
        "fused_ms": 1.0,
        "split_ms": 2.0,
        "cublas_only_ms": None,
    }


def test_choices_of_an_earlier_call_are_taken_up(tmp_path):
    """From the table among the records, and from the rows of a stage, into the file that a fresh machine has without them."""
    table, folder = tmp_path / "choices.json", tmp_path / "out"
    folder.mkdir()
    table.write_text(json.dumps({"another": [entry()], CARD: [entry("split")]}))
    assert not choice_table.take_up(folder, table)
    choice_table.add(folder / choice_table.KEPT, folder / choice_table.KEPT, CARD, entry())
    rows = [{"model": "m", "gpu": CARD, **entry(rows=4096)}, {"gpu": CARD, "op": "linear_forward", "skipped": "no"}]
    (folder / "choices-135m.json").write_text(json.dumps({"stage": "choices-135m", "rows": rows}))
    assert choice_table.take_up(folder, table) and not choice_table.take_up(folder, table)
    assert json.loads(table.read_text()) == {CARD: [entry(), entry(rows=4096)], "another": [entry()]}
    layers = {(576, 960, 16)}
    digests = [choice_table.digest(table, gpu, layers) for gpu in (CARD, "another", "a third")]
    assert len(set(digests)) == 3 and digests[2] == "none"
    assert choice_table.digest(table, CARD, {(1, 2, 3)}) == "none"


def test_the_campaign_begins_with_the_choices_of_its_records(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_campaign, "ROOT", tmp_path)
    monkeypatch.setattr(gpu_campaign, "run", lambda args, folder: ([], []))
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "choices.json").write_text("{}\n")
    choice_table.add(tmp_path / choice_table.KEPT, tmp_path / choice_table.KEPT, CARD, entry())
    assert gpu_campaign.main(["step-135m", f"--out={tmp_path}"]) == 0
    assert json.loads((tmp_path / "kernels" / "choices.json").read_text()) == {CARD: [entry()]}


def test_rows_of_other_choices_or_another_card_are_put_aside(tmp_path, monkeypatch):
    """Peers choose nothing, and their rows stay; what was measured is not lost."""
    measured = []
    worker = lambda c, folder, o: measured.append(o["provider"]) or {"nll": [1.0], "median_ms": 3.0}  # noqa: E731
    monkeypatch.setattr(step, "_worker", worker)
    monkeypatch.setattr(step, "NEEDS", {})

    def rows():
        record = Record(tmp_path / "step-135m.json", "step-135m", "cpu", resume=True)
        measured.clear()
        step.run(Campaign(tmp_path, "cpu"), record, "tiny")
        return record.data

    first = rows()
    assert {(row["gpu"], row["choices"]) for row in first["rows"]} == {("dry run", "none")} and measured[0] == "truth"
    assert rows()["rows"] == first["rows"] and measured == []
    k, o, rank = sorted(ops.layers("tiny"))[0]
    choice_table.add(tmp_path / choice_table.KEPT, tmp_path / choice_table.KEPT, "dry run", entry(k=k, o=o, rank=rank))
    second = rows()
    assert measured == ["dynadapt", "dynadapt-float8"] and len(second["aside"]) == 2
    with monkeypatch.context() as patch:  # so are rows of other code
        patch.setattr(campaign.code, "digest", lambda: "mended")
        kept = (tmp_path / "step-135m.json").read_text()
        assert len(rows()["aside"]) == 4 and measured == ["dynadapt", "dynadapt-float8"]
        (tmp_path / "step-135m.json").write_text(kept)
    assert {row["choices"] for row in second["rows"] if row["provider"].startswith("dynadapt")} != {"none"}
    for row in second["rows"]:
        row["gpu"] = "another"
    (tmp_path / "step-135m.json").write_text(json.dumps(second))
    assert len(rows()["aside"]) == 2 + len(first["rows"]) and len(measured) == len(first["rows"])


# ---- what was compiled


def test_what_was_compiled_is_brought_along(tmp_path, monkeypatch, capsys):
    """In parts of a given size; to another place of the cache, which the group files then name; what is not read again stays behind."""
    monkeypatch.setattr(kept, "PART", 3000)
    here, there, parts, tree = (tmp_path / name for name in ("here", "there", "parts", "tree"))
    monkeypatch.setattr(kept, "ROOT", tree)
    (tree / "dynadapt").mkdir(parents=True)
    (tree / "csrc").mkdir()
    (tree / "CMakeLists.txt").write_text("project")
    native = tree / "dynadapt" / "_C.cpython-312-x86_64-linux-gnu.so"
    native.write_bytes(os.urandom(5000))
    (tree / kept.BUILT).parent.mkdir(parents=True)
    (tree / kept.BUILT).write_text(kept.mark())
    files = {
        "AB/k.cubin": os.urandom(4000),
        "AB/__grp__k.json": json.dumps({"child_paths": {"k.cubin": str(here / "AB/k.cubin")}}).encode(),
    }
    for name, content in {**files, "AB/k.ptx": b"text"}.items():
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_bytes(content)
    monkeypatch.setattr(kept, "cache", lambda: here)
    (parts / "x").mkdir(parents=True)
    (parts / kept.NAME.format(17)).write_bytes(b"of an earlier call")
    made = kept.pack(parts)
    assert len(made) > 3 and all(part.stat().st_size <= 3000 for part in made) and sorted(parts.glob("*.part")) == made
    content = native.read_bytes()
    native.unlink()
    monkeypatch.setattr(kept, "cache", lambda: there)
    assert kept.unpack(parts) == 3 and native.read_bytes() == content
    assert (there / "AB/k.cubin").read_bytes() == files["AB/k.cubin"] and not (there / "AB/k.ptx").exists()
    assert json.loads((there / "AB/__grp__k.json").read_text())["child_paths"] == {"k.cubin": str(there / "AB/k.cubin")}
    assert kept.unpack(parts) == 0  # what is there stays
    before = kept.mark()
    (tree / "csrc" / "a.c").write_text("int a;")
    assert kept.mark() != before  # and what was built is of other code now
    assert gpu_campaign.main(["summary", "--device=cpu", f"--out={tmp_path}", f"--compiled={tmp_path}"]) == 2
    assert "expected compiled-00.part" in capsys.readouterr().err


def test_a_build_of_the_same_code_is_not_made_again(tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    monkeypatch.setattr(machine, "link_kernels", lambda root: None)
    monkeypatch.setattr(machine, "child", lambda command, *_, **__: ran.append(command[0]) or (0, ""))
    monkeypatch.setattr(machine.kept, "mark", lambda: "this code")
    (tmp_path / kept.BUILT).parent.mkdir(parents=True)
    c = Campaign(tmp_path, "cuda", 520.0)
    for written, commands in (("other code", 4), ("this code", 1)):
        (tmp_path / kept.BUILT).write_text(written)
        ran.clear()
        machine.build(c, SimpleNamespace(data={}, add=lambda **_: None))
        assert len(ran) == commands and (tmp_path / kept.BUILT).read_text() == "this code"


# ---- the step's stages


def test_a_cut_leaves_whole_comparisons(tmp_path, monkeypatch):
    """dynadapt and its peers, shape by shape; a truth just before the first that needs it, and kept for the next call."""
    shapes = [(1, 512), (8, 512), (8, 2048)]
    monkeypatch.setattr(step, "shapes", lambda tiny: shapes)
    monkeypatch.setattr(step, "NEEDS", {})
    monkeypatch.setattr(step, "_rates", lambda *_: {})
    ran, left = [], [8.0]

    def worker(c, folder, o):
        ran.append((o["provider"], o["streams"], o["segment"]))
        left[0] -= 1
        return {"nll": [1.0], "median_ms": 3.0}

    monkeypatch.setattr(step, "_worker", worker)
    monkeypatch.setattr(Campaign, "left", property(lambda self: 1e9 if left[0] > 0 else 0.0))

    def call():
        record = Record(tmp_path / "step-135m.json", "step-135m", "cpu", resume=True)
        ran.clear()
        step.run(Campaign(tmp_path, "cpu"), record, "tiny")
        return record.data["status"]

    assert call() == "out of time"
    quick = [peer for peer in step.PEERS if peer != "stacked-compile"]
    alone = ("dynadapt", "peft-eager", "stacked-graph", "peft-liger")
    assert ran == [("truth", 1, 512), *((p, 1, 512) for p in alone), *((p, 8, 512) for p in ("dynadapt", *quick[:2]))]
    left[0] = 100
    call()
    assert ran[:2] == [(quick[2], 8, 512), ("truth", 1, 2048)]
    assert ran[-6:] == [(p, *shape) for p in ("stacked-compile", "dynadapt-float8") for shape in shapes]  # what compiles for minutes later
    assert step.order(shapes, (), True)[-3:] == [(step.DEPENDENT, *shape) for shape in shapes]


OPTIONS = {"model": "tiny", "segment": 16, "streams": 2, "seconds": 0.1}


def workers_that_run(program: str, folder, monkeypatch):
    """Workers whose processes are this program instead."""
    real, c = step.start, Campaign(folder, "cpu", 520.0)
    monkeypatch.setattr(step, "start", lambda command, device, **given: real([sys.executable, "-c", program], device, **given))
    return c, step.Workers(c, folder)


def test_a_worker_has_a_time_of_its_own(tmp_path, monkeypatch):
    """What hangs is stopped at its limit, the slow peer at its own, and the next one has a new process."""
    c, workers = workers_that_run("import time; time.sleep(60)", tmp_path, monkeypatch)
    monkeypatch.setattr(step, "LIMIT", 0.3)
    monkeypatch.setitem(step.LIMITS, "stacked-compile", 0.6)
    pids = []
    with workers:
        for provider, least in (("stacked-graph", 0.3), ("stacked-compile", 0.6)):
            pids.append(workers.of(provider)[1].pid)
            start = time.monotonic()
            assert step._worker(c, workers, {**OPTIONS, "provider": provider})["failed"] == campaign.STOPPED
            assert least <= time.monotonic() - start < least + 5
    assert pids[0] != pids[1] and not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_a_worker_that_ends_says_what_it_had_found(tmp_path, monkeypatch):
    program = (
        "import sys; out = input().split(chr(9))[1]; open(out, 'w').write('{\"median_ms\": 2.0}'); print('illegal access'); sys.exit(70)"
    )
    c, workers = workers_that_run(program, tmp_path, monkeypatch)
    with workers:
        found = step._worker(c, workers, {**OPTIONS, "provider": "dynadapt"})
    assert found == {"median_ms": 2.0, "failed": "its process ended with status 70", "said": "illegal access\n"}


def test_one_process_measures_one_thing_after_the_other(tmp_path):
    """Behind a failure too; what changes its libraries has a process of its own."""
    c = Campaign(tmp_path, "cpu", 520.0)
    with step.Workers(c, tmp_path) as workers:
        truth = step._worker(c, workers, {**OPTIONS, "provider": "truth"})
        campaign.write_json(tmp_path / "truth.json", truth)
        ask = lambda provider: step._worker(c, workers, {**OPTIONS, "provider": provider, "truth": str(tmp_path / "truth.json")})  # noqa: E731
        pid = workers.of("dynadapt")[1].pid
        assert "median_ms" in ask("dynadapt") and "failed" not in ask("stacked-graph")
        assert ask("nobody")["failed"].startswith("KeyError") and "Traceback" in ask("nobody")["said"]
        assert "median_ms" in ask("dynadapt") and workers.of("stacked-compile")[1].pid == pid
        assert workers.of("peft-liger")[1].pid != pid != workers.of(step.DEPENDENT)[1].pid


def test_the_peer_that_compiles_is_made_ahead_at_every_shape(tmp_path, monkeypatch):
    made = []
    ask = step._ask
    monkeypatch.setattr(
        step, "_ask", lambda process, folder, o: made.append((process.pid, o["streams"], ask(process, folder, o))) or made[-1][2]
    )
    monkeypatch.setattr(step, "TOGETHER", 32)
    c = Campaign(tmp_path, "cpu", 520.0)
    with step.Workers(c, tmp_path) as workers:
        step._warm(c, workers, "tiny", [(1, 16), (2, 16), (3, 16), (4, 16)])
    assert [out.with_suffix(".done").read_text() for _, _, out in made] == [""] * 4
    by_process = {}
    for pid, streams, _ in made:
        by_process.setdefault(pid, []).append(streams)
    assert sorted(by_process.values()) == [[1], [2], [3, 4]]  # the larger ones one after the other
    assert not any(Path(f"/proc/{pid}").exists() for pid in by_process)


@pytest.mark.parametrize("broken", [ImportError("No module named 'peft'"), TypeError("from_config() got an unexpected keyword")])
def test_the_truth_is_made_by_plain_torch_where_others_do_not_run(broken, monkeypatch):
    """The same to float32's rounding, and said so; without a truth nothing of a segment would be timed."""
    o = {"model": "tiny", "segment": 16, "streams": 1, "device": "cpu"}
    monkeypatch.setattr(step_worker, "CHECKED", 2)
    theirs = step_worker.truth(o)
    assert theirs["by"] == "transformers + peft" and theirs["instead_of"] == {}

    def fails(*_, **__):
        raise broken

    monkeypatch.setattr(step_worker.Peft, "__init__", fails)
    plain = step_worker.truth(o)
    assert plain["by"].startswith("plain torch") and str(broken) in plain["instead_of"]["transformers + peft"]
    assert torch.allclose(torch.tensor(plain["nll"]), torch.tensor(theirs["nll"]), atol=1e-4)
    monkeypatch.setattr(step_worker.StackedPeer, "__init__", fails)
    with pytest.raises(RuntimeError, match="transformers . peft: .*; plain torch"):
        step_worker.truth(o)


def test_a_segment_without_a_truth_is_named_and_costs_one_try(tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(step, "_worker", lambda c, folder, o: ran.append(o["provider"]) or {"failed": "OutOfMemoryError: 32 GiB"})
    record = Record(tmp_path / "step-135m.json", "step-135m", "cpu")
    step.run(Campaign(tmp_path, "cpu"), record, "tiny")
    assert ran == ["truth"] and "OutOfMemoryError" in record.data["status"]


def test_one_compiled_peer_has_the_products_of_cublas(monkeypatch):
    """max-autotune may take longer than a call has; what is compared must be told apart by name."""
    modes = {}
    monkeypatch.setattr(stacked.Stacked, "__init__", lambda self, *_, mode=stacked.AUTOTUNED, **__: setattr(self, "mode", mode))
    monkeypatch.setattr(step_worker, "random_weights", lambda *_: SimpleNamespace(config=None))
    monkeypatch.setattr(step_worker, "prior_learner", lambda config: None)
    for name in ("stacked-graph", "stacked-compile"):
        peer = step_worker.PROVIDERS[name]({"model": "tiny", "device": "cpu", "streams": 1, "segment": 8}, torch.float32)
        modes[name] = peer.step.__self__.mode
    assert modes == {"stacked-graph": None, "stacked-compile": "max-autotune-no-cudagraphs"} and set(step.PEERS) < set(
        step_worker.PROVIDERS
    )


# ---- a graph on either side


def test_a_backward_is_captured_on_the_stream_of_its_forward(monkeypatch):
    """Autograd runs it there, whatever the stream of the call, and a capture on another stream fails."""
    where = {"stream": "default", "captured": None}
    stream = SimpleNamespace(wait_stream=lambda other: None, name="side")

    @contextmanager
    def inside(**change):
        before = dict(where)
        where.update(change)
        yield
        where.update(before)

    pretended = {
        "Stream": lambda: stream,
        "current_stream": lambda: stream,
        "synchronize": lambda: None,
        "CUDAGraph": lambda: SimpleNamespace(replay=lambda: None),
        "stream": lambda s: inside(stream=s.name),
        "graph": lambda graph, stream=None: inside(**dict.fromkeys(where, stream.name if stream else "the capture's own")),
    }
    for name, function in pretended.items():
        monkeypatch.setattr(torch.cuda, name, function)

    def make():
        forward = where["stream"]

        def call():
            if where["captured"] not in (None, forward):
                raise RuntimeError("operation not permitted when stream is capturing")

        return call

    assert timing.capture(make)[1]
    outside = make()
    assert timing.capture(lambda: outside) == (outside, False)


def test_a_time_without_a_graph_is_not_held_against_one_with():
    ours, theirs = {"median_ms": 1.0, "graph": True}, {"median_ms": 2.0, "graph": False}
    assert timing.comparable(ours, ours) is ours and timing.comparable({"median_ms": 2.0}, {"median_ms": 1.0}) == {"median_ms": 2.0}
    rows, record = [], SimpleNamespace(add=lambda **row: rows.append(row))
    times = iter([ours, theirs])
    timer = lambda call: next(times)  # noqa: E731
    timer_of = type("Timer", (), {"__call__": lambda self, call: timer(call), "made": lambda self, make: timer(make)})()
    case = SimpleNamespace(bytes=1e6, flops=1e6, label="score and gradient", peers={"eager": lambda: None})
    base = {"op": "cross_entropy", "model": "m", "streams": 8, "segment": 512}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops, "agrees", lambda *_: 0.0)
        patch.setattr(ops, "materialise", lambda case: ())
        ops._time(record, timer_of, {"gb_per_s": 1e3, "tflops": 1e2}, base, case, 0.0, None, True)
    peer = rows[0]["peers"]["eager"]
    assert "median_ms" not in peer and peer["not_comparable_ms"] == 2.0 and "timed without one, ours from a graph" in peer["skipped"]
    assert "not comparable" in ops_table(rows)
    assert goals({"ops-head": {"device": "cuda", "status": "complete", "rows": rows}})["head"][0] == "open"


def test_a_peer_that_tunes_for_long_costs_its_own_time(monkeypatch):
    monkeypatch.setattr(ops, "PEER", 0.2)
    monkeypatch.setattr(ops, "materialise", lambda case: ())
    monkeypatch.setattr(ops, "agrees", lambda case, function: 0.0)
    case = SimpleNamespace(bytes=1, flops=1, label="", peers={"slow": lambda: lambda: time.sleep(60), "quick": lambda: lambda: None})
    record = SimpleNamespace(add=lambda **row: rows.append(row))
    rows, before = [], signal.getsignal(signal.SIGALRM)
    ops._time(record, timing.Timer("cpu"), {"gb_per_s": 1.0, "tflops": 1.0}, {}, case, 0.0, lambda: None, True)
    assert rows[0]["peers"]["slow"] == {"skipped": "took more than 0.2 s"} and "median_ms" in rows[0]["peers"]["quick"]
    assert signal.getsignal(signal.SIGALRM) is before and signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
