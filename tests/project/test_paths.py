"""What pages, docstrings and comments name is there: files of the project, and dotted names of the package."""

from __future__ import annotations

import ast
import functools
import io
import re
import subprocess
import tokenize
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# A path from the top, or from inside dynadapt/ or csrc/; or the name alone of a Python file.
FROM_TOP = re.compile(r"(?<![\w./:-])((?:\.ci|benchmarks|cmake|csrc|docs|dynadapt|examples|kernels|requirements|tests)(?:/[\w.-]+)+)")
FROM_INSIDE = re.compile(r"(?<![\w./<*{-])([a-z_]+(?:/[\w-]+)+\.(?:py|h|cpp|cu))\b")
ALONE = re.compile(r"(?<![\w./<>*{}\"'-])(\w+\.py)\b")
DOTTED = re.compile(r"(?<![\w./-])(dynadapt(?:\.[A-Za-z_]\w*)+)")
ELSEWHERE = {  # like paths, but other things: metrics; an include; what a C program is built as
    "dynadapt/heldout_nll",
    "dynadapt/heldout_bits_per_byte",
    "dynadapt/dynadapt.h",
    "examples/cpp/dynamic_evaluation",
}
SUFFIXES = ("a", "cmake", "h", "hpp", "json", "pc", "so")  # libdynadapt.so and so on are files


def tracked() -> list[Path]:
    if not (ROOT / ".git").exists():
        pytest.skip("this is not a checkout")
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True)
    past = "CHANGELOG.md"  # tells what was
    return [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).is_file() and name != past]


def prose(path: Path) -> str:
    """What a file says to its reader: a page whole, of Python the docstrings and comments, of C and of build files the comments."""
    if path.suffix in (".png", ".json", ".html"):
        return ""
    text = path.read_text("utf-8")
    if path.suffix == ".md":
        return text
    if path.suffix == ".py":
        nodes = (node for node in ast.walk(ast.parse(text)) if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)))
        comments = (token.string for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.type == tokenize.COMMENT)
        return "\n".join([*(ast.get_docstring(node) or "" for node in nodes), *comments])
    if path.suffix in (".h", ".hpp", ".cpp", ".c", ".cu"):
        return "\n".join(re.findall(r"//[^\n]*|/\*.*?\*/", text, re.S))
    if path.suffix in (".cmake", ".in", ".sh", ".toml", ".txt", ".yaml") or path.name in ("Makefile", "run"):
        return "\n".join(re.findall(r"#[^\n]*", text))
    return ""


def missing(text: str, folder: Path, names: set[str]) -> list[str]:
    """Paths in a text that lead nowhere; one that ends in _ or - is the beginning of names."""
    found = []
    for path in {each.rstrip(".") for each in FROM_TOP.findall(text)} - ELSEWHERE:
        if not (ROOT / path).exists() and not (path[-1] in "_-" and list((ROOT / path).parent.glob((ROOT / path).name + "*"))):
            found.append(path)
    rooms = {each.name for top in ("dynadapt", "csrc") for each in (ROOT / top).iterdir() if each.is_dir()}
    for path in set(FROM_INSIDE.findall(text)):
        if path.partition("/")[0] in rooms and not any((base / path).exists() for base in (ROOT / "dynadapt", ROOT / "csrc", folder)):
            found.append(path)
    return sorted([*found, *(name for name in set(ALONE.findall(text)) if name not in names)])


def resolves(name: str) -> bool:
    """Whether a dotted name is a module, or something in one."""
    parts = name.split(".")
    for at in range(len(parts), 0, -1):
        try:
            value = import_module(".".join(parts[:at]))
        except ModuleNotFoundError:
            continue
        try:
            functools.reduce(getattr, parts[at:], value)
        except AttributeError:
            continue
        return True
    return False


def test_every_path_leads_somewhere():
    files = tracked()
    names = {path.name for path in files} | {"adapt.py", "page.py", "program.py"}  # those that pages have their reader write
    said = [f"{path.relative_to(ROOT)}: {wrong}" for path in files for wrong in missing(prose(path), path.parent, names)]
    assert len(files) > 500 and not said, "\n".join(said)


def test_every_dotted_name_resolves():
    for package in ("jax", "lm_eval", "transformers", "triton"):
        pytest.importorskip(package)
    found = {}
    for path in tracked():
        if path.suffix in (".md", ".py") and "tests" not in path.relative_to(ROOT).parts:
            found.update(dict.fromkeys(DOTTED.findall(prose(path)), path.relative_to(ROOT)))
    found = {name: path for name, path in found.items() if name.rpartition(".")[2] not in SUFFIXES}
    assert len(found) > 50
    wrong = [f"{path}: {name}" for name, path in sorted(found.items()) if not resolves(name)]
    assert not wrong, "\n".join(wrong)


def test_what_counts_as_missing():
    names = {"engine.py"}
    text = (
        "`dynadapt/engine/engine.py`, tests/native/test_<op>.py, engine/state.py, csrc/cpu/ and engine.py; src/models.py of another project"
    )
    assert missing(text, ROOT, names) == []
    text = "dynadapt/torch_ops/x.py, engine/engine_state.py, gone.py; kernels/nothing_"
    assert missing(text, ROOT, names) == ["dynadapt/torch_ops/x.py", "engine/engine_state.py", "gone.py", "kernels/nothing_"]
    assert resolves("dynadapt.nn.add_lora") and resolves("dynadapt.Engine.step") and not resolves("dynadapt.ceiling.gemm_ceiling")
