"""A learner's adapters to and from PEFT's files (dynadapt/model/peft.py)."""

from __future__ import annotations

from pathlib import Path

from dynadapt.model import ModelError, layout, peft_name
from dynadapt.model.peft import read_for_model, settings_of, tensor_key, write_files


def adapted_modules(learner, config):
    """(layer, group, part index, first column, last column, PEFT module name) of every adapted weight."""
    for (layer, group), (_, sizes) in learner.sizes.items():
        start = 0
        for p, (part, size) in enumerate(zip(layout(config)[group], sizes)):
            yield layer, group, p, start, start + size, peft_name(config, layer, part)
            start += size


def _master(learner, slot, layer, group):
    view = learner.layout.view
    return (view(learner.state.master, f"{layer}.{group}.A")[slot], view(learner.state.master, f"{layer}.{group}.Bt")[slot])


def write_adapter(directory, learner, config, slot: int, base_model: str) -> None:
    """Write the adapter of one slot, float32 masters, as a PEFT directory."""
    directory, rank = Path(directory), learner.adapt.rank
    directory.mkdir(parents=True, exist_ok=True)
    tensors, names = {}, set()
    for layer, group, p, lo, hi, module in adapted_modules(learner, config):
        A, Bt = _master(learner, slot, layer, group)
        tensors[tensor_key(module, "A")] = A[p * rank : (p + 1) * rank].float().contiguous()
        tensors[tensor_key(module, "B")] = Bt[:, lo:hi].t().float().contiguous()
        names.add(module)
    write_files(directory, tensors, settings_of(config, rank, learner.adapt.alpha, base_model, names, learner.adapt.layers))


def read_adapter(directory, learner, config, slot: int) -> None:
    """Load a PEFT adapter of the same rank, alpha and targets into one slot's masters, or change nothing.

    Raises:
        ModelError: naming what the adapter has that this engine does not (rank, alpha, DoRA, patterns, modules).
    """
    directory, rank = Path(directory), learner.adapt.rank
    settings, tensors = read_for_model(directory, config)
    for name, expected in (("r", rank), ("lora_alpha", learner.adapt.alpha)):
        if settings[name] != expected:
            raise ModelError(f"{directory}: adapter has {name}={settings[name]}; the engine's LoRA has {expected}")
    values: list[tuple] = []
    for layer, group, p, lo, hi, module in adapted_modules(learner, config):
        if module not in tensors:
            raise ModelError(f"{directory}: adapter has no {tensor_key(module, 'A')}, which targets={learner.adapt.targets!r} needs")
        A, Bt = _master(learner, slot, layer, group)
        values += zip((A[p * rank : (p + 1) * rank], Bt[:, lo:hi].t()), tensors.pop(module))
    if tensors:
        raise ModelError(
            f"{directory}: adapter has {tensor_key(min(tensors), 'A')} and {len(tensors) - 1} modules more that "
            f"targets={learner.adapt.targets!r} does not cover"
        )
    for target, value in values:
        target.copy_(value)
    if learner.state.working is not None:
        learner.state.working[slot] = learner.state.master[slot].to(learner.state.working.dtype)
