"""The model of an evaluation, by the name that its configuration gives."""

from __future__ import annotations

from pathlib import Path

from dynadapt.runs.rundir import RunError

from .config import EvalConfig


def load(name: str):
    import dynadapt.model

    return dynadapt.model.load(name)


def checked(config: EvalConfig, model):
    model.check_finite()
    if model.tokenizer is None:
        raise RunError(
            f"model {config.model!r} has no tokenizer; put its tokenizer.json next to the weights (of a live model, give tokenizer), or take a GGUF file that holds "
            f"one{_or_fetched(config.model)}"
        )
    return model


def _or_fetched(name: str) -> str:
    from dynadapt.model.hub_cache import fetch_line, parse_id

    return f", or fetch it with: {fetch_line(name)}" if "/" in name and not Path(name).exists() and parse_id(name) else ""
