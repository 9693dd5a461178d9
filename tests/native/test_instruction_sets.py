"""The native tests and the engine's invariants again under every lower instruction set that this processor can run, each in a process of
its own."""

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dynadapt import _C

HERE = Path(__file__).parent
X86, ARM = ["avx512_bf16", "avx512", "avx2", "portable"], ["neon", "portable"]
ALL = ARM if _C.isa() in ARM and platform.machine() in ("aarch64", "arm64") else X86
LOWER = ALL[ALL.index(_C.isa()) + 1 :] or [pytest.param("portable", marks=pytest.mark.skip(reason="this processor runs the lowest alone"))]
# No kernel runs there, or every instruction set's at once.
WITHOUT_KERNELS = ("instruction_sets", "aarch64", "disassembly", "documents", "fuzz", "header", "linking", "races", "sanitized")


def python(*arguments, isa):
    """A python process with that instruction set asked for."""
    environment = {**os.environ, "DYNADAPT_CPU_ISA": isa, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=500)


def check(*tests, isa):
    done = python("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "not slow", *tests, isa=isa)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert re.search(r"\d{2,} passed", done.stdout)


@pytest.mark.parametrize("isa", LOWER)
def test_native_tests_pass(isa):
    ignored = [f"--ignore={HERE / f'test_{name}.py'}" for name in WITHOUT_KERNELS]
    check(*ignored, str(HERE), isa=isa)


@pytest.mark.parametrize("isa", LOWER)
def test_engine_invariants_hold(isa):
    """Those of the native backend."""
    check("-k", "cpu", str(HERE.parent / "engine" / "test_invariants.py"), isa=isa)


@pytest.mark.parametrize("isa", LOWER)
def test_the_instruction_set_asked_for_runs(isa):
    done = python("-c", "from dynadapt import _C; print(_C.isa())", isa=isa)
    assert done.stdout.strip() == isa, done.stderr


def test_an_unknown_processor_gets_the_portable_kernels(tmp_path):
    """As CMake sees it: no flags of another processor, and a dispatcher that knows one instruction set."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    root = HERE.parents[1]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    unknown = ["-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=riscv64", "-DDYNADAPT_PYTHON=OFF", "-DDYNADAPT_STATIC=OFF"]
    configure = ["cmake", "-G", "Ninja", "-S", root, "-B", tmp_path, f"-DCMAKE_CXX_COMPILER={compiler}", *unknown]
    subprocess.run(configure, env={**os.environ, "PATH": path}, capture_output=True, check=True, timeout=120)
    rules = (tmp_path / "build.ninja").read_text()
    assert set(re.findall(r"DYN_ISA=(\w+)", rules)) == {"portable"} and "-mavx" not in rules
    flags = sorted(set(re.findall(r"-DDYN_(?:X86|AARCH64)=\d", rules)))
    assert flags == ["-DDYN_AARCH64=0", "-DDYN_X86=0"]
    csrc = root / "csrc"
    (tmp_path / "says.cpp").write_text(
        '#include <cstdio>\nextern "C" const char* dynadapt_isa(void);\nint main() { std::puts(dynadapt_isa()); }\n'
    )
    sources = [tmp_path / "says.cpp", csrc / "cpu" / "dispatch.cpp", csrc / "core" / "error.cpp"]
    command = [compiler, "-std=c++20", *flags, f"-I{csrc}", f"-I{csrc / 'include'}", *sources, "-o", tmp_path / "says"]
    subprocess.run(command, check=True, timeout=120)
    environment = {name: value for name, value in os.environ.items() if name != "DYNADAPT_CPU_ISA"}
    assert subprocess.run([tmp_path / "says"], env=environment, capture_output=True, text=True).stdout == "portable\n"


def test_an_unknown_instruction_set_is_an_import_error():
    done = python("-c", "from dynadapt import _C", isa="sse9")
    assert done.returncode != 0
    assert 'DYNADAPT_CPU_ISA is "sse9", this processor accepts' in done.stderr and "portable" in done.stderr
