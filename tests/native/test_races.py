"""Threads: programs in which several callers use the library while its thread count changes and processes are forked."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .engine_c import LIBRARY, write

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
POOL = [CSRC / "core" / f"{name}.cpp" for name in ("pool", "threads", "error")]


def program(path, *arguments):
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    done = subprocess.run(
        [compiler, "-std=c++20", "-O1", "-g", f"-I{CSRC}", f"-I{CSRC / 'include'}", *map(str, arguments), "-o", path],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return path


def run(path, *arguments):
    done = subprocess.run(
        [path, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "TSAN_OPTIONS": "halt_on_error=1:die_after_fork=0"},
    )
    assert done.returncode == 0 and done.stdout == "done\n", done.stdout[-3000:] + done.stderr[-3000:]
    assert "ThreadSanitizer" not in done.stderr


@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
def test_the_pool_under_a_sanitizer(tmp_path, sanitizer):
    run(program(tmp_path / "pool", f"-fsanitize={sanitizer}", "-fopenmp", HERE / "programs" / "pool_races.cpp", *POOL), 100)


def test_ops_and_engine_while_the_number_of_threads_changes(tmp_path):
    model = write(tmp_path / "model", layers=1)
    races = program(tmp_path / "ops", HERE / "programs" / "op_races.cpp", LIBRARY, f"-Wl,-rpath,{LIBRARY.parent}")
    run(races, 40, model)


def test_the_library_stays_while_its_threads_live():
    """dlclose does not unmap the code that the pool's threads run."""
    code = """
import ctypes, sys, _ctypes
library = ctypes.CDLL(sys.argv[1])
assert library.dynadapt_abi_version() >= 1
_ctypes.dlclose(library._handle)
print(sys.argv[1] in open("/proc/self/maps").read())
"""
    done = subprocess.run([sys.executable, "-c", code, str(LIBRARY)], capture_output=True, text=True, timeout=60)
    assert done.stdout == "True\n", done.stdout + done.stderr
