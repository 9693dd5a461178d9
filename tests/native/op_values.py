"""Ops of a library that Python can't load, by programs/op_values.cpp: calls written to a file, results read from another."""

from __future__ import annotations

import ctypes
import io
import struct
import subprocess
from pathlib import Path

import torch

from dynadapt import _C

from .abi import header

HERE = Path(__file__).parent
FUNCTIONS, STRUCTS = header.read(HERE.parents[1] / "csrc" / "include" / "dynadapt" / "dynadapt.h")
CODES = {torch.float32: (2, 32), torch.bfloat16: (4, 16), torch.int32: (0, 32), torch.int64: (0, 64)}
SHORT = {
    "query_heads": "hq",
    "kv_heads": "hkv",
    "head_dim": "d",
    "key_heads": "hk",
    "value_heads": "hv",
    "key_dim": "dk",
    "value_dim": "dv",
}  # as the references name them
KINDS = {"norm": ("rms", "layer"), "activation": ("swiglu", "gelu_tanh", "gelu", "geglu_tanh", "glu"), "update": _C.UPDATE_KINDS}


def span(t: torch.Tensor) -> int:
    """Elements from the first to the last, whatever lies between."""
    return 1 + sum((size - 1) * stride for size, stride in zip(t.shape, t.stride())) if t.numel() else 0


class Call:
    """One call of the C function ``dynadapt_<op>``; ``values``: its arguments and those of its struct, by their references' names."""

    def __init__(self, op: str, values: dict):
        self.op, self.values = op, values
        self.tensors: list[torch.Tensor] = []  # in the order in which their results come back

    def bytes(self) -> bytes:
        _, arguments = FUNCTIONS[f"dynadapt_{self.op}"]
        parts = [f"{self.op}\n".encode()]
        for name, kind in arguments.items():
            if kind == "const DLTensor*" or kind.removeprefix("const ") == "dynadapt_matrix*":
                parts.append(self.tensor(self.values[name]))
            elif kind.startswith("const dynadapt_matrix*"):
                parts += [struct.pack("<i", len(self.values[name])), *map(self.tensor, self.values[name])]
            elif name == "part_count":
                parts.append(struct.pack("<i", len(self.values["parts"])))
            else:
                parts.append(self.params(kind.removeprefix("const ").removesuffix("*")))
        return b"".join(parts)

    def tensor(self, t: torch.Tensor | None) -> bytes:
        if t is None:
            return struct.pack("<i", -1)
        self.tensors.append(t)
        whole = torch.as_strided(t, (span(t),), (1,), t.storage_offset()).clone()
        data = whole.view(torch.uint8).numpy().tobytes()
        sizes = struct.pack(f"<{2 * t.dim()}q", *t.shape, *t.stride())
        return struct.pack("<iii", t.dim(), *CODES[t.dtype]) + sizes + struct.pack("<q", len(data)) + data

    def params(self, name: str) -> bytes:
        kind = STRUCTS[name]
        made, sizes = kind(struct_size=ctypes.sizeof(kind)), self.values.get("part_sizes")
        for field, _ in kind._fields_[1:]:
            if field == "kind":
                made.kind = next(kinds for op, kinds in KINDS.items() if self.op.startswith(op)).index(self.values["kind"])
            elif field == "part_count":
                made.part_count = len(sizes)
            elif not field.startswith(("part_", "slot_")) and not (field == "eps" and "eps" not in self.values):  # eps: of the forward only
                value = self.values[SHORT.get(field, field)]
                if value is not None:  # as it stands: 0
                    setattr(made, field, value)
        raw = bytes(made)
        return struct.pack("<q", len(raw)) + raw + (struct.pack(f"<{len(sizes)}q", *sizes) if sizes is not None else b"")

    def take(self, results: io.BufferedReader) -> None:
        """Writes what the call left into its tensors."""
        for t in self.tensors:
            flat = bytearray(results.read(span(t) * t.element_size()))
            if flat:
                t.copy_(torch.as_strided(torch.frombuffer(flat, dtype=t.dtype), t.shape, t.stride()))


def run(calls: list[Call], program: list, folder: Path) -> str:
    """Makes the calls, in order; the instruction set that served them."""
    (folder / "calls").write_bytes(b"".join(call.bytes() for call in calls))
    done = subprocess.run([*map(str, program), folder / "calls", folder / "results"], capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    with open(folder / "results", "rb") as results:
        for call in calls:
            call.take(results)
        assert not results.read()
    isa, count = done.stdout.split()
    assert int(count) == len(calls)
    return isa
