"""What each field of PEFT's adapter_config.json may hold here, and which modules it says are adapted.

An adapter is scored as PEFT scores it, or refused by name: FIELDS has every field of LoraConfig, those of other versions
included, and ``check_fields`` refuses what it does not accept. A field that is not in it must be off. The C engine has the
same rows (csrc/engine/peft_fields.h).

| consumer | beyond ``check_fields`` |
|---|---|
| ``Engine.load_adapter``, C's ``load_adapter`` | the rank, the scale and the modules must be the engine's |
| C's ``load_adapter`` | use_rslora, rank_pattern and alpha_pattern must be off; target_modules and exclude_modules as a regular expression, layers_pattern other than words: refused |
| ``diagnose``, ``publish`` | use_rslora and the patterns become one r and one lora_alpha that mean the same (peft.one_scale) |
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

from .errors import ModelError
from .family import FAMILIES
from .layout import hf_module, linear_shapes, peft_name

ANY = "any"  # no value changes a loaded adapter's scores
OFF = "off"  # null, false or empty: anything else makes the adapter more than B A times one scale, or moves the base
READ = "read"  # taken into account, and checked where it is read

FIELDS = {  # name: ANY, OFF, READ, or the values that are accepted
    "peft_type": ("LORA",),
    "task_type": (None, "CAUSAL_LM"),  # others bring a head of their own
    "r": READ,
    "lora_alpha": READ,
    "target_modules": READ,
    "exclude_modules": READ,
    "layers_to_transform": READ,
    "layers_pattern": READ,
    "bias": ("none",),
    # how A and B began. PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA move the base as well, and MiCA is a layer of its own
    "init_lora_weights": (None, True, False, "gaussian", "orthogonal", "eva"),
    "use_rslora": READ,
    "use_dora": OFF,
    "rank_pattern": READ,
    "alpha_pattern": READ,
    "modules_to_save": OFF,
    "lora_bias": OFF,
    "target_parameters": OFF,
    "trainable_token_indices": OFF,
    "layer_replication": OFF,
    "alora_invocation_tokens": OFF,
    "use_qalora": OFF,
    "use_bdlora": OFF,
    "arrow_config": OFF,
    "kasa_config": OFF,
    "velora_config": OFF,
    "monteclora_config": OFF,
    "megatron_config": OFF,
    "loftq_config": OFF,
    "corda_config": OFF,
    "lora_ga_config": OFF,
    "enable_lora": OFF,  # of PEFT 0.1 and 0.2: which thirds of a merged product are adapted
    # where the adapter comes from and how it was trained
    "auto_mapping": ANY,
    "peft_version": ANY,
    "base_model_name_or_path": ANY,
    "revision": ANY,
    "inference_mode": ANY,
    "lora_dropout": ANY,
    "merge_weights": ANY,  # of PEFT 0.1 and 0.2
    "runtime_config": ANY,  # ignored by PEFT in a file
    # what means something only beside a field that is off, or is found out from the model
    "fan_in_fan_out": ANY,  # PEFT corrects it to how the module stores its weight
    "megatron_core": ANY,
    "eva_config": ANY,  # of how A began
    "qalora_group_size": ANY,
    "ensure_weight_tying": ANY,  # of embeddings: read_for_model refuses it where one is adapted
}
LISTS = ("target_modules", "exclude_modules", "layers_pattern")


def check_fields(settings: Mapping, where: str) -> None:
    """Raise ModelError, with ``where`` in front, for the first field whose value is not accepted."""
    for name in ("peft_type", *settings):
        value, accepts = settings.get(name), FIELDS.get(name, OFF)
        if name == "peft_type" and value not in FIELDS[name]:
            raise ModelError(f"{where} is of type {shown(value)}; accepted: LORA")
        if accepts in (ANY, READ):
            continue
        if accepts == OFF and not (value is None or value is False or value in ("", [], {})):
            unknown = "" if name in FIELDS else " (a field unknown here)"
            raise ModelError(f"{where} has {name}={shown(value)}, which is not supported{unknown}; accepted: null, false or empty")
        if accepts != OFF and not any(value is one or isinstance(one, str) and value == one for one in accepts):
            reason = (
                "; others also change the base model's weights or are more than LoRA: convert it to plain LoRA when saving it"
                if name == "init_lora_weights"
                else ""
            )
            raise ModelError(
                f"{where} has {name}={shown(value)}, which is not supported; accepted: {', '.join(map(repr, accepts))}{reason}"
            )
    _check_read(settings, where)


def _check_read(settings, where) -> None:
    rank, alpha = settings.get("r"), settings.get("lora_alpha")
    if not _is_rank(rank):
        raise ModelError(f"{where} has r={shown(rank)}; expected a whole number of at least 1")
    if not _is_alpha(alpha):
        raise ModelError(f"{where} has lora_alpha={shown(alpha)}; expected a number")
    if settings.get("use_rslora") not in (None, False, True):
        raise ModelError(f"{where} has use_rslora={shown(settings['use_rslora'])}; expected true or false")
    for name, numbers in (("rank_pattern", _is_rank), ("alpha_pattern", _is_alpha)):
        _check_pattern(name, settings.get(name), numbers, where)
    for name in LISTS:
        value = settings.get(name)
        words = value if isinstance(value, list) else [value]
        if value is not None and not all(isinstance(word, str) for word in words):
            raise ModelError(f"{where} has {name}={shown(value)}; expected text or a list of it")
        if name == "layers_pattern" or isinstance(value, str):
            for word in filter(None, words):
                try:
                    re.compile(word)
                except (re.error, RecursionError, OverflowError) as error:
                    raise ModelError(f"{where} has {name}={shown(value)}, which is no regular expression ({error})") from None
    if not settings.get("target_modules"):
        raise ModelError(f"{where} has target_modules={shown(settings.get('target_modules'))}; expected the adapted modules' names")
    layers = settings.get("layers_to_transform")
    numbers = layers if isinstance(layers, list) else [layers]
    if layers is not None and not all(isinstance(n, int) and not isinstance(n, bool) for n in numbers):
        raise ModelError(f"{where} has layers_to_transform={shown(layers)}; expected a layer's number or a list of them")
    for name in ("layers_to_transform", "layers_pattern"):
        if isinstance(settings["target_modules"], str) and settings.get(name) is not None:
            raise ModelError(f"{where} has {name}={shown(settings[name])} and a target_modules that is no list, which PEFT refuses")
    if layers is None and settings.get("layers_pattern"):
        raise ModelError(f"{where} has layers_pattern={shown(settings['layers_pattern'])} without layers_to_transform, which PEFT refuses")


def _is_rank(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_alpha(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e30


def _check_pattern(name: str, pattern, accepts, where: str) -> None:
    if pattern is None or pattern == {}:
        return
    if not isinstance(pattern, Mapping) or not all(map(accepts, pattern.values())):
        kind = "whole numbers of at least 1" if accepts is _is_rank else "numbers"
        raise ModelError(f"{where} has {name}={shown(pattern)}; expected patterns of module names with {kind}")
    for key in pattern:
        try:
            re.compile(key)
        except (re.error, RecursionError, OverflowError) as error:
            raise ModelError(f"{where} has {name}={shown(pattern)}, in which {key!r} is no regular expression ({error})") from None


def shown(value) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


# ---- each module's rank and scale


def module_rank(settings: Mapping, module: str) -> int:
    return _of_pattern(settings.get("rank_pattern"), module, settings["r"])


def module_alpha(settings: Mapping, module: str) -> float:
    return _of_pattern(settings.get("alpha_pattern"), module, settings["lora_alpha"])


def module_scale(settings: Mapping, module: str) -> float:
    rank = module_rank(settings, module)
    return module_alpha(settings, module) / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _of_pattern(pattern: Mapping | None, module: str, otherwise):
    """The value of the first key that fits the module's name, as PEFT's get_pattern_key finds it."""
    return next((value for key, value in (pattern or {}).items() if re.match(rf"(.*\.)?({key})$", module)), otherwise)


# ---- which modules


def is_target(settings: Mapping, module: str) -> bool:
    """Whether PEFT adapts the module of this name, as in its own check_target_module_exists."""
    excluded, targets = settings.get("exclude_modules"), settings["target_modules"]
    if excluded and (re.fullmatch(excluded, module) if isinstance(excluded, str) else _among(excluded, module)):
        return False
    if isinstance(targets, str):
        if targets.lower() == "all-linear":
            return not module.endswith(("lm_head", "embed_tokens", "wte", "wpe"))
        return re.fullmatch(targets, module) is not None
    if module in targets:
        return True
    return _among(targets, module) and _in_layers(settings, module)


def _among(names: Iterable[str], module: str) -> bool:
    return any(module == name or module.endswith(f".{name}") for name in names)


def _in_layers(settings, module) -> bool:
    layers, patterns = settings.get("layers_to_transform"), settings.get("layers_pattern")
    if layers is None or layers == []:
        return True
    if not patterns:
        match = re.match(r".*?\.[^.]*\.(?P<idx>\d+)\.", module)
    else:
        found = (
            re.match(rf"(?:^|.*?\.){pattern}\.(?P<idx>\d+)\.", module)
            for pattern in ([patterns] if isinstance(patterns, str) else patterns)
        )
        match = next(filter(None, found), None)
    return match is not None and int(match["idx"]) in (layers if isinstance(layers, list) else [layers])


def model_modules(config) -> list[str]:
    """Every module of this model that PEFT could adapt: the linears, the embeddings, the head."""
    linears = [peft_name(config, layer, part) for layer in range(config.layers) for part in linear_shapes(config, layer)]
    return linears + [hf_module(config, name) for name in ("embed", "positions", "head") if name in FAMILIES[config.family].hf_modules]


def check_targets(settings: Mapping, found: Iterable[str], candidates: Iterable[str], where: str) -> None:
    """Raise ModelError unless PEFT, told of ``candidates``, adapts just the modules ``found`` in the file.

    PEFT leaves tensors of other modules unread, and draws those that the file lacks at random.
    """
    found = set(found)
    for module in sorted(found):
        if not is_target(settings, module):
            raise ModelError(
                f"{where} has tensors of {module}, which its target_modules={shown(settings['target_modules'])}, "
                "exclude_modules and layers_to_transform leave out"
            )
    for module in candidates:
        if module not in found and is_target(settings, module):
            raise ModelError(f"{where} has no tensors of {module}, which its target_modules={shown(settings['target_modules'])} names")
