"""Models of the Hugging Face hub that are on this disk already: found as its own tools leave them, without them and without a network.

The cache has a directory ``models--ORG--NAME`` a model: ``refs/REVISION`` holds a commit, ``snapshots/COMMIT`` its files, as links
into ``blobs``.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from .errors import ModelError

_ID = re.compile(r"(?P<repo>(?:[A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[\w.][\w./-]*))?", re.ASCII)


def hub_directory() -> Path:
    """Where the hub's tools keep models: $HF_HUB_CACHE, $HF_HOME/hub, or ~/.cache/huggingface/hub."""
    for variable, below in (("HF_HUB_CACHE", ""), ("HUGGINGFACE_HUB_CACHE", ""), ("HF_HOME", "hub"), ("XDG_CACHE_HOME", "huggingface/hub")):
        if given := os.environ.get(variable):
            return Path(os.path.expandvars(given)).expanduser() / below
    return Path(os.path.expanduser("~")) / ".cache" / "huggingface" / "hub"


def parse_id(text: str) -> tuple[str, str] | None:
    """(ORG/NAME, revision) of "ORG/NAME" or "ORG/NAME@REVISION"; None for what can't be an id."""
    match = _ID.fullmatch(text)
    if match is None or ".." in text or "--" in text or match["repo"].endswith((".", "-")):
        return None
    return match["repo"], match["revision"] or "main"


def fetch_line(text: str) -> str:
    """The command that brings an id's files into the cache."""
    repo, revision = parse_id(text)
    return f"hf download {repo}" + ("" if revision == "main" else f" --revision {revision}")


def hub_models() -> list[str]:
    """Ids of the models in the cache, whole or not."""
    root = hub_directory()
    try:
        names = sorted(entry.name for entry in root.iterdir() if entry.name.startswith("models--") and (entry / "snapshots").is_dir())
    except OSError:
        return []
    return [name.removeprefix("models--").replace("--", "/") for name in names]


def hub_snapshot(text: str) -> Path | None:
    """The directory of an id's files, or None if the cache has no such model.

    Raises:
        ModelError: the model is there, but not this revision of it, or not wholly; with the line that fetches it.
    """
    if (parsed := parse_id(text)) is None:
        return None
    repo, revision = parsed
    home = hub_directory() / ("models--" + repo.replace("/", "--"))
    if not (home / "snapshots").is_dir():
        return None
    snapshot = home / "snapshots" / _commit(home, revision)
    if not snapshot.is_dir():
        known = sorted({*(entry.name for entry in (home / "refs").glob("*")), *(entry.name for entry in (home / "snapshots").glob("*"))})
        have = f"it has {', '.join(known)} (given as {repo}@REVISION)" if known else "it has none"
        raise ModelError(
            f"model {text!r}: revision {revision} is not in the Hugging Face cache {home}; {have}. Fetch it with: {fetch_line(text)}"
        )
    _check_whole(text, home, snapshot)
    return snapshot


def _commit(home: Path, revision: str) -> str:
    try:
        return (home / "refs" / revision).read_text(encoding="utf-8").strip() or revision
    except (OSError, ValueError):
        return revision


def _check_whole(text: str, home: Path, snapshot: Path) -> None:
    """Links must lead to files, and there must be a config. That the weights are all there is for their loader to say."""
    dangling = sorted(entry.name for entry in snapshot.iterdir() if entry.is_symlink() and not entry.exists())
    missing = f"{dangling[0]} leads nowhere" if dangling else "" if (snapshot / "config.json").is_file() else "it has no config.json"
    if any((snapshot / name).is_file() for name in ("adapter_config.json",)) or any(snapshot.glob("*.gguf")):
        missing = missing if dangling else ""
    if missing:
        part = any((home / "blobs").glob("*.incomplete"))
        raise ModelError(
            f"model {text!r} is in the Hugging Face cache ({snapshot}), but not wholly: {missing}"
            f"{' (a download was broken off)' if part else ''}. Fetch the rest with: {fetch_line(text)}"
        )
