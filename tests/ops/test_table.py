"""The table of ops is true: every file, symbol, signature and name that a row stands for is there, and docs/ops.md is printed from it."""

import ctypes
import inspect
import re
from pathlib import Path

import pytest
import torch

from dynadapt import _C, Engine, LoRA
from dynadapt.bench import cases
from dynadapt.engine.needed_ops import conditions
from dynadapt.interop import torch_ops
from dynadapt.model import random_model, tiny_config
from dynadapt.ops import page
from dynadapt.ops.dispatch import UnsupportedOp, kernel_module, resolve
from dynadapt.ops.table import CONDITIONS, OPS

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = ctypes.CDLL(str(Path(_C.__file__).with_name("libdynadapt.so")))
USED = {"forward", "score", "backward", "update", "memory", "training in context"}
rows = pytest.mark.parametrize("row", OPS.values(), ids=lambda row: row.name)


def bound_arguments(name):
    """The arguments of a function of dynadapt._C, by pybind11's first line of its docstring."""
    return re.findall(r"(\w+): ", getattr(_C, name).__doc__.split("\n")[0])


@rows
def test_every_file_is_there(row):
    places = [f"dynadapt/ops/{row.family}.py", f"dynadapt/interop/torch_ops/{row.family}.py"]
    if row.native:
        places += [f"csrc/cpu/{row.family}.cpp", f"csrc/cpu/kernels/{row.kernel or row.family}.cpp"]
    if row.triton:
        places.append(f"kernels/{row.family}.py")
    assert [place for place in places if not (ROOT / place).is_file()] == []


@rows
def test_every_form_has_the_references_arguments(row):
    arguments = list(inspect.signature(row.reference).parameters)
    assert row.native == hasattr(_C, row.name) == hasattr(LIBRARY, f"dynadapt_{row.name}")
    if row.native:
        assert bound_arguments(row.name) == arguments
    if row.triton:
        form = getattr(kernel_module(row.family), row.name)
        assert list(inspect.signature(form).parameters) == arguments


@rows
def test_it_says_what_it_is(row):
    assert row.used in USED and set(row.when) <= set(CONDITIONS)
    assert row.says and (row.formula is None or row.formula.__doc__)
    assert row.reference.__doc__ and row.module.__doc__


@rows
def test_what_no_backend_has_is_refused(row):
    assert resolve(row.name, "reference", torch.float64).function is row.reference
    if not row.native:
        with pytest.raises(UnsupportedOp, match=rf"op '{row.name}'.*dynadapt._C has no such kernel"):
            resolve(row.name, "cpu", torch.float32)


def test_every_op_of_torch_belongs_to_one_row():
    names = [name for row in OPS.values() for name in row.torch_names]
    assert sorted(names) == sorted(torch_ops.SCHEMAS)
    public = set(torch_ops.__all__) - {"SCHEMAS", "freeze"}
    assert public <= {name for row in OPS.values() if row.derivative for name in row.torch_names}
    for row in OPS.values():
        in_place = torch_ops.SCHEMAS[row.torch_names[0]].endswith("-> ()")
        assert row.derivative == (row.torch_names[0] in public), row.name
        assert not (in_place and row.derivative), row.name


def test_every_handler_of_jax_belongs_to_one_row():
    handlers = re.findall(r"^OP\((\w+)\)", (ROOT / "dynadapt" / "interop" / "jax" / "ffi.cpp").read_text(), re.M)
    assert sorted(handlers) == sorted(row.name for row in OPS.values() if row.jax)
    assert all(row.native for row in OPS.values() if row.jax)


def test_every_op_has_a_case():
    assert set(cases.OPS) == set(OPS)
    sizes = cases.Sizes(tiny_config("llama"), 2, 7, "cpu")
    for name, row in OPS.items():
        for case in cases.OPS[name](sizes, 5):
            assert list(case.arguments) == list(inspect.signature(row.reference).parameters)


def test_an_engine_answers_every_condition():
    engine = Engine(random_model(tiny_config("llama")), adapt=LoRA(rank=2), segment=4)
    assert set(conditions(engine, False, False)) == set(CONDITIONS) == {c for row in OPS.values() for c in row.when}


def test_the_page_is_printed_from_the_table():
    assert (ROOT / "docs" / "ops.md").read_text() == page.page(), "print it again: python -m dynadapt.ops.page > docs/ops.md"
