"""The campaign's own code, without a GPU: a dry run on tiny sizes, and the parts that read what other programs print."""

import json
import os
import subprocess
import sys
import tarfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton")
ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from tiny import english, tiny_directory  # noqa: E402

from benchmarks import gpu_campaign  # noqa: E402
from benchmarks.gpu import checks, geometry, ops, step_worker, summary, timing  # noqa: E402
from benchmarks.gpu.campaign import Campaign, Record, child  # noqa: E402
from benchmarks.gpu.step import PEERS  # noqa: E402
from dynadapt import Adam, Engine, LoRA, SegmentMemory  # noqa: E402
from dynadapt.model import random_model  # noqa: E402


def campaign(out: Path, *arguments: str):
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu_campaign.py"), *arguments, "--device", "cpu", "--out", str(out)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})


def test_dry_run(tmp_path):
    model = tiny_directory(tmp_path / "model")
    (tmp_path / "text").write_text(english(4000))
    stages = ("ceilings", "choices", "ops-head", "step-135m", "real", "summary")
    files = {"model": model, "text": tmp_path / "text", "bundle": tmp_path / "all.tar.gz", "steps": 3}
    ran = campaign(tmp_path / "out", *stages, *(f"--{name}={value}" for name, value in files.items()))
    assert ran.returncode == 0, ran.stdout + ran.stderr
    records = {name: json.loads((tmp_path / "out" / f"{name}.json").read_text()) for name in stages}
    assert all(r["status"] == "complete" and r["environment"]["packages"]["torch"] for r in records.values())
    assert all("wrong" not in row and "failed" not in row for row in records["ops-head"]["rows"]), records["ops-head"]["rows"]
    (table,) = json.loads((tmp_path / "out" / "choices-table.json").read_text()).values()
    chosen = records["choices"]["rows"]  # of every group and the head
    assert len(table) == len(chosen) == 11 and all(row.get("form") in ("fused", "split") for row in chosen), chosen
    steps = {row["provider"]: row for row in records["step-135m"]["rows"] if row["streams"]}
    assert steps["dynadapt"]["choices"] != "none" and steps["dynadapt"]["gpu"] == "dry run"
    assert 1e-3 < steps["dynadapt-float8"]["nll_error"] < 0.1, steps["dynadapt-float8"]
    for provider in ("dynadapt", "stacked-graph", "stacked-compile", "peft-eager"):  # three implementations of the same four steps
        row = steps[provider]
        assert row["nll_error"] < 1e-5 and row["nll_by_step"][3] < row["nll_by_step"][0] - 0.05, row
        assert row["p20_ms"] <= row["median_ms"] <= row["p80_ms"] and row["tokens_per_s"] > 0
    assert [row["step"] for row in records["real"]["rows"]] == [3]
    text = (tmp_path / "out" / "summary.md").read_text()
    assert "dry run" in text and "| open |" in text and "| met |" not in text  # nothing was measured on a GPU
    assert (tmp_path / "all.tar.gz").stat().st_size > 1000


def test_a_call_goes_on_where_the_one_before_stopped(tmp_path):
    """In a dry run: the second call goes on with the records of the first one's bundle, and measures what is missing."""
    bundle = tmp_path / "all.tar.gz"
    ran = campaign(tmp_path / "a", "first-half-hour-1", "--resume", f"--bundle={bundle}")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    first = json.loads((tmp_path / "a" / "step-135m.json").read_text())
    assert first["status"] == "complete" and "## step-135m (complete, dry run)" in (tmp_path / "a" / "summary.md").read_text()
    assert (tmp_path / "a" / "truth-tiny-16.json").exists()
    again = campaign(tmp_path / "b", "step-135m", "--resume", f"--restore={bundle}")
    assert again.returncode == 0, again.stdout + again.stderr
    timed = lambda record: [row for row in record["rows"] if "median_ms" in row]  # noqa: E731
    assert timed(json.loads((tmp_path / "b" / "step-135m.json").read_text())) == timed(first) != []  # to the bit: none was timed again


