"""The model before and the model after: two models, a model and its PEFT adapter, or a model and what it learned."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Callable

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from dynadapt import SGD, Engine, LoRA, Overlap, SegmentMemory
from dynadapt.adapt.peft_format import read_settings
from dynadapt.experiments.config import EvalConfig
from dynadapt.experiments.dyneval import build_engine
from dynadapt.experiments.rundir import RunError
from dynadapt.model import linear_shapes, peft_name
from dynadapt.model.errors import ModelError

NEVER = sys.maxsize          # `every`: the engine scores and does not learn


def is_adapter(path: str) -> bool:
    return (Path(path) / "adapter_config.json").is_file()


def check_tokenizers(before, after, sample: str) -> None:
    """Raises ModelError unless both tokenizers give the same ids: only then do the two models score the same tokens."""
    first, second = before.tokenizer, after.tokenizer
    if second is None:
        raise ModelError(f"model {after.name!r} has no tokenizer; put the one of {before.name!r} next to its weights "
                         "if it is the same")
    ours, theirs = (dict(t.backend.get_vocab(with_added_tokens=True)) for t in (first, second))
    if ours != theirs:
        differing = (t for t in {**ours, **theirs} if ours.get(t) != theirs.get(t))
        token = min(differing, key=lambda t: ours.get(t, theirs.get(t)))
        raise ModelError(f"the tokenizers of {before.name!r} and {after.name!r} differ: token {token!r} is "
                         f"{ours.get(token, 'absent')} there and {theirs.get(token, 'absent')} here; "
                         "a diagnosis compares scores of the same tokens")
    if first.encode(sample) != second.encode(sample):
        raise ModelError(f"the tokenizers of {before.name!r} and {after.name!r} have the same tokens but cut the text "
                         "differently; a diagnosis compares scores of the same tokens")


def learned_engine(learning: EvalConfig, run: Path) -> Callable:
    """Makes the engine that a finished run of `learning` ended with, which only scores."""
    states = sorted(entry for entry in (run / "checkpoint").iterdir() if entry.name.isdigit())
    if not states:
        raise RunError(f"{run} saved no state; remove it and run again")

    def make(model, config: EvalConfig):
        engine = build_engine(model, learning)
        engine.restore(states[-1] / "engine")
        engine.every = NEVER
        return engine
    return make


def adapter_engine(directory: str, completed: Path) -> Callable:
    """Makes an engine with a PEFT LoRA adapter on its base, which only scores. `completed` takes a copy of the adapter."""
    def make(model, config: EvalConfig):
        adapt = complete_adapter(Path(directory), model.config, completed)
        memory = SegmentMemory(config.memory, config.sinks, refresh=config.refresh) if config.memory else None
        engine = Engine(model, adapt=adapt, optimizer=SGD(), memory=Overlap(config.context) if config.context else memory,
                        segment=config.segment, every=NEVER, dtype=config.dtype, backend=config.backend, device=config.device,
                        recompute=config.recompute, base=config.base)
        engine.load_adapter(completed)
        return engine
    return make


def complete_adapter(directory: Path, config, out: Path) -> LoRA:
    """Writes the adapter to `out` with zeros for the linears that it leaves alone, so that it covers all of them.

    Raises ModelError, naming it, for what can't be run exactly: DoRA, patterns of ranks, modules other than the layers' linears.
    """
    settings = read_settings(directory, accepted=("use_rslora",))
    rank = settings["r"]
    scaling = math.sqrt(rank) if settings.get("use_rslora") else 1.0
    settings.update(lora_alpha=settings["lora_alpha"] * scaling, use_rslora=False, layers_to_transform=None, layers_pattern=None)
    path = directory / "adapter_model.safetensors"
    if not path.is_file():
        raise ModelError(f"adapter {str(directory)!r} has no adapter_model.safetensors")
    with safe_open(str(path), framework="pt") as file:
        tensors = {key: file.get_tensor(key).float() for key in file.keys()}
    expected = {}
    for layer in range(config.layers):
        for part, (rows, columns) in linear_shapes(config).items():
            module = f"base_model.model.{peft_name(config, layer, part)}"
            expected.update({f"{module}.lora_A.weight": (rank, columns), f"{module}.lora_B.weight": (rows, rank)})
    for key, value in tensors.items():
        if key not in expected:
            raise ModelError(f"adapter {str(directory)!r} has {key}, which is no linear weight of a layer of this model")
        if tuple(value.shape) != expected[key]:
            raise ModelError(f"adapter {str(directory)!r}: {key} has shape {list(value.shape)}, the model before needs "
                             f"{list(expected[key])}")
    whole = {key: tensors[key].contiguous() if key in tensors else torch.zeros(shape) for key, shape in expected.items()}
    out.mkdir(parents=True, exist_ok=True)
    save_file(whole, str(out / "adapter_model.safetensors"), metadata={"format": "pt"})
    (out / "adapter_config.json").write_text(json.dumps(settings, indent=2) + "\n", "utf-8")
    return LoRA(rank=rank, alpha=settings["lora_alpha"])
