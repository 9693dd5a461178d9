"""Mixers: rules that set the weights of training domains. mixer.py has the interface; each rule is one file that cites its source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dynadapt.common.named import check_named

from .ado import ADO
from .doremi import DoReMi, excess
from .dynamic_loading import DynamicBatchLoading
from .fixed import Fixed
from .mixer import Mixer, MixerError, Shaping
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
    check_named("mixer", MIXERS, name, settings, MixerError, also=("shaping",))
    return MIXERS[name](domains, initial, shaping=shaping, **settings)
