"""dynadapt profile, the ranges that profilers see, and the reader of what ncu prints."""

import importlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dynadapt import _C
from dynadapt.bench import cases
from dynadapt.bench.cases import calls
from dynadapt.bench.profile import ncu
from dynadapt.bench.profile import run as profiling_run
from dynadapt.cli import build_parser, main
from dynadapt.commands.profile import Measured
from dynadapt.common.options import given, settings_of
from dynadapt.engine.op_set import OpSet
from dynadapt.model import tiny_config
from dynadapt.model.hf_config import config_to_hf
from dynadapt.ops import profiler_ranges as ranges
from dynadapt.ops.quants import BLOCK_FORMATS

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def tiny(tmp_path):
    """A directory that has a tiny model's sizes."""
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "config.json").write_text(json.dumps(config_to_hf(tiny_config("llama"))))
    return str(tmp_path / "tiny")


@pytest.fixture
def ranges_restored(monkeypatch):
    """Ranges that a test switches on end with it."""
    monkeypatch.setattr(ranges, "_state", dict(ranges._state))
    monkeypatch.setenv(ranges.VARIABLE, "0")
    monkeypatch.delenv(ranges.VARIABLE)


def profile(*options, code=0):
    with pytest.raises(SystemExit) as end:
        main(["profile", *map(str, options)])
    assert end.value.code == code


# ---- ops and steps


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
@pytest.mark.parametrize("op", [op for op in cases.OPS if hasattr(_C, op)])
def test_cases_hold_on_the_native_kernels(op, dtype):
    made = cases.OPS[op](cases.Sizes(tiny_config("llama"), 2, 7, "cpu", dtype), 5)
    assert made and all(case.bytes > 0 for case in made)
    for case in made:
        assert cases.check(case, "cpu")[1] < (1e-5 if dtype == torch.float32 else 0.02)


def test_wrong_results_are_not_timed(tiny, monkeypatch, capsys, ranges_restored):
    choose = calls.resolve

    def wrong(op, backend, dtype):
        choice = choose(op, backend, dtype)
        if backend != "cpu":
            return choice

        def function(*arguments):
            choice.function(*arguments)
            arguments[6].mul_(1.1)

        return type(choice)(op, backend, function, "off by a tenth")

    monkeypatch.setattr(calls, "resolve", wrong)
    monkeypatch.setattr(profiling_run, "timed", lambda *a: pytest.fail("it was timed"))
    profile("--op", "norm_forward", "--model", tiny, "--segment", 16, "--device", "cpu", code=2)
    assert "nothing is timed: norm_forward rms: res is off by" in capsys.readouterr().err


def test_an_op_is_checked_timed_and_written(tiny, tmp_path, capsys, ranges_restored):
    options = ["--model", tiny, "--segment", 16, "--streams", 2, "--iters", 4, "--warmup", 1, "--device", "cpu"]
    profile("--op", "linear_forward", *options, "--json", tmp_path / "found.json")
    said, found = capsys.readouterr().out, json.loads((tmp_path / "found.json").read_text())
    assert "native kernels: " in said and "NVTX ranges: " in said and "mlp_in" in said
    assert [row["label"] for row in found["rows"]] == ["qkv", "o", "mlp_in", "down"]
    assert found["environment"]["cpu"] and found["runs"]["iters"] == 4 and found["what"] == "linear_forward"
    for row in found["rows"]:
        assert 0 < row["p20_ms"] <= row["median_ms"] <= row["p80_ms"] and row["error"] < 0.02
        assert row["clock"] == ("thread" if torch.get_num_threads() == _C.num_threads() == 1 else "wall")
        assert row["gflop_per_s"] == pytest.approx(row["gflop"] / row["median_ms"] * 1e3)
    profile("--op", "linear_forward", *options, "--case", "o", "--json", tmp_path / "one.json")
    assert [row["label"] for row in json.loads((tmp_path / "one.json").read_text())["rows"]] == ["o"]


def test_a_step_is_checked_and_timed(tiny, tmp_path, ranges_restored):
    profile(
        "--step",
        "--model",
        tiny,
        "--segment",
        16,
        "--memory",
        8,
        "--streams",
        2,
        "--iters",
        2,
        "--warmup",
        1,
        "--dtype",
        "fp32",
        "--device",
        "cpu",
        "--json",
        tmp_path / "step.json",
    )
    (row,) = json.loads((tmp_path / "step.json").read_text())["rows"]
    assert row["label"] == "2 x 16, memory 8" and row["error"] < 1e-4
    assert row["tokens_per_s"] == pytest.approx(32e3 / row["median_ms"])


