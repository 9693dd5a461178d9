"""Which setting to score a text with: `tune` finds it out within some minutes.

    from dynadapt.experiments.tune import tune
    found = tune(EvalConfig(text=("novel.txt",)), minutes=5, out="runs/tuned")
    found.command, found.gain_nats, found.interval, found.minutes

Torch is loaded when they are asked for, so that refusals come without it.
"""

__all__ = ["Recommendation", "tune"]


def __getattr__(name: str):
    if name == "tune":
        from .driver import tune

        return tune
    if name == "Recommendation":
        from .recommendation import Recommendation

        return Recommendation
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
