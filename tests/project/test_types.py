"""The package is typed as it says it is (py.typed): a type checker resolves what a user's program calls, and finds what is wrong in it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import dynadapt

pytest.importorskip("mypy")

PROGRAM = """\
import torch
import dynadapt
model = dynadapt.load("smollm2-135m")
engine = dynadapt.Engine(model, adapt=dynadapt.LoRA(rank=16), optimizer=dynadapt.Adam(lr=2e-3),
                         memory=dynadapt.SegmentMemory(length=512, sinks=4), streams=8, segment=512)
nll: torch.Tensor = engine.step(torch.zeros(8, 513, dtype=torch.int64))
reveal_type(model)
reveal_type(engine.explain())
reveal_type(engine.updates)
reveal_type(model.names())
with dynadapt.attach(model, history=2) as session:
    reveal_type(session)
engine.stepp(nll)
dynadapt.LoRA(rank="16")
dynadapt.Engine(model, streems=8)
from dynadapt.kernels.choices import rows_bucket
reveal_type(rows_bucket(3))
"""
REVEALED = {7: "dynadapt.model.base.Model", 8: "str", 9: "int", 10: "list[str]", 12: "dynadapt.interop.session.Session", 17: "int"}
WRONG = {
    13: '"Engine" has no attribute "stepp"',
    14: 'Argument "rank" to "LoRA" has incompatible type "str"; expected "int"',
    15: 'Unexpected keyword argument "streems" for "Engine"',
}
# Other packages' types are not looked at: torch's alone take a minute to read.
SETTINGS = """\
[mypy]
follow_imports = silent
[mypy-torch.*,numpy.*,transformers.*,peft.*,triton.*,jax.*,jaxlib.*,scipy.*,matplotlib.*,gguf.*,safetensors.*,tokenizers.*,rich.*,yaml.*]
follow_imports = skip
ignore_missing_imports = True
"""


def test_a_program_is_checked(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "mypy.ini").write_text(SETTINGS)
    home = Path(dynadapt.__file__).resolve().parent.parent
    assert (home / "dynadapt" / "py.typed").exists()
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "--cache-dir", os.devnull, "--no-incremental", "program.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "MYPYPATH": str(home)},
    )
    lines = re.findall(r"^program\.py:(\d+): (note|error): (.*)$", done.stdout, re.M)
    revealed = {int(number): text.removeprefix('Revealed type is "').removesuffix('"') for number, kind, text in lines if kind == "note"}
    wrong = {int(number): text for number, kind, text in lines if kind == "error"}
    assert {number: text.replace("builtins.", "") for number, text in revealed.items() if number in REVEALED} == REVEALED, (
        done.stdout + done.stderr
    )
    assert set(wrong) == set(WRONG) and all(wrong[number].startswith(text) for number, text in WRONG.items()), done.stdout
