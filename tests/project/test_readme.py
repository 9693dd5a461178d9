"""The README's example runs as it stands, and its commands exist."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dynadapt.runs.text import BUILTINS

README = (Path(__file__).parents[2] / "README.md").read_text()


@pytest.mark.model
def test_the_python_example_runs(tmp_path, smollm2_directory):
    code = re.search(r"```python\n(.*?)```", README, re.S).group(1)
    (tmp_path / "novel.txt").write_text(BUILTINS["python-reference"]()[:6000])
    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert len(ran.stdout.splitlines()) >= 2
    assert (tmp_path / "adapted" / "adapter" / "adapter_model.safetensors").exists()


def _helps(parser) -> list[str]:
    """The help texts of a parser and of the commands under it."""
    nested = [sub for action in (parser._subparsers._group_actions if parser._subparsers else []) for sub in action.choices.values()]
    return [parser.format_help(), *(text for sub in nested for text in _helps(sub))]


def test_every_option_in_the_readme_exists():
    from dynadapt.cli import build_parser

    known = set(re.findall(r"--[a-z]+", "".join(_helps(build_parser()))))
    commands = re.findall(r"(?<![\w-])(?:make|torchrun|python benchmarks/)[^`\n]*", README)  # tools of their own; benchmarks: see below
    text = README
    for command in commands:
        text = text.replace(command, "")
    used = set(re.findall(r"(?<![\w-])--[a-z]+", text))
    assert used and used <= known, used - known


def test_every_benchmark_option_in_the_readme_exists():
    commands = re.findall(r"python (benchmarks/\w+\.py)([^`#\n]*)", README)
    assert any("--" in rest for _, rest in commands)
    for script, rest in commands:
        source = (Path(__file__).parents[2] / script).read_text()
        for option in re.findall(r"--[a-z]+", rest):
            assert f'"{option}"' in source, (script, option)


def test_every_file_in_the_readme_exists():
    root = Path(__file__).parents[2]
    links = re.findall(r"\]\(([^)h][^)]*)\)", README), re.findall(r"`((?:dynadapt|csrc|docs|benchmarks)/[\w./-]+)`", README)
    assert all(links)
    for link in sum(links, []):
        assert (root / link).exists(), link
