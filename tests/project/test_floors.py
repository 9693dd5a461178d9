"""Imports point one way only: no module imports what stands above it, and no modules import each other in a circle.

Every import counts, also one inside a function: what is imported late is imported all the same. Those for a type checker's eyes alone
(`if TYPE_CHECKING`) may close a circle, not point upward.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# From the ground up. Rooms of one floor may import each other's modules. Ops reach kernels by name alone, kernels read the contracts of ops.
FLOORS = (
    ("_C", "common"),
    ("ops", "kernels"),
    ("model", "adapt"),
    ("engine",),
    ("distributed",),
    ("runs",),
    ("bench",),
    ("experiments",),
    ("interop",),
    ("commands",),
)
TOP = len(FLOORS)  # dynadapt itself, the command line, and the faces: modules that give inner modules their public names


@dataclass(frozen=True)
class Arrow:
    """An import of the module `target` by the module `source`."""

    source: str
    target: str
    line: int
    for_types: bool

    def __str__(self) -> str:
        return f"{self.source}, line {self.line}, imports {self.target}"


def modules(root: Path) -> dict[str, Path]:
    """The package's modules, by dotted name."""
    found = {}
    for folder, package in ((root / "dynadapt", "dynadapt"), (root / "kernels", "dynadapt.kernels")):
        for path in sorted(folder.rglob("*.py")):
            if (root / "dynadapt" / "kernels") not in path.parents:  # the link to kernels/
                inside = path.relative_to(folder).with_suffix("").parts
                found[".".join([package, *inside]).removesuffix(".__init__")] = path
    return found


def arrows(known: dict[str, Path]) -> list[Arrow]:
    """The package's imports of its own modules, each with the module that is meant: `from .ops import linear` imports dynadapt.ops.linear."""
    found = []
    for source, path in known.items():
        package = source if path.name == "__init__.py" else source.rpartition(".")[0]
        for target, line, for_types in _imported(ast.parse(path.read_text("utf-8")), package, False):
            while target not in known and target != "dynadapt._C" and "." in target:
                target = target.rpartition(".")[0]
            if target.partition(".")[0] == "dynadapt":
                found.append(Arrow(source, target, line, for_types))
    return found


def _imported(node: ast.AST, package: str, for_types: bool) -> Iterator[tuple[str, int, bool]]:
    if isinstance(node, ast.Import):
        for name in node.names:
            yield name.name, node.lineno, for_types
    elif isinstance(node, ast.ImportFrom):
        base = package.rsplit(".", node.level - 1)[0] if node.level else ""
        for name in node.names:
            yield ".".join(filter(None, (base, node.module, name.name))), node.lineno, for_types
    for child in ast.iter_child_nodes(node):
        guarded = isinstance(node, ast.If) and child in node.body and ast.unparse(node.test).endswith("TYPE_CHECKING")
        yield from _imported(child, package, for_types or guarded)


def floor(module: str) -> int:
    """How high a module stands. Every package below dynadapt has a floor; single modules there are at the top."""
    room = [*module.split("."), ""][1]
    return next((height for height, rooms in enumerate(FLOORS) if room in rooms), TOP)


def upward(found: list[Arrow]) -> list[Arrow]:
    return [arrow for arrow in found if floor(arrow.source) < floor(arrow.target)]


def circles(found: list[Arrow]) -> list[list[str]]:
    """Groups of modules of which each is reached from each (Tarjan 1972), without imports for types."""
    after: dict[str, set[str]] = {}
    for arrow in found:
        if not arrow.for_types and arrow.source != arrow.target:
            after.setdefault(arrow.source, set()).add(arrow.target)
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    open_: list[str] = []
    groups = []

    def visit(module: str) -> None:
        order[module] = lowest[module] = len(order)
        open_.append(module)
        for target in after.get(module, ()):
            if target not in order:
                visit(target)
            if target in open_:
                lowest[module] = min(lowest[module], lowest[target])
        if lowest[module] == order[module]:
            at = open_.index(module)
            if len(open_) - at > 1:
                groups.append(sorted(open_[at:]))
            del open_[at:]

    for module in after:
        if module not in order:
            visit(module)
    return groups


@pytest.fixture(scope="module")
def found() -> list[Arrow]:
    found = arrows(modules(ROOT))
    assert len(found) > 1000, "imports were not seen"
    return found


def test_no_import_points_upward(found):
    assert not upward(found), "\n".join(map(str, upward(found)))


def test_no_modules_import_each_other_in_a_circle(found):
    assert not circles(found), "\n".join(" - ".join(group) for group in circles(found))


def test_every_package_has_a_floor(found):
    packages = {path.parent.name for path in (ROOT / "dynadapt").glob("*/__init__.py")}
    assert packages | {"_C"} == {room for rooms in FLOORS for room in rooms}


def test_kernels_are_reached_by_name_from_one_place(found):
    """So that a machine without Triton runs everything else."""
    outside = [arrow for arrow in found if arrow.target.startswith("dynadapt.kernels.") and not arrow.source.startswith("dynadapt.kernels")]
    assert not outside, "\n".join(map(str, outside))


def test_what_counts(tmp_path):
    """An arrow up at the top of a module, in a function and for types; a circle through a function; none through types."""
    files = {
        "dynadapt/__init__.py": "",
        "dynadapt/ops/__init__.py": "from . import linear\n",
        "dynadapt/ops/linear.py": "from dynadapt.engine import step\n",
        "dynadapt/model/base.py": "if TYPE_CHECKING:\n    from ..engine.step import Engine\nfrom .load import load\n",
        "dynadapt/model/load.py": "def load():\n    from . import base\n",
        "dynadapt/engine/step.py": "import dynadapt.ops.linear\nfrom dynadapt import _C, session\n",
        "dynadapt/engine/state.py": "from .weights import Weights\n",
        "dynadapt/engine/weights.py": "if TYPE_CHECKING:\n    from .state import State\n",
        "dynadapt/session.py": "",
        "kernels/linear.py": "from dynadapt.runs import text\n",
        "dynadapt/runs/text.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = arrows(modules(tmp_path))
    assert {(arrow.source.removeprefix("dynadapt."), arrow.target.removeprefix("dynadapt.")) for arrow in upward(found)} == {
        ("ops.linear", "engine.step"),
        ("model.base", "engine.step"),
        ("engine.step", "session"),
        ("kernels.linear", "runs.text"),
    }
    assert circles(found) == [["dynadapt.engine.step", "dynadapt.ops.linear"], ["dynadapt.model.base", "dynadapt.model.load"]]
