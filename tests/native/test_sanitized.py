"""The native tests on builds with sanitizers (minutes each: run with -m slow)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FINDINGS = ("ERROR: AddressSanitizer", "runtime error", "WARNING: ThreadSanitizer", "FATAL: ThreadSanitizer")


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_native_tests_pass_on_a_sanitized_build(sanitizers):
    done = subprocess.run(
        [Path(__file__).with_name("run_sanitized.sh"), sanitizers],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=3600,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert not any(finding in said for finding in FINDINGS)
