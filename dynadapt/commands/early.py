"""What can be refused before torch is loaded: names of models, texts and runs that are not there."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from dynadapt.common.errors import ConfigError, meant
from dynadapt.runs.whole_files import RunError

MODELS = ("smollm2-135m", "gemma3-270m")  # dynadapt.model.fetch.KNOWN, by name


def check_model(name: str) -> None:
    """Refuses a word, or a path from /, . or ~, that is no known model, file or directory. ORGANISATION/NAME is left to who loads it."""
    if name not in MODELS and ("/" not in name or name[0] in "/.~") and not Path(name).expanduser().exists():
        raise ConfigError(
            f"model = {name!r} does not exist; accepted: {', '.join(MODELS)}, a model directory, a .gguf file, a .safetensors "
            f"file{meant(name, MODELS)}"
        )


def check_files(texts: Iterable[str]) -> None:
    """Refuses a text that is nothing that is there."""
    from dynadapt.runs.texts import TextError
    from dynadapt.runs.texts.expanding import stands_for_something

    for text in texts:
        if not stands_for_something(text):
            raise TextError(f"text {text!r}: no such file")


def check_run(path: str | Path, what: str = "no such run directory") -> None:
    if not Path(path).exists():
        raise RunError(f"{path}: {what}")
