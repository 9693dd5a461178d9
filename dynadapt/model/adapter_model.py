"""A model that is a PEFT LoRA adapter on its base: W + scale B A, formed in float32 when a weight is read; of a DoRA adapter (Liu et al.
2024, arXiv 2402.09353) its rows made as long as the adapter's magnitudes.

What is read is float32 and rounded once, by whoever uses it; weights that the adapter leaves alone are the base's. So the merged
model is a model like any other: it can be scored, adapted by anything, and attended to.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from .base import Model
from .errors import ModelError
from .json_file import read_json
from .layout import from_hf_rows, hf_module, linear_shapes, peft_name
from .peft import SETTINGS, TENSORS, read_for_model
from .peft_fields import module_scale
from .safetensors_file import hash_file, sample_file


def is_adapter(path: Path) -> bool:
    return (path / SETTINGS).is_file()


def load_adapter_model(path: Path, load: Callable[[str | Path], Model], dtype: torch.dtype | None = None) -> Model:
    """The base that the adapter in ``path`` names, with the adapter merged into it. The tokenizer is the base's.

    ``load`` makes a Model of the base's name: a path (also one relative to the adapter's directory), a known name or a hub id.

    Raises:
        ModelError: naming what can't be merged exactly, or the base that can't be loaded.
    """
    whole = sorted(path.glob("model*.safetensors"))
    if (path / "config.json").is_file() and whole:
        raise ModelError(
            f"{path}: holds an adapter ({SETTINGS}) and a whole model (config.json, {whole[0].name}), so that it does not "
            "say which is meant; put one of them into a directory of its own"
        )
    if not (path / TENSORS).is_file():
        other = (
            " (adapter_model.bin is a pickle, which is not read: save it as safetensors)" if (path / "adapter_model.bin").is_file() else ""
        )
        raise ModelError(f"{path}: an adapter without {TENSORS}{other}")
    base = _base(path, load)
    magnitudes: dict[str, torch.Tensor] = {}
    settings, tensors = read_for_model(path, base.config, base.tensor, magnitudes, embedding=True)
    scales = {module: module_scale(settings, module) for module in tensors}
    config, head, embed = base.config, hf_module(base.config, "head"), hf_module(base.config, "embed")
    if embed in magnitudes:
        raise ModelError(f"adapter {str(path)!r} has use_dora=True on {embed}; accepted: DoRA on linears")
    module_of = {
        f"layers.{layer}.{part}.weight": module
        for layer in range(config.layers)
        for part in linear_shapes(config, layer)
        if (module := peft_name(config, layer, part)) in tensors
    }
    for module, name in ((head, "head.weight"), (embed, "embed.weight")):
        if module in tensors:  # of two that are tied, only this one is adapted: the head becomes a tensor of its own
            config = replace(config, tied_head=False)
            module_of[name] = module

    def read(name: str) -> torch.Tensor:
        weight = base.tensor("embed.weight" if name == "head.weight" and base.config.tied_head else name)
        if name not in module_of:
            return weight
        module, part = module_of[name], name.split(".")[-2]
        halves = tensors[module][0], from_hf_rows(base.config, part, tensors[module][1])
        A, B = (half.to(device=weight.device, dtype=torch.promote_types(half.dtype, torch.float32)) for half in halves)
        wide = torch.promote_types(weight.dtype, A.dtype)
        product = B.to(wide) @ A.to(wide)
        merged = torch.add(weight.to(wide), product.t() if module == embed else product, alpha=scales[module])
        if module in magnitudes:
            length = from_hf_rows(base.config, part, magnitudes[module].to(device=weight.device, dtype=wide))
            merged *= (length / torch.linalg.norm(merged, dim=1))[:, None]
        return merged

    distinct = set(scales.values())
    ordered = list(distinct) if len(distinct) == 1 else [scales[module] for module in sorted(scales)]
    said = struct.pack(f"<{len(ordered)}d", *ordered)

    def identity(sampled: bool) -> bytes:
        file = path / TENSORS
        return base.fingerprint(sampled).encode() + (sample_file(file) if sampled else hash_file(file)) + said

    return Model(config, path.resolve().name, read, identity, lambda: base.tokenizer, dtype, str(path))


def base_of(path: Path) -> str | Path:
    """What the adapter in ``path`` names as its base: as it is written, or a path where it is one seen from the adapter's directory."""
    settings = read_json(path / SETTINGS)
    name = settings.get("base_model_name_or_path") if isinstance(settings, dict) else None
    if not isinstance(name, str) or not name:
        raise ModelError(
            f"{path / SETTINGS}: base_model_name_or_path is {name!r}, so the adapter does not say what it adapts; write the "
            "base's directory, known name or hub id there"
        )
    beside = path / Path(name).expanduser()
    source = beside if not Path(name).expanduser().exists() and beside.exists() else name
    if is_adapter(Path(source).expanduser()):
        raise ModelError(f"{path / SETTINGS}: base_model_name_or_path {name!r} is an adapter itself; accepted: a whole model")
    return source


def _base(path: Path, load) -> Model:
    source = base_of(path)
    try:
        return load(source)
    except ModelError as error:
        raise ModelError(
            f"{path / SETTINGS}: the base that this adapter adapts, base_model_name_or_path {str(source)!r}: {error}"
        ) from error
