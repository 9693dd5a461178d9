"""The engine: score a segment of many streams, then learn from it.

``Engine.step`` runs, for every stream of the call:

1. forward over the T inputs, attending to [sinks; memory; segment];
2. linear cross-entropy: per-token NLL, and d-hidden from the same pass when an update is due;
3. the score is recorded; from here on nothing changes it;
4. backward: input gradients through frozen weights, weight gradients only for what learns, none into memory;
5. per-stream clip and one fused update, or a reset to the prior; a non-finite gradient skips its stream and says so;
6. the segment enters memory, detached.
"""

from __future__ import annotations

import warnings
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import wraps

import torch

from . import engine_state, explain as explanation
from .adapt.fused import why_not_fused
from .adapt.lora import LoraLearner
from .adapt.own_weights import RowLearner
from .adapt.peft_format import read_adapter
from .adapt.resets import ChangePoint, check_reset
from .adapt.optimizers import Adam
from .adapt.what import LoRA, RowSparse, targeted, whole_model
from .adapt.whole_model import ModelLearner
from .decoder import Batch, Decoder, OpSet
from .flops import Ledger
from .memory import MemoryState, Overlap, SegmentMemory
from .model import rope_tables
from .ops import choose_backend, choose_device
from .ops import update as update_op
from .ops.precision import wide_dtype
from .ranges import ranged
from .static_step import StaticStep
from .weights import FrozenWeights, group_sizes, source_weight
from .workspace import Workspace

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp64": torch.float64}


@dataclass
class StepReport:
    """What the last step did, by stream. ``flops``: phase -> FLOPs of this step."""

    updated: list[bool]
    skipped: list[bool]
    was_reset: list[bool]
    grad_norm: list[float | None]
    flops: dict[str, int] = field(default_factory=dict)


@dataclass
class StreamState:
    """What the engine counts for one stream."""

    segments: int = 0  # since the stream's document entered
    since_reset: int = 0  # tokens learned from since the adapter was last the prior
    change: ChangePoint = field(default_factory=ChangePoint)
    history: list[int] = field(default_factory=list)  # Overlap: the last inputs


def _on_device(method):
    """The engine's own GPU is the current one inside: kernels launch on the current device."""

    @wraps(method)
    def call(self, *args, **kwargs):
        with torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext():
            return method(self, *args, **kwargs)

    return call


