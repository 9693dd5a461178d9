"""The native tests and the engine's invariants again under every lower instruction set that this processor can run, each in a process of
its own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dynadapt import _C

HERE = Path(__file__).parent
ALL = ["avx512_bf16", "avx512", "avx2", "portable"]
LOWER = ALL[ALL.index(_C.isa()) + 1 :] or [pytest.param("portable", marks=pytest.mark.skip(reason="this processor runs the lowest alone"))]
# No kernel runs there, or every instruction set's at once.
WITHOUT_KERNELS = ("instruction_sets", "disassembly", "documents", "fuzz", "header", "linking", "races", "sanitized")


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


def test_an_unknown_instruction_set_is_an_import_error():
    done = python("-c", "from dynadapt import _C", isa="sse9")
    assert done.returncode != 0
    assert 'DYNADAPT_CPU_ISA is "sse9", this processor accepts' in done.stderr and "portable" in done.stderr
