"""A set-up with what the package itself needs, and no more: what works there, and what is refused by the name of what is absent."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import english, tiny_directory

ROOT = Path(__file__).parents[2]
# Everything that the extras of pyproject.toml bring, by import name.
EXTRAS = (
    "transformers",
    "peft",
    "triton",
    "nvtx",
    "jax",
    "jaxlib",
    "lm_eval",
    "pytest",
    "psutil",
    "build",
    "clang_format",
    "mypy",
    "ruff",
    "sklearn",
    "sentence_transformers",
    "pyarrow",
    "llama_cpp",
    "wandb",
    "trackio",
    "tensorboard",
)
LIGHT = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {EXTRAS!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name.partition(".")[0] in {EXTRAS!r} else found(name, package)
"""


def light(code: str, *words: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", LIGHT + f"sys.argv = {['dynadapt', *words]!r}\n" + code], capture_output=True, text=True, timeout=300
    )


def command(*words) -> subprocess.CompletedProcess:
    return light("from dynadapt.cli import main\nmain()", *map(str, words))


def test_the_demos_work_needs_no_extra(tmp_path):
    (tmp_path / "a.txt").write_text(english(300))
    code = """
import io, json
from dynadapt.experiments.config import EvalConfig
from dynadapt.experiments.demo import worker
from dynadapt.experiments.demo.run import COMPARED, demo_cells
from dynadapt.experiments.compare import read_compared, summarise, write_page
from dynadapt.runs.metrics import read_run
from dynadapt.experiments.plot import plot_cost
from pathlib import Path
out = Path(sys.argv[1])
base = {"model": str(out / "model"), "text": (str(out / "a.txt"),)}
timed = worker.look({"config": EvalConfig(**base, segment=16, memory=0).to_dict(), "time": True}, None)
assert timed["static"] > 0 < timed["lora"], timed
for cell in demo_cells(COMPARED, 97, 16, **base):
    worker.cell({"config": cell.config.to_dict(), "out": str(out / cell.name)}, io.StringIO())
runs = [out / name for name in COMPARED]
plot_cost([read_run(run) for run in runs], out / "p.png", {name: name for name in COMPARED})
compared = read_compared(list(map(str, runs)))
write_page(out / "c.html", compared, summarise(compared))
import dynadapt.model.fetch
"""
    tiny_directory(tmp_path / "model")
    done = light(code, str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "c.html").stat().st_size > 10_000 and (tmp_path / "p.png").stat().st_size > 1000


@pytest.mark.parametrize(
    "words, message",
    [
        (["bench", "step", "--rounds", "1"], "needs transformers and peft, not installed here; in a checkout: pip install -e '.[bench]'"),
        (["bench", "icl", "garg-tiny"], "needs transformers, not installed here; in a checkout: pip install -e '.[bench]'"),
        (["explain", "--model", "MODEL", "--backend", "triton", "--dtype", "fp32"], "backend='triton' needs Triton"),
    ],
)
def test_what_an_absent_package_disables_is_refused_by_name(words, message, tmp_path):
    model = str(tiny_directory(tmp_path / "model"))
    done = command(*(model if word == "MODEL" else word for word in words))
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("dynadapt: error: ") and message in done.stderr


@pytest.mark.parametrize("module, message", [("lm_eval", "needs the package lm-eval"), ("jax", "needs the package jax")])
def test_modules_for_other_libraries_say_what_they_need(module, message):
    done = light(f"import dynadapt.{module}")
    assert done.returncode == 1 and message in done.stderr.splitlines()[-1] and "pip install" in done.stderr.splitlines()[-1]


def test_info_lists_what_is_there():
    done = command("info")
    assert done.returncode == 0 and "cpu" in done.stdout, done.stderr


@pytest.mark.skipif(not (ROOT / "Makefile").is_file() or not shutil.which("make"), reason="needs make and a checkout")
def test_make_demo_installs_the_package_and_make_test_completes_it(tmp_path):
    """On a fresh checkout, by what make would run."""

    def would_run(target: str) -> list[str]:
        done = subprocess.run(["make", "-n", target, f"VENV={tmp_path / 'venv'}"], cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return [line for line in done.stdout.splitlines() if "pip install" in line or "-m pytest" in line or "dynadapt demo" in line]

    demo, test = would_run("demo"), would_run("test")
    assert demo[-1].endswith("dynadapt demo ") or demo[-1].endswith("dynadapt demo")
    assert not any("[test]" in line for line in demo) and any(line.endswith("-e .") for line in demo)
    assert any('".[test]"' in line for line in test) and "-m pytest" in test[-1]
    # with the stamps of a demo's set-up there, a test run adds what is missing and installs the rest no second time
    (tmp_path / "venv").mkdir()
    for stamp in ("base.stamp", "native.stamp"):
        (tmp_path / "venv" / stamp).touch()
    completed = would_run("test")
    assert len([line for line in completed if "pip install" in line and "if [" not in line]) == 1 and any(
        '".[test]"' in line for line in completed
    )
    assert not any("pip install" in line and "if [" not in line for line in would_run("demo"))


def test_every_extra_is_blocked_above():
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    named = {re.split(r"[\[>=]", word)[0] for words in extras.values() for word in words} - {"dynadapt", "pytest-timeout", "pytest-xdist"}
    modules = {"scikit-learn": "sklearn", "lm-eval": "lm_eval", "clang-format": "clang_format", "llama-cpp-python": "llama_cpp"}
    assert {modules.get(name, name) for name in named} <= set(EXTRAS)
