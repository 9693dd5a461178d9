"""Every kernel at the sizes of real models, a few programs of each launch: addresses stay inside their tensors and inside 32 bits.

Tensors are as large as the real ones, and memory that nobody touches is never there: 64 streams of an 8B model need 150 GB of addresses.
Nothing is drawn, and products that cuBLAS would compute are left out: where a program looks depends on sizes, slots and tokens alone.
"""

import mmap
from dataclasses import replace
from unittest import mock

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dynadapt.bench.cases import attention, base, cross_entropy
from dynadapt.bench.cases.model import OPS, Sizes
from dynadapt.kernels import choices, common, decisions, lora_gradient
from dynadapt.model.geometries import GEOMETRIES
from dynadapt.ops.dispatch import UnsupportedOp, resolve
from dynadapt.ops.matrix import DenseMatrix

from .compare import DEVICE
from .emulator import checked

pytestmark = pytest.mark.skipif(DEVICE != "cpu", reason="the interpreter is off")
MODELS = {name: GEOMETRIES[name] for name in ("smollm2-135m", "llama-3.2-1b", "llama-3.1-8b")}
MODELS["8b, 151,936 words"] = replace(MODELS["llama-3.1-8b"], vocab_size=151_936)
SHAPES = [(1, 512), (8, 512), (64, 512), (8, 2048)]
NO_RESERVE = 0x4000  # Linux: addresses alone, memory for the pages that are touched
PRODUCTS = {"mm", "addmm", "addmm_", "bmm", "baddbmm", "baddbmm_", "_scaled_mm"}


def without_memory(like: torch.Tensor) -> torch.Tensor:
    """Zeros of the shape and strides of one of no device."""
    if like.device.type != "meta" or not like.numel():
        return torch.empty_like(like, device="cpu")
    last = sum((size - 1) * stride for size, stride in zip(like.shape, like.stride()))
    room = mmap.mmap(-1, (last + 1) * like.element_size(), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE)
    return torch.frombuffer(room, dtype=torch.uint8).view(like.dtype).as_strided(like.shape, like.stride())


class Shapes(base.Draw):
    """Draws numbers of which there are few: the rest has a shape and no values."""

    def __init__(self):
        super().__init__(torch.bfloat16, odd=False)

    def wide(self, *shape, scale=1.0):
        return torch.empty(shape, dtype=self.wide_dtype, device="meta")

    def uniform(self, *shape):
        return self.wide(*shape)

    def row_weights(self, n):
        return self.wide(n)

    def out(self, *shape, wide=False):
        return torch.empty(shape, dtype=self.wide_dtype if wide else self.dtype, device="meta")

    def permutation(self, n):
        return torch.arange(n)


