"""Which of ``Engine``'s settings don't go together, refused by name; ``settings_for_model`` has what depends on the model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dynadapt.adapt.methods import has_lengths, learns_beside
from dynadapt.adapt.reset_policy import Alarm
from dynadapt.common.checks import choice
from dynadapt.common.update_rule import KINDS
from dynadapt.ops.update import kinds_of

if TYPE_CHECKING:
    from .settings import EngineSettings

BASES = ("same", "float8", "int8", "quants")


def check_kind(settings: EngineSettings) -> None:
    """Raises ValueError for an optimizer that the backend's update does not know."""
    if not settings.learns:
        return
    known = kinds_of(settings.backend)
    for way in settings.ways:
        kind = way.optimizer.kind
        if kind not in known and not (kind in KINDS and KINDS[kind].prepared in known):
            raise ValueError(
                f"optimizer={way.optimizer!r} with backend={settings.backend!r}: its update knows {', '.join(known)}, not {kind}"
            )


def check_alarm(settings: EngineSettings, alarm: Alarm) -> None:
    if settings.guard is None:
        raise ValueError(f"reset={alarm!r} with guard=None: there is no prior's score to raise an alarm by; give guard, or reset='auto'")
    if settings.apart and (alarm.back < 1 or alarm.ring):
        raise ValueError(
            f"reset={alarm!r} with adapt={settings.adapt!r}: only adapters go part of the way back or to a copy of what was learned; use "
            "LoRA, or back=1 and ring=0"
        )


def check_slow(settings: EngineSettings) -> None:
    """Raises ValueError for what a slow level does not go with."""
    if settings.slow is None:
        return
    found = {
        "guard": (
            settings.guard,
            settings.guard is not None,
            "the prior that it scores would need the weights as they were kept once more",
        ),
        "shared": (settings.shared, settings.shared, "one set of weights learns from all rows already"),
        "base": (settings.base, settings.base != "same", "what the slow level learns is added to weights as floats; use base='same'"),
        "static": (settings.static, bool(settings.static), "a recorded step reads weights at one address; use static=False"),
        "device": (str(settings.device), settings.device.type != "cpu", "its updates are the CPU's so far; use device='cpu'"),
        "adapt": (
            settings.adapt,
            settings.apart,
            "the fast level would learn on the same weights, or is more than adapters; use LoRA(...) or None",
        ),
    }
    for name, (value, refused, why) in found.items():
        if refused:
            raise ValueError(f"{name}={value!r} with slow={settings.slow!r}: {why}")


def check_keep(settings: EngineSettings) -> None:
    """Raises ValueError for what a pull to the prior does not go with."""
    if settings.keep is None:
        return
    found = {
        "adapt": (settings.adapt, not settings.learns, "nothing learns that could forget; give adapt, or no keep"),
        "optimizer": (
            settings.optimizer,
            len(settings.ways) > 1,
            "streams that learn in different ways have no update in common; give one way",
        ),
        "slow": (settings.slow, settings.slow is not None, "what streams read is then not what the prior was kept of; use slow=None"),
        "static": (settings.static, bool(settings.static), "a recorded step has one pass before its update; use static=False"),
    }
    for name, (value, refused, why) in found.items():
        if refused:
            raise ValueError(f"{name}={value!r} with keep={settings.keep!r}: {why}")


def check_dora(settings: EngineSettings) -> None:
    """Raises ValueError for what adapters with lengths of rows don't go with."""
    if not has_lengths(settings.adapt):
        return
    found = {
        "backend": (settings.backend, settings.backend == "triton", "it has no kernels for the lengths of rows; use backend='cpu'"),
        "base": (settings.base, settings.base != "same", "the lengths are those of weights as floats; use base='same'"),
        "slow": (
            settings.slow,
            settings.slow is not None,
            "the slow level would change the weights whose lengths are known; use slow=None",
        ),
    }
    for name, (value, refused, why) in found.items():
        if refused:
            raise ValueError(f"{name}={value!r} with adapt={settings.adapt!r}: {why}")


def check_base(settings: EngineSettings) -> None:
    choice("base", settings.base, BASES)
    if settings.base == "quants":
        _check_quants(settings)
    elif settings.base == "int8":
        _check_int8(settings)
    elif settings.base == "float8":
        _check_float8(settings)


def _check_int8(settings: EngineSettings) -> None:
    if settings.backend == "triton":
        raise ValueError("base='int8' with backend='triton': its kernels have no int8 products; use backend='cpu' or base='float8'")
    if settings.device.type != "cpu":
        raise ValueError(f"base='int8' with device={str(settings.device)!r}: its products are the CPU's; use device='cpu' or base='float8'")
    if settings.dtype == "fp64":
        raise ValueError("base='int8' with dtype='fp64': its products are summed in float32; use dtype='fp32' or 'bf16'")
    if settings.owns_weights and not learns_beside(settings.adapt):
        raise ValueError(f"base='int8' with adapt={settings.adapt!r}: weights in int8 don't learn; use adapt=LoRA(...), or base='same'")


def _check_float8(settings: EngineSettings) -> None:
    if settings.backend == "cpu":
        raise ValueError(
            "base='float8' with backend='cpu': the native kernels have no float8 products; use backend='triton' on a "
            "GPU, or backend='reference'"
        )
    if settings.dtype == "fp64" or settings.dtype != "bf16" and settings.device.type == "cuda":
        raise ValueError(
            f"base='float8' with dtype={settings.dtype!r}: on a GPU row-wise float8 products give bf16, on the CPU bf16 or fp32"
        )
    if settings.device.type == "cuda" and torch.cuda.get_device_capability(settings.device) < (8, 9):
        raise ValueError(
            f"base='float8' with device={str(settings.device)!r}: float8 products need compute capability 8.9, this GPU has "
            f"{'.'.join(map(str, torch.cuda.get_device_capability(settings.device)))}; use base='same'"
        )


def _check_quants(settings: EngineSettings) -> None:
    if settings.backend != "cpu":
        raise ValueError(
            f"base='quants' with backend={settings.backend!r}: the native kernels of backend='cpu' multiply with the blocks of a file; "
            "use base='same', whose values are the same"
        )
    if settings.owns_weights and not learns_beside(settings.adapt):
        raise ValueError(
            f"base='quants' with adapt={settings.adapt!r}: it changes the weights themselves, and blocks of integers can't hold what it "
            "learns; use adapt=LoRA(...), or base='same'"
        )
