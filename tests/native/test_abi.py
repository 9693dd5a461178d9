"""The C ABI: every exported function, with each argument broken in each way, refuses by name and touches nothing."""

import json
import subprocess
import sys
from pathlib import Path

from .abi import header, rows
from .engine_c import LIBRARY, EngineC, write

HEADER = Path(__file__).resolve().parents[2] / "csrc" / "include" / "dynadapt" / "dynadapt.h"
BREAKING = Path(__file__).parent / "abi" / "breaking.py"


def exported():
    listing = subprocess.run(["nm", "-D", "--defined-only", str(LIBRARY)], capture_output=True, text=True, check=True).stdout
    return {line.split()[-1].split("@")[0] for line in listing.splitlines()}


def test_header_library_and_table_name_the_same_functions():
    functions, _ = header.read(HEADER)
    table = {f"dynadapt_{name}" for name in rows.ROWS}
    assert set(functions) == table
    assert {name for name in exported() if name.startswith("dynadapt_")} == table


def test_wrong_arguments_are_refused_by_name(tmp_path):
    write(tmp_path / "model", layers=1)
    EngineC(tmp_path / "model", dtype=1, streams=2, segment=4, rank=2, alpha=4.0).save(0, tmp_path / "adapter")
    (tmp_path / "file").write_text("not a directory")
    done = subprocess.run(
        [sys.executable, str(BREAKING), str(LIBRARY), str(HEADER), str(tmp_path)], capture_output=True, text=True, timeout=300
    )
    last = done.stderr[-3000:]
    assert done.returncode == 0, f"exit status {done.returncode}; the cases up to the last:\n{last}"
    result = json.loads(done.stdout)
    assert result["cases"] > 7000, "cases were lost"
    assert not result["failures"], "\n".join(result["failures"][:40])