def test_training_in_context_goes_on_where_it_stopped(tmp_path):
    stages = ("icl-bench", "icl-small", "icl-standard", "icl-mixture")
    for called in (stages, ("icl-standard",)):  # the second time it is finished, and its record stays whole
        ran = campaign(tmp_path / "out", *called, "--bundle", str(tmp_path / "all.tar.gz"))
        assert ran.returncode == 0, ran.stdout + ran.stderr
    records = {name: json.loads((tmp_path / "out" / f"{name}.json").read_text()) for name in stages}
    assert all(r["status"] == "complete" for r in records.values())
    assert {row["provider"] for row in records["icl-bench"]["rows"]} == {"dynadapt", "gpt2-eager"}
    assert (records["icl-small"]["config"]["preset"], records["icl-standard"]["config"]["preset"]) == ("garg-small", "garg-standard")
    assert set(records["icl-mixture"]["errors"]) == {"dense-linear", "sparse-linear:2"}
    assert [row["step"] for row in records["icl-standard"]["rows"]] == [12] and records["icl-standard"]["steps"] == 12
    assert len(records["icl-standard"]["errors"]["dense-linear"]["model"]["mean"]) == 4
    with tarfile.open(tmp_path / "all.tar.gz") as archive:
        names = archive.getnames()
    assert "campaign/icl-standard-run/metrics.jsonl" in names and not any("safetensors" in name for name in names)


def test_unknown_stage_is_named(tmp_path):
    ran = campaign(tmp_path, "cielings")
    assert ran.returncode == 2 and "no stage cielings" in ran.stderr


def test_a_failed_stage_says_why_and_keeps_its_rows(tmp_path):
    ran = campaign(tmp_path, "real", "--model", str(tmp_path / "absent"), "--text", __file__)
    assert ran.returncode == 1 and "failed: real" in ran.stdout
    assert json.loads((tmp_path / "real.json").read_text())["status"].startswith("failed: ModelError")


def test_flops_are_the_engines(monkeypatch):
    config, streams, segment = geometry.MODELS["tiny"], 2, 8
    engine = Engine(
        random_model(config),
        adapt=LoRA(geometry.RANK),
        optimizer=Adam(),
        memory=SegmentMemory(segment, sinks=0),
        streams=streams,
        segment=segment,
        dtype="fp32",
    )
    for _ in range(2):  # at the second step the memory is full
        engine.step(torch.randint(config.vocab_size, (streams, segment + 1)))
    ours = geometry.step_flops(config, streams, segment, segment)
    assert {k: engine.last.flops[k] for k in ("forward", "backward", "recompute")} == {
        k: ours[k] for k in ("forward", "backward", "recompute")
    }


def test_record_is_whole_at_any_moment(tmp_path):
    record = Record(tmp_path / "x.json", "x", "cpu")
    record.add(a=1.5)
    kept = json.loads((tmp_path / "x.json").read_text())
    assert kept["status"] == "cut short" and kept["rows"] == [{"a": 1.5}]
    assert Record(tmp_path / "x.json", "x", "cpu", resume=True).data["rows"] == [{"a": 1.5}]
    assert Record(tmp_path / "x.json", "x", "cpu").data["rows"] == []


BREAKS = """
import sys
sys.argv[0] = sys.argv.pop(1)  # the campaign's own file, which a restart runs
sys.path.insert(0, "")
from benchmarks.gpu import cases
def check(case):
    if case.op == "norm_forward":
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    raise RuntimeError("not reached")
cases.check = check
from benchmarks import gpu_campaign
gpu_campaign.main(sys.argv[1:])
"""