@pytest.mark.parametrize("base", ["int8", "q8_0"])
def test_frozen_weights_are_kept_as_asked(base, tmp_path, ranges_restored):
    config = tiny_config("llama", hidden_size=64, heads=2, kv_heads=1, head_dim=32, ffn_size=96)  # whole blocks
    (tmp_path / "config.json").write_text(json.dumps(config_to_hf(config)))
    options = ["--model", tmp_path, "--segment", 16, "--iters", 1, "--warmup", 0, "--dtype", "bf16", "--device", "cpu", "--base", base]
    profile("--op", "linear_forward", *options, "--json", tmp_path / "op.json")
    (row, *_) = json.loads((tmp_path / "op.json").read_text())["rows"]
    qkv = cases.OPS["linear_forward"](cases.Sizes(config, 1, 16, "cpu", base=base), 0)[0]
    assert row["gb_per_s"] == pytest.approx(1e-6 * qkv.bytes / row["median_ms"]) and qkv.base == base
    made, engine = [], profiling_run._engine
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(profiling_run, "_engine", lambda *a, **changes: made.append(engine(*a, **changes)) or made[-1])
        profile("--step", *options)
    assert [e.base for e in made] == ["int8" if base == "int8" else "quants"] * 2 + ["same"]


def test_the_bases_offered_are_all_there_are():
    assert settings_of(Measured)["base"].choices == ("same", "int8", *BLOCK_FORMATS)


@pytest.mark.parametrize(
    "options,said",
    [
        (["--op", "norm_forward", "--iters", "0"], "--iters 0: expected at least 1"),
        (["--op", "linear_forward", "--case", "head"], "--case head: linear_forward has qkv, o, mlp_in, down"),
        (["--step", "--case", "o"], "--case o with --step"),
        (["--op", "norm_forward", "--base", "int8", "--device", "cpu"], "--base int8 with --op norm_forward: it reads no frozen weights"),
        (["--op", "linear_forward", "--base", "q4_1", "--backend", "reference"], "--base q4_1 with --backend reference: the native"),
        (["--op", "linear_forward", "--base", "q4_k", "--device", "cpu"], "q4_k: a weight of 576 columns; a block of it has 256"),
        (["--op", "norm_forward", "--model", "gpt-9"], "model 'gpt-9' is no known geometry"),
        (["--op", "memory_advance", "--backend", "cpu", "--device", "cpu"], "op 'memory_advance'"),
        (["--op", "norm_forward", "--device", "cuda", "--print-perf"], "expected cpu"),
        (["--op", "nrom"], "invalid choice: 'nrom'"),
        ([], "one of the arguments --op --step --parse-ncu is required"),
    ],
)
def test_bad_options_are_named(options, said, capsys, ranges_restored):
    profile(*options, code=2)
    assert said in capsys.readouterr().err


# ---- command lines


def own_call(line):
    """The options of the `dynadapt profile` call in a line, as the command line reads them."""
    words = shlex.split(line)
    words = words[words.index("dynadapt") + 2 :]
    return build_parser().parse_args(["profile", *words[: words.index(";") if ";" in words else None]])


def test_lines_repeat_the_call_itself(capsys):
    profile("--op", "update", "--streams", 8, "--iters", 3, "--print-ncu", "--print-nsys")
    measure, convert, nsys = capsys.readouterr().out.strip().splitlines()
    assert measure.startswith("DYNADAPT_NVTX=1 ncu --nvtx --profile-from-start off") and "-k regex:dynadapt" in measure
    assert convert == "ncu --import update.ncu-rep --csv --page raw > update.csv"
    assert "--capture-range=cudaProfilerApi" in nsys
    for line in (measure, nsys):
        call = own_call(line)
        measured = Measured(**given(Measured, call))
        assert (call.op, measured.streams, measured.iters, call.device, measured.segment) == ("update", 8, 3, "cuda", 512)
        assert not (call.print_ncu or call.print_nsys)
    profile("--step", "--print-ncu")
    assert "regex:dynadapt" not in capsys.readouterr().out  # the library's own products are part of a step


