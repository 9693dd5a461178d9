"""Which setting to score a text with: `tune` finds it out within some minutes.

    from dynadapt.experiments.tune import tune
    found = tune(EvalConfig(text=("novel.txt",)), minutes=5, out="runs/tuned")
    found.command, found.gain_nats, found.interval, found.minutes

Torch is loaded when they are asked for, so that refusals come without it.
"""

from dynadapt.common.lazy import lazily

__all__ = ["Recommendation", "tune"]
__getattr__ = lazily(__name__, {"tune": "driver", "Recommendation": "recommendation"})
