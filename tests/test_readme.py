"""The README's example runs as it stands, and its commands exist."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dynadapt.text import BUILTINS

README = (Path(__file__).parent.parent / "README.md").read_text()


@pytest.mark.model
def test_the_python_example_runs(tmp_path, smollm2_directory):
    code = re.search(r"```python\n(.*?)```", README, re.S).group(1)
    (tmp_path / "novel.txt").write_text(BUILTINS["python-reference"]()[:6000])
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300,
                         env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert len(ran.stdout.splitlines()) >= 2
    assert (tmp_path / "adapted" / "adapter" / "adapter_model.safetensors").exists()


def test_every_option_in_the_readme_exists():
    from dynadapt.cli import build_parser

    parser = build_parser()
    known = set(re.findall(r"--[a-z]+", "".join(p.format_help() for p in parser._subparsers._group_actions[0].choices.values())))
    used = set(re.findall(r"(?<![\w-])--[a-z]+", README))
    assert used and used <= known, used - known


def test_every_file_in_the_readme_exists():
    root = Path(__file__).parent.parent
    for link in re.findall(r"\]\(([^)h][^)]*)\)", README) + re.findall(r"`((?:dynadapt|csrc|docs|benchmarks)/[\w./-]+)`", README):
        assert (root / link).exists(), link
