"""Adapters and saved engines with damage: refused by an error that names the file, the engine as it was, or taken whole.

Damage is drawn from a seed: bytes that flip, go or come, safetensors headers and JSON values that change type, value or place. A few
hundred draws here; the long form is marked slow.
"""

import copy
import json
import os
import random
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dynadapt import RMS, Adam, Engine, Full, LoRA, Overlap, RowSparse, SegmentMemory
from dynadapt.common.digests import digests_under
from dynadapt.engine.state import state_counts, state_tensors
from dynadapt.experiments.diagnose.models import complete_adapter
from dynadapt.model import ModelError, random_model, tiny_config
from dynadapt.model.convert import write_directory

sys.path.insert(0, str(Path(__file__).parents[1] / "model"))
sys.path.insert(0, str(Path(__file__).parents[1] / "native"))
from engine_c import EngineC, Refused  # noqa: E402
from fuzz_loaders import damage  # noqa: E402

T = 8
LONGEST = 20.0  # seconds that one read may take
HOSTILE = [
    None,
    True,
    False,
    0,
    1,
    -1,
    2,
    0.5,
    1e308,
    2**31,
    2**63,
    10**40,
    float("nan"),
    float("inf"),
    "",
    "x",
    "LORA",
    "../x",
    "é",
    [],
    {},
    [[]],
    [None],
    [-1],
    {"a": 1},
    "F32",
    "F64",
    "I8",
    "BOOL",
    "F8_E4M3",
    "a" * 5000,
    "(a+)+$",
    "(",
]
MODEL = random_model(tiny_config("llama", layers=2), seed=1, std=0.1)
ENGINES = {
    "lora": lambda: Engine(
        MODEL,
        adapt=LoRA(rank=2, alpha=4.0),
        optimizer=Adam(lr=1e-2),
        memory=SegmentMemory(12, 2),
        streams=2,
        segment=T,
        reset="auto",
        dtype="fp32",
        backend="cpu",
    ),
    "bf16": lambda: Engine(
        MODEL,
        adapt=LoRA(rank=2, alpha=4.0),
        optimizer=Adam(lr=1e-2),
        memory=SegmentMemory(12, 2, "reproject"),
        segment=T,
        dtype="bf16",
        backend="cpu",
    ),
    "rows": lambda: Engine(
        MODEL,
        adapt=RowSparse(0.2, every=1),
        optimizer=Adam(lr=1e-3, decay=1e-3),
        memory=Overlap(12),
        segment=T,
        accumulate=True,
        every=2,
        dtype="fp32",
        backend="cpu",
    ),
    "full": lambda: Engine(MODEL, adapt=Full(targets="attn"), optimizer=RMS(lr=1e-4), segment=T, dtype="fp32", backend="cpu"),
}


def text(streams, seed=0):
    return torch.randint(131, (streams, 3 * T + 1), generator=torch.Generator().manual_seed(seed))


def learn(engine, seed=0):
    for i in range(3):
        engine.step(text(engine.streams, seed)[:, i * T : (i + 1) * T + 1])
    return engine


def make(kind):
    engine = ENGINES[kind]()
    if kind == "full":
        engine.gather_statistics(text(1, 5)[:, : T + 1])
    return engine


def everything(engine):
    return {name: t.clone() for name, t in state_tensors(engine).items()}, copy.deepcopy(state_counts(engine))


def same(a, b):
    return a[1] == b[1] and a[0].keys() == b[0].keys() and all(torch.allclose(a[0][n], b[0][n], 0, 0, equal_nan=True) for n in a[0])


def retype(value, pick):
    """The JSON value with one place of it changed, dropped, or doubled under another name."""
    places = []

    def walk(node):
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], (dict, list)):
                walk(node[key])

    value = copy.deepcopy(value)
    walk(value)
    if not places:
        return pick.choice(HOSTILE)
    node, key = pick.choice(places)
    how = pick.randrange(5)
    if how == 0:
        del node[key]
    elif how == 1 and isinstance(node, dict):
        node[str(key) + pick.choice(("", "2", "é", ".weight"))] = node.pop(key)
    elif how == 2:
        other, from_key = pick.choice(places)
        node[key] = copy.deepcopy(other[from_key])
    elif how == 3 and type(node[key]) in (int, float):
        node[key] = pick.choice((node[key] + 1, -node[key], node[key] * 2, node[key] / 2, float(node[key]), str(node[key])))
    else:
        node[key] = pick.choice(HOSTILE)
    return value


def vouch(root: Path) -> None:
    """Has engine.json say that the files beside it are those that were written: damage that no digest gives away."""
    record = json.loads((root / "engine.json").read_text(encoding="utf-8"))
    record["files"] = digests_under(root)
    del record["files"]["engine.json"]
    (root / "engine.json").write_text(json.dumps(record), encoding="utf-8")