def test_a_lost_device_costs_one_op(tmp_path, monkeypatch):
    """The process that lost the GPU is replaced, and the new one goes on behind the op that broke it."""
    options = ["ops-rest", "--inside", "--device", "cpu", "--out", str(tmp_path)]
    command = [sys.executable, "-c", BREAKS, str(ROOT / "benchmarks" / "gpu_campaign.py"), *options]
    status, text = child(command, "cpu", 300)
    rows = {row["op"]: row for row in json.loads((tmp_path / "ops-rest.json").read_text())["rows"]}
    assert status == 0 and "going on in a new one" in text, text
    assert "illegal memory access" in rows["norm_forward"]["wrong"] and "median_ms" in rows["activation_forward"]


def test_a_child_is_stopped_at_its_limit():
    status, text = child([sys.executable, "-c", "import time; print('here', flush=True); time.sleep(60)"], "cpu", 2)
    assert status is None and "here" in text


def test_ncu_output_is_read():
    text = (
        '==PROF== Connected\n"ID","Kernel Name","gpu__time_duration.sum","dram__bytes.sum","launch__registers_per_thread"\n'
        '"","","us","Mbyte","register/thread"\n"0","dynadapt_norm_forward","12.5","1,024.5","40"\n'
    )
    assert checks.kernels_of(text) == [{"kernel": "dynadapt_norm_forward", "ns": 12500.0, "dram_bytes": 1.0245e9, "registers": 40.0}]
    assert checks.kernels_of("==ERROR== no permission\n") == []


def step_record(ours, theirs, share=0.7, status="complete"):
    """Of one shape, at which all peers are as fast as one another; theirs: None for a strongest peer that failed to run."""
    row = lambda provider, ms: {"provider": provider, "streams": 64, "segment": 512, "median_ms": ms, "share_of_ceiling": share}  # noqa: E731
    failed = {"provider": PEERS[0], "streams": 64, "segment": 512, "failed": "OutOfMemoryError"}
    rows = [row("dynadapt", ours), row(PEERS[0], theirs) if theirs else failed, *(row(peer, theirs or 9.0) for peer in PEERS[1:])]
    return {"device": "cuda", "status": status, "rows": rows}


def without(record, provider):
    return {**record, "rows": [row for row in record["rows"] if row["provider"] != provider]}


@pytest.mark.parametrize(
    "record,verdicts",
    [
        (step_record(1.0, 2.0), ("met", "met")),
        (step_record(2.0, 1.0, share=0.3), ("missed", "missed")),
        (step_record(1.0, 1.29, share=0.65), ("missed", "met")),
        (step_record(1.0, 2.0, status="cut short"), ("open", "open")),
        ({**step_record(1.0, 2.0), "device": "cpu"}, ("open", "open")),
        (step_record(1.0, None), ("open", "met")),
        (without(step_record(1.0, 2.0), "peft-liger"), ("open", "met")),
        (without(step_record(1.0, 1.1), "peft-liger"), ("missed", "met")),
    ],
)
def test_goals_are_judged(record, verdicts):
    found = summary.goals(dict.fromkeys(summary.STEPS, record))
    assert (found["step beats peers"][0], found["step, large"][0]) == verdicts
    assert found["step, small"][0] == found["step beats eager"][0] == "open"
    assert set(found) == set(summary.GOALS)


def op_row(**change):
    row = {"op": "cross_entropy", "label": "score and gradient", "model": "m", "streams": 8, "segment": 512, "median_ms": 1.0}
    return row | {"bound": "FLOPs", "share_of_floor": 0.9, "peers": {"eager": {"median_ms": 2.0}}} | change


def complete(*rows):
    return {"device": "cuda", "status": "complete", "rows": list(rows)}


