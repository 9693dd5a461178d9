"""Damages the files of a model and of an adapter and loads them with the C engine. Run as a program, because a fault ends the
process:

    fuzz_files.py LIBRARY FOLDER SECONDS SEED

FOLDER has `model`, `shards` (a model with an index) and `adapter`; damaged copies go to FOLDER/damaged. The damage knows the
formats: values of JSON texts are replaced, repeated, moved and nested, header lengths and bytes are changed. A file is accepted, and then steps, or refused with a
text that names it; the last case stays in FOLDER/damaged, named on standard error. Prints what happened as JSON.
"""

from __future__ import annotations

import collections
import ctypes as c
import json
import random
import re
import resource
import shutil
import struct
import sys
import time
from pathlib import Path

VALUE = re.compile(rb'"(?:[^"\\]|\\.)*"|-?\d[\d.eE+-]*|true|false|null')
VALUES = [
    b"-1",
    b"0",
    b"1",
    b"2",
    b"3",
    b"7",
    b"1e308",
    b"1e309",
    b"1e-400",
    b"NaN",
    b"-Infinity",
    b"null",
    b"true",
    b"false",
    b'""',
    b'"x"',
    b"[]",
    b"{}",
    b"[[]]",
    b"2147483647",
    b"2147483648",
    b"4294967296",
    b"9007199254740992",
    b"9007199254740993",
    b"9223372036854775807",
    b"18446744073709551616",
    b"1" * 400,
    b"1.5",
    b"-0",
    b"64",
    b"2.0",
    b'"F32"',
    b'"BF16"',
    b'"F16"',
    b'"F64"',
    b'"I8"',
    b'"BOOL"',
    b'"Q4"',
    b'"\\ud800"',
    b'"\\u0000"',
    b'"../../x"',
    b'"/dev/zero"',
    b'"gelu"',
    b'"llama3"',
    b'"linear"',
    b'"qwen3"',
    b'"gpt2"',
    b"[" * 100,
    b"[" * 60 + b"]" * 60,
    b'{"a": 1, "a": 1}',
    b'"' + b"x" * 5000 + b'"',
]
LENGTHS = (0, 1, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1, 100_000_000, 100_000_001)


def damaged_json(text: bytes, pick: random.Random) -> bytes:
    spots = [match.span() for match in VALUE.finditer(text)]
    if not spots:
        return text
    begin, end = pick.choice(spots)
    kind = pick.randrange(8)
    if kind < 4:
        return text[:begin] + pick.choice(VALUES) + text[end:]
    if kind == 4:
        other = pick.choice(spots)
        return text[:begin] + text[other[0] : other[1]] + text[end:]
    if kind == 5:
        return text[:begin] + text[end:]
    if kind == 6:  # a part of an object again
        at = text.find(b"{", pick.randrange(len(text))) + 1
        return text[:at] + text[at : at + pick.randrange(300)] + b"," + text[at:]
    return text[:begin] + pick.choice((b"\xff", b"\x00", b"\\", b"\xed\xa0\x80")) + text[begin:]


def damaged_bytes(content: bytes, pick: random.Random) -> bytes:
    out = bytearray(content)
    for _ in range(pick.choice((1, 1, 2, 3))):
        if not out:
            break
        at, kind = pick.randrange(len(out) if pick.random() < 0.5 else min(len(out), 2048)), pick.randrange(7)
        if kind == 0:
            out[at] ^= 1 << pick.randrange(8)
        elif kind == 1:
            out[at] = pick.randrange(256)
        elif kind == 2:
            del out[at:]
        elif kind == 3:
            out += pick.randbytes(pick.randrange(1, 200))
        elif kind == 4:
            out[at : at + 8] = struct.pack("<Q", pick.choice(LENGTHS))
        elif kind == 5:
            del out[at : at + pick.randrange(1, 64)]
        else:
            out[at:at] = out[at : at + pick.randrange(1, 64)]
    return bytes(out)


