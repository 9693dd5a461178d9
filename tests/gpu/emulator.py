"""What Triton's interpreter lets pass and a GPU would not: ``with checked(seed):`` looks at every access of every program.

- bounds: each live lane reads and writes inside one of the launch's tensors, at a multiple of the element's size;
- order: programs run in an order drawn from ``seed`` ("reversed" and "as it is" are orders too), so that a result that depends on it changes;
- races: no program reads or writes what another one wrote, or writes what another one read, unless an atomic on the same address stands
  between the two; two lanes of one store never write one byte;
- integers: int32 sums, differences and products fit;
- scratch memory holds NaN (integers: -7) each time it is handed out, but for counters, which kernels leave at zero.

A finding is a ``Finding``, raised where it happens. Values are the interpreter's; only the order of programs is another one.
"""

from __future__ import annotations

import math
import random
from contextlib import ExitStack, contextmanager
from itertools import product
from unittest import mock

import numpy as np
import torch
import triton.runtime.interpreter as interpreter

from dynadapt.kernels import common

LARGEST = 1 << 28  # bytes of a tensor whose accesses are remembered
STAYS = "programs done"  # scratch that a kernel expects as its last launch left it
Builder = type(interpreter.interpreter_builder)


class Finding(AssertionError):
    """What a kernel did that it must not do."""


def tensors_of(value, name: str):
    """(name, tensor) of all that an argument holds."""
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, (tuple, list)):
        for i, each in enumerate(value):
            yield from tensors_of(each, f"{name}[{i}]")


def spans(named) -> list[tuple[int, int, str]]:
    """[first byte, end) of each tensor; views that overlap are one."""
    found = []
    for name, t in named:
        if t.numel():
            last = sum((size - 1) * stride for size, stride in zip(t.shape, t.stride()))
            found.append((t.data_ptr(), t.data_ptr() + (last + 1) * t.element_size(), name))
    joined: list[tuple[int, int, str]] = []
    for low, high, name in sorted(found):
        if joined and low < joined[-1][1]:
            low, before, names = joined.pop()
            high, name = max(high, before), f"{names} and {name}"
        joined.append((low, high, name))
    return joined


class Launch:
    """One launch: where its tensors lie, and which piece of which program touched each byte last.

    A program is cut into pieces at its atomics. What a piece has done is known to a program once that program's atomic follows,
    on the same address, one that stood behind the piece.
    """

    def __init__(self, kernel: str, named, order, races: bool):
        joined = spans(named)
        self.kernel, self.order, self.races, self.programs = kernel, order, races, []
        self.low, self.high = (np.array([span[i] for span in joined], np.uint64) for i in (0, 1))
        self.names = [span[2] for span in joined]
        self.written: dict[int, np.ndarray] = {}
        self.read: dict[int, np.ndarray] = {}  # two of its readers a byte: the first, and the first other one
        self.count = 0  # of pieces; piece 0 is what was there before the launch
        self.program_of = np.full(1, -1, np.int32)  # of each piece
        self.known = np.ones(1, bool)  # whether the running program comes behind a piece
        self.released: dict[int, np.ndarray] = {}  # by address: the pieces behind which its last atomic stood

    def begin(self, grid) -> int:
        """How many programs run, of this grid."""
        self.grid = (*grid, *(1,) * (3 - len(grid)))
        self.programs, self.turn = self.order(self.grid), -1
        return len(self.programs)

    def next(self) -> tuple[int, int, int]:
        """The next program's place in the grid."""
        self.turn += 1
        self.known[1:] = False
        self._new_piece()
        return self.programs[self.turn]

    def _new_piece(self) -> None:
        self.count += 1
        if self.count == len(self.known):
            self.program_of = np.concatenate([self.program_of, np.full(self.count, -1, np.int32)])
            self.known = np.concatenate([self.known, np.zeros(self.count, bool)])
        self.program_of[self.count], self.known[self.count] = self.turn, True

    def fail(self, what: str):
        place = self.programs[self.turn] if self.programs else ()
        raise Finding(f"{self.kernel}, program {place}: {what}")

    def places(self, pointers: np.ndarray, mask: np.ndarray, size: int, verb: str) -> tuple[np.ndarray, np.ndarray]:
        """(which tensor, address) of each live lane."""
        pointers, mask = np.broadcast_arrays(pointers, mask)
        live = pointers[mask.astype(bool)].astype(np.uint64)
        which = np.searchsorted(self.low, live, side="right").astype(np.int64) - 1
        outside = which < 0
        if len(self.high):
            outside |= live + np.uint64(size) > self.high[np.maximum(which, 0)]
        if outside.any():
            first = int(np.argmax(outside))
            near = int(max(which[first], 0))
            by = (
                f"{int(live[first]) - int(self.high[near])} bytes behind the end of {self.names[near]}"
                if self.names
                else "without a tensor"
            )
            self.fail(f"{verb} out of bounds, {by}")
        if (live % np.uint64(size)).any():
            self.fail(f"{verb} at an address that is no multiple of {size}")
        return which, live

    def _shadow(self, of: dict, j: int, rows: int) -> np.ndarray | None:
        if j not in of:
            length = int(self.high[j] - self.low[j])
            if length > LARGEST:
                return None
            of[j] = np.zeros((rows, length), np.int32)
        return of[j]

    def access(self, pointers, mask, size: int, store: bool) -> None:
        which, live = self.places(pointers, mask, size, "store" if store else "load")
        for j in np.unique(which):
            starts = (live[which == j] - self.low[j]).astype(np.int64)
            if store and len(np.unique(starts)) < len(starts):
                self.fail(f"two lanes of one store write the same place of {self.names[j]}")
            if not self.races:
                continue
            written, read = self._shadow(self.written, j, 1), self._shadow(self.read, j, 2)
            if written is None or read is None:
                continue
            at = (starts[:, None] + np.arange(size)).ravel()
            if not self.known[written[0, at]].all():
                self.fail(f"{'writes' if store else 'reads'} what another program wrote, in {self.names[j]}")
            if store:
                if not self.known[read[:, at]].all():
                    self.fail(f"writes what another program read, in {self.names[j]}")
                written[0, at] = self.count
            else:
                first, second = read[:, at]
                own = (first == 0) | (self.program_of[first] == self.turn)
                read[0, at] = np.where(own, self.count, first)
                read[1, at] = np.where(~own & (second == 0), self.count, second)

    def atomic(self, pointers, mask, size: int) -> None:
        _, live = self.places(pointers, mask, size, "atomic")
        for address in map(int, live):
            before = self.released.get(address, self.known[:1])
            self.known[: len(before)] |= before
        for address in map(int, live):
            self.released[address] = self.known[: self.count + 1].copy()
        self._new_piece()


