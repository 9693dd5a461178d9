"""LoRA adapters in PEFT's own files: adapter_config.json and adapter_model.safetensors.

Keys are ``base_model.model.<module>.lora_A.weight`` [R, in] and ``...lora_B.weight`` [out, R], of an embedding
``...lora_embedding_A`` [R, V] and ``...lora_embedding_B`` [H, R]; the scale is alpha / R, or
alpha / sqrt(R) with use_rslora.
What the settings may hold is in peft_fields.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from .base import count_not_finite
from .errors import ModelError
from .json_file import read_json
from .layout import adaptable_shapes, hf_module
from .peft_fields import check_fields, check_targets, model_modules, module_rank, module_scale, shown
from .safetensors_file import SafetensorsFile

NOTHING: Mapping[str, Callable[[torch.Tensor], None]] = {}
SETTINGS, TENSORS = "adapter_config.json", "adapter_model.safetensors"
_KEY = re.compile(r"base_model\.model\.(.+)\.lora_(?:([AB])\.weight|embedding_([AB]))")
_MAGNITUDE = re.compile(r"base_model\.model\.(.+)\.lora_magnitude_vector(?:\.weight)?")  # of DoRA (Liu et al. 2024, arXiv 2402.09353)
# of bias="all" and a norm in modules_to_save: PEFT writes its bias three times, as it was and as it is
_COPY = re.compile(r"(base_model\.model\..+)\.(modules_to_save|original_module)\.bias")
_BASE_KEY = re.compile(r"base_model\.model\.(.+?)(\.base_layer)?\.weight")  # of the base, which PEFT saves beside an adapter of the head


def tensor_key(module: str, which: str, embedding: bool = False) -> str:
    return f"base_model.model.{module}.lora_{f'embedding_{which}' if embedding else f'{which}.weight'}"


def magnitude_key(module: str) -> str:
    return f"base_model.model.{module}.lora_magnitude_vector"


def plain_lora(rank: int, alpha: float, base_model: str | None, target_modules, fan_in_fan_out: bool) -> dict:
    """adapter_config.json of LoRA without any of PEFT's variants."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": target_modules,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": fan_in_fan_out,
        "inference_mode": True,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
        "rank_pattern": {},
        "alpha_pattern": {},
        "modules_to_save": None,
    }


def settings_of(
    config,
    rank: int,
    alpha: float,
    base_model: str,
    modules: Mapping[str, tuple[int, float]],
    layers: range | None = None,
    rslora: bool = False,
) -> dict:
    """adapter_config.json of LoRA on ``modules``: {PEFT's name of a linear of ``layers`` (None: all): (rank, alpha)}.

    Where they differ from ``rank`` and ``alpha``, patterns say so; modules that are not the same ones in each of the layers are named
    in full.
    """
    ending = lambda module: ".".join(module.split(".")[-2 if config.family == "gpt2" else -1 :])  # noqa: E731  c_proj alone is two modules
    around = sorted(
        modules.keys() & {hf_module(config, "head"), hf_module(config, "embed")}
    )  # by whole names, which no layers_pattern leaves out
    endings, of_layers = {ending(module) for module in modules if module not in around}, len(modules) - len(around)
    everywhere = of_layers == len(endings) * len(range(config.layers) if layers is None else layers)
    names = sorted([*endings, *around])
    layers = layers if everywhere and of_layers else None
    named = {
        **plain_lora(rank, _whole(alpha), base_model, names if everywhere else sorted(modules), config.family == "gpt2"),
        "use_rslora": rslora,
        "layers_to_transform": None if layers is None else list(layers),
        "layers_pattern": None if layers is None else ("h" if config.family == "gpt2" else "layers"),
    }
    for name, usual, place in (("rank_pattern", rank, 0), ("alpha_pattern", alpha, 1)):
        values = {module: _whole(pair[place]) for module, pair in modules.items()}
        named[name] = _pattern(values, usual, ending)
    return named


def _whole(value: float) -> float:
    return int(value) if value == int(value) else value


def _pattern(values: dict[str, float], usual: float, ending) -> dict[str, float]:
    """{ending or whole name of a module: value} for those of another value than ``usual``."""
    by_ending: dict[str, set[float]] = {}
    for module, value in values.items():
        by_ending.setdefault(ending(module), set()).add(value)
    said = {}
    for module, value in values.items():
        if value != usual:
            said[ending(module) if len(by_ending[ending(module)]) == 1 else module] = value
    return said


def write_files(directory: Path, tensors: dict[str, torch.Tensor], settings: dict) -> None:
    save_file(tensors, str(directory / TENSORS), metadata={"format": "pt"})
    write_settings(directory, settings)


