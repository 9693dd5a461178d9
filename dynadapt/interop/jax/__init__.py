"""The CPU kernels as differentiable functions of jax, through XLA's foreign function interface.

``linear``, ``cross_entropy``, ``linear_mse``, ``norm``, ``add_norm``, ``head_norm``, ``activation``, ``embedding`` and
``attention`` work inside jit, grad and vmap (which runs them one after the other); ``update`` changes optimizer state in place.
``freeze`` keeps a weight packed. The first call compiles a small library (build.py). Arrays are on the CPU; on a GPU a call is
an error that says so. See docs/jax.md.
"""

try:
    import jax  # noqa: F401
except ImportError as error:
    raise ImportError(
        "dynadapt.jax needs the package jax; install it with `pip install jax`, or `pip install -e '.[jax]'` in a checkout"
    ) from error

from .activation import activation
from .attention import attention
from .call import Frozen, freeze
from .cross_entropy import cross_entropy
from .embedding import embedding
from .head_norm import head_norm
from .linear import linear
from .linear_mse import linear_mse
from .norm import add_norm, norm
from .update import State, update

__all__ = [
    "Frozen",
    "State",
    "activation",
    "add_norm",
    "attention",
    "cross_entropy",
    "embedding",
    "freeze",
    "head_norm",
    "linear",
    "linear_mse",
    "norm",
    "update",
]
