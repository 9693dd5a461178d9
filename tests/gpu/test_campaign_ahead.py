"""What the campaign compiles before anything is timed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
ROOT = Path(__file__).resolve().parents[2]


def test_what_a_step_launches_is_compiled_ahead():
    """By the keys under which Triton looks for a kernel, as its launcher makes them on a GPU; but for the two launches that move the memory on."""
    ran = subprocess.run(
        [sys.executable, "-c", AHEAD],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    launched, compiled, shares = json.loads(ran.stdout.splitlines()[-1])
    assert len(launched) > 30 and len(compiled) > 30
    absent = {name for name, key in launched if [name, key] not in compiled}
    assert absent <= {"dynadapt_memory_fill", "dynadapt_memory_advance"}, absent
    assert shares[0] + shares[1] == len(compiled) and abs(shares[0] - shares[1]) <= 1  # each kernel in one process


AHEAD = """
import json
from benchmarks.gpu import ahead
ahead.without_card("NVIDIA H100 80GB HBM3", 90, 78 << 30, 132)
import torch
from triton.runtime.jit import JITFunction
plain = JITFunction.run
FORMS, compiled, shares = ("fused", "split"), [], []
for share in range(2):
    JITFunction.run, JITFunction._do_compile = plain, lambda *_, **__: None
    found = ahead.compile_only(share, 2)
    ahead.every_step("tiny", 78 << 30, ((2, 16),), FORMS)
    shares.append(sum(found.values()))
    compiled = list(found)
found.clear()
from dynadapt import Adam, Engine, LoRA, SegmentMemory
from dynadapt.engine import settings
from dynadapt.kernels import choices
from benchmarks.gpu.geometry import random_weights
from benchmarks.gpu.step_worker import ALPHA, LR, RANK
settings.choose_device = lambda *_: torch.device("cpu")  # its kernels are launched, and come to nothing
options = dict(adapt=LoRA(RANK, ALPHA), optimizer=Adam(lr=LR), memory=SegmentMemory(16, 0), streams=2, segment=16)
for form in FORMS:
    with choices.force(form):
        e = Engine(random_weights("tiny", "cpu", torch.bfloat16), **options, dtype="bf16", device="cpu", backend="triton")
        for _ in range(2):
            e.step(torch.zeros(2, 17, dtype=torch.int64))
print(json.dumps([list(found), compiled, shares]))
"""
