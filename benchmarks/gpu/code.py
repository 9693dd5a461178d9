"""Which code a measurement or a verdict is of: what was measured with other code does not stand beside what is measured now.

Nothing but the standard library: it is asked before anything is built.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# What a step and its ops are made of, and the CPU engine that they are held against.
FOLDERS = ("kernels", "csrc", *(f"dynadapt/{floor}" for floor in ("common", "ops", "model", "adapt", "engine")))
SUFFIXES = (".py", ".h", ".cpp", ".c")


@cache
def digest(root: Path = ROOT) -> str:
    """Of these files' names and bytes; kernels/choices.json, which is measured, is none of them."""
    found = hashlib.sha256()
    for folder in FOLDERS:
        for path in sorted(p for p in (root / folder).rglob("*") if p.suffix in SUFFIXES):
            found.update(f"{path.relative_to(root)}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return found.hexdigest()[:12]
