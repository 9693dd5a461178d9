"""A learner's adapters to and from PEFT's files (dynadapt/model/peft.py)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from dynadapt.adapt.methods import EMBED
from dynadapt.model import ModelError, peft_name
from dynadapt.model.layout import from_hf_rows, group_parts, to_hf_rows
from dynadapt.model.peft import magnitude_key, read_for_model, settings_of, tensor_key, write_files
from dynadapt.model.peft_fields import module_alpha, module_rank, module_scale, shown
from dynadapt.ops.linear import each_part

from . import peft_beside


@dataclass(frozen=True)
class Adapted:
    """One adapted linear, or the embedding: its rows of the group's A, its columns of Bt (of which it has the upper ``rank`` rows)."""

    layer: int
    group: str
    part: str
    module: str  # PEFT's name
    rows: slice
    columns: slice
    rank: int
    alpha: float
    scale: float

    def halves(self, A: torch.Tensor, Bt: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Views [rank, K] and [rank, O] into a slot's A [sum R_p, K] and Bt [R, sum O]."""
        return A[self.rows], Bt[: self.rank, self.columns]


def adapted_modules(learner, config) -> Iterator[Adapted]:
    """Every adapted linear, in forward order."""
    for key, (_, sizes) in learner.sizes.items():
        parts = zip(group_parts(config, *key), learner.parts_of[key], each_part(learner.scales[key], sizes, max(learner.ranks[key])))
        for part, (rank, alpha), (rows, columns, _, scale) in parts:
            if rank:
                yield Adapted(key[0], key[1], part, peft_name(config, key[0], part), rows, columns, rank, alpha, scale)


def halves_of(learner, row: torch.Tensor, adapted: Adapted) -> tuple[torch.Tensor, torch.Tensor]:
    """Views of one linear's A and Bt in a slot's ``row`` [P]."""
    return adapted.halves(*(learner.layout.view(row, f"{adapted.layer}.{adapted.group}.{half}") for half in ("A", "Bt")))


def lengths_of(learner, row: torch.Tensor, adapted: Adapted) -> torch.Tensor:
    """A view of one linear's m (DoRA) in a slot's ``row`` [P]."""
    return learner.layout.view(row, f"{adapted.layer}.{adapted.group}.m")[adapted.columns]


def write_adapter(directory, learner, config, slot: int, base_model: str) -> None:
    """Write the adapter of one slot, float32 masters, as a PEFT directory."""
    directory, adapt = Path(directory), learner.adapt
    directory.mkdir(parents=True, exist_ok=True)
    tensors, modules = {}, {}
    for adapted in adapted_modules(learner, config):
        A, Bt = halves_of(learner, learner.state.master[slot], adapted)
        key = lambda half: tensor_key(adapted.module, half, adapted.part == EMBED)  # noqa: B023, E731
        tensors[key("A")] = A.float().contiguous()
        tensors[key("B")] = to_hf_rows(config, adapted.part, Bt.t().float()).contiguous()
        modules[adapted.module] = (adapted.rank, adapted.alpha)
        if adapt.dora:
            own = to_hf_rows(config, adapted.part, lengths_of(learner, learner.state.master[slot], adapted).float())
            tensors[magnitude_key(adapted.module)] = own.contiguous()
    more, fields = peft_beside.write(learner, config, learner.state.master[slot], modules)
    settings = settings_of(config, adapt.rank, adapt.alpha, base_model, modules, adapt.layers, adapt.rslora)
    write_files(directory, tensors | more, settings | fields | {"use_dora": adapt.dora})


def adapter_row(directory, learner, model) -> torch.Tensor:
    """A PEFT adapter of the same ranks, scales and targets as a slot of ``learner`` holds it, [P] in the masters' dtype.

    Raises:
        ModelError: naming what the adapter has that this engine does not (rank, alpha, DoRA, modules).
    """
    directory, config = Path(directory), model.config
    row = torch.zeros_like(learner.initial)
    beside = peft_beside.takers(directory, learner, config, row, {adapted.module for adapted in adapted_modules(learner, config)})
    magnitudes: dict[str, torch.Tensor] | None = {} if learner.adapt.dora else None
    settings, tensors = read_for_model(directory, config, model.tensor, magnitudes, embedding=True, beside=beside)
    if magnitudes is not None and not settings.get("use_dora"):
        raise ModelError(f"{directory}: adapter has use_dora={shown(settings.get('use_dora'))}; the engine's LoRA has dora=True")
    peft_beside.check_fields(settings, learner, config, directory)
    for adapted in adapted_modules(learner, config):
        module = adapted.module
        _check_alike(settings, adapted, learner.adapt.rslora, directory)
        if module not in tensors:
            raise ModelError(
                f"{directory}: adapter has no {tensor_key(module, 'A', adapted.part == EMBED)}, which targets={learner.adapt.targets!r} needs"
            )
        A, Bt = halves_of(learner, row, adapted)
        theirs, stored = tensors.pop(module)
        A.copy_(theirs)
        Bt.t().copy_(from_hf_rows(config, adapted.part, stored))
        if magnitudes is not None:
            lengths_of(learner, row, adapted).copy_(from_hf_rows(config, adapted.part, magnitudes[module]))
    if tensors:
        other = min(tensors)
        raise ModelError(
            f"{directory}: adapter has {tensor_key(other, 'A', other == peft_name(config, -1, EMBED))} and {len(tensors) - 1} modules more that "
            f"targets={learner.adapt.targets!r} does not cover"
        )
    return row


def _check_alike(settings, adapted: Adapted, rslora: bool, directory: Path) -> None:
    """The rank and scale of one module are those of the engine."""
    has = lambda pattern, otherwise: pattern if settings.get(pattern) else otherwise  # noqa: E731
    name: str
    found: float
    ours: float
    rank, alpha = module_rank(settings, adapted.module), module_alpha(settings, adapted.module)
    if rank != adapted.rank:
        name, found, ours = has("rank_pattern", "r"), rank, adapted.rank
    elif module_scale(settings, adapted.module) == adapted.scale:
        return
    elif bool(settings.get("use_rslora")) != rslora:
        name, found, ours = "use_rslora", bool(settings.get("use_rslora")), rslora
    else:
        name, found, ours = has("alpha_pattern", "lora_alpha"), alpha, adapted.alpha
    raise ModelError(
        f"{directory}: adapter has {name}={shown(settings.get(name))}, which is {found} for {adapted.module}; the engine's LoRA has {ours}"
    )
