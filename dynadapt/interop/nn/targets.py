"""Which linear layers of a model an adapter is put on."""

from __future__ import annotations

import re
import sys

import torch

from dynadapt.common.checks import sequence, shown, wrong

from .lora_linear import LoRAConv1D, LoRALinear

WORDS = {"attn": ("attn", "attention"), "mlp": ("mlp", "ffn", "feed_forward", "fc1", "fc2")}  # parts of names, as architectures have them
EXPECTED = '"all", "attn", "mlp", a list of module-name endings, or a regular expression that whole names match'


def adapter_class(module) -> type[LoRALinear] | None:
    """What replaces a module, by its class; None for what is no linear layer."""
    library = sys.modules.get("transformers.pytorch_utils")
    if library is not None and isinstance(module, library.Conv1D):
        return LoRAConv1D
    return LoRALinear if isinstance(module, torch.nn.Linear) else None


def targeted(model: torch.nn.Module, targets, head: torch.nn.Module | None) -> dict[str, torch.nn.Module]:
    """{name: module} of the linear layers that ``targets`` names; ``head`` is left out unless it is named.

    Raises:
        ValueError: where it, or one element of it, matches nothing or something that is no linear layer, naming what there is.
    """
    linears = {name: m for name, m in model.named_modules(remove_duplicate=False) if adapter_class(m) is not None}
    inner = {name: m for name, m in linears.items() if m is not head}
    if isinstance(targets, str):
        if targets == "all":
            found = inner
        elif targets in WORDS:
            found = {name: m for name, m in inner.items() if _part_of(name, WORDS[targets])}
        else:
            found = _by_expression(model, linears, targets)
    else:
        found = {}
        endings = sequence("targets", targets, EXPECTED)
        for ending in endings:
            if not isinstance(ending, str) or not ending:
                raise wrong("targets", targets, EXPECTED)
            found.update(
                _linear(
                    model,
                    linears,
                    [name for name, _ in model.named_modules(remove_duplicate=False) if name == ending or name.endswith("." + ending)],
                    targets,
                    ending,
                )
            )
    if not found:
        raise ValueError(f"targets={shown(targets)} matches no linear layer; there are {_there_are(linears)}")
    return {name: found[name] for name in linears if name in found}


def _part_of(name: str, words) -> bool:
    return any(word in part.lower() for part in name.split(".") for word in words)


def _by_expression(model, linears, expression: str) -> dict:
    try:
        names = [name for name, _ in model.named_modules(remove_duplicate=False) if name and re.fullmatch(expression, name)]
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"targets={expression!r} is no regular expression ({error}): expected {EXPECTED}") from None
    hint = (
        f"; for all modules whose name ends so give [{expression!r}]" if any(name.split(".")[-1] == expression for name in linears) else ""
    )
    return _linear(model, linears, names, expression, expression, hint)


def _linear(model, linears, names, targets, one, hint="") -> dict:
    if not names:
        which = "" if targets == one else f": {one!r}"
        raise ValueError(f"targets={shown(targets)}{which} matches no module{hint}; the linear layers are {_there_are(linears)}")
    for name in names:
        if name not in linears:
            module = model.get_submodule(name)
            raise ValueError(
                f"targets={shown(targets)} names {name}, a {type(module).__name__}: expected linear layers; there are {_there_are(linears)}"
            )
    return {name: linears[name] for name in names}


def _there_are(linears) -> str:
    """Names without the numbers of their layers, each once."""
    kinds = dict.fromkeys(re.sub(r"\.\d+(?=\.|$)", ".*", name) for name in linears)
    return ", ".join(kinds) if kinds else "none"


def endings(chosen, candidates) -> list[str]:
    """The shortest endings of names that tell ``chosen`` from the other ``candidates``: PEFT's target_modules."""
    chosen, others = list(chosen), set(candidates) - set(chosen)
    found: set[str] = set()
    for name in chosen:
        parts = name.split(".")
        ends = (".".join(parts[-n:]) for n in range(1, len(parts) + 1))
        fits = lambda end: not any(other == end or other.endswith("." + end) for other in others)  # noqa: E731
        if not any(name == end or name.endswith("." + end) for end in found):
            found.add(next(filter(fits, ends), name))
    return sorted(found)
