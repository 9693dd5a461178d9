"""`torch` as function classes and distributions of x use it: imported with the first thing that is drawn.

So that their names and settings can be read, and refused, without it: it takes seconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
else:

    class _Later:
        def __getattr__(self, name):
            import torch

            return getattr(torch, name)

    torch = _Later()

__all__ = ["torch"]
