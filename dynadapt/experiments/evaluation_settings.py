"""What ``Engine`` takes (LoRA(rank=4), Adam(lr=1e-3), SegmentMemory(512)) as settings of ``EvalConfig``, which runs record."""

from __future__ import annotations

from dataclasses import fields

from dynadapt.adapt import Full, Guard, LoRA, RowSparse
from dynadapt.adapt.methods import LATER
from dynadapt.adapt.optimizers import OPTIMIZERS
from dynadapt.common.checks import shown
from dynadapt.common.options import check_names
from dynadapt.engine.memory import Overlap, SegmentMemory

from .config import ConfigError, EvalConfig

ADAPTS = {"lora": LoRA, "rows": RowSparse, "full": Full}
GIVEN_OTHERWISE = ("model", "text")


def settings_from(settings: dict) -> dict:
    """Plain settings from settings that may be objects.

    Raises:
        ConfigError: a setting that there is none of, one that is given twice, or an object's field that no setting says.
    """
    check_names(EvalConfig, settings, without=GIVEN_OTHERWISE)
    plain = dict(settings)
    if "adapt" in plain:
        _replace(plain, "adapt", _adapt(plain["adapt"]))
    if "optimizer" in plain:
        _replace(plain, "optimizer", _optimizer(plain["optimizer"]))
    if "memory" in plain:
        _replace(plain, "memory", _memory(plain["memory"]))
    if isinstance(plain.get("guard"), Guard):
        _replace(plain, "guard", _guard(plain["guard"]))
    return plain


def _replace(plain: dict, name: str, said: dict) -> None:
    """``said`` in place of the setting ``name``; a setting beside the object that says it already must say the same."""
    given = plain.pop(name)
    for key, value in said.items():
        if key in plain and plain[key] != value:
            raise ConfigError(f"{key}={shown(plain[key])} with {name}={shown(given)}, which says {key}={shown(value)}: give one of them")
        plain[key] = value


def _kind(name: str, value, kinds: dict):
    """The word for a class or an instance, and the instance; a word stays one."""
    instance = value() if isinstance(value, type) and value in kinds.values() else value
    for word, kind in kinds.items():
        if type(instance) is kind:
            return word, instance
    if isinstance(value, str):
        return value, None
    raise ConfigError(
        f"{name}={shown(value)}: expected one of {', '.join(map(repr, kinds))}, or one of "
        f"{', '.join(kind.__name__ + '(...)' for kind in kinds.values())}"
    )


def _adapt(value) -> dict:
    if value is None:
        return {"adapt": "none"}
    word, adapt = _kind("adapt", value, ADAPTS)
    if adapt is None:
        return {"adapt": word}
    said = _fields("adapt", adapt, ("rank", "alpha", "density", "select", "targets", "layers", *LATER))
    said.update({name: said[name] or None for name in said if name.endswith("_pattern") or name == "also"})
    said["layers"] = None if adapt.layers is None else (adapt.layers.start, adapt.layers.stop)
    return {"adapt": word, **said}


def _optimizer(value) -> dict:
    word, optimizer = _kind("optimizer", value, OPTIMIZERS)
    return (
        {"optimizer": word}
        if optimizer is None or isinstance(value, type)
        else {"optimizer": word, **_fields("optimizer", optimizer, ("lr", "decay", "clip"))}
    )


def _guard(value: Guard) -> dict:
    every = _fields("guard", value, ("every",))["every"]
    return {"guard": "exact" if every == 1 else every}


def _memory(value) -> dict:
    if value is None:
        return {"memory": 0}
    if isinstance(value, SegmentMemory) and not value.length or isinstance(value, Overlap) and value.begin:
        raise ConfigError(f"memory={value!r}: what each segment begins with is said by bos; expected None, or Overlap(context) alone")
    if isinstance(value, SegmentMemory):
        return {"memory": value.length, **_fields("memory", value, ("sinks", "refresh"), ("length",))}
    if isinstance(value, Overlap):
        return {"memory": 0, "context": value.context}
    return {"memory": value}


def _fields(name: str, value, named: tuple[str, ...], also: tuple[str, ...] = ()) -> dict:
    """The fields that settings say; the others must have their defaults."""
    for field in fields(value):
        if field.name not in (*named, *also) and getattr(value, field.name) != field.default:
            raise ConfigError(
                f"{name}={shown(value)}: {field.name} is no setting of a run, and stays {field.default!r}; an Engine takes it"
            )
    return {field.name: getattr(value, field.name) for field in fields(value) if field.name in named}
