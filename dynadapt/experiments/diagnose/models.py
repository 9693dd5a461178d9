"""The model before and the model after: two models, a model and its PEFT adapter, or a model and what it learned."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from dynadapt.adapt import SGD, LoRA
from dynadapt.engine.engine import NEVER, Engine
from dynadapt.experiments.config import EvalConfig
from dynadapt.experiments.engine_of_config import build_engine, memory_of
from dynadapt.model import linear_shapes, peft_name
from dynadapt.model.errors import ModelError
from dynadapt.model.layout import hf_module
from dynadapt.model.peft import one_scale, read_for_model, settings_of, write_files
from dynadapt.runs.checkpoints import last_state


def is_adapter(path: str) -> bool:
    return (Path(path) / "adapter_config.json").is_file()


def check_tokenizers(before, after, sample: str) -> None:
    """Raises ModelError unless both tokenizers give the same ids: only then do the two models score the same tokens."""
    first, second = before.tokenizer, after.tokenizer
    if second is None:
        raise ModelError(f"model {after.name!r} has no tokenizer; put the one of {before.name!r} next to its weights if it is the same")
    ours, theirs = (dict(t.backend.get_vocab(with_added_tokens=True)) for t in (first, second))
    if ours != theirs:
        differing = (t for t in {**ours, **theirs} if ours.get(t) != theirs.get(t))
        token = min(differing, key=lambda t: ours.get(t, theirs.get(t)))
        raise ModelError(
            f"the tokenizers of {before.name!r} and {after.name!r} differ: token {token!r} is "
            f"{ours.get(token, 'absent')} there and {theirs.get(token, 'absent')} here; "
            "a diagnosis compares scores of the same tokens"
        )
    if first.encode(sample) != second.encode(sample):
        raise ModelError(
            f"the tokenizers of {before.name!r} and {after.name!r} have the same tokens but cut the text "
            "differently; a diagnosis compares scores of the same tokens"
        )


def learned_engine(learning: EvalConfig, run: Path) -> Callable:
    """Makes the engine that a finished run of `learning` ended with, which only scores."""
    state = last_state(run, "remove it and run again")

    def make(model, config: EvalConfig):
        engine = build_engine(model, learning)
        engine.restore(state / "engine")
        engine.learn_no_more()
        return engine

    return make


def adapter_engine(directory: str, completed: Path) -> Callable:
    """Makes an engine with a PEFT LoRA adapter on its base, which only scores. `completed` takes a copy of the adapter."""

    def make(model, config: EvalConfig):
        adapt = complete_adapter(Path(directory), model.config, completed)
        engine = Engine(
            model,
            adapt=adapt,
            optimizer=SGD(),
            memory=memory_of(config, model.config),
            segment=config.segment,
            every=NEVER,
            dtype=config.dtype,
            backend=config.backend,
            device=config.device,
            recompute=config.recompute or None,
            base=config.base,
        )
        engine.load_adapter(completed)
        return engine

    return make


def complete_adapter(directory: Path, config, out: Path) -> LoRA:
    """Writes the adapter to `out` with zeros for the linears that it leaves alone, so that it covers all of them.

    Raises ModelError, naming it, for what can't be run exactly: DoRA, modules other than the layers' linears,
    values that are not finite.
    """
    settings, tensors = one_scale(*read_for_model(directory, config))
    if (head := hf_module(config, "head")) in tensors:
        raise ModelError(f"adapter {str(directory)!r} has tensors of {head}, which is not supported here; accepted: linears of the layers")
    rank, alpha, whole = settings["r"], settings["lora_alpha"], {}
    for layer in range(config.layers):
        for part, (rows, columns) in linear_shapes(config, layer).items():
            module = peft_name(config, layer, part)
            whole[module] = tensors[module] if module in tensors else (torch.zeros(rank, columns), torch.zeros(rows, rank))
    out.mkdir(parents=True, exist_ok=True)
    named = {
        f"base_model.model.{module}.lora_{which}.weight": value.float().contiguous()
        for module, pair in whole.items()
        for which, value in zip("AB", pair)
    }
    write_files(
        out,
        named,
        settings_of(config, rank, alpha, str(settings.get("base_model_name_or_path") or ""), dict.fromkeys(whole, (rank, alpha))),
    )
    return LoRA(rank=rank, alpha=alpha)
