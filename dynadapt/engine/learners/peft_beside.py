"""Norms and biases that learn beside adapters (lora_beside.py), to and from PEFT's files.

Norms are PEFT's ``modules_to_save``, weight and bias; biases its ``bias="all"``, whose tensors stand beside the adapters', of an adapted linear
under ``base_layer``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import torch

from dynadapt.model import ModelError
from dynadapt.model.base import count_not_finite
from dynadapt.model.layout import canonical_tensor, hf_module, hf_shape, hf_tensor, tensor_shapes
from dynadapt.model.peft_fields import model_modules, shown

Take = Callable[[torch.Tensor], None]


def _is_norm(name: str) -> bool:
    return name.split(".")[-2].endswith("norm")


def _key(config, name: str, adapted: Collection[str]) -> str:
    """PEFT's name of a canonical tensor, in a model whose modules ``adapted`` are."""
    module, kind = name.rsplit(".", 1)
    place = hf_module(config, module)
    return f"base_model.model.{place}{'.base_layer' if place in adapted else ''}.{kind}"


def _saved(names: Collection[str], config, also: Collection[str]) -> list[str]:
    """The modules that PEFT keeps whole: norms, where they learn and not only their biases do."""
    return sorted({hf_module(config, name.rsplit(".", 1)[0]) for name in names if _is_norm(name)}) if "norms" in also else []


def write(learner, config, row: torch.Tensor, adapted: Collection[str]) -> tuple[dict[str, torch.Tensor], dict]:
    """(tensors, fields of adapter_config.json) of a slot's ``row`` [P]; none where adapters learn alone."""
    also = learner.adapt.also
    if not also:
        return {}, {}
    named = learner.beside.canonical(lambda name: learner.layout.view(row, name).float())
    tensors = {_key(config, name, adapted): hf_tensor(config, name, value).contiguous() for name, value in named.items()}
    return tensors, {"bias": "all" if "biases" in also else "none", "modules_to_save": _saved(named, config, also) or None}


def takers(directory: Path, learner, config, row: torch.Tensor, adapted: Collection[str]) -> dict[str, Take]:
    """{key: what writes its tensor to ``row`` [P]} of what a file must have beside adapters."""
    if not learner.adapt.also:
        return {}
    named = learner.beside.canonical(lambda name: learner.layout.view(row, name))
    return {_key(config, name, adapted): _taker(directory, config, name, view) for name, view in named.items()}


def _taker(directory: Path, config, name: str, view: torch.Tensor) -> Take:
    def take(stored: torch.Tensor) -> None:
        expected = hf_shape(config, name, tuple(view.shape))
        if tuple(stored.shape) != expected:
            raise ModelError(f"{directory}: adapter has {name} of shape {list(stored.shape)}; expected {list(expected)}")
        if count_not_finite(stored.float()):
            raise ModelError(f"{directory}: adapter has a NaN or an infinity in {name}")
        view.copy_(canonical_tensor(config, name, stored))

    return take


def check_fields(settings: Mapping, learner, config, directory: Path) -> None:
    """Raise ModelError unless a file's ``bias`` and ``modules_to_save`` say what the engine learns beside adapters."""
    also = learner.adapt.also
    if not also:
        return
    expected = "all" if "biases" in also else "none"
    if settings.get("bias") != expected:
        raise ModelError(f"{directory}: adapter has bias={shown(settings.get('bias'))}; LoRA(also={list(also)}) needs {expected!r}")
    wanted, given = _saved(learner.beside.canonical_names, config, also), settings.get("modules_to_save") or []
    norms = {hf_module(config, name.rsplit(".", 1)[0]) for name in tensor_shapes(config) if _is_norm(name)}
    found = sorted(module for module in {*norms, *model_modules(config)} if any(module.endswith(str(word)) for word in given))
    if found != wanted:
        raise ModelError(
            f"{directory}: adapter has modules_to_save={shown(given)}, which are {', '.join(found) or 'none'}; LoRA(also={list(also)}) has "
            f"{', '.join(wanted) or 'none'}"
        )
