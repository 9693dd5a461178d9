"""What a machine has compiled, in files small enough to bring along to the next one: Triton's kernels and the native engine.

A cubin and its description are all that Triton reads again; with the native libraries a call that goes on elsewhere is spared a minute or two.
They are of one kind of machine: another Triton, Python or GPU takes nothing of them, and compiles.
"""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from .campaign import ROOT

PART = 15 << 20  # bytes of a file
SUFFIXES = (".cubin", ".json", ".so")
BUILT = Path("build") / "gpu" / "built-of"  # says which code the native libraries are of
NAME, NAMES = "compiled-{:02d}.part", "compiled-*.part"


def cache() -> Path:
    from triton import knobs

    return Path(knobs.cache.dir)


def mark() -> str:
    """Of what the native libraries are made of, and for which Python."""
    found = hashlib.sha256()
    for path in sorted(p for folder in ("csrc", "cmake") for p in (ROOT / folder).rglob("*") if p.is_file()) + [ROOT / "CMakeLists.txt"]:
        found.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return f"{found.hexdigest()[:12]} Python {sys.version.split()[0]}"


def pack(target: Path) -> list[Path]:
    """The parts, in ``target``; those of an earlier call go."""
    target.mkdir(parents=True, exist_ok=True)
    for old in target.glob(NAMES):
        old.unlink()
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as archive:
        _text(archive, "from.json", json.dumps({"cache": str(cache())}))
        for path in sorted(cache().rglob("*")) if cache().exists() else []:
            if path.is_file() and (path.suffix in SUFFIXES or path.name.startswith("dynadapt-ahead")):
                archive.add(path, arcname=f"triton/{path.relative_to(cache())}")
        for path in [*sorted((ROOT / "dynadapt").glob("*.so*")), ROOT / BUILT]:
            if path.is_file():
                archive.add(path, arcname=f"native/{path.relative_to(ROOT)}")
    packed = _compressed(held.getvalue())
    parts = []
    for number, at in enumerate(range(0, len(packed), PART)):
        parts.append(target / NAME.format(number))
        parts[-1].write_bytes(packed[at : at + PART])
    return parts


def unpack(source: Path) -> int:
    """How many files have been put in their places; what is there already stays."""
    parts = sorted(source.glob(NAMES))
    if not parts:
        raise FileNotFoundError(f"{source}: expected {NAME.format(0)} and what follows it, as --keep-compiled writes them")
    count = 0
    with tarfile.open(fileobj=io.BytesIO(lzma.decompress(b"".join(part.read_bytes() for part in parts)))) as archive:
        before = json.load(archive.extractfile("from.json"))["cache"]
        for entry in archive.getmembers():
            kind, _, name = entry.name.partition("/")
            path = {"triton": cache(), "native": ROOT}.get(kind, Path()) / name
            if not name or ".." in Path(name).parts or path.exists():
                continue
            content = archive.extractfile(entry).read()
            if path.name.startswith("__grp__"):  # has the places of the others, all of which newer Tritons want to see
                group = json.loads(content)
                held = {child: Path(at) for child, at in group["child_paths"].items() if Path(at).suffix in SUFFIXES}
                group["child_paths"] = {child: str(cache() / at.relative_to(before)) for child, at in held.items()}
                content = json.dumps(group).encode()
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            path.chmod(entry.mode & 0o777)
            count += 1
    return count


def _text(archive: tarfile.TarFile, name: str, text: str) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(text.encode())
    archive.addfile(entry, io.BytesIO(text.encode()))


def _compressed(content: bytes) -> bytes:
    """By xz on all cores where it is installed."""
    if shutil.which("xz"):
        return subprocess.run(["xz", "-2", "-T0", "-c"], input=content, stdout=subprocess.PIPE, check=True).stdout
    return lzma.compress(content, preset=1)
