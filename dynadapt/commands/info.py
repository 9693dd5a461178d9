"""`dynadapt info`: what this installation is, the first thing that a bug report needs."""

from __future__ import annotations

EXAMPLES = None


def add_options(command) -> None:
    pass


def run(arguments) -> int:
    from rich.table import Table

    from dynadapt.runs.console import table_console

    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in facts().items():
        table.add_row(name, value)
    table_console(soft_wrap=True).print(table)
    return 0


def facts() -> dict[str, str]:
    import torch

    from dynadapt.common.environment import environment, openmp_runtimes

    found = environment()
    native = found["native"]
    runtimes = openmp_runtimes()
    return {
        "dynadapt": found["dynadapt"],
        "python": found["python"],
        "system": found["system"],
        "cpu": f"{found['cpu']}, {found['cores']} cores, {found['memory_bytes'] / 2**30:.0f} GiB",
        "gpu": found["gpu"] or "none",
        "native": f"instruction set {native['isa']}, {native['threads']} threads, ABI {native['abi']}" if native else "not built",
        "backends": ", ".join(backends()),
        "torch": f"{torch.__version__}, {torch.get_num_threads()} threads",
        "OpenMP": ", ".join(runtimes) + (" (more than one: results and speed suffer)" if len(runtimes) > 1 else "") if runtimes else "none",
        "packages": ", ".join(f"{name} {version}" for name, version in found["packages"].items() if name != "torch"),
        "variables": ", ".join(f"{name}={value}" for name, value in found["variables"].items()) or "none set",
        "models": cached_models(),
        "hub cache": hub_models(),
    }


def backends() -> list[str]:
    """Those whose kernels can run here."""
    import torch

    from dynadapt.ops import UnsupportedOp, resolve

    usable = []
    for backend in ("cpu", "triton", "reference"):
        try:
            resolve("norm_forward", backend, torch.float32)
            usable.append(backend)
        except UnsupportedOp:
            pass
    return usable


def hub_models() -> str:
    """What the Hugging Face cache has, under the names that --model takes."""
    from dynadapt.model import hub_cache

    names = hub_cache.hub_models()
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "") or "no models"


def cached_models() -> str:
    """Their names, or why there are none."""
    from dynadapt.model import ModelError
    from dynadapt.model.fetch import KNOWN, cached

    try:
        return ", ".join(name for name in KNOWN if cached(name)) or "none in the cache (dynadapt fetch smollm2-135m)"
    except (OSError, ModelError) as error:
        return f"the cache can't be read: {error}"