class Engine:
    """Scores a stream of tokens and learns from each segment right after scoring it, for many streams at once.

    Args:
        model: what ``dynadapt.load`` returns.
        adapt: ``LoRA``, ``RowSparse``, ``Full`` or None (static evaluation).
        optimizer: ``Adam``, ``AdamW``, ``SGD`` or ``RMS``; None with ``adapt`` given means ``Adam()``.
        memory: ``SegmentMemory``, ``Overlap`` or None.
        streams: S independent streams, each with its own adapter, optimizer state, memory and position.
        segment: T, the largest number of tokens a step scores per stream.
        shared: the S rows share one set of weights: the step is ordinary training on their mean loss.
        every: update at every k-th segment of a stream. The others pay for no backward, or, with
            ``accumulate``, add their gradient to the update to come.
        reset: back to the prior never, at each "document", every N tokens, or "auto" (adapt/resets.py).
        dtype: "bf16" or "fp32"; "fp64" on the reference backend.
        backend: "cpu" (native kernels), "triton" (GPU kernels), "reference" (plain torch), "auto" (by device; reference for fp64).
        seed: of the adapters' initial A.
        device: "cpu", "cuda", "cuda:1"...; "auto": the GPU where torch sees one and the backend can use it.
        batch: streams that go through the layers together; the others follow in further passes of the same step, which costs
            less memory and changes no result. None: all. Streams with weights of their own always go one by one.
        recompute: norm outputs and activations are made again in backward instead of kept for it.
        base: "same" (``dtype``), or "float8": frozen linear weights in float8 with a scale per row (ops/float8.py).
        static: fixed shapes and no host decision inside a step, as a CUDA graph needs; None: on a GPU only.

    Raises:
        ValueError: naming the argument that does not fit, its value, and what would.
    """

    def __init__(self, model, adapt=None, optimizer=None, memory=None, streams: int = 1, segment: int = 512,
                 shared: bool = False, every: int = 1, accumulate: bool = False, reset="never", dtype: str = "bf16",
                 backend: str = "auto", seed: int = 0, device: str = "auto", batch: int | None = None,
                 recompute: bool = False, base: str = "same", static: bool | None = None):
        if dtype not in DTYPES:
            raise ValueError(f"dtype={dtype!r}: expected one of {', '.join(DTYPES)}")
        for name, value in (("streams", streams), ("segment", segment), ("every", every)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value!r}: expected an integer of at least 1")
        check_reset(reset)
        if shared and reset != "never":
            raise ValueError(f"reset={reset!r} with shared=True: one set of weights serves all rows; expected 'never'")
        if adapt is None and optimizer is not None:
            raise ValueError(f"optimizer={optimizer!r} with adapt=None: nothing learns; give adapt, or no optimizer")
        self.model, self.config = model, model.config
        self.adapt, self.memory, self.streams, self.segment = adapt, memory, streams, segment
        self.optimizer = Adam() if adapt is not None and optimizer is None else optimizer
        self.shared, self.every, self.accumulate, self.reset_policy, self.seed = shared, every, accumulate, reset, seed
        self.dtype, self.torch_dtype = dtype, DTYPES[dtype]
        self.device = choose_device(device, backend, self.torch_dtype)
        self.backend = choose_backend(backend, self.torch_dtype, self.device.type)
        if batch is not None and (not isinstance(batch, int) or batch < 1):
            raise ValueError(f"batch={batch!r}: expected an integer of at least 1, or None for all streams")
        if shared and batch is not None and batch < streams:
            raise ValueError(f"batch={batch} with shared=True and streams={streams}: one update sees all rows; use accumulate=True with fewer rows")
        self.recompute, self.base, self.batch = recompute, base, batch or streams
        self._check_base()
        self._check_memory()
        static = self.device.type != "cpu" or self.backend == "triton" if static is None else static
        if static and reset == "auto" and isinstance(adapt, RowSparse):
            raise ValueError("reset='auto' with adapt=RowSparse on a GPU: which rows go back is only known there; use LoRA or Full, "
                             "or reset at documents or every N tokens")
        self._static = static
        self._build()

    # ---- construction

    def _check_base(self) -> None:
        if self.base not in ("same", "float8"):
            raise ValueError(f"base={self.base!r}: expected 'same' or 'float8'")
        if self.base == "float8" and self.backend == "cpu":
            raise ValueError("base='float8' with backend='cpu': the native kernels have no float8 products; use backend='triton' on a "
                             "GPU, or backend='reference'")
        if self.base == "float8" and self.dtype != "bf16" and (self.dtype == "fp64" or self.device.type == "cuda"):
            raise ValueError(f"base='float8' with dtype={self.dtype!r}: on a GPU row-wise float8 products give bf16, on the CPU bf16 or fp32")

    def _check_memory(self) -> None:
        learned_positions = self.config.rope_theta is None
        if isinstance(self.memory, SegmentMemory) and learned_positions:
            raise ValueError(f"memory={self.memory!r}: {self.config.family} has learned absolute positions, which cannot "
                             "count inside a moving window; use Overlap(context) instead")
        if self.memory is not None and not isinstance(self.memory, (SegmentMemory, Overlap)):
            raise ValueError(f"memory={self.memory!r}: expected SegmentMemory, Overlap or None")
        extra = {SegmentMemory: lambda m: m.capacity, Overlap: lambda m: m.context}
        self.window = self.segment + (extra[type(self.memory)](self.memory) if self.memory else 0)
        if self.window > self.config.max_positions:
            text = f"window of {self.window} tokens (segment {self.segment} and memory) exceeds the model's {self.config.max_positions} positions"
            if learned_positions:
                raise ValueError(text)
            warnings.warn(text + "; scores beyond them are extrapolation", stacklevel=3)

    def _build(self) -> None:
        c = self.config
        self.ops = OpSet(self.backend, self.torch_dtype)
        self.workspace = Workspace(self.torch_dtype, self.device, pinned=self._static)
        self.ledger = Ledger()
        sizes = group_sizes(c)
        learning = targeted(self.adapt, c.layers)
        self.lowest = (-1, "embed") if whole_model(self.adapt) else learning[0] if learning else None
        own_weights = self.adapt is not None and not isinstance(self.adapt, LoRA)
        slots = 1 if self.shared else self.streams
        self.learners = self._learners(own_weights, slots, sizes)
        if whole_model(self.adapt):
            self.weights = self.learners[0].weights_view  # nothing is frozen
        else:
            self.weights = FrozenWeights(self.model, self.backend, self.torch_dtype, set(learning) if own_weights else set(),
                                         self.device, self.base)
        lr = 0.0 if self.optimizer is None else self.optimizer.lr
        self.lr = torch.full((slots,), lr, dtype=torch.float32, device=self.device)
        store = None
        if isinstance(self.memory, SegmentMemory):
            store = MemoryState(self.memory, c.layers, self.streams, c.kv_heads * c.head_dim, c.hidden_size, self.torch_dtype,
                                self.device)
        rope = (None, None) if c.rope_theta is None else rope_tables(c, self.window)
        if rope[0] is not None:
            rope = tuple(t.to(device=self.device, dtype=wide_dtype(self.torch_dtype)) for t in rope)
        scale = self.adapt.scale if isinstance(self.adapt, LoRA) else 0.0
        self.decoder = Decoder(c, self.weights, self.ops, self.workspace, self.ledger, rope, store, scale, self.recompute,
                               self._static)
        self.state = [StreamState() for _ in range(self.streams)]
        self._updates = self._skipped_updates = 0
        self._row_weights: list[float] | None = None  # of the step in progress
        self.last: StepReport | None = None
        self.static = StaticStep(self) if self._static else None

    def _learners(self, own_weights: bool, slots: int, sizes):
        """One LoRA learner serves every slot; weights of one's own need a learner a slot."""
        if self.adapt is None:
            return []
        keep_grad = not self._static or why_not_fused(self.optimizer, self.accumulate, whole_model(self.adapt)) is not None
        if not own_weights:
            return [LoraLearner(self.adapt, self.optimizer, sizes, slots, self.torch_dtype, self.seed, self.device, keep_grad)]
        keep_prior = self._static and self.reset_policy == "auto"
        if whole_model(self.adapt):
            return [ModelLearner(self.adapt, self.optimizer, self.model, self.torch_dtype, self.backend, self.device, keep_prior)
                    for _ in range(slots)]
        source = lambda layer, group, part: source_weight(self.model, layer, group, part)  # noqa: E731
        return [RowLearner(self.adapt, self.optimizer, sizes, self.torch_dtype, self.backend, source, self.device, keep_prior,
                           keep_grad)
                for _ in range(slots)]

    # ---- what it is

    @property
    def flops(self) -> dict[str, int]:
        """FLOPs by phase since the engine was made (see flops.py)."""
        return dict(self.ledger.totals)

    @property
    def updates(self) -> int:
        """Updates made, over all streams."""
        return self._updates + (self.static.updates if self.static else 0)

    @property
    def skipped_updates(self) -> int:
        """Updates that a gradient which was not finite has cost."""
        return self._skipped_updates + (self.static.skipped_updates if self.static else 0)

    def restore_counts(self, updates: int, skipped_updates: int) -> None:
        """What ``updates`` and ``skipped_updates`` say from now on, and the static step's part of a restored state."""
        self._updates, self._skipped_updates = updates, skipped_updates
        if self.static:
            self.static.counters.zero_()
            self.static.set_change_points([s.change for s in self.state])
            self.static.drop_graphs()

    @property
    def learned_parameters(self) -> int:
        """Parameters that learn, per set of weights."""
        return self.learners[0].learned_parameters if self.learners else 0

    def describe(self) -> dict:
        """The configuration as plain data; two engines with equal descriptions can exchange saved states."""
        plain = lambda part: None if part is None else {"kind": type(part).__name__, **{k: str(v) if isinstance(v, range) else v for k, v in asdict(part).items()}}  # noqa: E731
        return {"model": self.model.fingerprint(), "adapt": plain(self.adapt), "optimizer": plain(self.optimizer),
                "memory": plain(self.memory), "streams": self.streams, "segment": self.segment, "shared": self.shared,
                "every": self.every, "accumulate": self.accumulate, "reset": self.reset_policy, "dtype": self.dtype,
                "backend": self.backend, "base": self.base, "seed": self.seed}

    def explain(self, time: bool = False) -> str:
        """Which implementation each op uses and why, what a step costs; with ``time`` where its seconds go."""
        return explanation.explain(self, time)

    # ---- streams

    def _check_stream(self, stream: int) -> int:
        if not 0 <= stream < self.streams:
            raise ValueError(f"stream={stream}: expected 0..{self.streams - 1}")
        return stream

    def enter(self, stream: int, lr: float | None = None) -> None:
        """A new document takes the slot: memory and position cleared, adapter reset iff reset="document"."""
        self._check_stream(stream)
        old = self.state[stream]
        self.state[stream] = StreamState(segments=old.segments if self.accumulate else 0, since_reset=old.since_reset,
                                         change=old.change)
        if self.decoder.memory is not None:
            self.decoder.memory.clear(stream)
        if self.reset_policy == "document":
            self.reset(stream)
        if lr is not None:
            self.set_lr(stream, lr)

    def set_lr(self, stream: int, lr: float) -> None:
        """The stream's own learning rate from now on."""
        if self.optimizer is None:
            raise ValueError(f"lr={lr}: nothing learns in this engine (adapt=None)")
        if not lr >= 0:
            raise ValueError(f"lr={lr}: expected a number >= 0")
        self.lr[0 if self.shared else self._check_stream(stream)] = lr

    def reset(self, stream: int) -> None:
        """The stream's weights and optimizer state back to the prior; its memory stays."""
        self._check_stream(stream)
        if not self.learners:
            return
        if len(self.learners) > 1:
            self.learners[stream].reset()
        else:
            self.learners[0].reset(0 if self.shared else stream)
        self.state[stream].since_reset = 0
        self.state[stream].change = ChangePoint()
        if self.static:
            self.static.forget_scores(stream)

    # ---- the step

    @ranged("step")
    @_on_device
    def step(self, tokens: torch.Tensor, lengths=None, streams=None, weights=None) -> torch.Tensor:
        """Score each row's tokens, then learn from them.

        Args:
            tokens: int64 [R, T+1]; inputs are tokens[:, :-1], targets tokens[:, 1:]. A stream's next call starts with
                the token that this one ended with.
            lengths: R numbers on the host, how many targets of each row count; 0 = the row rests. None: all T.
            streams: R stream numbers on the host, whose text each row is; None: rows 0..S-1 are the streams in order.
                With more streams than rows, documents enter and leave by these numbers alone.
            weights: R numbers on the host, what each row's loss counts in what is learned; None: 1 each.

        Returns:
            nll float32 [R, T] in nats on the engine's device, computed before the update that saw these tokens; 0 beyond
            ``lengths``. On a GPU the call returns before the work is done; reading the scores waits for it.
        """
        tokens, lengths, streams = self._check_step(tokens, lengths, streams)
        self.ledger.begin_step()
        self._row_weights = None if weights is None else self._check_weights(weights, streams)
        if self.static:
            return self.static.run(tokens, lengths, streams)
        if streams != list(range(self.streams)):
            tokens, lengths = self._scatter(tokens, lengths, streams)
            return self._step_host(tokens, lengths)[streams]
        return self._step_host(tokens, lengths)

    @_on_device
    def score(self, tokens: torch.Tensor, stream: int = 0) -> torch.Tensor:
        """NLL [R, T] of int64 tokens [R, T+1] with one stream's weights as they are now; for any number of rows.

        Nothing learns, and memory is neither read nor written. Its FLOPs count as forward; ``ledger.step`` has them alone.
        """
        tokens = torch.as_tensor(tokens, dtype=torch.int64)
        if tokens.dim() != 2 or not 2 <= tokens.shape[1] <= self.window + 1:
            raise ValueError(f"tokens has shape {tuple(tokens.shape)}: expected [rows, 2..{self.window + 1}]")
        self._check_ids(tokens)
        stream = 0 if self.shared else self._check_stream(stream)
        rows, learner = tokens.to(self.device), self._learner([stream])
        slot = torch.tensor([0 if len(self.learners) > 1 else stream], dtype=torch.int32, device=self.device)
        numbers = range(tokens.shape[0])
        batch = Batch(rows[:, :-1].contiguous(), slot, torch.tensor(numbers, dtype=torch.int32, device=self.device), tuple(numbers))
        self.ledger.begin_step()
        with self._without_memory():
            hidden = self.decoder.forward(batch, learner, None)
            nll, _ = self.decoder.score(hidden, None, rows[:, 1:].reshape(-1), None)
        return nll.view(tokens.shape[0], -1).clone()

    def _check_weights(self, weights, streams) -> list[float]:
        """Of all streams, 1 for those that have no row."""
        weights = [float(w) for w in weights]
        if len(weights) != len(streams) or not all(0 <= w < float("inf") for w in weights):
            raise ValueError(f"weights={weights}: expected {len(streams)} numbers of at least 0")
        whole = [1.0] * self.streams
        for stream, weight in zip(streams, weights):
            whole[stream] = weight
        return whole

    def _scatter(self, tokens, lengths, streams):
        """The rows at the places of their streams; all others rest."""
        whole, counts = tokens.new_zeros(self.streams, tokens.shape[1]), [0] * self.streams
        whole[streams] = tokens
        for stream, count in zip(streams, lengths):
            counts[stream] = count
        return whole, counts

    def _step_host(self, tokens, lengths) -> torch.Tensor:
        flags = lambda: [False] * self.streams  # noqa: E731
        self.last = StepReport(flags(), flags(), flags(), [None] * self.streams)
        nll = torch.zeros(self.streams, tokens.shape[1] - 1, dtype=self.decoder.stat_dtype)
        for streams, learn, update in self._batches(lengths):
            self._step_batch(tokens, lengths, streams, learn, update, nll)
        self.last.flops = dict(self.ledger.step)
        return nll

    def _check_ids(self, tokens) -> None:
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= self.config.vocab_size:
            raise ValueError(f"tokens hold ids {low}..{high}: expected 0..{self.config.vocab_size - 1}")

    @contextmanager
    def _without_memory(self):
        """Passes inside neither read nor write the segment memory."""
        memory, self.decoder.memory = self.decoder.memory, None
        try:
            yield
        finally:
            self.decoder.memory = memory

    def _check_step(self, tokens, lengths, streams):
        tokens = torch.as_tensor(tokens, dtype=torch.int64)
        streams = list(range(self.streams)) if streams is None else [int(s) for s in streams]
        if len(set(streams)) != len(streams) or any(not 0 <= s < self.streams for s in streams):
            raise ValueError(f"streams={streams}: expected different numbers in 0..{self.streams - 1}")
        if tokens.dim() != 2 or tokens.shape[0] != len(streams) or not 2 <= tokens.shape[1] <= self.segment + 1:
            raise ValueError(f"tokens has shape {tuple(tokens.shape)}: expected [{len(streams)}, 2..{self.segment + 1}]")
        if tokens.device.type == "cpu":  # on a device the step itself looks, see static_step.py
            self._check_ids(tokens)
        elif self.device.type == "cpu":
            raise ValueError(f"tokens is on {tokens.device}: this engine works on the CPU (device={str(self.device)!r})")
        width = tokens.shape[1] - 1
        lengths = [width] * len(streams) if lengths is None else [int(n) for n in lengths]
        if len(lengths) != len(streams) or any(not 0 <= n <= width for n in lengths):
            raise ValueError(f"lengths={lengths}: expected {len(streams)} numbers in 0..{width}")
        return tokens, lengths, streams

    def _batches(self, lengths):
        """(streams, learn, update) of the passes of this step: streams that do the same work go together."""
        active = [s for s in range(self.streams) if lengths[s] > 0]
        if not active:
            return []
        if not self.learners:
            return [(part, False, False) for part in self._in_batches(active)]
        due = {s: (self.state[s].segments + 1) % self.every == 0 for s in active}
        if self.shared:
            update = due[active[0]]
            return [(active, update or self.accumulate, update)]
        groups = [([s for s in active if due[s] == update], update or self.accumulate, update) for update in (True, False)]
        if len(self.learners) > 1:
            groups = [([s], learn, update) for streams, learn, update in groups for s in streams]
        return [(part, learn, update) for streams, learn, update in groups for part in self._in_batches(streams)]

    def _in_batches(self, rows: list[int]) -> list[list[int]]:
        """``rows`` in pieces of at most ``batch``."""
        return [rows[i : i + self.batch] for i in range(0, len(rows), self.batch)]

    def _batch(self, tokens, lengths, streams):
        """Inputs [S', T'] with each stream's overlap in front, targets [S', T'] (-1: not scored)."""
        histories = [self.state[s].history for s in streams]
        width = max(len(h) + lengths[s] for h, s in zip(histories, streams))
        inputs = torch.zeros(len(streams), width, dtype=torch.int64)
        targets = torch.full_like(inputs, -1)
        for i, (s, past) in enumerate(zip(streams, histories)):
            start, stop = len(past), len(past) + lengths[s]
            inputs[i, :start] = torch.tensor(past, dtype=torch.int64)
            inputs[i, start:stop] = tokens[s, : lengths[s]]
            targets[i, start:stop] = tokens[s, 1 : lengths[s] + 1]
        memory_slots = torch.tensor(streams, dtype=torch.int32)
        one_set = self.shared or len(self.learners) > 1
        adapter_slots = torch.zeros(1, dtype=torch.int32) if one_set else memory_slots
        context = sum(len(h) for h in histories)
        return Batch(inputs, adapter_slots, memory_slots, tuple(streams), context / inputs.numel()), targets

    def _learner(self, streams):
        if not self.learners:
            return None
        return self.learners[streams[0]] if len(self.learners) > 1 else self.learners[0]

    def _step_batch(self, tokens, lengths, streams, learn, update, nll) -> None:
        batch, targets = self._batch(tokens, lengths, streams)
        learner = self._learner(streams)
        hidden = self.decoder.forward(batch, learner, self.lowest if learn else None)
        counts = [lengths[s] for s in streams]
        scores, dhidden = self._score(batch, hidden, targets, counts, learn)
        for i, s in enumerate(streams):
            nll[s, : counts[i]] = scores[i][: counts[i]]
        resets = [s for i, s in enumerate(streams) if self._reset_due(s, counts[i], scores[i][: counts[i]])]
        if learn and len(resets) < len(streams):
            self.decoder.backward(batch, learner, self.lowest, dhidden, self.accumulate)
            if learner.owns_weights and self.accumulate:
                learner.passes += 1
            if update:
                self._update(learner, streams, resets)
        self.decoder.count_memory(batch.inputs.shape[1], self.decoder.lengths)
        for s in resets:
            self.reset(s)
            self.last.was_reset[s] = True
        self.decoder.advance_memory(batch, counts)
        self._advance_streams(tokens, lengths, streams)

    def _score(self, batch, hidden, targets, counts, learn):
        """Per-stream NLLs and, when learning, d-hidden [N, H] of the mean NLL (of all rows together when shared)."""
        flat = targets.reshape(-1)
        rows = (flat >= 0).nonzero()[:, 0]
        weights = None
        if learn:
            per_row = [1.0 / (sum(counts) if self.shared else c) for c in counts]
            if self._row_weights is not None:
                per_row = [share * self._row_weights[s] for share, s in zip(per_row, batch.streams)]
            share = torch.tensor(per_row, dtype=self.decoder.stat_dtype) / (self.every if self.accumulate else 1)
            weights = share.repeat_interleave(torch.tensor(counts))
        nll, dh = self.decoder.score(hidden, None if len(rows) == len(flat) else rows, flat[rows].contiguous(), weights)
        return nll.split(counts), dh

    def _reset_due(self, stream: int, count: int, nll: torch.Tensor) -> bool:
        state = self.state[stream]
        if not self.learners or self.reset_policy in ("never", "document"):
            return False
        if self.reset_policy == "auto":
            return state.change.observe(float(nll.mean()))
        state.since_reset += count
        return state.since_reset >= self.reset_policy

    def _update(self, learner, streams, resets) -> None:
        moving = [s for s in streams if s not in resets]
        alone = self.shared or learner.owns_weights
        slots = torch.zeros(1, dtype=torch.int32) if alone else torch.tensor(moving, dtype=torch.int32)
        lr = self.lr[moving[0] : moving[0] + 1] if learner.owns_weights and not self.shared else self.lr
        norms, skipped = learner.update(self.ops, slots, lr)
        self._count_update(len(slots), learner.state.updated)
        for i, s in enumerate(streams if self.shared else moving):
            j = 0 if alone else i
            self.last.grad_norm[s] = float(norms[j])
            self.last.skipped[s] = bool(skipped[j])
            self.last.updated[s] = not skipped[j]
        self._skipped_updates += int(skipped.sum())
        self._updates += len(slots) - int(skipped.sum())
        if learner.owns_weights:
            learner.count_update()

    def _count_update(self, sets: int, parameters: int) -> None:
        self.ledger.add("update", sets * update_op.flops(parameters, self.optimizer))

    def _advance_streams(self, tokens, lengths, streams) -> None:
        for s in streams:
            self.state[s].segments += 1
            if isinstance(self.memory, Overlap):
                past = self.state[s].history + tokens[s, : lengths[s]].tolist()
                self.state[s].history = past[-self.memory.context :]

    # ---- statistics, saving

    @_on_device
    def gather_statistics(self, segments) -> int:
        """Frozen gradient statistics for ``RMS`` at the prior: MS = sqrt(mean over segments of g^2).

        Args:
            segments: iterable of int64 [T+1] token tensors of the statistics text, each one gradient.

        Returns:
            The number of segments used. These gradients are not counted in ``flops``.
        """
        if self.optimizer is None or not self.optimizer.uses_statistics:
            raise ValueError(f"optimizer={self.optimizer!r}: only RMS uses gradient statistics")
        totals, learner, count = dict(self.ledger.totals), self.learners[0], 0
        squares = torch.zeros_like(learner.state.master[0])
        learner.state.take_gradients()
        for segment in segments:
            row = torch.as_tensor(segment, dtype=torch.int64).view(1, -1)
            learner.choosing_rows = count == 0
            self._prior_gradient(row, learner)
            squares += learner.state.grad[0].square()
            learner.state.grad.zero_()
            count += 1
        learner.state.release_gradients()
        learner.choosing_rows = False
        if not count:
            raise ValueError("segments: empty; RMS needs at least one segment of statistics text")
        for other in self.learners:
            other.take_statistics(squares / count, learner)
        self.ledger.totals = totals
        if self.static:
            self.static.drop_graphs()  # they hold the addresses of older statistics
        return count

    def _prior_gradient(self, row: torch.Tensor, learner) -> None:
        if not 2 <= row.shape[1] <= self.window + 1:
            raise ValueError(f"segments: one has {row.shape[1]} tokens; expected 2..{self.window + 1}")
        row = row.to(self.device)
        zero, count = torch.zeros(1, dtype=torch.int32, device=self.device), row.shape[1] - 1
        weights = torch.full((count,), 1.0 / count, dtype=self.decoder.stat_dtype, device=self.device)
        batch = Batch(row[:, :-1].contiguous(), zero, zero, (0,))
        with self._without_memory():
            hidden = self.decoder.forward(batch, learner, self.lowest)
            _, dhidden = self.decoder.score(hidden, None, row[0, 1:].contiguous(), weights)
            self.decoder.backward(batch, learner, self.lowest, dhidden, False)

    def load_adapter(self, directory, stream: int = 0) -> None:
        """Put a PEFT adapter of the same rank, alpha and targets into one stream; its optimizer state starts anew.

        The prior, to which decay and resets lead, stays what it was.
        """
        if not isinstance(self.adapt, LoRA):
            raise ValueError(f"adapt={self.adapt!r}: only an engine with LoRA takes adapters")
        slot = 0 if self.shared else self._check_stream(stream)
        read_adapter(directory, self.learners[0], self.config, slot)
        self.learners[0].state.clear(slot)

    def save(self, directory) -> None:
        """Write everything that resuming bit for bit needs; LoRA adapters also as PEFT directories."""
        engine_state.save(self, directory)

    def restore(self, directory) -> None:
        """Take back a state written by ``save`` in an engine of the same configuration."""
        engine_state.restore(self, directory)
