"""Kernel tests once more with every launch looked at (emulator.py): each file in three orders of programs; of the quick ones, one order always."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .compare import DEVICE, kernel_tests

HERE = Path(__file__).parent
FILES = kernel_tests()
LONGEST = 4 * 3600  # seconds of a file on a slow machine; one test of it may take a quarter of an hour
QUICK = ("test_memory.py", "test_norm.py", "test_reset.py", "test_update.py")
pytestmark = [pytest.mark.skipif(DEVICE != "cpu", reason="the interpreter is off"), pytest.mark.timeout(3600)]


def run(file: str, seed: str, *options: str) -> None:
    command = [sys.executable, "-m", "pytest", f"tests/gpu/{file}", "-q", "-x", "-m", "not slow", "-p", "no:cacheprovider", *options]
    environment = {**os.environ, "DYNADAPT_CHECKED_KERNELS": seed, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, cwd=HERE.parents[1], capture_output=True, text=True, env=environment)
    assert ran.returncode == 0 and " passed" in ran.stdout, (ran.stdout + ran.stderr)[-4000:]


@pytest.mark.parametrize("file", QUICK)
def test_quick_files(file):
    run(file, "1")


@pytest.mark.slow
@pytest.mark.timeout(LONGEST)
@pytest.mark.parametrize("seed", ["2", "reversed", "as it is"])
@pytest.mark.parametrize("file", FILES)
def test_every_file(file, seed):
    run(file, seed, "-o", f"timeout={LONGEST}")
