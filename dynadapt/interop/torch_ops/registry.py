"""How an op of ``dynadapt.ops`` becomes a functional one of ``torch.library``.

The ops write into outputs that the caller allocates. ``functional`` takes a generator that allocates them, yields them, and then
calls the kernel; so the part before the ``yield`` is the fake implementation, and the two cannot disagree about a shape.
``mutating`` takes a function that changes some of its arguments and returns nothing.

``Library.define`` and ``impl`` are used rather than ``torch.library.custom_op``, whose eager call costs several times as much.
"""

from __future__ import annotations

import functools

import torch
from torch.utils.flop_counter import register_flop_formula

from dynadapt.ops.dispatch import choose_backend, resolve
from dynadapt.ops.table import OPS


class _Library(torch.library.Library):
    """A library whose autograd kernels first refuse what they don't differentiate.

    torch lets the tangents of forward mode fall where a kernel does not take them; what comes out then has the tangent 0.
    """

    def impl(self, op_name, function, dispatch_key="", **options):
        super().impl(op_name, _checked(op_name, function) if dispatch_key == "Autograd" else function, dispatch_key, **options)


def _checked(name, kernel):
    def checked(keyset, *args, **kwargs):
        for t in _tensors(args):
            if torch.autograd.forward_ad.unpack_dual(t).tangent is not None:
                raise NotImplementedError(
                    f"dynadapt::{name} has no forward-mode derivative (jvp, jacfwd, hessian, dual numbers); "
                    "differentiate in reverse, by backward() or torch.autograd.grad"
                )
            if t.requires_grad and torch._C._functorch.is_functorch_wrapped_tensor(t):
                raise NotImplementedError(
                    f"dynadapt::{name} takes no part in the transforms of torch.func (grad, vjp, jacrev, "
                    "hessian); use backward() or torch.autograd.grad"
                )
        return kernel(keyset, *args, **kwargs)

    return checked


def _tensors(args):
    for a in args:
        if isinstance(a, torch.Tensor):
            yield a
        elif isinstance(a, (list, tuple)):
            yield from (t for t in a if isinstance(t, torch.Tensor))


LIBRARY = _Library("dynadapt", "DEF")
SCHEMAS: dict[str, str] = {}  # op -> its schema, in the order of registration


def backend_of(op: str, device: str, dtype: torch.dtype) -> str:
    """The backend that serves tensors on ``device`` ("cpu", "cuda"): native kernels, Triton, and the reference for float64.

    What has no kernel on a CPU copies rows, or serves a step that the CPU's engine takes in another form: the reference does there.
    """
    return "reference" if device == "cpu" and not OPS[op].native else choose_backend("auto", dtype, device)


@functools.lru_cache(None)
def _function(op: str, backend: str, dtype: torch.dtype):
    return resolve(op, backend, dtype).function


def kernel(op: str, like: torch.Tensor):
    """The implementation of ``op`` for activations such as ``like``.

    Raises:
        UnsupportedOp: naming the op, the dtype and the device where nothing serves them.
    """
    return _function(op, backend_of(op, like.device.type, like.dtype), like.dtype)


def functional(schema: str, flops=None, gradient: bool = False, instead: str = ""):
    """Register a generator as the op of ``schema``; ``flops(*shapes and other arguments)`` counts its multiply-adds twice. To
    differentiate a ``gradient`` is an error that says so, instead of a gradient that is silently missing; so it is of what has none and names
    what to use ``instead``."""

    def register(outputs_then_kernel):
        def run(*args, **kwargs):
            work = outputs_then_kernel(*args, **kwargs)
            outputs = next(work)
            for _ in work:
                raise RuntimeError(f"{name}: the implementation yields more than once")
            return outputs

        def fake(*args, **kwargs):
            return next(outputs_then_kernel(*args, **kwargs))

        def refuse(ctx, *grads):
            if instead:
                raise NotImplementedError(f"dynadapt::{name} has no derivative; use {instead}")
            raise NotImplementedError(f"dynadapt::{name} is a gradient itself and has no derivative; differentiate once only")

        name = _define(schema, run, fake)
        if flops is not None:
            _register_flops(name, flops)
        op = getattr(torch.ops.dynadapt, name).default
        if gradient or instead:
            autograd(op, lambda ctx, inputs, output: None, refuse)
        return op

    return register


