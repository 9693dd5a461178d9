"""The native tests on a build with AddressSanitizer and UndefinedBehaviorSanitizer (minutes: run with -m slow)."""
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_native_tests_pass_on_a_sanitized_build():
    done = subprocess.run([Path(__file__).with_name("run_sanitized.sh")], env={**os.environ, "PYTHON": sys.executable},
                          capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "ERROR: AddressSanitizer" not in done.stderr + done.stdout and "runtime error" not in done.stderr + done.stdout