def write_settings(directory: Path, settings: dict) -> None:
    (directory / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def read_settings(directory, dora: bool = False, beside: bool = False) -> dict:
    """adapter_config.json of an adapter that is B A times a scale on each of its modules (peft_fields.module_scale); with ``dora`` also
    of one with DoRA's magnitudes, with ``beside`` of one with tensors of the base that learned.

    Raises:
        ModelError: naming the file that can't be read, or the field and value that make the adapter something else.
    """
    directory = Path(directory)
    settings = read_json(directory / SETTINGS)
    if not isinstance(settings, dict):
        raise ModelError(f"{directory / SETTINGS}: not a JSON object")
    allowed = {"use_dora"} if dora and type(settings.get("use_dora")) is bool else set()
    allowed |= {"bias", "modules_to_save"} if beside else set()
    check_fields({name: value for name, value in settings.items() if name not in allowed}, f"adapter {str(directory)!r}")
    return settings


def read_tensors(
    directory,
    settings: Mapping,
    base: Callable[[str], torch.Tensor | None] = lambda module: None,
    magnitudes: dict | None = None,
    embedding: str | None = "",
    beside: Mapping[str, Callable[[torch.Tensor], None]] | None = NOTHING,
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """{module: (A [rank, in], B [out, rank])} of adapter_model.safetensors, in their stored dtype; ranks are those of ``settings``.

    ``base``: the base's weight of a module around the layers, of which the file may hold a copy; None: it is not known.
    ``magnitudes``: gets DoRA's, {module: [out]}, where ``settings`` say that there are any. ``embedding``: the module that may have an
    embedding's, (A [rank, V], B [H, rank]); "": none may, None: any. ``beside``: {key: what
    takes its tensor} of what the file must have beside these; None: whatever it has.

    Raises:
        ModelError: naming the file that can't be read, or the tensor that is no A or B, stands alone, is of another rank, is
            not floating point, holds a NaN or an infinity, or is a weight of the base with other values than ``base`` has.
    """
    directory = Path(directory)
    where, file = f"adapter {str(directory)!r}", SafetensorsFile(directory / TENSORS)
    halves: dict[str, dict[str, torch.Tensor]] = {}
    hint = "; PEFT leaves the base's own weights out with save_pretrained(..., save_embedding_layers=False)"
    for key in beside or ():
        if key not in file.tensors:
            raise ModelError(f"{where} has no tensor {key}, which learns beside this engine's adapters")
    for key in file.tensors:
        if beside is None and not _KEY.fullmatch(key):
            if count_not_finite(file.read(key).float()):
                raise ModelError(f"{where}: {key} holds a NaN or an infinity")
            continue
        if beside and key in beside:
            beside[key](file.read(key))
            continue
        if (copy := _COPY.fullmatch(key)) and (own := f"{copy[1]}.bias") in (beside or ()):
            if copy[2] == "modules_to_save" and not torch.equal(file.read(key), file.read(own)):
                raise ModelError(f"{where} has {key} with other values than {own}")
            continue
        match = _KEY.fullmatch(key)
        if match is None and (copied := _BASE_KEY.fullmatch(key)) and (weight := base(copied[1])) is not None:
            value = file.read(key)
            if value.shape != weight.shape or not torch.equal(value, weight.to(value)):
                raise ModelError(
                    f"{where} has {key}, a weight of the base with other values than this model's: more than an adapter was trained"
                )
            continue
        if match is None and magnitudes is not None and settings.get("use_dora") and (of := _MAGNITUDE.fullmatch(key)):
            magnitudes[of[1]] = file.read(key)
            if magnitudes[of[1]].dim() != 1 or count_not_finite(magnitudes[of[1]].float()):
                raise ModelError(f"{where}: {key} is no vector of finite numbers")
            continue
        if match is None or embedding is not None and (match[3] is not None) != (match[1] == embedding):
            accepted = "base_model.model.MODULE.lora_A.weight and lora_B.weight"
            if embedding:
                accepted += f", and {tensor_key(embedding, 'A', True)} and lora_embedding_B"
            raise ModelError(f"{where} has the tensor {key}; accepted: {accepted}" + hint)
        value, rank, half = file.read(key), module_rank(settings, match[1]), match[2] or match[3]
        if value.dim() != 2 or value.shape["AB".index(half)] != rank:
            raise ModelError(
                f"{where}: {key} has shape {list(value.shape)}; expected "
                f"{f'[{rank}, in]' if half == 'A' else f'[out, {rank}]'} for "
                + (f"rank_pattern={shown(settings['rank_pattern'])}" if settings.get("rank_pattern") else f"r={rank}")
            )
        if not value.numel() or count_not_finite(value.float()):  # as float32, in which adapters are used
            raise ModelError(f"{where}: {key} holds {'nothing' if not value.numel() else 'a NaN or an infinity'}")
        halves.setdefault(match[1], {})[half] = value
    for module, pair in halves.items():
        if len(pair) < 2:
            there, other = (tensor_key(module, half, module == embedding) for half in (*pair, "B" if "A" in pair else "A"))
            raise ModelError(f"{where} has {there} and no {other}")
    if not halves:
        raise ModelError(f"{where} has no tensors")
    if magnitudes is not None and settings.get("use_dora") and (odd := magnitudes.keys() ^ halves.keys()):
        raise ModelError(f"{where} has use_dora=True, and of {min(odd)} not all of lora_A, lora_B and lora_magnitude_vector")
    return {module: (pair["A"], pair["B"]) for module, pair in halves.items()}


def read_for_model(
    directory,
    config,
    weight: Callable[[str], torch.Tensor] | None = None,
    magnitudes: dict | None = None,
    embedding: bool = False,
    beside=NOTHING,
):
    """(settings, {module: (A, B)}) of an adapter of a model of this config, on linears of its layers, its head and with ``embedding`` its
    embedding.

    ``weight``: the base's tensor of a canonical name; without it, a file that also holds the base's embedding or head is refused.
    ``magnitudes``: gets DoRA's, {module: [out]}; without it, an adapter that has them is refused. ``beside``: as of
    ``read_tensors``.

    Raises:
        ModelError: as ``read_settings`` and ``read_tensors``, for a module that is neither a linear of a layer nor the head, or of another shape,
            and where the settings say that other modules are adapted than the file has.
    """
    where = f"adapter {str(directory)!r}"
    settings = read_settings(directory, magnitudes is not None, bool(beside))
    embed = hf_module(config, "embed")
    around = {embed: "embed.weight", hf_module(config, "head"): "embed.weight" if config.tied_head else "head.weight"}
    known = lambda module: weight(around[module]) if weight is not None and module in around else None  # noqa: E731
    tensors = read_tensors(directory, settings, known, magnitudes, embed if embedding else "", beside)
    if embed in tensors and settings.get("ensure_weight_tying"):
        raise ModelError(f"{where} has ensure_weight_tying=True and tensors of {embed}, which a tied head would have, too; accepted: False")
    shapes = adaptable_shapes(config)
    for module, (A, B) in tensors.items():
        if module not in shapes:
            raise ModelError(f"{where} has {tensor_key(module, 'A')}, which is no linear weight of a layer of this model, nor its head")
        rows, columns = shapes[module]
        for which, value, expected in (("A", A, (A.shape[0], columns)), ("B", B, (rows, B.shape[1]))):
            if tuple(value.shape) != expected:
                raise ModelError(
                    f"{where}: {tensor_key(module, which, module == embed)} has shape {list(value.shape)}; expected {list(expected)}"
                )
        if magnitudes and len(magnitudes[module]) != rows:
            raise ModelError(f"{where}: lora_magnitude_vector of {module} has shape {list(magnitudes[module].shape)}; expected [{rows}]")
    check_targets(settings, tensors, model_modules(config), where)
    return settings, tensors


def one_scale(settings: Mapping, tensors: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> tuple[dict, dict]:
    """(settings, tensors) of the same adapter with one r and the scale lora_alpha / r, for readers of no more than these.

    use_rslora becomes a lora_alpha. Modules of a smaller rank get zeros, and those of another scale a B that makes up for it, in
    float32 or wider.
    """
    if not any(settings.get(name) for name in ("use_rslora", "rank_pattern", "alpha_pattern")):
        return dict(settings), tensors
    rank = max(A.shape[0] for A, _ in tensors.values())
    scale = max((module_scale(settings, module) for module in tensors), key=abs)
    found = {}
    for module, (A, B) in tensors.items():
        more, own = rank - A.shape[0], module_scale(settings, module)
        if own != scale:
            B = B.to(torch.promote_types(B.dtype, torch.float32)) * (own / scale)
        found[module] = (torch.nn.functional.pad(A, (0, 0, 0, more)), torch.nn.functional.pad(B, (0, more)))
    plain = {"r": rank, "lora_alpha": _whole(scale * rank), "use_rslora": False, "rank_pattern": {}, "alpha_pattern": {}}
    return {**settings, **plain}, found
