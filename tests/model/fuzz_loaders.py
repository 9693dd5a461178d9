"""Load many damaged copies of a small model; run as a program so that a crash or a runaway allocation shows.

    python fuzz_loaders.py DIRECTORY|FILE.gguf COUNT SEED

Each copy must load, or raise ModelError naming the damaged file, within seconds. Prints a line of counts and exits 0, or
the first failure and exits 1.
"""

import random
import resource
import shutil
import struct
import sys
import tempfile
import time
from pathlib import Path

from dynadapt.model import ModelError, load

SECONDS = 5.0
MEMORY = 3 << 30
HOSTILE = (0, 1, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1)


def damage(data: bytes, pick: random.Random) -> bytes:
    """A copy of `data` with one to three faults; half of them early, where headers are."""
    data = bytearray(data)
    for _ in range(pick.choice((1, 1, 2, 3))):
        if not data:
            break
        at = pick.randrange(len(data) if pick.random() < 0.5 else min(len(data), 2048))
        kind = pick.randrange(8)
        if kind == 0:
            data[at] ^= 1 << pick.randrange(8)
        elif kind == 1:
            data[at] = pick.randrange(256)
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            data += bytes(pick.randrange(256) for _ in range(pick.randrange(1, 200)))
        elif kind == 4:
            data[at : at + 8] = struct.pack("<Q", pick.choice(HOSTILE))
        elif kind == 5:
            del data[at : at + pick.randrange(1, 64)]
        elif kind == 6:
            data[at:at] = data[at : at + pick.randrange(1, 64)]
        else:
            data[at : at + 4] = b"-1e9" if pick.random() < 0.5 else b"9999"
    return bytes(data)


def attempt(source: Path, damaged: Path) -> str:
    """ "loaded" or "refused"; AssertionError for anything else."""
    start = time.monotonic()
    try:
        model = load(source)
        for name in model.names():
            model.tensor(name)
        model.fingerprint()
        if model.tokenizer is not None:
            model.tokenizer.decode(model.tokenizer.encode("Hello 123, wörld 🙂"))
        result = "loaded"
    except ModelError as error:
        assert str(damaged.parent) in str(error) or "the tokenizer gave id" in str(error), f"no file named: {error}"
        result = "refused"
    assert time.monotonic() - start < SECONDS, f"took {time.monotonic() - start:.1f} s"
    return result


def fuzz(original: Path, count: int, seed: int) -> dict[str, int]:
    """Damage one file of `original` at a time, `count` times."""
    pick = random.Random(seed)
    counts = {"loaded": 0, "refused": 0}
    with tempfile.TemporaryDirectory() as work:
        copy = Path(work) / original.name
        shutil.copytree(original, copy) if original.is_dir() else shutil.copy(original, copy)
        files = [copy] if copy.is_file() else sorted(copy.iterdir())
        whole = {file: file.read_bytes() for file in files}
        for number in range(count):
            file = pick.choice(files)
            content = damage(whole[file], pick)
            file.write_bytes(content)
            try:
                counts[attempt(copy, file)] += 1
            except BaseException as error:
                kept = Path(tempfile.gettempdir()) / f"damaged-{seed}-{number}-{file.name}"
                kept.write_bytes(content)
                raise AssertionError(f"{kept}: {type(error).__name__}: {error}") from error
            file.write_bytes(whole[file])
    return counts


if __name__ == "__main__":
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + MEMORY, in_use + MEMORY))
    print(fuzz(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
