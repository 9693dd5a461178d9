"""What the compiler made of the products' inner loops: a line of C++ that looks free need not be."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

import dynadapt

LIBRARY = Path(dynadapt.__file__).parent / "libdynadapt.so"
SCALAR = re.compile(r"\tv?(add|sub|mul|div)s[sd]\b")
SYMBOL = re.compile(r"^[0-9a-f]+ <_ZN8dynadapt(?:11(avx512_bf16)|6(avx512)|4(avx2)|4(neon)|8(portable))4tileI")


@pytest.fixture(scope="module")
def tiles() -> dict[str, list[list[str]]]:
    """For each instruction set, the instructions of every register tile."""
    if not shutil.which("objdump"):
        pytest.skip("objdump (binutils) is not installed")
    dump = subprocess.run(["objdump", "-d", "--no-show-raw-insn", LIBRARY], capture_output=True, text=True, timeout=120, check=True).stdout
    found: dict[str, list[list[str]]] = {}
    for function in re.split(r"\n\n", dump):
        head, _, body = function.partition("\n")
        if (symbol := SYMBOL.match(head)) is not None:
            found.setdefault(symbol[symbol.lastindex], []).append(body.splitlines())
    if not found:
        pytest.skip("the library has no symbols (stripped)")
    return found


def test_tiles_broadcast_without_arithmetic(tiles):
    for isa, functions in tiles.items():
        assert len(functions) >= 12, isa
        for lines in functions:
            scalar = [line for line in lines if SCALAR.search(line)]
            assert not scalar, f"{isa}: {scalar[:3]}"