@pytest.mark.skipif(shutil.which("perf") is None, reason="perf is not installed")
def test_perf_line_counts_the_timed_calls_alone(tiny, capsys):
    profile("--op", "norm_forward", "--model", tiny, "--segment", 16, "--iters", 2000, "--warmup", 0, "--print-perf")
    done = subprocess.run(["bash", "-c", capsys.readouterr().out], capture_output=True, text=True, timeout=300, cwd=ROOT)
    if "No permission" in done.stderr or "not permitted" in done.stderr:
        pytest.skip("perf may not count here")
    assert done.returncode == 0 and "norm_forward" in done.stdout, done.stdout + done.stderr
    (clock,) = [line for line in done.stderr.splitlines() if "task-clock" in line]
    milliseconds = float(clock.split()[0].replace(",", ""))
    median = float(next(line for line in done.stdout.splitlines() if line.startswith("rms")).split()[1])
    assert milliseconds < 1000, f"{milliseconds} ms counted, {median} a call: starting Python and importing torch are among them"


# ---- ranges


PROGRAM = """
import sys
import torch
from torch.profiler import profile
import dynadapt
from dynadapt.model import random_model, tiny_config
from dynadapt.ops import profiler_ranges as ranges
model = random_model(tiny_config("llama"))
engine = dynadapt.Engine(model, dynadapt.LoRA(rank=2), memory=dynadapt.SegmentMemory(4, sinks=1), segment=8, device="cpu")
tokens = torch.randint(model.config.vocab_size, (1, 9))
with profile() as seen:
    engine.step(tokens)
print(ranges.status()["native"])
print(*sorted({event.key for event in seen.key_averages()}), sep="\\n")
"""
NAMES = {
    "step",
    "forward",
    "score",
    "backward",
    "memory",
    "norm_forward",
    "linear_forward",
    "attention_forward",
    "cross_entropy",
    "linear_backward",
    "lora_gradient",
    "update",
}


def nvtx_recorder(folder):
    """The recording profiler, compiled; None where the headers of NVTX are not."""
    for home in (os.environ.get("CUDA_HOME", ""), "/usr/local/cuda"):
        if (Path(home) / "include" / "nvtx3" / "nvToolsExt.h").exists():
            subprocess.run(
                [
                    "g++",
                    "-x",
                    "c",
                    "-shared",
                    "-fPIC",
                    f"-I{home}/include",
                    "-o",
                    folder / "recorder.so",
                    ROOT / "tests" / "native" / "nvtx_recorder.c",
                ],
                check=True,
                timeout=60,
            )
            return folder / "recorder.so"
    return None


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """One step in a process of its own: names in torch.profiler, status of native ranges, lines of the NVTX recorder or None."""
    folder = tmp_path_factory.mktemp("seen")
    recorder = nvtx_recorder(folder)
    environment = {**os.environ, "DYNADAPT_NVTX": "1", "PYTHONPATH": str(ROOT)}
    if recorder:
        environment |= {"NVTX_INJECTION64_PATH": str(recorder), "NVTX_RECORD": str(folder / "record")}
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    native, *names = done.stdout.splitlines()
    record = (folder / "record").read_text().splitlines() if recorder and (folder / "record").exists() else None
    return set(names), native, record


def test_torch_profiler_sees_the_names(seen):
    assert seen[0] >= NAMES


def test_nvtx_sees_the_same_names_in_one_domain(seen):
    _, native, record = seen
    if record is None or native != "on":
        pytest.skip(f"native ranges: {native}; the headers of NVTX are needed to build and to record them")
    pushed = [line.split(" ", 1)[1] for line in record if line.startswith("push ")]
    assert {name.split("@")[0] for name in pushed} == {"dynadapt"}
    native_ops = {name for name in NAMES if "_" in name or name == "update"}
    assert {f"dynadapt@{name}" for name in native_ops} <= set(pushed)
    pytest.importorskip("nvtx")
    assert {f"dynadapt@{name}" for name in NAMES} <= set(pushed)
    assert len(pushed) == sum(line.startswith("pop ") for line in record)
    layers = tiny_config("llama").layers
    assert pushed.count("dynadapt@attention_forward") == layers  # once each: by the native op, not by Python again
    assert nested(record, "attention_forward") == ["step", "forward"]