def mutating(schema: str):
    """Register a function that changes arguments in place as the op of ``schema``. Such ops have no gradient."""

    def register(function):
        def run(*args, **kwargs):
            function(*args, **kwargs)
            for t in _tensors(args[place] for place in written):
                torch.autograd.graph.increment_version(t)  # torch does not see what a kernel writes; autograd and frozen weights do

        def below_autograd(keyset, *args, **kwargs):
            if torch.is_grad_enabled() and any(t.requires_grad for t in _tensors(args)):
                raise NotImplementedError(
                    f"dynadapt::{name} changes its arguments in place and has no derivative; call it under "
                    "torch.no_grad(), or give it tensors that require no gradient"
                )
            with torch._C._AutoDispatchBelowAutograd():
                return op.redispatch(keyset & torch._C._after_autograd_keyset, *args, **kwargs)

        name = _define(schema, run, lambda *args, **kwargs: None)
        op = getattr(torch.ops.dynadapt, name).default
        written = [place for place, a in enumerate(op._schema.arguments) if a.alias_info is not None and a.alias_info.is_write]
        LIBRARY.impl(name, below_autograd, "Autograd", with_keyset=True)
        return op

    return register


def _define(schema, run, fake) -> str:
    name = LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    SCHEMAS[name] = schema
    for device in ("CPU", "CUDA"):
        LIBRARY.impl(name, run, device)
    torch.library.register_fake(f"dynadapt::{name}", fake, lib=LIBRARY)
    return name


def _register_flops(name, flops) -> None:
    @register_flop_formula(getattr(torch.ops.dynadapt, name))
    def formula(*args, out_shape=None, **kwargs):
        return flops(*args, **kwargs)


def autograd(op, setup_context, backward) -> None:
    torch.library.register_autograd(op, backward, setup_context=setup_context, lib=LIBRARY)


class _Once(torch.autograd.Function):
    """A gradient that was computed before backward ran, as a function of what it was computed from: one without a derivative."""

    @staticmethod
    def forward(ctx, name, gradient, *sources):
        ctx.name = name
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx, *grads):
        raise NotImplementedError(f"the gradient of dynadapt::{ctx.name} has no derivative; differentiate once only")


def once(name: str, gradient: torch.Tensor, *sources: torch.Tensor) -> torch.Tensor:
    """``gradient``, the differentiation of which is an error that says so wherever it depends on ``sources``."""
    return _Once.apply(name, gradient, *sources) if torch.is_grad_enabled() else gradient


def like(t: torch.Tensor) -> torch.Tensor:
    """A contiguous output of the shape and dtype of t."""
    return torch.empty_like(t, memory_format=torch.contiguous_format)


def check_kind(kind, kinds) -> None:
    """Raises ValueError unless ``kind`` is one of ``kinds``."""
    if kind not in kinds:
        raise ValueError(f"kind={kind!r}: expected one of {', '.join(kinds)}")


def wide(t: torch.Tensor, *shape) -> torch.Tensor:
    """An output of ``shape`` for statistics and scores: float32, or float64 for float64 activations."""
    return t.new_empty(shape, dtype=torch.float64 if t.dtype == torch.float64 else torch.float32)


def wide_zeros(t: torch.Tensor, *shape) -> torch.Tensor:
    """An output that the kernel adds to."""
    return wide(t, *shape).zero_()


def contiguous(*tensors):
    """The tensors as the kernels read them; None stays None."""
    return tuple(None if t is None else t.contiguous() for t in tensors)


def rows(t: torch.Tensor) -> torch.Tensor:
    """t [N, width] for the arguments whose rows may be apart in memory, as those of a column slice are: copied only otherwise."""
    return t if t.stride(1) == 1 and t.stride(0) >= t.shape[1] else t.contiguous()
