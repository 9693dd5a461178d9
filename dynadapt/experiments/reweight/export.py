"""The model that a run ended with, as a Hugging Face directory: config.json, model.safetensors, tokenizer.json."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from dynadapt.engine.learned import learned_tensors
from dynadapt.engine.settings import DTYPES
from dynadapt.model.hf_config import config_to_hf
from dynadapt.model.layout import file_name, hf_tensor
from dynadapt.runs.rundir import RunError
from dynadapt.runs.whole_files import new_directory

from .setup import trained_engine


def export_model(run: Path, out: Path, dtype: str | None = None) -> Path:
    """Writes `out`, which must not exist, with the weights of the last saved state, in `dtype` or the run's own. RunError without one."""
    if out.exists():
        raise RunError(f"{out} exists; name a directory that does not")
    engine = trained_engine(run)
    model = engine.model
    stored_as = engine.torch_dtype if dtype is None else DTYPES[dtype]
    with new_directory(out) as folder:
        stored = {}
        for name, value in learned(model, engine).items():
            value = hf_tensor(model.config, name, value.to("cpu"))
            stored[file_name(model.config, name)] = value.to(stored_as).contiguous()
        save_file(stored, str(folder / "model.safetensors"), {"format": "pt"})
        (folder / "config.json").write_text(json.dumps(config_to_hf(model.config), indent=2) + "\n", "utf-8")
        model.tokenizer.save(folder / "tokenizer.json")
    return out


def learned(model, engine) -> dict[str, torch.Tensor]:
    """All of the model's tensors by canonical name: as they learned, or as they were."""
    known = learned_tensors(engine, engine.learners[0])
    return {name: known[name] if name in known else model.tensor(name) for name in model.names()}
