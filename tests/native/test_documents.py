"""Files that anybody may have written, through both readers: what is no valid document is refused by name by both, whatever
stands in a file's place nothing waits, and memory stays near the size of the file."""

import json
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from dynadapt import load
from dynadapt.model import ModelError
from dynadapt.model.json_file import MAX_CONFIG_BYTES, read_json

from .engine_c import LIBRARY, EngineC, Refused, write


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write(tmp_path_factory.mktemp("documents") / "model", layers=1)


def refusals(directory):
    """(the C engine's text, Python's) for a model that neither may load."""
    with pytest.raises(Refused) as ours:
        EngineC(directory, segment=4)
    assert ours.value.code == 1
    with pytest.raises(ModelError) as theirs:
        load(str(directory))
    return str(ours.value), str(theirs.value)


def copy(model, path):
    path.mkdir()
    for file in model.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    return path


DEEP = b"[" * 70 + b"]" * 70
CONFIGS = {  # what the key "extra" of a config.json is, and a word of the refusal
    "a name twice": (b'1, "extra": 1', "extra"),
    "a name twice, deeper": (b'{"a": {"b": 1, "c": 2, "b": 3}}', r"\"b\""),
    "a name twice, escaped": (b'{"a": 1, "\\u0061": 1}', "a"),
    "NaN": (b"NaN", ""),
    "Infinity": (b"Infinity", ""),
    "-Infinity": (b"-Infinity", ""),
    "too large": (b"1e400", "out of range"),
    "too small": (b"-1e-400", "out of range"),
    "a whole number too large": (b"9" * 400, "out of range"),
    "5000 digits": (b"1" * 5000, "out of range"),
    "half a pair": (b'"\\ud800"', "surrogate"),
    "half a pair as a name": (b'{"\\udc00": 1}', "surrogate"),
    "not UTF-8": (b'"\xff"', ""),
    "an overlong form": (b'"\xc0\xaf"', ""),
    "a raw surrogate": (b'"\xed\xa0\x80"', ""),
    "a raw control character": (b'"\x01"', "control character"),
    "deep": (DEEP, "nested too deeply"),
    "many values": (b"[" + b"1," * 200_000 + b"1]", "too many values"),
    "many lists": (b"[" + b"[]," * 150_000 + b"1]", "too many values"),
    "too long": (b'"' + b"x" * MAX_CONFIG_BYTES + b'"', "accepted are up to 4194304"),
    "a leading zero": (b"01", ""),
    "a comma": (b"[1,]", ""),
    "a comment": (b"1 // one", ""),
    "single quotes": (b"'a'", ""),
    "more behind": (b"1} {", ""),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_config_that_is_no_document_is_refused_by_both(case, model, tmp_path):
    extra, word = CONFIGS[case]
    directory = copy(model, tmp_path / "model")
    text = (directory / "config.json").read_bytes()
    (directory / "config.json").write_bytes(text.rstrip()[:-1] + b', "extra": ' + extra + b"}")
    for said in refusals(directory):
        assert "config.json" in said and (word in said or word.replace("\\", "") in said) and len(said) < 5000


def header(*entries, metadata=b""):
    return b"{" + b",".join(entries) + metadata + b"}"


def with_header(file: Path, change):
    content = file.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    raw = change(content[8 : 8 + size])
    file.write_bytes(struct.pack("<Q", len(raw)) + raw + content[8 + size :])


HEADERS = {
    "a tensor twice": lambda raw: raw.rstrip()[:-1] + b"," + raw.strip()[1:],
    "metadata twice": lambda raw: b'{"__metadata__": {}, "__metadata__": {},' + raw.strip()[1:],
    "a key of a tensor twice": lambda raw: raw.replace(b'"dtype":"F32"', b'"dtype":"F32","dtype":"F32"', 1),
    "a size beyond 2**53": lambda raw: raw.replace(b'"shape":[', b'"shape":[9007199254740993,', 1),
    "a size of 2**64": lambda raw: raw.replace(b'"shape":[', b'"shape":[18446744073709551616,', 1),
    "a float": lambda raw: raw.replace(b'"shape":[', b'"shape":[1.5,', 1),
    "NaN": lambda raw: raw.replace(b'"shape":[', b'"shape":[NaN,', 1),
    "deep": lambda raw: b'{"__metadata__": ' + DEEP + b"," + raw.strip()[1:],
    "not UTF-8": lambda raw: raw.replace(b"model.", b"model\xff", 1),
    "many values": lambda raw: b'{"__metadata__": [' + b"1," * 1_100_000 + b"1]," + raw.strip()[1:],
}


@pytest.mark.parametrize("case", HEADERS)
def test_a_header_that_is_no_table_is_refused_by_both(case, model, tmp_path):
    directory = copy(model, tmp_path / "model")
    before = (directory / "model.safetensors").read_bytes()
    with_header(directory / "model.safetensors", HEADERS[case])
    assert (directory / "model.safetensors").read_bytes() != before
    for said in refusals(directory):
        assert "model.safetensors" in said and len(said) < 5000


def pipe(path):
    os.mkfifo(path)


def listening(path):
    """A socket at `path`, whose name may be longer than a socket's address."""
    here = os.getcwd()
    os.chdir(path.parent)
    try:
        server = socket.socket(socket.AF_UNIX)
        server.bind(path.name)
        server.close()
    finally:
        os.chdir(here)


INSTEAD = {"a pipe": pipe, "a directory": Path.mkdir, "a device": lambda path: path.symlink_to("/dev/zero"), "a socket": listening}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", INSTEAD)
def test_nothing_waits_for_what_is_no_file(kind, model, tmp_path):
    for name in ("config.json", "model.safetensors", "model.safetensors.index.json"):
        directory = copy(model, tmp_path / name)
        if name.endswith("index.json"):
            (directory / "model.safetensors").rename(directory / "model-00001-of-00002.safetensors")
            (directory / "model-00002-of-00002.safetensors").write_bytes(b"")
        else:
            (directory / name).unlink()
        INSTEAD[kind](directory / name)
        for said in refusals(directory):
            assert str(directory) in said
    engine = EngineC(model, segment=4, rank=2)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        adapter = tmp_path / f"adapter-{name}"
        engine.save(0, adapter)
        (adapter / name).unlink()
        INSTEAD[kind](adapter / name)
        with pytest.raises(Refused, match=name):
            engine.load_adapter(0, adapter)
    gguf = tmp_path / "model.gguf"
    INSTEAD[kind](gguf)
    with pytest.raises(ModelError, match="model.gguf"):
        load(str(gguf))


def test_an_index_may_be_larger_than_a_config_and_its_names_are_not_repeated_whole(model, tmp_path):
    directory = copy(model, tmp_path / "model")
    (directory / "model.safetensors").rename(directory / "other.safetensors")
    index = {"weight_map": {"x" * 5_000_000: "other.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    EngineC(directory, segment=4)
    load(str(directory))
    with_header(directory / "other.safetensors", lambda raw: b'{"' + b"y" * 1_000_000 + b'": {},' + raw.strip()[1:])
    with pytest.raises(Refused) as refused:
        EngineC(directory, segment=4)
    assert len(str(refused.value)) < 5000


MEMORY = """
import ctypes, resource, sys
from pathlib import Path
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
reader, library, path = sys.argv[1:]
if reader == "python":
    from dynadapt import load
    from dynadapt.model import ModelError
    before = peak()
    try:
        load(path)
    except ModelError:
        pass
else:
    library, params, out = ctypes.CDLL(library), ctypes.create_string_buffer(4096), ctypes.c_void_p()
    assert library.dynadapt_engine_params_default(params, 4096) == 0
    before = peak()
    assert library.dynadapt_engine_create(params, path.encode(), ctypes.byref(out)) == 1
print(peak() - before)
"""


@pytest.mark.parametrize("reader", ("c", "python"))
@pytest.mark.parametrize("content", (b"[],", b'{"a":1},'))
def test_memory_stays_near_the_size_of_the_file(reader, content, model, tmp_path):
    """A config.json of 4 MB, filled with what takes most."""
    directory = copy(model, tmp_path / "model")
    filling = content * ((MAX_CONFIG_BYTES - 200) // len(content))
    (directory / "config.json").write_bytes(b'{"model_type": "llama", "a": [' + filling + b"1]}")
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, reader, str(LIBRARY), str(directory)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 25 * MAX_CONFIG_BYTES


def test_what_is_valid_is_read(tmp_path):
    path = tmp_path / "a.json"
    for text, value in (
        ("[0, -0.0, 1e-300, 1.5e300, 9007199254740993]", [0, -0.0, 1e-300, 1.5e300, 9007199254740993]),
        ('{"\\ud83d\\ude00": "\\u0000é"}', {"😀": "\0é"}),
        ("[" * 60 + "]" * 60, json.loads("[" * 60 + "]" * 60)),
    ):
        path.write_text(text, encoding="utf-8")
        assert read_json(path) == value