def nested(record, name):
    """The ranges around the first one of a name."""
    open_ranges = []
    for line in record:
        if line == f"push dynadapt@{name}":
            return open_ranges
        if line.startswith("push "):
            open_ranges.append(line.split("@")[1])
        else:
            open_ranges.pop()
    raise AssertionError(f"{name} is not in the record")


def test_without_the_variable_ops_are_bare(ranges_restored, monkeypatch):
    monkeypatch.setitem(ranges._state, "on", False)
    assert OpSet("cpu", torch.float32).norm_forward is _C.norm_forward
    monkeypatch.setitem(ranges._state, "on", True)
    assert OpSet("cpu", torch.float32).norm_forward is not _C.norm_forward


def test_other_values_of_the_variable_are_refused(monkeypatch):
    monkeypatch.setenv("DYNADAPT_NVTX", "yes")
    spec = importlib.util.find_spec("dynadapt.ops.profiler_ranges")
    with pytest.raises(ValueError, match="DYNADAPT_NVTX='yes': expected 0 or 1"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    program = (
        "import ctypes, sys; l = ctypes.CDLL(sys.argv[1]); l.dynadapt_last_error.restype = ctypes.c_char_p\n"
        "print(l.dynadapt_bias_gradient(None, None, None), l.dynadapt_last_error().decode())"
    )
    library = Path(_C.__file__).parent / "libdynadapt.so"
    done = subprocess.run([sys.executable, "-c", program, library], capture_output=True, text=True, timeout=60)
    assert done.stdout == '1 DYNADAPT_NVTX is "yes", accepted is 0 or 1\n', done.stdout + done.stderr


# ---- what ncu prints


NCU = """==PROF== Connected to process 7
"ID","Kernel Name","gpu__time_duration.sum","dram__bytes.sum","dram__throughput.avg.pct_of_peak_sustained_elapsed",\
"sm__throughput.avg.pct_of_peak_sustained_elapsed","sm__inst_executed_pipe_tensor.avg.pct_of_peak_sustained_active",\
"sm__warps_active.avg.pct_of_peak_sustained_active","launch__registers_per_thread"
"","","us","Mbyte","%","%","%","%","register/thread"
"0","void dynadapt_norm_forward(float*, int)","10.0","20.0","60.5","20.0","0.0","50.0","40"
"1","void dynadapt_norm_forward(float*, int)","30.0","90.0","62.5","20.0","0.0","50.0","40"
"2","dynadapt_linear_fused","1,000.0","500.0","12.0","70.0","66.0","12.5","168"
"3","vendor_gemm<bf16>(x)","250.0","n/a","","55.0","n/a","25.0","255"
"""


def test_ncu_csv_becomes_a_row_a_kernel(tmp_path, capsys):
    (tmp_path / "found.csv").write_text(NCU)
    profile("--parse-ncu", tmp_path / "found.csv", "--json", tmp_path / "rows.json")
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["kernel"] for row in rows] == ["dynadapt_linear_fused", "vendor_gemm", "dynadapt_norm_forward"]  # longest first
    linear, vendor, norm = rows
    assert (linear["microseconds"], linear["gb_per_s"]) == (1000.0, 500.0)
    assert (linear["roofline_percent"], linear["bound"]) == (66.0, "tensor cores")
    assert (norm["launches"], norm["microseconds"], norm["gb_per_s"]) == (2, 40.0, 2500.0)  # of 2,000 and 3,000
    assert (norm["roofline_percent"], norm["bound"], norm["registers"]) == (61.5, "DRAM", 40)
    assert (vendor["gb_per_s"], vendor["roofline_percent"], vendor["bound"], vendor["sm_percent"]) == (None, None, None, 55.0)
    said = capsys.readouterr().out
    assert [line.split() for line in said.splitlines() if line.startswith("dynadapt_norm")] == [
        ["dynadapt_norm_forward", "2", "40.0", "2,500", "62%", "0%", "20%", "62%"]
    ]


def test_a_file_without_kernels_is_named(tmp_path, capsys):
    (tmp_path / "empty.csv").write_text("==ERROR== no permission\n")
    assert ncu.kernels_of("==ERROR== no permission\n") == []
    profile("--parse-ncu", tmp_path / "empty.csv", code=2)
    assert "empty.csv holds no kernels: expected what `ncu --csv --page raw` prints" in capsys.readouterr().err
