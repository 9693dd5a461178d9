"""Which linears of a model learn, by layer and group: what ``targets``, ``layers`` and the patterns of methods.py come to."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from dynadapt.model import ModelConfig, layout, peft_name
from dynadapt.model.family import FAMILIES
from dynadapt.model.layout import group_parts, tensor_shapes

from .methods import EMBED, GROUPS, HEAD, PLACES, TARGETS, LoRA, alpha_of, learns_beside, whole_model, words_beside

PLACE_OF_EMBED = (-1, EMBED)
Key = tuple[int, str]


def targeted(adapt, config: ModelConfig) -> list[Key]:
    """(layer, group) pairs of which something learns, in forward order.

    Raises:
        ValueError: for layers, names or patterns that the model does not have.
    """
    if isinstance(adapt, LoRA):
        return list(adapted_parts(adapt, config))
    if isinstance(adapt, tuple):  # of each stream: of which any learns
        return sorted({key for one in set(adapt) for key in targeted(one, config)}, key=lambda key: (key[0], GROUPS.index(key[1])))
    if learns_beside(adapt):
        return []
    return [] if adapt is None else [(i, group) for i in _span(adapt, config) for group in GROUPS if group in TARGETS[adapt.targets]]


def adapted_parts(adapt: LoRA, config: ModelConfig) -> dict[Key, list[tuple[int, float]]]:
    """{(layer, group): (rank, alpha) of each part of the group, rank 0 for one that has no adapter}, in forward order. The embedding
    is (-1, "embed") and the head (config.layers, "head"), whatever ``layers`` says.

    Raises:
        ValueError: for layers, names or patterns that the model does not have.
    """
    span = _span(adapt, config)
    linears = [(*PLACE_OF_EMBED, EMBED)]
    linears += [(i, group, part) for i in span for group, parts in layout(config, i).items() for part in parts]
    linears.append((config.layers, HEAD, HEAD))
    chosen = {linear for linear in linears if _is_target(adapt.targets, *linear[1:], peft_name(config, linear[0], linear[2]))}
    _check_names(adapt, config, linears, chosen)
    found: dict[Key, list[tuple[int, float]]] = {}
    for i, group, part in linears:
        module = peft_name(config, i, part)
        rank, alpha = 0, alpha_of(adapt.rank, adapt.alpha)
        if (i, group, part) in chosen:
            rank = _first(adapt.rank_pattern, part, module, adapt.rank)
            alpha = float(_first(adapt.alpha_pattern, part, module, alpha))
        found.setdefault((i, group), []).append((rank, alpha))
    return {key: parts for key, parts in found.items() if any(rank for rank, _ in parts)}


def norms_and_biases(adapt, config: ModelConfig) -> dict[str, Key]:
    """{canonical name: (layer, one of PLACES) whose gradient its own is made of} of what ``Full(targets="norms")`` and ``"biases"``, or
    ``LoRA(also=...)``, name. The final norm's layer is config.layers.

    Raises:
        ValueError: for layers that the model does not have, and where it has no such tensors or only some parts of a group have them.
    """
    words, span = words_beside(adapt), _span(adapt, config)
    found: dict[str, Key] = {}
    for name in tensor_shapes(config):
        *where, module, kind = name.split(".")
        if not ("norms" in words and module.endswith("norm") or "biases" in words and kind == "bias"):
            continue
        if where and int(where[1]) in span:
            found[name] = int(where[1]), _place(config, int(where[1]), module)
        elif not where and adapt.layers is None:
            found[name] = config.layers, module
    for word, there_is in (("norms", "norm.weight"), ("biases", ".bias")):
        if word in words and not any(name.endswith(there_is) for name in found):
            there = f" in layers {span.start}:{span.stop}" if adapt.layers is not None else ""
            raise ValueError(f"adapt={adapt!r}: {config.family} has no {word}{there}; expected norms, or a model that has {word}")
    _check_whole_groups(adapt, config, found)
    return found


def _place(config: ModelConfig, layer: int, module: str) -> str:
    if module in PLACES:
        return module
    behind = {"attn_post_norm": "o", "mlp_post_norm": "down", "q_norm": "qkv", "k_norm": "qkv", "delta_norm": "qkv"}
    return behind.get(module) or next(group for group, parts in layout(config, layer).items() if module in parts)


def _check_whole_groups(adapt, config: ModelConfig, found: Mapping[str, Key]) -> None:
    for layer, group in {key for name, key in found.items() if name.endswith(".bias") and key[1] in GROUPS}:
        parts = layout(config, layer)[group]
        lacking = [part for part in parts if f"layers.{layer}.{part}.bias" not in found]
        if lacking and len(lacking) < len(parts):
            raise ValueError(
                f"adapt={adapt!r}: {config.family} has biases on some of the linears of layer {layer}, {group}, and none on "
                f"{', '.join(lacking)}; expected all or none of them"
            )


def lowest(adapt, config: ModelConfig) -> Key | None:
    """(layer, place) down to which a backward goes: (-1, "embed") all the way, None where nothing learns."""
    if whole_model(adapt):
        return PLACE_OF_EMBED
    learning = targeted(adapt, config)
    if words_beside(adapt):
        learning += norms_and_biases(adapt, config).values()
        return min(learning, key=lambda key: (key[0], key[1] in PLACES and PLACES.index(key[1])))
    return learning[0] if learning else None


def rate_factors(adapt: LoRA, config: ModelConfig, parts: dict[Key, list[tuple[int, float]]]) -> dict[Key, list[float]]:
    """The factor of the learning rate of each part of ``parts``, which ``adapted_parts`` gave: that of A; B's is ``adapt.b_rate`` times it."""
    factor = lambda i, part: float(_first(adapt.rate_pattern, part, peft_name(config, i, part), 1.0))  # noqa: E731
    return {(i, group): [factor(i, part) for part in group_parts(config, i, group)] for i, group in parts}


