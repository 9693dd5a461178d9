"""Processes that the package starts: which code they run, and when they end."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import dynadapt
from dynadapt.common import children

PACKAGE = Path(dynadapt.__file__).resolve().parent


def test_a_child_runs_this_package_and_keeps_off_the_working_directory(tmp_path, monkeypatch):
    """Also what the child starts in its turn, on a Python that knows PYTHONSAFEPATH."""
    for name in ("dynadapt", "json", "numpy", "runpy", "ctypes"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported from the working directory')\n")
    done = subprocess.run(
        children.command("dynadapt", "--version"), env=children.environment(), cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, f"{dynadapt.__version__}\n"), done.stderr
    module = tmp_path / "module"
    module.mkdir()
    (module / "shows.py").write_text(
        "import subprocess, sys, dynadapt\nprint(sys.argv[1:], dynadapt.__file__, __name__)\n"
        + "subprocess.run([sys.executable, '-m', 'json.tool', '--help'], check=True)\n" * (sys.version_info >= (3, 11))
    )
    done = subprocess.run(
        children.command("shows", "a b", "--c"),
        env=children.environment(PYTHONPATH=str(module)),
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == f"['a b', '--c'] {PACKAGE / '__init__.py'} __main__"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel of another system does not tell children")
def test_a_child_whose_parent_has_gone_already_ends():
    command = children.command("dynadapt", "--version")
    command[2] = str(os.getppid())  # of another parent than the one that starts it
    done = subprocess.run(command, env=children.environment(), capture_output=True, text=True)
    assert done.returncode == -15 and not done.stdout


def test_no_other_way_of_starting_python():
    """Python is started through children.py; what is printed for a user to run is not started here."""
    found = {str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py") if "sys.executable" in path.read_text("utf-8")}
    assert found == {"common/children.py", "bench/profile/lines.py"}
