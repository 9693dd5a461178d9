"""The engine of the C ABI in other hands: a C++ program, peft, and a real model."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dynadapt import Adam, Engine, LoRA, SegmentMemory, load
from dynadapt.model.convert import write_directory

from .engine_c import DTYPES, LIBRARY, SEGMENT, EngineC, assert_same_steps, pair, text, write

ROOT = Path(__file__).parents[2]


def compiler():
    return shutil.which(os.environ.get("CXX", "g++"))


@pytest.mark.skipif(compiler() is None, reason="needs a C++ compiler")
def test_example_program(tmp_path):
    """examples/cpp/dynamic_evaluation.cpp has the scores of the Python engine, from a process without Python."""
    directory = write(tmp_path / "model", dtype=torch.bfloat16)
    tokens = text(1, 60, 131)
    tokens[0].int().numpy().tofile(tmp_path / "tokens.bin")
    program, where = tmp_path / "dynamic_evaluation", LIBRARY.resolve().parent
    run = lambda *command: subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120)  # noqa: E731
    built = run(
        compiler(),
        "-std=c++17",
        "-Wall",
        "-Wextra",
        "-Werror",
        ROOT / "examples/cpp/dynamic_evaluation.cpp",
        f"-I{ROOT / 'csrc/include'}",
        f"-L{where}",
        "-ldynadapt",
        f"-Wl,-rpath,{where}",
        "-o",
        program,
    )
    assert built.returncode == 0, built.stderr
    done = run(program, directory, tmp_path / "tokens.bin", "segment=12", "memory=20", "rank=3", "lr=0.003", f"out={tmp_path / 'adapter'}")
    assert done.returncode == 0, done.stderr
    python = Engine(
        load(str(directory)),
        adapt=LoRA(rank=3),
        optimizer=Adam(lr=3e-3),
        memory=SegmentMemory(20, 4),
        segment=12,
        dtype="bf16",
        backend="cpu",
    )
    lines, total = done.stdout.splitlines(), 0.0
    for line, start in zip(lines, range(0, 59, 12)):
        nll = python.step(tokens[:, start : start + 13])
        total += float(nll.double().sum())
        assert line == f"{start} {nll.shape[1]} {float(nll.double().mean()):.6f}"
    assert lines[5:] == [f"mean {total / 59:.6f} nats over 59 tokens"]
    python.save(tmp_path / "python")
    places = tmp_path / "adapter", tmp_path / "python" / "adapter"
    saved, expected = (load_file(str(place / "adapter_model.safetensors")) for place in places)
    assert all(torch.equal(saved[name], expected[name]) for name in expected)
    refused = run(program, tmp_path, tmp_path / "tokens.bin")
    assert refused.returncode == 1 and "config.json: cannot be read" in refused.stderr


def test_peft_loads_what_it_saves(tmp_path):
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    directory = write(tmp_path / "model")
    c, python = pair(directory, memory=None)
    assert_same_steps(c, python, 3)
    c.save(0, tmp_path / "adapter")
    base = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    live = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    tokens = text(1, SEGMENT + 1, python.config.vocab_size, 4)
    with torch.no_grad():
        logits = live(input_ids=tokens[:, :-1]).logits[0]
    expected = torch.nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="none")
    torch.testing.assert_close(c.step(tokens)[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.model
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_equals_the_python_engine_on_smollm2(tmp_path, dtype):
    model = load("smollm2-135m")
    write_directory(model, tmp_path / "model", torch.bfloat16)
    tokens = torch.tensor(model.tokenizer.encode("The engine reads a text and learns from it. " * 20))[None, :145]
    options = {"segment": 48, "memory": SegmentMemory(64, 4), "dtype": dtype}
    python = Engine(load(str(tmp_path / "model")), adapt=LoRA(rank=8), optimizer=Adam(lr=2e-3), backend="cpu", **options)
    c = EngineC(tmp_path / "model", segment=48, memory_length=64, rank=8, dtype=DTYPES[dtype])
    for start in range(0, 144, 48):
        piece = tokens[:, start : start + 49]
        assert torch.equal(c.step(piece), python.step(piece))
        assert c.flops == python.last.flops