@contextmanager
def checked(seed: int | str = 0, races: bool = True, scratch: bool = True, programs: int | None = None):
    """Launches inside are looked at. seed: of the programs' order, or "reversed", or "as it is". programs: so many of each launch run
    at most, the first and the last of the grid and others drawn; a launch's results are worth nothing then."""
    if not common.INTERPRET:
        raise RuntimeError("checked: Triton's interpreter is off; set TRITON_INTERPRET=1 before dynadapt.kernels is imported")
    drawn = random.Random(seed)

    def order(grid) -> list[tuple[int, ...]]:
        """The places of the grid that run, in their order."""
        count = math.prod(grid)
        if programs is None or count <= programs:
            every = list(product(*map(range, grid)))
        else:
            every = [(0, 0, 0), tuple(n - 1 for n in grid)]
            every += [tuple(drawn.randrange(n) for n in grid) for _ in range(programs - 2)]
        if seed == "reversed":
            return every[::-1]
        return every if seed == "as it is" else drawn.sample(every, len(every))

    running: list[Launch] = []

    def patched(stack, owner, name, make):
        stack.enter_context(mock.patch.object(owner, name, make(getattr(owner, name))))

    def call(original):
        def call_checked(executor, *args, **kwargs):
            named = [pair for name, value in (*zip(executor.arg_names, args), *kwargs.items()) for pair in tensors_of(value, name)]
            launch = Launch(executor.fn.__name__, named, order, races)
            running.append(launch)
            grid = executor.grid
            executor.grid = lambda arguments: (launch.begin(grid(arguments) if callable(grid) else grid),)
            try:
                return original(executor, *args, **kwargs)
            except interpreter.InterpreterError as error:
                cause = error.__cause__
                while cause is not None and not isinstance(cause, Finding):
                    cause = cause.__cause__ or cause.__context__
                if cause is not None:
                    raise cause from None
                raise
            finally:
                running.pop()

        return call_checked

    def grid_size(original):
        return lambda builder, *grid: original(builder, *running[-1].grid)

    def grid_place(original):
        return lambda builder, x, y, z: original(builder, *running[-1].next())

    size = lambda pointers: interpreter._get_np_dtype(pointers.get_element_ty()).itemsize  # noqa: E731

    def load(original):
        def create_masked_load(builder, pointers, mask, *rest):
            running[-1].access(pointers.data, mask.data, size(pointers), store=False)
            return original(builder, pointers, mask, *rest)

        return create_masked_load

    def store(original):
        def create_masked_store(builder, pointers, value, mask, *rest):
            running[-1].access(pointers.data, mask.data, size(pointers), store=True)
            return original(builder, pointers, value, mask, *rest)

        return create_masked_store

    def atomic(original):
        def create_atomic_rmw(builder, operation, pointers, value, mask, *rest):
            running[-1].atomic(pointers.data, mask.data, size(pointers))
            return original(builder, operation, pointers, value, mask, *rest)

        return create_atomic_rmw

    def fits(name, wide):
        def make(original):
            def arithmetic(builder, left, right):
                if running and left.data.dtype == np.int32 and right.data.dtype == np.int32:
                    exact = wide(left.data.astype(np.int64), right.data.astype(np.int64))
                    if exact.size and not -(2**31) <= exact.min() <= exact.max() < 2**31:
                        running[-1].fail(f"int32 overflow: {name} gives {int(exact.flat[np.abs(exact).argmax()])}")
                return original(builder, left, right)

            return arithmetic

        return make

    def poisoned(original):
        def give(owner, device, name, *shape, dtype=torch.float32):
            buffer = original(owner, device, name, *shape, dtype=dtype)
            return buffer if name == STAYS else buffer.fill_(float("nan") if buffer.is_floating_point() else -7)

        return give

    with ExitStack() as stack:
        patched(stack, interpreter.GridExecutor, "__call__", call)
        patched(stack, Builder, "set_grid_dim", grid_size)
        patched(stack, Builder, "set_grid_idx", grid_place)
        patched(stack, Builder, "create_masked_load", load)
        patched(stack, Builder, "create_masked_store", store)
        patched(stack, Builder, "create_atomic_rmw", atomic)
        for name, wide in (("create_add", np.add), ("create_sub", np.subtract), ("create_mul", np.multiply)):
            patched(stack, Builder, name, lambda original, name=name, wide=wide: fits(name.removeprefix("create_"), wide)(original))
        if scratch:
            patched(stack, common.Scratch, "__call__", poisoned)
        yield