def test_a_goal_is_open_while_something_of_it_is_not_measured():
    """A stage that never ran, a case that failed, a step that was stopped: each may be where it is missed."""
    both = ("step beats peers", "step, large")
    of = lambda records, *goals: tuple(summary.goals(records)[goal][0] for goal in goals)  # noqa: E731
    why = lambda records, goal: summary.goals(records)[goal][1]  # noqa: E731
    met = step_record(1.0, 2.0)
    every = dict.fromkeys(summary.STEPS, met)
    assert of(every, *both) == ("met", "met")
    without_8b = {name: every[name] for name in summary.STEPS[:2]}
    assert of(without_8b, *both) == ("open", "open") and "not run to its end: step-8b" in why(without_8b, both[0])
    for failed, verdicts in (("stopped at its time limit", ("open", "open")), ("AssertionError: off", ("missed", "open"))):
        row = {"provider": "dynadapt", "streams": 8, "segment": 2048, "failed": failed}
        assert of({**every, "step-8b": {**met, "rows": [*met["rows"], row]}}, *both) == verdicts
    assert of({"ops-head": complete(op_row())}, "head", "cross-entropy") == ("met", "met")
    failed = {"op": "cross_entropy", "model": "8b", "streams": 64, "segment": 512, "failed": "OutOfMemoryError: 16 GiB"}
    lost = {"ops-head": complete(op_row(), failed)}
    assert of(lost, "head", "cross-entropy") == ("open", "open") and "cross_entropy (8b 64x512): OutOfMemoryError" in why(lost, "head")
    bytes_bound = complete(op_row(op="norm_forward", bound="bytes"))
    assert of({"ops-rest": bytes_bound}, "memory-bound") == ("open",)
    assert of(dict.fromkeys(("ops-linear", "ops-head", "ops-rest"), bytes_bound), "memory-bound") == ("met",)


def test_a_sanitizer_that_was_stopped_has_found_nothing_yet():
    row = lambda **change: {"tool": "memcheck", "file": "f", "status": 0, "errors": 0} | change  # noqa: E731
    verdict = lambda *rows: summary.goals({"sanitizers": complete(*rows)})["sanitizers"]  # noqa: E731
    assert verdict(row())[0] == "met" and verdict(row(errors=2, status=1))[0] == "missed"
    assert verdict(row(), row(status="stopped", errors=None)) == ("open", "1 measured, all met, but no number of memcheck f")
    assert verdict(row(status="stopped", errors=3))[0] == "missed"


