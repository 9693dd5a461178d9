"""Damaged files are refused by name, quickly: chosen cases here, many random ones by fuzz_loaders.py in a process of its own."""

import json
import struct
import subprocess
import sys
from pathlib import Path

import gguf
import pytest
import torch
from gguf_files import write_gguf
from helpers import to_transformers
from test_tokenizer import byte_level, gguf_metadata, sentencepiece

from dynadapt.model import ModelError, Tokenizer, load, random_model, tiny_config
from dynadapt.model.convert import write_directory

FUZZ = Path(__file__).with_name("fuzz_loaders.py")


def make(kind: str, path: Path) -> Path:
    """A small model on disk, tokenizer included."""
    backend = sentencepiece() if kind == "gguf-spm" else byte_level("qwen2")
    model = random_model(tiny_config("llama", vocab_size=500, layers=2), tokenizer=Tokenizer(backend, 0, 1))
    if kind.startswith("gguf"):
        return write_gguf(model, path / "tiny.gguf", metadata=gguf_metadata("spm" if kind == "gguf-spm" else "qwen2", backend))
    if kind == "shards":
        to_transformers(model).save_pretrained(path / "tiny", max_shard_size="100KB")
    else:
        write_directory(model, path / "tiny")
    return path / "tiny"


@pytest.mark.parametrize("kind", ("directory", "shards", "gguf", "gguf-spm"))
def test_random_damage(kind, tmp_path):
    original = make(kind, tmp_path)
    done = subprocess.run([sys.executable, FUZZ, original, "200", "11"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:] or f"killed by signal {-done.returncode}"
    assert "loaded" in done.stdout


def safetensors_bytes(header, data=b"", length=None):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
BAD_SAFETENSORS = {
    "empty": b"",
    "seven bytes": b"\0" * 7,
    "a text": b"this is not a model at all",
    "huge header length": safetensors_bytes({"a": F32}, bytes(8), 2**63),
    "header length past the end": safetensors_bytes({"a": F32}, b"", 500),
    "a list": safetensors_bytes([1]),
    "not UTF-8": safetensors_bytes(b'{"\xff": 1}'),
    "deep nesting": safetensors_bytes(b"[" * 100_000 + b"]" * 100_000),
    "an entry that is a number": safetensors_bytes({"a": 3}),
    "an entry without dtype": safetensors_bytes({"a": {"shape": [2], "data_offsets": [0, 8]}}, bytes(8)),
    "negative shape": safetensors_bytes({"a": F32 | {"shape": [-1, -2]}}, bytes(8)),
    "shape of 2**62": safetensors_bytes({"a": F32 | {"shape": [2**62]}}, bytes(8)),
    "a shape with true": safetensors_bytes({"a": F32 | {"shape": [True, 2]}}, bytes(8)),
    "offsets past the end": safetensors_bytes({"a": F32 | {"data_offsets": [0, 16], "shape": [4]}}, bytes(8)),
    "offsets the wrong way round": safetensors_bytes({"a": F32 | {"data_offsets": [8, 0]}}, bytes(8)),
    "three offsets": safetensors_bytes({"a": F32 | {"data_offsets": [0, 4, 8]}}, bytes(8)),
    "a hole": safetensors_bytes({"a": F32 | {"data_offsets": [8, 16]}}, bytes(16)),
    "an overlap": safetensors_bytes({"a": F32, "b": F32}, bytes(8)),
    "bytes left over": safetensors_bytes({"a": F32}, bytes(12)),
    "an unknown dtype": safetensors_bytes({"a": F32 | {"dtype": "Q4"}}, bytes(8)),
    "a dtype that is a list": safetensors_bytes({"a": F32 | {"dtype": []}}, bytes(8)),
}


@pytest.mark.parametrize("case", BAD_SAFETENSORS)
def test_safetensors(case, tmp_path):
    write_directory(random_model(tiny_config("llama")), tmp_path / "tiny")
    file = tmp_path / "tiny/model.safetensors"
    file.write_bytes(BAD_SAFETENSORS[case])
    with pytest.raises(ModelError, match=str(file)):
        load(tmp_path / "tiny")


@pytest.mark.parametrize(
    "index",
    (
        "{",
        "[]",
        "{}",
        '{"weight_map": {}}',
        '{"weight_map": {"a": 3}}',
        '{"weight_map": {"a": "../x"}}',
        '{"weight_map": {"a": "absent.safetensors"}}',
    ),
)
def test_index(index, tmp_path):
    write_directory(random_model(tiny_config("llama")), tmp_path / "tiny")
    (tmp_path / "tiny/model.safetensors").rename(tmp_path / "tiny/a.safetensors")
    (tmp_path / "tiny/model.safetensors.index.json").write_text(index)
    with pytest.raises(ModelError, match="model.safetensors.index.json"):
        load(tmp_path / "tiny")


def number(value, kind="Q"):
    return struct.pack(f"<{kind}", value)


def text(value):
    return number(len(value)) + value


def gguf_bytes(keys=(), tensors=(), counts=None, data=b"", version=3):
    key_count, tensor_count = counts or (len(keys), len(tensors))
    head = b"GGUF" + number(version, "I") + number(tensor_count) + number(key_count) + b"".join(keys) + b"".join(tensors)
    return head + bytes(-len(head) % 32) + data


def tensor(name=b"token_embd.weight", dims=(4, 4), kind=0, offset=0, count=None):
    return (
        text(name) + number(len(dims) if count is None else count, "I") + b"".join(map(number, dims)) + number(kind, "I") + number(offset)
    )


ARCH = text(b"general.architecture") + number(8, "I") + text(b"llama")
BAD_GGUF = {
    "empty": b"",
    "another mark": b"GGML" + bytes(100),
    "version 1": gguf_bytes(version=1),
    "big-endian": gguf_bytes(version=3 << 24),
    "2**60 keys": gguf_bytes(counts=(2**60, 0)),
    "2**60 tensors": gguf_bytes(counts=(0, 2**60)),
    "a key of 2**63 bytes": gguf_bytes([number(2**63) + b"x"]),
    "a key twice": gguf_bytes([ARCH, ARCH]),
    "a key that is not UTF-8": gguf_bytes([text(b"\xff\xfe") + number(4, "I") + number(1, "I")]),
    "an unknown value type": gguf_bytes([text(b"a") + number(77, "I") + bytes(64)]),
    "an array of 2**61 numbers": gguf_bytes([text(b"a") + number(9, "I") + number(4, "I") + number(2**61)]),
    "an array of 2**61 strings": gguf_bytes([text(b"a") + number(9, "I") + number(8, "I") + number(2**61)]),
    "an array of arrays": gguf_bytes([text(b"a") + number(9, "I") + number(9, "I") + number(1) + bytes(64)]),
    "alignment 3": gguf_bytes([ARCH, text(b"general.alignment") + number(4, "I") + number(3, "I")]),
    "alignment 0": gguf_bytes([ARCH, text(b"general.alignment") + number(4, "I") + number(0, "I")]),
    "no dimensions": gguf_bytes([ARCH], [tensor(dims=())], data=bytes(64)),
    "2**31 dimensions": gguf_bytes([ARCH], [tensor(count=2**31)], data=bytes(64)),
    "dimensions that overflow": gguf_bytes([ARCH], [tensor(dims=(2**32, 2**32))], data=bytes(64)),
    "a dimension of 0": gguf_bytes([ARCH], [tensor(dims=(4, 0))], data=bytes(64)),
    "an unknown tensor type": gguf_bytes([ARCH], [tensor(kind=255)], data=bytes(64)),
    "a row that no block fits": gguf_bytes([ARCH], [tensor(kind=gguf.GGMLQuantizationType.Q8_0)], data=bytes(64)),
    "a tensor twice": gguf_bytes([ARCH], [tensor(), tensor(offset=64)], data=bytes(128)),
    "overlapping tensors": gguf_bytes([ARCH], [tensor(), tensor(b"b", offset=32)], data=bytes(128)),
    "a crooked offset": gguf_bytes([ARCH], [tensor(offset=8)], data=bytes(128)),
    "an offset of 2**64 - 32": gguf_bytes([ARCH], [tensor(offset=2**64 - 32)], data=bytes(128)),
    "truncated data": gguf_bytes([ARCH], [tensor()], data=bytes(32)),
}


@pytest.mark.parametrize("case", BAD_GGUF)
def test_gguf(case, tmp_path):
    file = tmp_path / "bad.gguf"
    file.write_bytes(BAD_GGUF[case])
    with pytest.raises(ModelError, match=str(file)):
        load(file)


def test_every_truncation_of_a_gguf_header(tmp_path):
    whole = write_gguf(random_model(tiny_config("gpt2")), tmp_path / "tiny.gguf").read_bytes()
    file = tmp_path / "cut.gguf"
    for length in range(0, 3000, 7):
        file.write_bytes(whole[:length])
        with pytest.raises(ModelError, match="cut.gguf"):
            load(file)
    file.write_bytes(whole[:-64])
    with pytest.raises(ModelError, match="lies outside the file.*truncated"):
        load(file)
    file.write_bytes(whole + b"more")
    assert torch.equal(load(file).tensor("norm.weight"), load(tmp_path / "tiny.gguf").tensor("norm.weight"))


def test_unreadable_file(tmp_path):
    (tmp_path / "tiny.gguf").mkdir()
    with pytest.raises(ModelError, match="config.json"):
        load(tmp_path / "tiny.gguf")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ModelError, match="vocab_size|hidden_size|num_attention_heads"):
        load(tmp_path)
