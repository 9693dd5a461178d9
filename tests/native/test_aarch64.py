"""64-bit Arm: the C library cross-compiled, every op and the C engine run in an emulator (a minute or two: run with -m slow).

Every case of an op that a test of this folder makes is held against float64 there, by the rule that holds here. What the emulator can't show
is speed, and the weaker order of an Arm processor's memory.
"""

import importlib
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from op_cases import DTYPES, make_case

from dynadapt import Adam, Engine, LoRA, SegmentMemory, load
from dynadapt.bench import cases

from . import op_values, test_update
from .engine_c import LIBRARY, text, write

pytestmark = pytest.mark.timeout(1800)

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
COMPILER, EMULATOR, SYSROOT = "aarch64-linux-gnu-g++", "qemu-aarch64", "/usr/aarch64-linux-gnu"
MODULES = "activation attention bias_gradient cross_entropy delta_gates delta_rule embedding gated_norm head_norm linear linear_mse".split()
MODULES += "lora_gradient norm short_convolution weight_gradient".split()
OPS = "linear_forward linear_backward lora_gradient weight_gradient row_scores bias_gradient cross_entropy distillation"
OPS += " cross_entropy_weight_gradient norm_forward norm_backward head_norm_forward head_norm_backward activation_forward activation_backward embedding_forward"
OPS += " embedding_backward attention_forward attention_backward linear_mse short_convolution_forward short_convolution_backward"
OPS += " adapted_embedding_forward adapted_embedding_backward"
OPS += " delta_gates_forward delta_gates_backward delta_rule_forward delta_rule_backward gated_norm_forward gated_norm_backward"


def command(*words, seconds=1800, **environment):
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, timeout=seconds, env={**os.environ, **environment})
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def drawn(module):
    """Every case that the tests of a module draw, as what ``make_case`` takes."""
    tests = [f for name, f in vars(importlib.import_module(f"tests.native.test_{module}")).items() if name.startswith("test_")]
    marks = [mark for test in tests for mark in getattr(test, "pytestmark", ()) if mark.name == "parametrize" and mark.args[0] == "case"]
    return {parameter.id: parameter.values[0] for mark in marks for parameter in mark.args[1]}


def check_by(program, all_drawn, folder):
    """Holds each case against float64, its op computed by the program; the ops, and the instruction set."""
    made = [make_case(*one) for one in all_drawn]
    calls, arguments = [], []
    for case in made:
        copies = cases.materialise(case, "reference")
        values = dict(zip(case.arguments, copies)) | {name: case[name] for name in case.about.frozen}
        calls.append(op_values.Call(case.op, values))
        arguments.append(copies)
    isa = op_values.run(calls, program, folder)
    for case, results in zip(made, arguments):
        outputs = cases.written(case, results)

        def computed(*call, case=case, outputs=outputs):
            for name, t in cases.written(case, call).items():
                t.copy_(outputs[name])

        cases.check(case, "cpu", function=computed)
    return {case.op for case in made}, isa