def spoil(name: str, content: bytes, pick) -> bytes:
    if pick.random() < 0.3:
        return damage(content, pick)
    if name.endswith(".json"):
        return json.dumps(retype(json.loads(content), pick), ensure_ascii=pick.random() < 0.5).encode()
    length = struct.unpack("<Q", content[:8])[0]
    if pick.random() < 0.3:  # values: a NaN, an infinity, a number out of range
        at = 8 + length + 4 * pick.randrange((len(content) - 8 - length) // 4)
        return content[:at] + pick.choice((b"\x00\x00\xc0\x7f", b"\x00\x00\x80\xff", b"\xff\xff\xff\x7f", b"\xff" * 4)) + content[at + 4 :]
    header = json.dumps(retype(json.loads(content[8 : 8 + length]), pick)).encode()
    return struct.pack("<Q", len(header)) + header + content[8 + length :]


def try_all(root: Path, files: list[Path], read, engine, count: int, seconds: float, seed: int) -> dict[str, int]:
    pick, found, end = random.Random(seed), {"refused": 0, "taken": 0}, time.monotonic() + seconds
    whole = {file: file.read_bytes() for file in files}
    before = everything(engine)
    for _ in range(count):
        file = pick.choice(files)
        content = spoil(file.name, whole[file], pick)
        file.write_bytes(content)
        if file.name == "state.safetensors" and pick.random() < 0.8:
            vouch(root)
        start = time.monotonic()
        try:
            read()
        except ModelError as error:
            assert str(root) in str(error), f"names no file: {error}"
            assert same(before, everything(engine)), f"a refused read changed the engine: {error}"
            found["refused"] += 1
        except BaseException as error:
            raise AssertionError(f"{file.name}: {type(error).__name__}: {error}\n{content[:2000]!r}") from error
        else:
            found["taken"] += 1
            engine.step(text(engine.streams, 1)[:, : T + 1])
            before = everything(engine)
        assert time.monotonic() - start < LONGEST
        for file in files:
            file.write_bytes(whole[file])
        if time.monotonic() > end:
            break
    assert found["refused"] > 0
    return found


def damaged_states(tmp_path, kind, count, seconds, seed):
    learn(make(kind)).save(tmp_path / "state")
    engine = make(kind)
    files = [tmp_path / "state" / "engine.json", tmp_path / "state" / "state.safetensors"]
    return try_all(tmp_path / "state", files, lambda: engine.restore(tmp_path / "state"), engine, count, seconds, seed)


def damaged_adapters(tmp_path, count, seconds, seed):
    learn(ENGINES["bf16"]()).save(tmp_path / "state")
    engine, directory = ENGINES["bf16"](), tmp_path / "state" / "adapter"
    files = sorted(directory.iterdir())
    write_directory(MODEL, tmp_path / "model")
    c, of_c = EngineC(tmp_path / "model", segment=T, rank=2, alpha=4.0, targets=b"all", last_layer=2), set()

    def read():
        try:
            c.load_adapter(0, directory)
            of_c.add("taken")
            c.step(text(1)[:, : T + 1])
        except Refused as error:
            assert str(directory) in str(error), f"names no file: {error}"
            of_c.add("refused")
        engine.load_adapter(directory)
        complete_adapter(directory, MODEL.config, tmp_path / "whole")

    found = try_all(directory, files, read, engine, count, seconds, seed)
    assert of_c == {"taken", "refused"}
    return found


@pytest.mark.parametrize("kind", ENGINES)
def test_damaged_states(tmp_path, kind):
    damaged_states(tmp_path, kind, 60, 2, seed=3)


def test_damaged_adapters(tmp_path):
    damaged_adapters(tmp_path, 150, 3, seed=4)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_damaged_states_for_long(tmp_path, seed):
    for kind in ENGINES:
        (tmp_path / kind).mkdir()
        damaged_states(tmp_path / kind, kind, 4000, 60, 100 + seed)
    damaged_adapters(tmp_path, 8000, 60, 200 + seed)


# ---- chosen damage


def test_an_untouched_state_goes_on_bit_for_bit(tmp_path):
    for kind in ENGINES:
        whole = learn(make(kind))
        whole.save(tmp_path / kind)
        engine = ENGINES[kind]()
        engine.restore(tmp_path / kind)
        assert same(everything(whole), everything(engine)), kind
        tokens = text(whole.streams, 7)[:, : T + 1]
        assert torch.equal(whole.step(tokens), engine.step(tokens)) and same(everything(whole), everything(engine)), kind


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.pop("lr"), "no tensor lr"),
        (lambda t: t.update(extra=torch.ones(1)), "extra has no place"),
        (lambda t: t.update(lr=t["lr"].double()), "lr has dtype F64"),
        (lambda t: t.update({"learner.0.master": t["learner.0.master"].to(torch.int32)}), "learner.0.master has dtype I32"),
        (lambda t: t.update({"learner.0.master": t["learner.0.master"][:, :-1].contiguous()}), "learner.0.master has dtype F32 and shape"),
        (lambda t: t["learner.0.second"].view(-1)[:1].fill_(float("nan")), "learner.0.second holds a NaN"),
        (lambda t: t["memory.keys.1"][1, 0].fill_(float("inf")), "memory.keys.1 holds a NaN or an infinity"),
        (lambda t: t["memory.length"].fill_(99), "memory.length holds 99..99; expected 0..14"),
        (lambda t: t["lr"].fill_(-1), "lr holds a number below 0"),
        (lambda t: t["learner.0.step"].fill_(-1), "learner.0.step holds -1"),
        (lambda t: t.update({"history.0": torch.tensor([1])}), "history.0 has 1 tokens; this engine remembers 0"),
    ],
)
def test_a_damaged_tensor_is_named(tmp_path, change, message):
    learn(make("lora")).save(tmp_path)
    tensors = load_file(tmp_path / "state.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "state.safetensors")
    vouch(tmp_path)
    engine = make("lora")
    before = everything(engine)
    with pytest.raises(ModelError, match=f"{tmp_path}/state.safetensors: .*{message}"):
        engine.restore(tmp_path)
    assert same(before, everything(engine))


def test_what_a_stream_has_forgotten_may_hold_anything(tmp_path):
    """A gradient that was not finite stays in its buffer, and memory beyond its length keeps what was there."""
    engine = learn(make("lora"))
    engine.enter(1)
    engine.decoder.memory.keys[0].rows[1].fill_(float("nan"))
    engine.learners[0].state.grad[0, 0] = float("nan")
    engine.save(tmp_path)
    again = make("lora")
    again.restore(tmp_path)
    tokens = text(2, 9)[:, : T + 1]
    assert torch.equal(again.step(tokens), engine.step(tokens))


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(format=3), "state format 3; this version reads 1 and 2"),
        (dict(format="1"), "not the record of a saved engine"),
        (dict(streams=[]), "damaged: streams="),
        (dict(updates=-1), "damaged: updates=-1"),
        (dict(updates=1.5), "damaged: updates=1.5"),
        (dict(flops={}), "damaged: flops="),
        (dict(files=None), "damaged: files="),
        (dict(files={"../x": {"bytes": 1, "sha256": ""}}), "damaged: files="),
        (dict(files={"state.safetensors": 3}), "damaged: files="),
        (dict(engine=None), "not the record"),
        (dict(skipped_updates=None), "skipped_updates=None"),
    ],
)
def test_a_damaged_record_is_named(tmp_path, changes, message):
    learn(make("lora")).save(tmp_path)
    record = json.loads((tmp_path / "engine.json").read_text())
    (tmp_path / "engine.json").write_text(json.dumps(record | changes))
    with pytest.raises(ModelError, match=f"{tmp_path}.*{message}"):
        make("lora").restore(tmp_path)


