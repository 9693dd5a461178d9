"""Facts about the machine and the installation that a result depends on. No host names, no paths."""

from __future__ import annotations

import importlib.util
import os
import platform
from importlib import metadata

from .version import VERSION

PACKAGES = ("torch", "numpy", "tokenizers", "safetensors", "gguf", "transformers", "peft", "triton")
VARIABLES = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "DYNADAPT_NUM_THREADS", "DYNADAPT_CPU_ISA", "DYNADAPT_NVTX", "CUDA_VISIBLE_DEVICES")


def environment() -> dict:
    return {
        "dynadapt": VERSION,
        "python": platform.python_version(),
        "packages": package_versions(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "native": native(),
        "gpu": gpu_name(),
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def package_versions() -> dict[str, str]:
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            pass
    return versions


def need(what: str, packages: tuple[str, ...], extra: str) -> None:
    """ImportError that says what `what` needs and how to get it, before any work; `extra`: of pyproject.toml, which brings them."""
    absent = [name for name in packages if importlib.util.find_spec(name) is None]
    if absent:
        raise ImportError(f"{what} needs {' and '.join(absent)}, not installed here; in a checkout: pip install -e '.[{extra}]'")


def cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def native() -> dict | None:
    """Instruction set and threads of the native extension; None when it is not built."""
    try:
        from dynadapt import _C
    except ImportError:
        return None
    return {"isa": _C.isa(), "threads": _C.num_threads(), "abi": _C.abi_version()}


def gpu_name() -> str | None:
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


def openmp_runtimes() -> list[str]:
    """File names of the OpenMP runtimes in this process; more than one is a fault of the installation."""
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as file:
            paths = {os.path.realpath(line.split()[-1]) for line in file if "/" in line}
    except OSError:
        return []
    return sorted(
        os.path.basename(path) for path in paths if any(name in os.path.basename(path) for name in ("libgomp", "libomp", "libiomp"))
    )


def peak_memory_bytes() -> int:
    """Largest resident size of this process so far (VmHWM, which unlike getrusage starts anew at exec)."""
    try:
        with open("/proc/self/status", encoding="utf-8", errors="replace") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
