"""Settings of the papers, and one small one.

garg-*: Garg et al., arXiv 2208.01066, dtsip/in-context-learning src/conf at 3383371: Adam at 1e-4, no decay, clipping or
warm-up, batches of 64 fresh prompts; dimensions 5 to 20, one more every 2,000 steps, and points 11 to 41, two more (the classes
of 101 points: 26 to 101, five more). 202 positions. garg-tiny is no configuration of theirs: it puts the sizes of their smallest model
(models/tiny) on the data of their conf/toy (5 dimensions, 11 points, 5,001 steps, no curriculum), which trains the standard one. raventos: Raventós et al., arXiv 2306.15063, mansheej/icl-task-diversity: noisy linear functions of 8 dimensions, 16
points, Adam up to 1e-3 and down again. The pool of tasks, which their experiments vary, is a setting of the class (--classes
noisy-linear:noise=0.5,pool=1024). demo: ours, found by trial for two CPU cores; docs/icl.md says how.
"""

from __future__ import annotations

from dataclasses import replace

from .checks import IclError
from .config import TrainConfig

_GARG = dict(classes=("dense-linear",), positions=202, batch=64, lr=1e-4)
_CURRICULUM = dict(dims=20, dims_start=5, points=41, points_start=11, points_step=2, steps=500_000)
_DEMO = dict(batch=64, steps=25_000, lr=2e-3, schedule="cosine", warmup=625, clip=1.0)
_RAVENTOS = dict(classes=("noisy-linear:noise=0.5",), batch=256, steps=500_000, lr=1e-3, schedule="triangle", warmup=250_000)

_ALL = (
    TrainConfig("demo", **_DEMO, dims=2, points=6, layers=4, hidden=64, heads=2, positions=20),
    TrainConfig("garg-tiny", **_GARG, dims=5, points=11, layers=3, hidden=64, heads=2, steps=5000),
    TrainConfig("garg-small", **_GARG, **_CURRICULUM, layers=6, hidden=128, heads=4),
    TrainConfig("garg-standard", **_GARG, **_CURRICULUM, layers=12, hidden=256, heads=8),
    TrainConfig("raventos", **_RAVENTOS, dims=8, points=16, layers=8, hidden=128, heads=2, positions=32),
)
PRESETS: dict[str, TrainConfig] = {config.preset: config for config in _ALL}


def from_preset(name: str, **changes) -> TrainConfig:
    """The preset with other values for some settings; None changes nothing. With other steps and no warm-up given, the warm-up
    keeps its share of them. IclError for a name that doesn't exist."""
    if name not in PRESETS:
        raise IclError(f"preset {name!r}: give one of {', '.join(PRESETS)}")
    preset, changes = PRESETS[name], {key: value for key, value in changes.items() if value is not None}
    if isinstance(changes.get("steps"), int):
        changes.setdefault("warmup", preset.warmup * changes["steps"] // preset.steps)
    return replace(preset, **changes)