@pytest.mark.parametrize(
    "file, content, message",
    [
        ("engine.json", b"", "not valid JSON"),
        ("engine.json", b"\xff", "not valid JSON"),
        ("engine.json", None, "cannot be read"),
        ("state.safetensors", b"", "not a whole safetensors file"),
    ],
)
def test_a_broken_file_is_named(tmp_path, file, content, message):
    learn(make("lora")).save(tmp_path)
    (tmp_path / file).unlink()
    if content is not None:
        (tmp_path / file).write_bytes(content)
        if file != "engine.json":
            vouch(tmp_path)
    with pytest.raises(ModelError, match=f"{tmp_path / file}: {message}"):
        make("lora").restore(tmp_path)


def test_json_is_utf8_whatever_the_locale(tmp_path):
    engine = learn(make("bf16"))
    engine.save(tmp_path / "state")
    config = tmp_path / "state" / "adapter" / "adapter_config.json"
    settings = json.loads(config.read_text()) | {"base_model_name_or_path": "モデル-é"}
    config.write_text(json.dumps(settings, ensure_ascii=False), encoding="utf-8")
    vouch(tmp_path / "state")
    code = """if True:
        import locale, sys
        sys.path[:0] = %r
        import test_damaged_states as t
        from dynadapt import publish
        assert locale.getpreferredencoding(False).upper() in ("ANSI_X3.4-1968", "US-ASCII", "ASCII")
        root = t.Path(%r)
        engine = t.make("bf16")
        engine.restore(root / "state")
        engine.load_adapter(root / "state" / "adapter")
        t.complete_adapter(root / "state" / "adapter", t.MODEL.config, root / "whole")
        engine.load_adapter(root / "whole")
        engine.load_adapter(publish(root / "state" / "adapter", root / "published", "a").path)
        engine.save(root / "again")
        """ % ([str(Path(__file__).parent), str(Path(__file__).parents[1])], str(tmp_path))
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / "whole" / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"] == "モデル-é"
