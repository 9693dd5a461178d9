"""What ``Engine`` is made with: words and classes become settings, and what does not fit together is refused by name."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

import torch

from dynadapt.adapt.guard import as_guard
from dynadapt.adapt.hypergradient import as_hypergradient
from dynadapt.adapt.keep_prior import as_keep
from dynadapt.adapt.methods import LATER, Full, LoRA, RowSparse, has_lengths, rates_differ, whole_model, words_beside
from dynadapt.adapt.optimizers import OPTIMIZERS, Adam, Optimizer
from dynadapt.adapt.reset_policy import Alarm, check_reset
from dynadapt.adapt.selection import as_selection
from dynadapt.adapt.slow import as_slow
from dynadapt.adapt.targets import lowest, may_adapt_around
from dynadapt.common.checks import LARGEST, choice, flag, integer, is_integer, keep, wrong
from dynadapt.ops import choose_backend, choose_device
from dynadapt.ops.dispatch import BACKENDS, native_module

from . import each_stream
from .arithmetic import fastest
from .each_stream import Way, one_or_each
from .learners.fused import why_not_fused
from .memory import Overlap, SegmentMemory
from .settings_together import check_alarm, check_base, check_dora, check_keep, check_kind, check_slow

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp64": torch.float64}
ADAPTS = {"lora": LoRA, "rows": RowSparse, "full": Full}  # "none" as well
NEVER = 2**31 - 1  # `every` of an engine whose updates are never due
ROWS_A_THREAD = 256  # that go through the layers together on the CPU: with fewer, weights are turned and read too often
MOST_POSITIONS = 2**24  # beyond it float32 no longer tells neighbouring positions apart


def as_adapt(adapt):
    """``LoRA``, ``RowSparse``, ``Full`` or None, of one of these, its class, or "lora", "rows", "full", "none"."""
    if isinstance(adapt, str) and adapt in (*ADAPTS, "none"):
        return None if adapt == "none" else ADAPTS[adapt]()
    if isinstance(adapt, type) and issubclass(adapt, tuple(ADAPTS.values())):
        return adapt()
    if adapt is None or isinstance(adapt, tuple(ADAPTS.values())):
        return adapt
    raise wrong("adapt", adapt, f"LoRA(...), RowSparse(...), Full(...), one of {', '.join(map(repr, ADAPTS))}, or None to learn nothing")


def as_optimizer(optimizer):
    """An ``Optimizer`` or None, of one, its class, or its name (a key of ``OPTIMIZERS``)."""
    if isinstance(optimizer, str) and optimizer in OPTIMIZERS:
        return OPTIMIZERS[optimizer]()
    if isinstance(optimizer, type) and issubclass(optimizer, Optimizer) and optimizer is not Optimizer:
        return optimizer()
    if optimizer is None or isinstance(optimizer, Optimizer) and type(optimizer) is not Optimizer:
        return optimizer
    remedy = " (what torch.optim makes moves torch's parameters, not an engine's)" if isinstance(optimizer, torch.optim.Optimizer) else ""
    names = ", ".join(f"{kind.__name__}(...)" for kind in OPTIMIZERS.values())
    raise wrong("optimizer", optimizer, f"{names}, one of {', '.join(map(repr, OPTIMIZERS))}, or None for Adam{remedy}")


def as_memory(memory):
    """``SegmentMemory``, ``Overlap`` or None, of one of these or its class."""
    if isinstance(memory, type) and issubclass(memory, (SegmentMemory, Overlap)):
        return memory()
    if memory is None or isinstance(memory, (SegmentMemory, Overlap)):
        return memory
    if is_integer(memory) and memory > 0:
        raise wrong("memory", memory, f"SegmentMemory({memory}), Overlap({memory}) or None")
    raise wrong("memory", memory, "SegmentMemory(length), Overlap(context) or None")


def remembered(memory) -> int:
    """Tokens that the window holds in front of a segment."""
    return 0 if memory is None else memory.capacity if isinstance(memory, SegmentMemory) else memory.context


def cpu_batch(streams: int, width: int, threads: int) -> int:
    """How many streams of ``width`` inputs go through the layers together on a CPU: enough to keep its threads at work. More would
    take memory and save no time."""
    return min(streams, -(-ROWS_A_THREAD * threads // width))


@dataclass(frozen=True)
class EngineSettings:
    """``Engine``'s arguments but the model, checked: one by one, then together. See ``Engine`` for what they mean.

    Words and classes have become settings, "auto" a dtype, a device and a backend, and ``static`` True or False.
    """

    adapt: Any  # LoRA, RowSparse, Full or None; a tuple of LoRA where streams differ
    optimizer: Any  # an Optimizer, or None where nothing learns; a tuple of one a stream where they differ
    memory: Any  # SegmentMemory, Overlap or None
    streams: int
    segment: int
    shared: bool
    every: int
    accumulate: bool
    reset: str | int | Alarm
    dtype: str
    backend: str
    seed: int
    device: torch.device
    batch: int | None
    recompute: bool | None
    base: str
    static: bool | None
    guard: Any = None  # a Guard or None
    slow: Any = None  # a Slow or None
    keep: Any = None  # a KeepPrior or None
    learn_from: Any = None  # a Selection or None
    hypergradient: Any = None  # a Hypergradient or None

    def __post_init__(self):
        choice("dtype", self.dtype, ("auto", *DTYPES))
        choice("backend", self.backend, ("auto", *BACKENDS))
        keep(
            self,
            **{name: integer(name, getattr(self, name)) for name in ("streams", "segment", "every")},
            **{name: flag(name, getattr(self, name)) for name in ("shared", "accumulate")},
            seed=integer("seed", self.seed, -(2**63), 2**64 - 1),  # torch's own range
            recompute=None if self.recompute is None else flag("recompute", self.recompute),
            static=None if self.static is None else flag("static", self.static),
            batch=None
            if self.batch is None
            else integer("batch", self.batch, expected="an integer of at least 1, or None for as many as are worth it"),
            reset=check_reset(self.reset),
            adapt=one_or_each("adapt", self.adapt, as_adapt),
            optimizer=one_or_each("optimizer", self.optimizer, as_optimizer),
            memory=as_memory(self.memory),
            guard=as_guard(self.guard),
            slow=as_slow(self.slow),
            keep=as_keep(self.keep),
            learn_from=as_selection(self.learn_from),
            hypergradient=as_hypergradient(self.hypergradient),
        )
        self._check_together()
        self._place()
        for check in (check_kind, check_base, check_slow, check_keep, check_dora):
            check(self)

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    @property
    def window(self) -> int:
        return self.segment + remembered(self.memory)

    @property
    def fixed(self) -> bool:
        """Whether passes have the shape of the call, and the host decides nothing inside them."""
        return bool(self.static)

    @property
    def context(self) -> int:
        """Tokens that are run again in front of every segment."""
        return self.memory.context if isinstance(self.memory, Overlap) else 0

    @property
    def learns(self) -> bool:
        return self.adapt is not None

    @property
    def watches(self) -> bool:
        """Whether change detectors look at the adapted score alone; with a guard the prior's score says it."""
        return self.learns and self.reset == "auto" and self.guard is None

    @property
    def alarm(self) -> Alarm | None:
        """What raises alarms with a guard, and what follows from them."""
        if self.guard is None:
            return None
        return Alarm() if self.reset == "auto" else self.reset if isinstance(self.reset, Alarm) else None

    @property
    def owns_weights(self) -> bool:
        """Whether what learns are weights of the model, not adapters beside them."""
        return self.learns and not isinstance(self.adapt, (LoRA, tuple))

    @property
    def apart(self) -> bool:
        """Whether each set of weights is a learner of its own, and passes have one set's streams: norms and biases serve all rows of one."""
        return self.owns_weights or bool(words_beside(self.adapt))

    @property
    def sets(self) -> int:
        """Sets of weights: one a stream, or one that all share."""
        return 1 if self.shared else self.streams

    @property
    def ways(self) -> list[Way]:
        """How sets of weights learn; one way where they don't differ but by their rates."""
        return each_stream.ways(self.adapt, self.optimizer, self.sets) if self.learns else []

    def optimizer_of(self, stream: int):
        """One stream's, or None where nothing learns."""
        return each_stream.of(self.optimizer, stream)

    @property
    def uses_statistics(self) -> bool:
        """Whether gradient statistics are to be gathered before the first step."""
        return any(way.optimizer.uses_statistics for way in self.ways)

    @property
    def why_not_fused(self) -> str | None:
        """None where the gradient kernels update, else the reason."""
        if not self.static or not self.learns:
            return "the update waits for the whole gradient" if self.learns else "nothing learns"
        if len(self.ways) > 1:
            return f"streams learn in {len(self.ways)} ways, and the gradient kernels know one rule"
        way = self.ways[0]
        unfused = whole_model(self.adapt) or bool(words_beside(self.adapt))
        return why_not_fused(
            way.optimizer, self.accumulate, unfused, may_adapt_around(way.adapt), rates_differ(way.adapt), has_lengths(way.adapt)
        )

    def arguments(self) -> dict:
        """What ``Engine`` takes beside the model to be such an engine again."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def describe(self, stream: int | None = None) -> dict:
        """As plain data, all that two engines must have in common to exchange saved states (their model aside); of one ``stream`` what
        it has, wherever streams differ."""
        unsaid = [*LATER.items(), ("begin", 0)]  # as in states that were saved before these were there
        plain = lambda part: (  # noqa: E731
            None
            if part is None
            else {
                "kind": type(part).__name__,
                **{k: str(v) if isinstance(v, range) else v for k, v in asdict(part).items() if (k, v) not in unsaid},
            }
        )
        each = lambda part: [plain(one) for one in part] if isinstance(part, tuple) else plain(part)  # noqa: E731
        of = lambda part: part if stream is None else each_stream.of(part, stream)  # noqa: E731
        parts = {name: each(of(getattr(self, name))) for name in ("adapt", "optimizer", "memory")}
        base = "same" if self.base == "quants" else self.base  # the same values, to the bit
        names = ("streams", "segment", "shared", "every", "accumulate", "reset", "dtype", "backend", "seed")
        guard = {} if self.guard is None else {"guard": asdict(self.guard)}
        alarm = {"reset": plain(self.reset)} if isinstance(self.reset, Alarm) else {}
        slow = {}
        if (level := self.slow) is not None:
            said = {"adapt": plain(level.adapt), "optimizer": plain(level.optimizer), "every": level.every, "window": level.window}
            slow = {"slow": said}
        kept = {} if self.keep is None else {"keep": self.keep.describe()}
        chosen = {} if self.learn_from is None else {"learn_from": asdict(self.learn_from)}
        moving = {} if self.hypergradient is None else {"hypergradient": asdict(self.hypergradient)}
        named = {name: getattr(self, name) for name in names}
        return {**parts, **named, "base": base, **guard, **alarm, **slow, **kept, **chosen, **moving}

    def _check_together(self) -> None:
        adapt, optimizer = each_stream.each_stream(self.adapt, self.optimizer, self.streams, self.shared)
        keep(self, adapt=adapt, optimizer=optimizer)
        if self.shared and self.reset != "never":
            raise ValueError(f"reset={self.reset!r} with shared=True: one set of weights serves all rows; expected 'never'")
        if self.adapt is None and self.optimizer is not None:
            raise ValueError(f"optimizer={self.optimizer!r} with adapt=None: nothing learns; give adapt, or no optimizer")
        if self.adapt is None and self.guard is not None:
            raise ValueError(f"guard={self.guard!r} with adapt=None: what is scored is the prior; give adapt, or no guard")
        if self.adapt is None and self.learn_from is not None:
            raise ValueError(f"learn_from={self.learn_from!r} with adapt=None: nothing learns; give adapt, or no learn_from")
        if self.hypergradient is not None and (self.adapt is None or self.owns_weights):
            raise ValueError(
                f"hypergradient={self.hypergradient!r} with adapt={self.adapt!r}: the rates of adapters move; use LoRA, or hypergradient=None"
            )
        if self.accumulate and self.learn_from is not None:
            raise ValueError(
                f"learn_from={self.learn_from!r} with accumulate=True: an update of several segments' gradients would be made, or left out, by the "
                "last one's scores; use accumulate=False"
            )
        if isinstance(self.reset, Alarm):
            check_alarm(self, self.reset)
        if self.adapt is not None and self.optimizer is None:
            keep(self, optimizer=Adam())
        if self.shared and self.batch is not None and self.batch < self.streams:
            raise ValueError(
                f"batch={self.batch} with shared=True and streams={self.streams}: one update sees all rows; "
                "use accumulate=True with fewer rows"
            )
        if self.window > MOST_POSITIONS:
            raise ValueError(f"segment={self.segment} with memory={self.memory!r}: expected a window of at most {MOST_POSITIONS} tokens")
        if self.streams * self.window > LARGEST:
            raise ValueError(
                f"streams={self.streams} with a window of {self.window} tokens (segment and memory): expected at most "
                f"{LARGEST} tokens in all"
            )

    def _place(self) -> None:
        """Arithmetic, device, backend, and whether shapes are fixed."""
        if self.dtype == "auto":
            keep(self, dtype=fastest(self.device, self.backend)[0])
        device = choose_device(self.device, self.backend, self.torch_dtype)
        keep(self, device=device, backend=choose_backend(self.backend, self.torch_dtype, device.type))
        if self.dtype == "fp64" and self.backend != "reference":
            raise ValueError(f"dtype='fp64' with backend={self.backend!r}: its kernels serve fp32 and bf16; use backend='reference'")
        if self.batch is None and self.backend == "cpu" and not self.shared:
            keep(self, batch=cpu_batch(self.streams, self.context + self.segment, native_module().num_threads()))
        if self.recompute is None:
            keep(self, recompute=self.backend == "cpu")
        if self.static is None:
            keep(self, static=device.type != "cpu" or self.backend == "triton")
        if self.static and self.watches and isinstance(self.adapt, RowSparse):
            raise ValueError(
                "reset='auto' with adapt=RowSparse on a GPU: which rows go back is only known there; use LoRA or Full, "
                "or reset at documents or every N tokens"
            )
        if self.static and self.learn_from is not None:
            raise ValueError(
                f"learn_from={self.learn_from!r} with static=True, as it is on a GPU unless said otherwise: a backward that a recorded step holds "
                "can't be left out by a score; use static=False"
            )
        if self.static and self.hypergradient is not None:
            raise ValueError(
                f"hypergradient={self.hypergradient!r} with static=True, as it is on a GPU unless said otherwise: the host looks at which streams "
                "move; use static=False"
            )
        if self.static and self.alarm is not None and self.alarm.ring:
            raise ValueError(
                f"reset={self.reset!r} with static=True: the copies of a ring are scored by passes of other shapes; use static=False, or ring=0"
            )

    def lowest(self, config, stream: int | None = None) -> tuple[int, str] | None:
        """(layer, group) down to which backward goes: for all streams, or for one where they differ."""
        return lowest(self.adapt if stream is None else each_stream.of(self.adapt, stream), config)


# What an engine shows of its settings, none of which can be set -> what to do instead.
FIXED = {
    name: f"make a new Engine(..., {argument}=...)"
    for name, argument in {
        **{f.name: f.name for f in fields(EngineSettings)},
        "reset_policy": "reset",
        "window": "segment",
        "torch_dtype": "dtype",
    }.items()
}
FIXED["every"] = f"learn_no_more() ends learning, else {FIXED['every']}"
FIXED["lr"] = "use set_lr(stream, lr)"
FIXED["settings"] = "make a new Engine"
