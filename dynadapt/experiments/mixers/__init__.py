"""Mixers: rules that set the weights of training domains. base.py has the interface; each rule is one file that cites its source."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence

from .ado import ADO
from .base import Mixer, MixerError, Shaping
from .doremi import DoReMi, excess
from .dynamic_loading import DynamicBatchLoading
from .fixed import Fixed
from .odm import ODM
from .proportional import Proportional, proportions
from .replay import Replay, static_weights_of
from .skillit import SkillIt
from .stratified import Stratified
from .supply import Exhausted, Supply
from .velocitune import Velocitune

MIXERS: dict[str, type[Mixer]] = {
    mixer.name: mixer for mixer in (Velocitune, DoReMi, DynamicBatchLoading, ODM, ADO, SkillIt, Stratified, Proportional, Fixed, Replay)
}

__all__ = [
    "MIXERS",
    "ADO",
    "DoReMi",
    "DynamicBatchLoading",
    "Exhausted",
    "Fixed",
    "Mixer",
    "MixerError",
    "ODM",
    "Proportional",
    "Replay",
    "Shaping",
    "SkillIt",
    "Stratified",
    "Supply",
    "Velocitune",
    "excess",
    "make_mixer",
    "proportions",
    "static_weights_of",
]


def make_mixer(name: str, domains: Sequence[str], initial: Mapping[str, float], shaping: Shaping = Shaping(), **settings) -> Mixer:
    """The mixer of this name with its own settings. MixerError for a name or a setting that doesn't exist, or one that is missing."""
    if name not in MIXERS:
        raise MixerError(f"mixer {name!r}: give one of {', '.join(MIXERS)}")
    accepted = {
        key: parameter
        for key, parameter in inspect.signature(MIXERS[name]).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and key != "shaping"
    }
    for key in settings:
        if key not in accepted:
            raise MixerError(f"mixer {name!r}: unknown setting {key!r}; it has {', '.join(accepted) or 'none'}")
    for key, parameter in accepted.items():
        if parameter.default is parameter.empty and key not in settings:
            raise MixerError(f"mixer {name!r}: setting {key!r} is missing")
    return MIXERS[name](domains, initial, shaping=shaping, **settings)
