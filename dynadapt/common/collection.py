"""Python's garbage collector while modules are imported."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """No garbage collection inside. What modules define stays, and torch defines about 170,000 objects: while they are made, the collector
    would pass over all of them again and again, for a tenth of the time that importing takes.

    What was made inside is old afterwards, or a pass over it would follow at once. A collector that is off stays off, and objects that
    the caller has frozen stay frozen.
    """
    if not gc.isenabled():
        yield
        return
    frozen = gc.get_freeze_count()
    gc.disable()
    try:
        yield
    finally:
        if not frozen:  # thawing moves all that is frozen to the oldest generation, without looking at it
            gc.freeze()
            gc.unfreeze()
        gc.enable()
