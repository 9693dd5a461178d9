"""Where things that can be made again are kept: $DYNADAPT_CACHE, or ~/.cache/dynadapt."""

from __future__ import annotations

import os
from pathlib import Path


def cache_root(below: str = "") -> Path:
    """$DYNADAPT_CACHE as it is given, or ~/.cache/dynadapt/`below`. FileNotFoundError where there is no home directory either."""
    given = os.environ.get("DYNADAPT_CACHE")
    try:
        return Path(given).expanduser() if given else Path.home() / ".cache" / "dynadapt" / below
    except RuntimeError as error:
        what = f"DYNADAPT_CACHE {given!r}" if given else "HOME is not set, and this user has no home directory"
        raise FileNotFoundError(f"{what}: {error} Set DYNADAPT_CACHE to a directory for models and compiled code") from None
