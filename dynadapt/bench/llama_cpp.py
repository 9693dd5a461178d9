"""llama.cpp as a peer: whether it is here, what it was compiled for, and how it is had."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
from pathlib import Path

from dynadapt.common import children

VERSION = "0.3.36"  # of llama-cpp-python, whose calls score_worker.py makes
# An instruction set -> CMake options that compile for it and nothing above. It can't be held to one when it runs.
BUILDS = {
    "avx2": "-DGGML_NATIVE=OFF",
    "avx512": "-DGGML_NATIVE=OFF -DGGML_AVX512=ON -DGGML_AVX512_VBMI=ON -DGGML_AVX512_VNNI=ON",
    "avx512_bf16": "-DGGML_NATIVE=ON",
}
ABOVE = {"avx2": ("AVX512", "AVX512_BF16", "AMX_INT8"), "avx512": ("AVX512_BF16", "AMX_INT8"), "avx512_bf16": ()}


class PeerError(ValueError):
    """A peer that can't take part, and what to do about it."""


def folder_for(template: str | None, isa: str | None) -> str | None:
    """Where llama_cpp lies; None: where Python finds it. {isa} in a folder's name stands for the instruction set."""
    return str(Path(template.replace("{isa}", isa or "")).expanduser().resolve()) if template else None


def install_line(isa: str | None = None, folder: str | None = None) -> str:
    """``--no-cache-dir``: pip would install again what it compiled before, with whatever options that was."""
    options = f"CMAKE_ARGS='{BUILDS[isa]}' " if isa else ""
    where = f"--target {folder} " if folder else ""
    return f"{options}pip install --no-cache-dir {where}{'--no-deps ' if folder else ''}llama-cpp-python=={VERSION}{' diskcache' if folder else ''}"


def check_llama_cpp(template: str | None, isa: str | None) -> dict:
    """{"version", "built_for"}: of the llama_cpp that would be used.

    Raises:
        PeerError: it is not installed, does not start, or uses more than `isa`; each with the line that mends it.
    """
    folder = folder_for(template, isa)
    there = (Path(folder) / "llama_cpp").is_dir() if folder else importlib.util.find_spec("llama_cpp") is not None
    if not there:
        where = f" in {folder}" if folder else ""
        raise PeerError(
            f"--against llama.cpp: llama-cpp-python is not installed{where}; it is compiled when it is installed, which takes "
            f"some minutes: {install_line(isa, folder)}"
        )
    environment = children.environment(PYTHONPATH=os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH")])))
    done = subprocess.run(children.command(__name__), capture_output=True, text=True, errors="replace", env=environment)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise PeerError(f"--against llama.cpp: llama_cpp does not start: {last}; {install_line(isa, folder)}")
    version, _, info = done.stdout.partition("\n")
    built = re.findall(r"(\w+) = 1", info)
    if isa and (more := [flag for flag in ABOVE[isa] if flag in built]):
        raise PeerError(
            f"--against llama.cpp --isa {isa}: it was compiled for {more[-1]} and can't be held to less; compile one for each "
            f"instruction set: {install_line(isa, 'builds/' + isa)}, then --llama-cpp builds/{{isa}}"
        )
    return {"version": version.strip(), "built_for": built}


if __name__ == "__main__":
    import llama_cpp

    print(llama_cpp.__version__)
    print(llama_cpp.llama_print_system_info().decode())
