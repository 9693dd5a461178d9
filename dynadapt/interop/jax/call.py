"""One custom call: which tensors are given, frozen weights by number, shapes of results."""

from __future__ import annotations

import ctypes
import weakref

import jax
import jax.numpy as jnp
import numpy as np

from .build import library

DTYPES = (jnp.float32, jnp.bfloat16)


@jax.tree_util.register_static
class Frozen:
    """A weight [O, K] that does not learn, kept packed in the kernels' own order outside of jax. Made by ``freeze``.

    It has no leaves: to jit it is a constant, and a function compiled with one weight is compiled anew for another.
    """

    def __init__(self, number: int, shape: tuple[int, int], dtype):
        self.number, self.shape, self.dtype = number, shape, jnp.dtype(dtype)
        weakref.finalize(self, library().dynadapt_xla_thaw, number).atexit = False

    def __repr__(self) -> str:
        return f"Frozen({self.shape}, {self.dtype.name})"


def freeze(weight) -> Frozen:
    """The packed form of ``weight`` [O, K], float32 or bfloat16: later calls need not pack it, and it gets no gradient.

    Raises:
        ValueError: for another shape or dtype.
    """
    weight = np.asarray(weight)
    if weight.ndim != 2 or weight.size == 0 or weight.dtype not in DTYPES:
        raise ValueError(f"weight is {weight.dtype} {weight.shape}: expected float32 or bfloat16 [O, K], neither of them 0")
    weight = np.ascontiguousarray(weight)
    number = library().dynadapt_xla_freeze(ctypes.c_void_p(weight.ctypes.data), *weight.shape, weight.dtype == jnp.bfloat16)
    if not number:
        raise MemoryError(f"no memory to pack a weight of {weight.nbytes} bytes")
    return Frozen(number, weight.shape, weight.dtype)


def check_dtype(op: str, like, **tensors) -> None:
    """Raises ValueError unless ``like`` has a dtype the kernels serve and all ``tensors`` have the same."""
    if like.dtype not in DTYPES:
        raise ValueError(f"{op}: dtype {like.dtype}, accepted is float32 or bfloat16")
    for name, tensor in tensors.items():
        if tensor is not None and tensor.dtype != like.dtype:
            raise ValueError(f"{op}: {name} has dtype {tensor.dtype}, accepted is {like.dtype} as the activations have")


def number_of(kind: str, kinds: tuple[str, ...]) -> int:
    """The number that the kernels know ``kind`` by."""
    if kind not in kinds:
        raise ValueError(f"kind={kind!r}: expected one of {', '.join(kinds)}")
    return kinds.index(kind)


def varied(tree):
    """The arrays of ``tree`` as varying over all mesh axes that one of them varies over.

    Within shard_map what a custom rule returns has to vary as its input does; an input that is the same on every device gets the
    sum over the devices from the transpose of this cast. Elsewhere nothing varies and nothing is done.
    """
    axes = _axes(tree)
    cast = lambda a: jax.lax.pcast(a, tuple(sorted(missing)), to="varying") if (missing := axes - _axes(a)) else a  # noqa: E731
    return jax.tree.map(cast, tree) if axes else tree


def _axes(tree) -> frozenset:
    """The mesh axes that some array of ``tree`` varies over; older versions of jax say them as ``vma``."""
    types = [jax.typeof(a) for a in jax.tree.leaves(tree)]
    return frozenset().union(*(t.mat.varying if hasattr(t, "mat") else getattr(t, "vma", ()) for t in types))


def call(op: str, results, inputs, weights=None, aliases=None, **attributes):
    """The results of ``op``; entries of ``results`` (ShapeDtypeStruct) and ``inputs`` are None where the op is not given one.

    ``aliases``: places of inputs whose memory becomes the output of the same place.
    """
    library()
    mask = lambda given: np.int64(sum(1 << place for place, value in enumerate(given) if value is not None))  # noqa: E731
    attributes |= {"inputs": mask(inputs), "outputs": mask(results)}
    arrays = [value for value in inputs if value is not None]
    if weights is not None:
        attributes["parts"] = np.array([w.number if isinstance(w, Frozen) else 0 for w in weights], np.int64)
        arrays += [w for w in weights if not isinstance(w, Frozen)]
    order = lambda given, place: sum(value is not None for value in given[:place])  # noqa: E731
    shared = {order(inputs, p): order(results, p) for p in aliases or () if inputs[p] is not None}
    target = jax.ffi.ffi_call(
        f"dynadapt_{op}", [r for r in results if r is not None], vmap_method="sequential", input_output_aliases=shared or None
    )
    found = iter(target(*arrays, **attributes))
    if axes := _axes(arrays):  # XLA is told nothing of them
        found = iter([jax.lax.pcast(f, tuple(sorted(axes - _axes(f))), to="varying") for f in found])
    return tuple(None if r is None else next(found) for r in results)


def like(array, *shape, dtype=None):
    """The shape and dtype of a result; ``array``'s own where not given."""
    return jax.ShapeDtypeStruct(shape or array.shape, dtype or array.dtype)


def f32(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def heads(hq: int, hkv: int, d: int) -> dict:
    """Attributes of the ops that split rows into heads."""
    return dict(zip(("hq", "hkv", "d"), np.array((hq, hkv, d), np.int32)))
