"""Which setting to score a text with: `tune` finds it out within some minutes.

    from dynadapt.experiments.tune import tune
    found = tune(EvalConfig(text=("novel.txt",)), minutes=5, out="runs/tuned")
    found.command, found.gain_nats, found.interval, found.minutes
"""

from dynadapt.experiments.tune.driver import tune
from dynadapt.experiments.tune.recommendation import Recommendation

__all__ = ["Recommendation", "tune"]
