"""The model that is timed, as peers read one."""

from __future__ import annotations

from pathlib import Path


def peer_directory(model: str, work: Path) -> str:
    """A Hugging Face directory with the model's numbers: its own, or one made in ``work`` of a file, in float32."""
    import torch

    from dynadapt.model import load
    from dynadapt.model.convert import write_directory
    from dynadapt.model.load import directory_of

    own = directory_of(model)
    if own is not None and own.is_dir() and (own / "config.json").is_file():
        return str(own)
    write_directory(load(model), work / "model", torch.float32)
    return str(work / "model")
