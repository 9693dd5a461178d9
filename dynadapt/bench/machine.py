"""Instruction sets: which of them this processor has, and what holds a process to one."""

from __future__ import annotations

import subprocess

from dynadapt.common import children

# By instruction set, the variables of torch, oneDNN and MKL that hold peers to it; our own is DYNADAPT_CPU_ISA.
LIMITS = {
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "avx512": {"ATEN_CPU_CAPABILITY": "avx512", "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI", "MKL_ENABLE_INSTRUCTIONS": "AVX512"},
    "avx512_bf16": {},
}


def limits(isa: str | None) -> dict[str, str]:
    """Environment of a process that is to use no more than `isa`; {} for None, which is whatever the processor has."""
    return {} if isa is None else {"DYNADAPT_CPU_ISA": isa, **LIMITS[isa]}


def instruction_sets() -> list[str]:
    """Those of LIMITS that this processor has, the lowest first. DYNADAPT_CPU_ISA is read once, so in a process each."""
    load = children.command(__name__)
    tried = {isa: subprocess.Popen(load, env=children.environment(**limits(isa)), stderr=subprocess.DEVNULL) for isa in LIMITS}
    return [isa for isa, process in tried.items() if process.wait() == 0]


def some(option: str, value: str, known: tuple[str, ...], everything=None) -> list[str]:
    """The names of a list with commas, none of an empty one; "all", where `everything()` gives what it stands for.

    Raises:
        ValueError: a name that is not known, or commas without one.
    """
    if everything is not None and value == "all":
        return list(everything())
    names = [name for name in (value or "").split(",") if name]
    for name in names or [value] * bool(value):
        if name not in known:
            raise ValueError(
                f"--{option} {name}: expected some of {', '.join(known)}, with commas between{' (or all)' if everything else ''}"
            )
    return list(dict.fromkeys(names))


def held_to(value: str) -> list[str | None]:
    """The instruction sets that --isa names, to be held to in turn; [None] of an empty one: once, with whatever the processor has.

    Raises:
        ValueError: a name that is not known, or one that the processor has not.
    """
    names = some("isa", value, tuple(LIMITS), instruction_sets)
    here = names if value in ("", "all") else instruction_sets()
    for name in names:
        if name not in here:
            raise ValueError(f"--isa {name}: this processor has {', '.join(here) or 'none of them'}")
    return names or [None]


if __name__ == "__main__":  # fails where the processor has not what DYNADAPT_CPU_ISA asks for
    from dynadapt import _C  # noqa: F401