def test_the_program_of_ops_on_this_processor(tmp_path):
    """So that it can't rot where there is no cross compiler."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    program = tmp_path / "op_values"
    command(
        compiler,
        "-std=c++20",
        f"-I{ROOT / 'csrc/include'}",
        HERE / "programs/op_values.cpp",
        LIBRARY,
        f"-Wl,-rpath,{LIBRARY.parent}",
        "-o",
        program,
    )
    chosen = list(drawn("linear").values())[:4] + list(drawn("lora_gradient").values())[:2] + list(drawn("attention").values())[4:6]
    assert check_by([program], chosen, tmp_path)[0] == {"linear_forward", "lora_gradient", "attention_forward"}
    wrong = op_values.Call("bias_gradient", {"dy": torch.zeros(2, 3), "db": torch.zeros(4)})
    with pytest.raises(AssertionError, match=r"bias_gradient: .*db has shape \[4\]"):
        op_values.run([wrong], [program], tmp_path)


# ---- in the emulator


@pytest.fixture(scope="module")
def build():
    """The folder of the library for aarch64, made from the sources as they are."""
    missing = [name for name in (COMPILER, EMULATOR) if not shutil.which(name)]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)} (Debian's packages g++-aarch64-linux-gnu and qemu-user)")
    folder = ROOT / "build" / "aarch64"
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    toolchain = ROOT / "cmake" / "aarch64-linux-gnu.cmake"
    command(
        "cmake",
        "-G",
        "Ninja",
        "-S",
        ROOT,
        "-B",
        folder,
        "--toolchain",
        toolchain,
        "-DDYNADAPT_PYTHON=OFF",
        "-DDYNADAPT_STATIC=OFF",
        PATH=path,
    )
    command("cmake", "--build", folder, "--parallel", os.cpu_count() or 1, PATH=path)
    return folder


def made_for_aarch64(build, source):
    program = build / source.stem
    rpath = f"-Wl,-rpath,{build}"
    command(COMPILER, "-std=c++20", "-O1", f"-I{ROOT / 'csrc/include'}", source, f"-L{build}", "-ldynadapt", rpath, "-o", program)
    return [EMULATOR, "-L", SYSROOT, program]


@pytest.fixture(scope="module")
def program(build):
    return made_for_aarch64(build, HERE / "programs" / "op_values.cpp")


@pytest.mark.slow
@pytest.mark.parametrize("isa", ["neon", "portable"])
@pytest.mark.parametrize("module", MODULES)
def test_ops_against_float64(program, module, isa, tmp_path, monkeypatch):
    monkeypatch.setenv("DYNADAPT_CPU_ISA", isa)
    assert check_by(program, drawn(module).values(), tmp_path)[1] == isa


@pytest.mark.slow
def test_these_are_all_ops():
    """But the update and the matrices, which have tests of their own."""
    assert {make_case(*one).op for module in MODULES for one in drawn(module).values()} == set(OPS.split())


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_update_against_float64(program, dtype, tmp_path):
    """Every kind of optimizer."""

    def run(values, backend="cpu", wide=False):
        if backend != "cpu":
            return test_update.run(values, backend, wide)
        copies = {name: v.clone() if isinstance(v, torch.Tensor) else v for name, v in values.items()}
        op_values.run([op_values.Call("update", copies)], program, tmp_path)
        return copies

    for kind in test_update.KINDS.values():
        for p in (63, 40001):
            test_update.compare(test_update.make(p, dtype, **kind, decay=0.03, clip=0.5), run=run)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_matrices_hold_what_was_put_in(program, dtype, tmp_path):
    weight, index = torch.randn(77, 131).to(dtype), torch.tensor([5, 0, 76, 5])
    rows, values = torch.tensor([76, 3], dtype=torch.int32), torch.randn(2, 131)
    gathered, whole, changed = torch.zeros(4, 131, dtype=dtype), torch.zeros_like(weight), weight.clone()
    calls = [
        op_values.Call("matrix_gather_rows", {"matrix": weight, "index": index, "out": gathered}),
        op_values.Call("matrix_unpack", {"matrix": weight, "out": whole}),
        op_values.Call("matrix_update_rows", {"matrix": changed, "rows": rows, "values": values}),
    ]
    op_values.run(calls, program, tmp_path)
    assert torch.equal(gathered, weight[index]) and torch.equal(whole, weight)
    expected = weight.clone()
    expected[rows.long()] = values.to(dtype)
    assert torch.equal(changed, expected)


@pytest.mark.slow
def test_many_callers_and_changing_threads(build, tmp_path):
    """programs/op_races.cpp: every op and the engine give the bits of one thread, whatever the threads."""
    model = write(tmp_path / "model", layers=1)
    assert command(*made_for_aarch64(build, HERE / "programs" / "op_races.cpp"), 3, model) == "done\n"


@pytest.mark.slow
@pytest.mark.parametrize("dtype, allowed", [("fp32", 2e-6), ("bf16", 2e-3)])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_the_engine_in_a_program(build, family, dtype, allowed, tmp_path):
    """examples/cpp/dynamic_evaluation.cpp with memory and learning, by three threads: the means of float64, and of one thread to the last digit."""
    directory = write(tmp_path / "model", family, torch.float32 if dtype == "fp32" else torch.bfloat16)
    tokens = text(1, 60, 100)
    (tmp_path / "tokens").write_bytes(struct.pack("<60i", *tokens[0].tolist()))
    example = made_for_aarch64(build, ROOT / "examples/cpp/dynamic_evaluation.cpp")
    arguments = [
        directory,
        tmp_path / "tokens",
        "segment=12",
        "memory=20",
        "rank=3",
        "lr=0.003",
        f"dtype={dtype}",
        f"out={tmp_path / 'adapter'}",
    ]
    said = command(*example, *arguments, DYNADAPT_NUM_THREADS="3")
    assert said == command(*example, *arguments, DYNADAPT_NUM_THREADS="1")
    engine = Engine(
        load(str(directory)),
        adapt=LoRA(rank=3),
        optimizer=Adam(lr=3e-3),
        memory=SegmentMemory(20, 4),
        segment=12,
        dtype="fp64",
        backend="reference",
    )
    lines = said.splitlines()
    for line, start in zip(lines, range(0, 59, 12)):
        nll = engine.step(tokens[:, start : start + 13])
        at, length, mean = line.split()
        assert (int(at), int(length)) == (start, nll.shape[1])
        assert abs(float(mean) - float(nll.double().mean())) <= allowed * float(nll.double().mean()) + 1e-6, line
    assert len(lines) == 6


@pytest.mark.slow
def test_a_big_endian_processor_is_refused(build, tmp_path):
    toolchain = ROOT / "cmake" / "aarch64-linux-gnu.cmake"
    done = subprocess.run(
        ["cmake", "-S", ROOT, "-B", tmp_path, "--toolchain", toolchain, "-DCMAKE_CXX_FLAGS=-mbig-endian", "-DDYNADAPT_PYTHON=OFF"]
        + ["-DCMAKE_C_FLAGS=-mbig-endian", "-DCMAKE_TRY_COMPILE_TARGET_TYPE=STATIC_LIBRARY"],
        env={**os.environ, "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode != 0 and 'is "BIG_ENDIAN"; accepted is LITTLE_ENDIAN' in " ".join(done.stderr.split())
