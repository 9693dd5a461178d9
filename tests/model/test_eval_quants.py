"""`dynadapt eval --base quants`: the scores of the run that dequantises, and a first line that says which of both it is."""

import json

import pytest
from command_line import call
from gguf_files import write_gguf
from test_tokenizer import byte_level, gguf_metadata
from tiny import english

from dynadapt import evaluate
from dynadapt.model import random_model, tiny_config

SETTINGS = dict(segment=32, rank=2, dtype="bf16", memory=0, backend="cpu", device="cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path, metadata = tmp_path_factory.mktemp("quants"), gguf_metadata("qwen2", byte_level("qwen2"))
    sizes = dict(hidden_size=64, heads=4, kv_heads=2, head_dim=16, ffn_size=96, layers=2)
    config = tiny_config("qwen2", vocab_size=len(metadata["tokenizer.ggml.tokens"]), **sizes)
    write_gguf(random_model(config, seed=1, std=0.1), path / "tiny.gguf", "Q4_0", metadata=metadata)
    (path / "a.txt").write_text(english(200))
    return path


def test_the_command(folder, tmp_path, capsys):
    found, said = {}, {}
    for base in ("quants", "same"):
        words = [word for name, value in SETTINGS.items() for word in (f"--{name}", value)]
        assert (
            call("eval", "--model", folder / "tiny.gguf", "--text", folder / "a.txt", *words, "--base", base, "--out", tmp_path / base) == 0
        )
        said[base] = next(line for line in capsys.readouterr().out.splitlines() if "choose with" in line)
        found[base] = json.loads((tmp_path / base / "summary.json").read_text())
    assert "q4_0 as in the file" in said["quants"] and "q4_0 made bf16 (--base quants: as in the file)" in said["same"]
    for name in ("nll", "tokens", "updates", "flops_per_token"):
        assert found["quants"][name] == found["same"][name]
    assert found["quants"]["updates"] > 2


def test_the_call(folder):
    runs = [evaluate(str(folder / "tiny.gguf"), str(folder / "a.txt"), base=base, **SETTINGS) for base in ("quants", "same")]
    assert runs[0].nll == runs[1].nll
