"""Bytes by what they are for add up to what the process has gained."""

import json
import subprocess
import sys

import pytest
import torch

from dynadapt import Engine, Full, LoRA, RowSparse, SegmentMemory
from dynadapt.engine.footprint import footprint, stream_bytes
from dynadapt.model import random_model, tiny_config
from dynadapt.model.convert import write_directory

MODEL = random_model(tiny_config("llama"), seed=0)
GAINED = """
import json, torch, dynadapt
from dynadapt.engine.footprint import footprint

def resident():
    with open("/proc/self/status") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith("RssAnon"))

def step(engine, width):
    return engine.step(torch.arange(engine.streams * (width + 1)).view(engine.streams, -1) % 256)

model, small = dynadapt.load({directory!r}), dynadapt.load({small!r})
step(dynadapt.Engine(small, dynadapt.LoRA(2), segment=4, backend="cpu"), 4)  # what is imported and started once
before = resident()
engine = dynadapt.Engine(model, dynadapt.LoRA(16), memory=dynadapt.SegmentMemory(64), streams=3, segment=512, backend="cpu")
step(engine, 512), step(engine, 512)
print(json.dumps([resident() - before, footprint(engine)]))
"""


def test_the_footprint_is_what_the_process_gains(tmp_path):
    pytest.importorskip("dynadapt._C")
    sizes = {"hidden_size": 512, "ffn_size": 1536, "layers": 6, "vocab_size": 16384, "heads": 8, "kv_heads": 4, "head_dim": 64}
    for name, config in (("model", tiny_config("llama", **sizes)), ("small", tiny_config("llama"))):
        write_directory(random_model(config), tmp_path / name)
    code = GAINED.format(directory=str(tmp_path / "model"), small=str(tmp_path / "small"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    gained, held = json.loads(done.stdout)
    assert set(held) == {
        "frozen weights",
        "what learns",
        "gradients",
        "optimizer state",
        "segment memory",
        "kept for backward",
        "other buffers",
    }
    assert 0.97 < gained / sum(held.values()) < 1.08, (gained, held)


@pytest.mark.parametrize("adapt", [LoRA(2), RowSparse(0.5), Full(), Full(targets="model"), None], ids=str)
def test_streams_add_what_the_footprint_says(adapt):
    def held(streams):
        e = Engine(MODEL, adapt, memory=SegmentMemory(6, 2), streams=streams, segment=5, dtype="fp32", backend="reference", batch=1)
        e.step(torch.arange(6 * streams).view(streams, 6))
        return stream_bytes(e), footprint(e)

    (each, two), (_, three) = held(2), held(3)
    assert two["frozen weights" if adapt != Full(targets="model") else "what learns"] > 0
    assert sum(three.values()) - sum(two.values()) == each > 0