def _span(adapt, config: ModelConfig) -> range:
    span = adapt.layers if adapt.layers is not None else range(config.layers)
    if span.stop > config.layers:
        raise ValueError(f"layers={span.start}:{span.stop}: the model has layers 0:{config.layers}")
    return span


def _is_target(targets: str | tuple[str, ...], group: str, part: str, module: str) -> bool:
    if not isinstance(targets, str):
        return any(_is_named(name, part, module) for name in targets)
    return group in TARGETS[targets] if targets in TARGETS else re.fullmatch(targets, module) is not None


def _is_named(name: str, part: str, module: str) -> bool:
    return name == part or module == name or module.endswith(f".{name}")


def _fits(pattern: str, part: str, module: str) -> bool:
    """As PEFT's get_pattern_key finds it, or the linear's own name."""
    return pattern == part or re.match(rf"(.*\.)?({pattern})$", module) is not None


def _first(pattern: Iterable[tuple[str, float]], part: str, module: str, otherwise):
    return next((value for key, value in pattern if _fits(key, part, module)), otherwise)


def _check_names(adapt: LoRA, config: ModelConfig, linears, chosen) -> None:
    """Every name and pattern is of something that is there."""
    there = f"the linears of {config.family} are {', '.join(dict.fromkeys(part for *_, part in linears))} ({_endings(config, linears)})"
    if not isinstance(adapt.targets, str):
        for name in adapt.targets:
            if not any(_is_named(name, part, peft_name(config, i, part)) for i, _, part in linears):
                raise ValueError(f"targets has {name!r}, which names no linear: {there}")
    elif adapt.targets not in TARGETS and (positions := FAMILIES[config.family].hf_modules.get("positions")):
        if re.fullmatch(adapt.targets, positions):
            raise ValueError(f"targets={adapt.targets!r} matches {positions}, which has no adapter: {there}")
    if not chosen:
        raise ValueError(f"targets={adapt.targets!r} matches no linear: {there}")
    for name in ("rank_pattern", "alpha_pattern", "rate_pattern"):
        for key, _ in getattr(adapt, name):
            if not any(_fits(key, part, peft_name(config, i, part)) for i, _, part in chosen):
                raise ValueError(f"{name} has {key!r}, which fits no linear that learns: {there}")


def _endings(config: ModelConfig, linears) -> str:
    """PEFT's names of the linears, as they end in every layer."""
    first = linears[1]  # behind the embedding
    prefix = peft_name(config, *first[::2]).split(f".{first[0]}.")[0]
    modules = (peft_name(config, i, part).removeprefix(f"{prefix}.{i}.") for i, _, part in linears)  # around the layers whole
    return ", ".join(dict.fromkeys(modules))


def may_adapt_around(adapt) -> tuple[str, ...]:
    """Which of the head and the embedding ``adapt`` targets in some family: known before the model is."""
    if not isinstance(adapt, LoRA):
        return ()
    modules = {name: {family.hf_modules[name] for family in FAMILIES.values()} for name in (HEAD, EMBED)}
    return tuple(name for name, own in modules.items() if any(_is_target(adapt.targets, name, name, module) for module in own))
