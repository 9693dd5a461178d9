"""A process that only steps starts with what a step needs."""

import json
import subprocess
import sys

import pytest

from dynadapt.model import random_model, tiny_config
from dynadapt.model.convert import write_directory

STEP = """
import json, sys, torch, dynadapt
engine = dynadapt.Engine(dynadapt.load({directory!r}), dynadapt.LoRA(2), segment=4, backend={backend!r})
assert engine.step(torch.arange(5)[None]).isfinite().all() and engine.last.updated == [True]
print(json.dumps(sorted(sys.modules)))
"""
# Packages that take a while and serve text, files of other kinds, figures, peers or compilers.
HEAVY = {
    "gguf",
    "IPython",
    "jax",
    "lm_eval",
    "matplotlib",
    "networkx",
    "pandas",
    "peft",
    "rich",
    "scipy",
    "sympy",
    "tokenizers",
    "transformers",
    "triton",
}


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_step_imports_nothing_that_it_does_not_use(backend, tmp_path):
    if backend == "cpu":
        pytest.importorskip("dynadapt._C")
    write_directory(random_model(tiny_config("llama"), seed=0), tmp_path / "model")
    code = STEP.format(directory=str(tmp_path / "model"), backend=backend)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    imported = set(json.loads(done.stdout))
    assert "torch" in imported and not HEAVY & imported
