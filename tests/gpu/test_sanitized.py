"""compute-sanitizer over the small cases: no bad access, no race. Minutes a tool, so `benchmarks/gpu_campaign.py sanitizers` runs it too."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .compare import kernel_tests, skip_without_gpu

ROOT = Path(__file__).parents[2]
TOOL = shutil.which("compute-sanitizer")
FILES = kernel_tests(but=("test_step",))


@pytest.mark.gpu
@pytest.mark.slow
@skip_without_gpu
@pytest.mark.skipif(TOOL is None, reason="compute-sanitizer is not installed")
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
@pytest.mark.parametrize("file", FILES)
def test_nothing_found(tool, file):
    command = [
        TOOL,
        "--tool",
        tool,
        "--kernel-regex",
        "kns=dynadapt",
        sys.executable,
        "-m",
        "pytest",
        f"tests/gpu/{file}",
        "-m",
        "not gpu and not slow",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
    ]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})
    found = re.search(r"(?:ERROR SUMMARY|RACECHECK SUMMARY): (\d+)", ran.stdout)
    assert ran.returncode == 0 and found and found.group(1) == "0", (ran.stdout + ran.stderr)[-3000:]