def test_a_case_that_does_not_fit_is_not_wrong(tmp_path, monkeypatch):
    def sizes(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(ops, "Sizes", sizes)
    record = Record(tmp_path / "ops-rest.json", "ops-rest", "cpu")
    ops._errors.cache_clear()
    ops._one(Campaign(tmp_path, "cpu"), record, None, {}, {"op": "update", "model": "tiny", "streams": 2, "segment": 16}, torch.float32)
    (row,) = record.data["rows"]
    assert "OutOfMemoryError" in row["failed"] and "wrong" not in row


def test_a_peer_without_a_number_leaves_the_goal_open():
    eager = {"median_ms": 2.0}
    row = {"op": "cross_entropy", "label": "score and gradient", "model": "m", "streams": 8, "segment": 512, "median_ms": 1.0}
    row |= {"bound": "FLOPs", "share_of_floor": 0.9}

    def verdict(**peers):
        record = {"device": "cuda", "status": "complete", "rows": [{**row, "peers": {"eager": eager, **peers}}]}
        return summary.goals({"ops-head": record})["head"]

    assert verdict() == ("met", "1 measured")
    open_, why = verdict(cce={"skipped": "cut-cross-entropy is not installed"})
    assert open_ == "open" and "cce (m 8x512): cut-cross-entropy is not installed" in why


def test_the_list_of_stages_needs_nothing_that_is_built():
    ran = subprocess.run(
        [sys.executable, "-c", "import sys; sys.modules['dynadapt'] = sys.modules['torch'] = None\n" + LISTS, str(ROOT)],
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    assert [line.split()[0] for line in ran.stdout.splitlines()] == [*gpu_campaign.STAGES, *(f"{call}:" for call in gpu_campaign.CALLS)]
    assert "build        The native libraries into dynadapt/" in ran.stdout


LISTS = """
sys.path.insert(0, sys.argv.pop())
from benchmarks import gpu_campaign
gpu_campaign.main(["--list"])
"""


@pytest.mark.parametrize("streams,segment,gib,batch", [(64, 512, 78, 4), (8, 2048, 78, 4), (64, 512, 139, 16), (8, 2048, 139, None)])
def test_a_step_of_8b_fits_the_card(streams, segment, gib, batch):
    assert step_worker.batch_that_fits("llama-3.1-8b", streams, segment, gib * 2**30) == batch


def test_caches_are_emptied_without_leaving_lines_to_write_back(monkeypatch):
    """Of a buffer that was overwritten, the timed call would have to write back what is still in the cache."""
    calls = []
    monkeypatch.setattr(torch.cuda, "Event", lambda enable_timing: SimpleNamespace(record=lambda: None, elapsed_time=lambda end: 1.0))
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    timer = timing.Timer("cpu")
    timer.flush = torch.ones(1024)
    read = timing.evict
    monkeypatch.setattr(timing, "evict", lambda buffer: (calls.append("evict"), read(buffer)))
    assert timer._round(lambda: calls.append("call"), 2, cold=True) == [1.0, 1.0]
    assert calls == ["evict", "call"] * 2 and timer.flush._version == 0


def test_wrong_results_miss_the_goal():
    rows = [{"op": "update", "model": "m", "wrong": "off by 1"}]
    tests = [{"file": "tests/gpu/test_update.py", "status": 0}]
    found = summary.goals(
        {
            "ops-rest": {"device": "cuda", "status": "complete", "rows": rows},
            "correctness": {"device": "cuda", "status": "complete", "rows": tests},
        }
    )
    assert found["correct"][0] == "missed" and "off by 1" in found["correct"][1]


def test_icl_claims_go_on_where_the_time_ended(tmp_path, monkeypatch):
    from benchmarks import icl
    from benchmarks.gpu import icl_claims

    monkeypatch.setattr(icl, "picture", lambda results: SimpleNamespace(savefig=lambda path, dpi: None))
    names = list(icl.runs_of("tiny", 1, own=False))
    monkeypatch.setattr(icl, "runs_of", partial(icl.runs_of, seeds=1))

    def stage(seconds):
        record = Record(tmp_path / "icl-claims.json", "icl-claims", "cpu")
        icl_claims.claims(Campaign(tmp_path, "cpu", seconds), record)
        return record.data

    cut = stage(0.0)
    assert cut["status"].startswith("out of time") and {row["run"]: row["steps"] for row in cut["rows"]} == dict.fromkeys(names, 2)
    done = stage(600.0)["rows"]
    assert [row["run"] for row in done[:6]] == names and [row["claim"] for row in done[6:]] == ["13", "14", "15", "16"]
    assert "| seed0/mixture | 20 |" in summary.TABLES["icl-claims"](done)


def test_predictions_are_those_of_the_plan_and_stand_beside_what_was_measured():
    from benchmarks.gpu.summary import PREDICTIONS, add_predictions, step_table
    from benchmarks.gpu_predictions import prediction

    kept = {(r["card"], r["model"], r["streams"], r["segment"]): r for r in json.loads(PREDICTIONS.read_text())["rows"]}
    assert len(kept) == 24
    again = prediction("smollm2-135m", 1, 512, "h100")
    assert again == {**kept["h100", "smollm2-135m", 1, 512], "longest": again["longest"]}
    row = {"provider": "dynadapt", "streams": 1, "segment": 512, "median_ms": 5.0}
    data = {"environment": {"gpu": {"name": "NVIDIA H100 80GB HBM3"}}, "model": "smollm2-135m", "rows": [row, {"provider": "peft-eager"}]}
    add_predictions(data)
    assert row["predicted_ms"] == 1e3 * again["predicted_seconds"] and "predicted_ms" not in data["rows"][1]
    assert f"{row['predicted_ms']:.4g}" in step_table([row])