def damaged_safetensors(content: bytes, pick: random.Random) -> bytes:
    size = struct.unpack("<Q", content[:8])[0]
    if pick.random() < 0.3:
        return damaged_bytes(content, pick)
    raw = content[8 : 8 + size]
    for _ in range(pick.choice((1, 2))):
        raw = damaged_json(raw, pick)
    length = len(raw) + (pick.randrange(-4, 5) if pick.random() < 0.05 else 0)
    return struct.pack("<Q", max(0, length)) + raw + content[8 + size :]


def damaged(path: Path, content: bytes, pick: random.Random) -> bytes:
    if path.suffix == ".safetensors":
        return damaged_safetensors(content, pick)
    return damaged_json(content, pick) if pick.random() < 0.8 else damaged_bytes(content, pick)


class Engine:
    def __init__(self, library):
        self.library, self.params = library, c.create_string_buffer(4096)
        library.dynadapt_last_error.restype = c.c_char_p
        assert library.dynadapt_engine_params_default(self.params, 4096) == 0
        # float32, one stream, segment 8, every 1, memory 8 with 2 sinks, rank 2, alpha 4
        struct.pack_into("=iiiiiiidQ", self.params, 4, 1, 1, 8, 1, 8, 2, 2, 4.0, c.addressof(TARGETS))

    def create(self, directory):
        handle = c.c_void_p()
        return self.library.dynadapt_engine_create(self.params, str(directory).encode(), c.byref(handle)), handle

    def step(self, handle):
        tokens, nll = (c.c_int32 * 9)(*range(1, 10)), (c.c_float * 8)()
        return self.library.dynadapt_engine_step(handle, tokens, 8, None, nll, None)


UNREAD = ("tokenizer.json", "generation_config.json")
TARGETS = c.create_string_buffer(b"all")


def main(library, folder, seconds, seed):
    pick, folder = random.Random(int(seed)), Path(folder)
    engine, work, tally, failures = Engine(c.CDLL(library)), folder / "damaged", collections.Counter(), []
    shutil.rmtree(work, ignore_errors=True)
    for part in ("model", "shards", "adapter"):
        shutil.copytree(folder / part, work / part)
    read = [path for path in sorted(work.rglob("*")) if path.suffix in (".json", ".safetensors") and path.name not in UNREAD]
    whole = {path: path.read_bytes() for path in read}
    code, good = engine.create(work / "model")
    assert code == 0, engine.library.dynadapt_last_error()
    before, end = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic() + float(seconds)
    while time.monotonic() < end and len(failures) < 10:
        path = pick.choice(list(whole))
        content = damaged(path, whole[path], pick)
        path.write_bytes(content)
        print(sum(tally.values()), path, file=sys.stderr, flush=True)
        began = time.monotonic()
        if path.parent.name == "adapter":
            code = engine.library.dynadapt_engine_load_adapter(good, 0, str(path.parent).encode())
            stepped = engine.step(good) if code == 0 else 0
        else:
            code, handle = engine.create(path.parent)
            stepped = engine.step(handle) if code == 0 else 0
            engine.library.dynadapt_engine_destroy(handle)
        text = engine.library.dynadapt_last_error().decode() if code else ""
        tally[f"{path.name}: {'refused' if code else 'loaded'}"] += 1
        named = str(work) in text or "segment and memory make a window" in text  # the file, or the argument that does not fit it
        # 2: a config may ask for more memory than there is.
        if stepped or code not in (0, 1, 2) or (code == 1 and not named) or time.monotonic() - began > 20:
            failures.append(f"{path.name}: code {code}, step {stepped}, {time.monotonic() - began:.1f} s: {text[:300]}")
            (folder / f"failure-{len(failures)}-{path.name}").write_bytes(content)
        path.write_bytes(whole[path])
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10
    print(json.dumps({"tally": tally, "failures": failures, "grown_mb": grown}))


if __name__ == "__main__":
    main(*sys.argv[1:])
