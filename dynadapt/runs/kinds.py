"""Which command made a run, what it did in few words, and the one number it is about: from its configuration and summary alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from .whole_files import finite_number

KINDS = ("eval", "reweight", "icl", "diagnose", "advise")
MARKS = {  # kind -> keys that the configurations of this kind alone have together
    "reweight": ("mixer", "domains"),
    "icl": ("classes", "points", "steps"),
    "advise": ("advise", "windows"),
    "diagnose": ("text", "adapt", "after", "control"),
    "eval": ("text", "adapt", "segment", "model"),
}


def kind_of(config) -> str | None:
    """One of KINDS, or None for what no command of this package wrote (a model's config.json, for example)."""
    if not isinstance(config, Mapping):
        return None
    if config.get("kind") in KINDS:
        return config["kind"]
    return next((kind for kind, keys in MARKS.items() if all(key in config for key in keys)), None)


def learns(config: Mapping) -> str:
    """static, LoRA r16, 10% of rows or full; at how many rates, whether it is guarded, its levels, from what part, and whether the prior is kept."""
    adapt = config.get("adapt")
    rates = f" at {len(str(config['rates']).split(','))} rates" if config.get("rates") and adapt != "none" else ""
    guard = " with a guard" if config.get("guard") and adapt != "none" else ""
    what = {"none": "static", "lora": f"LoRA r{config.get('rank')}", "rows": f"{config.get('density') or 0:.0%} of rows"}.get(
        adapt, str(adapt)
    )
    levels = f", levels {config['levels']}" if config.get("levels") else ""
    part = f" from {config['learn_from']}" if config.get("learn_from") and adapt != "none" else ""
    kept = ", keeping the prior" if config.get("keep_prior") and adapt != "none" else ""
    return what + rates + guard + levels + part + kept


def remembers(config: Mapping) -> list[str]:
    return [f"{word} {config[key]}" for key, word in (("memory", "memory"), ("context", "overlap")) if config.get(key)]


def names_of(texts) -> str:
    """Texts by their file names: the first, and how many more."""
    texts = [texts] if isinstance(texts, str) else list(texts or [])
    if not texts:
        return "no text"
    first = Path(str(texts[0]).removeprefix("builtin:")).name or str(texts[0])
    return first + (f" +{len(texts) - 1}" if len(texts) > 1 else "")


def what(kind: str, config: Mapping) -> str:
    """What a run computes, in few words."""
    if kind == "reweight":
        domains = config.get("domains") or ()
        of = f"{len(domains)} domain{'s' * (len(domains) != 1)}" if domains else f"corpus {Path(str(config.get('corpus'))).name}"
        return f"{config['mixer']} on {of}"
    if kind == "icl":
        preset = config.get("preset") or "custom"
        return f"{preset}, {config.get('layers')}x{config.get('hidden')}, {config.get('dims')} dims"
    if kind == "diagnose":
        after = config.get("after")
        return f"{Path(str(after)).name if after else 'what it learns'} on {names_of(config.get('text'))}"
    if kind == "advise":
        return f"whether to adapt to {names_of(config.get('advise'))}"
    return f"{', '.join([learns(config), *remembers(config)])} on {names_of(config.get('text'))}"


def headline(kind: str, summary: Mapping) -> tuple[str, float | None, str]:
    """(name, value, unit) of the number that a run of this kind is about; the value is None where it is not known or not finite.

    eval: NLL. reweight: mean over domains of the held-out NLL. icl: normalised squared error of the last training steps. diagnose:
    change from the model before to the one after. advise: expected change.
    """
    last = summary.get("last") if isinstance(summary.get("last"), Mapping) else {}
    name, value, unit = {
        "eval": ("NLL", summary.get("nll"), "nats/token"),
        "reweight": ("held-out", summary.get("mean"), "nats/token"),
        "icl": ("error", last.get("error"), "of predicting zero"),
        "diagnose": ("change", summary.get("change"), "nats/token"),
        "advise": ("expected", summary.get("expected_change"), "nats/token"),
    }[kind]
    known = finite_number(value)
    return name, None if known is None else float(known), unit
