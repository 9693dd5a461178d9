"""What a run ended with: a LoRA run's adapter as a directory that PEFT loads, another reweighting run's model as one for transformers."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dynadapt.engine.settings import DTYPES
from dynadapt.engine.state import adapter_directory
from dynadapt.model.peft import TENSORS, read_settings, read_tensors
from dynadapt.runs.checkpoints import last_state
from dynadapt.runs.rundir import RunError, read_json
from dynadapt.runs.whole_files import new_directory


def export_run(run: Path, out: Path, stream: int = 0, dtype: str | None = None) -> Path:
    """The run's adapter, or of a reweighting run without LoRA its model (reweight/export.py).

    dtype: "fp32" or "bf16", in which tensors are stored; None for an adapter as it learned, in float32, and a model in the run's own.
    """
    config = read_json(run / "config.json")
    if config.get("kind") == "reweight" and config["adapt"] != "lora":
        from .reweight.export import export_model

        return export_model(run, out, dtype)
    return export_adapter(run, out, stream, dtype)


def export_adapter(run: Path, out: Path, stream: int = 0, dtype: str | None = None) -> Path:
    """Copies adapter_config.json and adapter_model.safetensors of one stream from the run's last saved state to `out`, tensors as `dtype`.

    Raises RunError when the run has no LoRA, saved nothing, or has no such stream, or when `out` exists; ModelError when the
    saved adapter is damaged.
    """
    source = run_adapter(run, stream)
    settings = read_settings(source, dora=True, beside=True)
    also = None if settings.get("bias") == "all" or settings.get("modules_to_save") else {}  # norms and biases
    read_tensors(source, settings, magnitudes={}, embedding=None, beside=also)  # a damaged one is refused here, by name
    with new_directory(out) as folder:
        for file in sorted(source.iterdir()):
            if dtype is not None and file.name == TENSORS:
                _store(file, folder / file.name, DTYPES[dtype])
            else:
                shutil.copyfile(file, folder / file.name)
    return out


def _store(source: Path, path: Path, dtype: torch.dtype) -> None:
    """The tensors of a safetensors file rounded to a dtype, under the metadata that they have."""
    with safe_open(source, "pt") as file:
        metadata = file.metadata()
    save_file({name: value.to(dtype) for name, value in load_file(source).items()}, str(path), metadata)


def run_adapter(run: Path, stream: int = 0) -> Path:
    """Where the last saved state of a run keeps one stream's adapter. RunError when it has none."""
    config = read_json(run / "config.json")
    if config.get("adapt") != "lora":
        raise RunError(f"{run} ran with --adapt {config.get('adapt')}; only a LoRA run has an adapter")
    if config.get("rates") is not None:
        raise RunError(
            f"{run} ran at rates {config['rates']}: it ended with an adapter of each rate, not with one; run it at one, with --lr"
        )
    streams = config.get("streams", 1)  # the rows of a reweighting run share one adapter
    if not 0 <= stream < streams:
        raise RunError(f"stream {stream}: {run} has streams 0 to {streams - 1}")
    return adapter_directory(last_state(run) / "engine", stream, streams)
