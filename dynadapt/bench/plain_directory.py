"""A model as transformers reads it, for the providers that are made of it."""

from __future__ import annotations

from pathlib import Path


def plain_directory(model: str, work: Path) -> str:
    """A Hugging Face directory with the model's numbers: its own, or one made in `work`, in float32, of a file, or of an adapter and
    its base."""
    import torch

    from dynadapt.model import load
    from dynadapt.model.adapter_model import is_adapter
    from dynadapt.model.convert import write_directory
    from dynadapt.model.load import place_of

    place = place_of(model)
    if place is not None and (place / "config.json").is_file() and not is_adapter(place):
        return str(place)
    write_directory(load(model), work / "model", torch.float32)
    return str(work / "model")