class NoProducts(TorchDispatchMode):
    """Results of cuBLAS' products are whatever is there."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = function.overloadpacket.__name__
        if name not in PRODUCTS:
            return function(*args, **kwargs)
        if "out" in kwargs:
            return kwargs["out"]
        if name.endswith("_"):
            return args[0]
        raise AssertionError(f"{name} makes a tensor in the middle of a step")


def arguments(case) -> list:
    """Those of a call; tensors with values are as they are."""
    lazy = lambda t: without_memory(t) if t.device.type == "meta" else t  # noqa: E731
    made = {name: base.convert(value, lazy) for name, value in case.arguments.items()}
    for name in case.about.frozen:
        if isinstance(made[name], list):  # side by side, as make_parts lays them
            whole = without_memory(torch.empty(sum(map(len, made[name])), made[name][0].shape[1], dtype=case.dtype, device="meta"))
            made[name] = [DenseMatrix(view, copy=False) for view in whole.split([len(w) for w in made[name]])]
        else:
            made[name] = DenseMatrix(made[name], copy=False)
    return list(made.values())


def sizes(config, streams, segment) -> Sizes:
    z = Sizes(config, streams, segment, "cpu")
    z.draw = Shapes()
    return z


def look(op: str, config, streams: int, segment: int, form: str, programs: int) -> None:
    no_values = mock.patch.object(base.OpCase, "__post_init__", lambda case: None)  # it looks at them
    no_forward = [mock.patch.object(file, "after_reference", lambda case, *_: case.arguments) for file in (attention, cross_entropy)]
    with no_values, no_forward[0], no_forward[1]:
        for case in OPS[op](sizes(config, streams, segment), segment):
            counters = common.scratch_of(common.Scratch())  # of programs that never all ran: nobody else's
            with counters, checked(0, races=False, scratch=False, programs=programs), choices.force(form), NoProducts():
                resolve(op, "triton", torch.bfloat16).function(*arguments(case))


def look_together(config, streams: int, segment: int, programs: int) -> bool:
    """The adapter gradients of a layer's linears as one call; whether they go in one launch."""
    with mock.patch.object(base.OpCase, "__post_init__", lambda case: None):
        calls = [arguments(case) for case in OPS["lora_gradient"](sizes(config, streams, segment), segment)]
        slots = 6  # of a call's arguments: one tensor for all
        calls = [(*call[:slots], calls[0][slots], *call[slots + 1 :]) for call in calls]
        with common.scratch_of(common.Scratch()), checked(0, races=False, scratch=False, programs=programs):
            lora_gradient.lora_gradients(calls)
    return lora_gradient.fit(calls)


def look_at_decisions(streams: int, segment: int, programs: int) -> None:
    """What a recorded step decides, of so many streams; weights of all of them read all scores in one program, which is left out where these are many."""
    numbers = lambda *shape, dtype=torch.int32: without_memory(torch.empty(shape, dtype=dtype, device="meta"))  # noqa: E731
    slots, nll = torch.arange(streams, dtype=torch.int32), numbers(streams * segment, dtype=torch.float32)
    tokens, wide = numbers(streams, segment + 1, dtype=torch.int64), torch.float64
    with checked(0, races=False, scratch=False, programs=programs):
        decisions.detect_changes(nll, numbers(streams), slots, numbers(4, streams, dtype=wide), slots.clone(), numbers(streams))
        for sets in (streams, 1) if len(nll) < 2**20 else (streams,):
            moving = slots[:sets].clone()
            decisions.admit_updates(nll, moving, numbers(sets), numbers(sets))
            decisions.count_updates(moving, numbers(sets), numbers(2, dtype=torch.int64), numbers(sets), numbers(sets))
            inputs, targets = numbers(streams, segment, dtype=torch.int64), numbers(streams * segment, dtype=torch.int64)
            decisions.take_tokens(tokens, 151_936, numbers(streams), inputs, targets, moving, numbers(streams))


def served() -> list[str]:
    found = []
    for op in OPS:
        try:
            resolve(op, "triton", torch.bfloat16)
        except UnsupportedOp:
            continue
        found.append(op)
    return found


@pytest.mark.parametrize("op", served())
def test_a_small_model(op):
    look(op, MODELS["smollm2-135m"], 1, 512, "fused", 2)


@pytest.mark.parametrize("streams, segment", [*SHAPES, (70_000, 40_000)])  # the last has more scores than 2^31
def test_decisions(streams, segment):
    look_at_decisions(streams, segment, 4)


def test_gradients_of_a_layer_of_a_small_model():
    assert look_together(MODELS["smollm2-135m"], 1, 512, 4)


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("streams, segment", SHAPES)
def test_gradients_of_a_layer(model, streams, segment):
    together = look_together(MODELS[model], streams, segment, 4)
    assert together == (model == "smollm2-135m" and streams == 1)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("streams, segment", SHAPES)
@pytest.mark.parametrize("op", served())
def test_every_model(op, model, streams, segment):
    for form in ("fused", "split"):
        look(op, MODELS[model], streams, segment, form, 4)
