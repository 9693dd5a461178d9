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

from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import wraps

import torch

from dynadapt.adapt.methods import LoRA, targeted, whole_model
from dynadapt.adapt.resets import ChangePoint
from dynadapt.common.checks import number, path
from dynadapt.common.reprs import counted, safe
from dynadapt.model import load, rope_tables
from dynadapt.ops import UnsupportedOp
from dynadapt.ops import update as update_op
from dynadapt.ops.precision import wide_dtype
from dynadapt.ops.profiler_ranges import ranged

from . import explain as explanation
from . import gradient_statistics
from . import state as engine_state
from .arguments import DTYPES, OPTIMIZERS, Arguments  # noqa: F401
from .calls import Calls, one_call, plain_torch
from .continuation import Continuation, continue_text
from .decoder import Batch, Decoder, OpSet
from .learners.fused import why_not_fused
from .learners.lora import LoraLearner
from .learners.peft import read_adapter
from .learners.rows import RowLearner
from .learners.whole_model import ModelLearner
from .ledger import Ledger
from .memory import MemoryState, Overlap, SegmentMemory
from .needed_ops import needed_ops
from .sampling import Sampler
from .static_step import StaticStep
from .step_arguments import check_lengths, check_stream, check_streams, check_tokens, check_weights
from .weights import FrozenWeights, group_sizes, source_weight
from .workspace import Workspace


@dataclass
class StepReport:
    """What the last step did, by stream. ``flops``: phase -> FLOPs of this step."""

    updated: list[bool]
    skipped: list[bool]
    was_reset: list[bool]
    grad_norm: list[float | None]
    flops: dict[str, int] = field(default_factory=dict)

    @safe
    def __repr__(self) -> str:
        norms = [norm for norm in self.grad_norm if norm is not None]
        what = [f"{sum(map(bool, flags))} {name}" for name, flags in (("skipped", self.skipped), ("reset", self.was_reset)) if any(flags)]
        if norms:
            what.append(f"gradient norm {min(norms):.3g}" + (f"..{max(norms):.3g}" if len(norms) > 1 else ""))
        return ", ".join(
            [
                f"StepReport({sum(map(bool, self.updated))} of {counted(len(self.updated), 'stream')} updated",
                *what,
                f"{sum(self.flops.values()) / 1e9:.4g} GFLOP)",
            ]
        )


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
        model: what ``dynadapt.load`` returns or takes: a known name, a path, a live transformers model.
        adapt: ``LoRA``, ``RowSparse``, ``Full`` or None (static evaluation); "lora", "rows", "full", "none" or a class for its defaults.
        optimizer: ``Adam``, ``AdamW``, ``SGD``, ``RMS`` or ``Lion``, or its name ("adam", ...) or class for its defaults; None with ``adapt``
            given means ``Adam()``.
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

    A call runs alone: one that begins while another runs, in a thread or a callback, is refused, and so are calls in a forked
    process. A step completes or changes nothing: arguments are checked first, and where a step fails after it has begun to move
    weights, every call but ``restore`` is refused from then on.

    Raises:
        ValueError: naming the argument that does not fit, its value, and what would; ``ModelError`` for a model that can't be loaded.
        UnsupportedOp: naming the ops of this configuration that the backend can't serve here, before any weight is read.
    """

    def __init__(
        self,
        model,
        adapt=None,
        optimizer=None,
        memory=None,
        streams: int = 1,
        segment: int = 512,
        shared: bool = False,
        every: int = 1,
        accumulate: bool = False,
        reset="never",
        dtype: str = "bf16",
        backend: str = "auto",
        seed: int = 0,
        device: str = "auto",
        batch: int | None = None,
        recompute: bool = False,
        base: str = "same",
        static: bool | None = None,
    ):
        given = Arguments(
            adapt,
            optimizer,
            memory,
            streams,
            segment,
            shared,
            every,
            accumulate,
            reset,
            dtype,
            backend,
            seed,
            device,
            batch,
            recompute,
            base,
            static,
        )
        with plain_torch():
            self._make(load(model), given)

    # ---- construction

    def _make(self, model, given: Arguments) -> None:
        self.model = model
        self.config = self.model.config
        given.check_model(self.config)
        self.adapt, self.optimizer, self.memory = given.adapt, given.optimizer, given.memory
        self.streams, self.segment, self.window = given.streams, given.segment, given.window
        self.shared, self.every, self.accumulate, self.reset_policy = given.shared, given.every, given.accumulate, given.reset
        self.seed, self.recompute, self.base, self.batch = given.seed, given.recompute, given.base, given.batch or given.streams
        self.dtype, self.torch_dtype, self.device, self.backend = given.dtype, given.torch_dtype, given.device, given.backend
        self._static, self.lowest = given.static, given.lowest(self.config.layers)
        self.calls = Calls()
        self._resolve_ops()
        self._build()

    def _resolve_ops(self) -> None:
        """Every op that a call of this configuration may need, before anything is made for it."""
        self._check_kind()
        self.ops = OpSet(self.backend, self.torch_dtype)
        whole = whole_model(self.adapt)
        self._fused = self._static and self.adapt is not None and why_not_fused(self.optimizer, self.accumulate, whole) is None
        try:
            self.ops.resolve(needed_ops(self, self._static, self._fused))
        except UnsupportedOp as error:
            remedy = "; use static=False" if self._static and self.backend == "cpu" else ""
            raise UnsupportedOp(f"backend={self.backend!r} with dtype={self.dtype!r}, static={self._static}: {error}{remedy}") from error

    def _check_kind(self) -> None:
        """Raises ValueError for an optimizer that the backend's update does not know."""
        if self.adapt is None or self.optimizer.kind in (known := update_op.kinds_of(self.backend)):
            return
        raise ValueError(
            f"optimizer={self.optimizer!r} with backend={self.backend!r}: its update knows {', '.join(known)}, not {self.optimizer.kind}"
        )

    def _build(self) -> None:
        c = self.config
        self.workspace = Workspace(self.torch_dtype, self.device, pinned=self._static)
        self.ledger = Ledger()
        sizes = group_sizes(c)
        learning = targeted(self.adapt, c.layers)
        own_weights = self.adapt is not None and not isinstance(self.adapt, LoRA)
        slots = 1 if self.shared else self.streams
        self.learners = self._learners(own_weights, slots, sizes)
        if whole_model(self.adapt):
            self.weights = self.learners[0].weights_view  # nothing is frozen
        else:
            self.weights = FrozenWeights(
                self.model, self.backend, self.torch_dtype, set(learning) if own_weights else set(), self.device, self.base
            )
        lr = 0.0 if self.optimizer is None else self.optimizer.lr
        self.lr = torch.full((slots,), lr, dtype=torch.float32, device=self.device)
        store = None
        if isinstance(self.memory, SegmentMemory):
            store = MemoryState(self.memory, c.layers, self.streams, c.kv_heads * c.head_dim, c.hidden_size, self.torch_dtype, self.device)
        rope = (None, None) if c.rope_theta is None else rope_tables(c, self.window)
        if rope[0] is not None:
            rope = tuple(t.to(device=self.device, dtype=wide_dtype(self.torch_dtype)) for t in rope)
        scale = self.adapt.scale if isinstance(self.adapt, LoRA) else 0.0
        self.decoder = Decoder(c, self.weights, self.ops, self.workspace, self.ledger, rope, store, scale, self.recompute, self._static)
        self.state = [StreamState() for _ in range(self.streams)]
        self._updates = self._skipped_updates = 0
        self._row_weights: list[float] | None = None  # of the step in progress
        self.last: StepReport | None = None
        self.static = StaticStep(self) if self._static else None

    def _learners(self, own_weights: bool, slots: int, sizes):
        """One LoRA learner serves every slot; weights of one's own need a learner a slot."""
        if self.adapt is None:
            return []
        keep_grad = not self._fused
        if not own_weights:
            return [LoraLearner(self.adapt, self.optimizer, sizes, slots, self.torch_dtype, self.seed, self.device, keep_grad)]
        keep_prior = self._static and self.reset_policy == "auto"
        if whole_model(self.adapt):
            return [
                ModelLearner(self.adapt, self.optimizer, self.model, self.torch_dtype, self.backend, self.device, keep_prior)
                for _ in range(slots)
            ]
        source = lambda layer, group, part: source_weight(self.model, layer, group, part)  # noqa: E731
        return [
            RowLearner(self.adapt, self.optimizer, sizes, self.torch_dtype, self.backend, source, self.device, keep_prior, keep_grad)
            for _ in range(slots)
        ]

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

    @safe
    def __repr__(self) -> str:
        learns = f"{self.adapt!r}, {self.optimizer!r}" if self.adapt is not None else "static"
        made = "" if self.static or self.adapt is None else f", {counted(self._updates, 'update')}"  # on a GPU the count is the device's
        damaged = ", DAMAGED by a failed call" if self.calls.damage else ""
        return (
            f"Engine({self.model.name!r}, {learns}, {self.memory!r}, {counted(self.streams, 'stream')} of {self.segment}, {self.dtype}, "
            f"{self.backend} on {self.device}{made}{damaged})"
        ).replace(", None,", ",")

    def describe(self) -> dict:
        """The configuration as plain data; two engines with equal descriptions can exchange saved states."""
        plain = lambda part: (
            None
            if part is None
            else {"kind": type(part).__name__, **{k: str(v) if isinstance(v, range) else v for k, v in asdict(part).items()}}
        )  # noqa: E731
        return {
            "model": self.model.fingerprint(),
            "adapt": plain(self.adapt),
            "optimizer": plain(self.optimizer),
            "memory": plain(self.memory),
            "streams": self.streams,
            "segment": self.segment,
            "shared": self.shared,
            "every": self.every,
            "accumulate": self.accumulate,
            "reset": self.reset_policy,
            "dtype": self.dtype,
            "backend": self.backend,
            "base": self.base,
            "seed": self.seed,
        }

    def explain(self, time: bool = False) -> str:
        """Which implementation each op uses and why, what a step costs; with ``time`` where its seconds go."""
        return explanation.explain(self, time)

    # ---- streams

    def _check_stream(self, stream: int) -> int:
        return check_stream(stream, self.streams)

    def _check_lr(self, lr: float) -> float:
        if self.optimizer is None:
            raise ValueError(f"lr={lr!r}: nothing learns in this engine (adapt=None)")
        return number("lr", lr, "a finite number >= 0")

    @one_call
    @_on_device
    def enter(self, stream: int, lr: float | None = None) -> None:
        """A new document takes the slot: memory and position cleared, adapter reset iff reset="document"."""
        stream, lr = self._check_stream(stream), None if lr is None else self._check_lr(lr)
        self.calls.moving()
        old = self.state[stream]
        self.state[stream] = StreamState(segments=old.segments if self.accumulate else 0, since_reset=old.since_reset, change=old.change)
        if self.decoder.memory is not None:
            self.decoder.memory.clear(stream)
        if self.reset_policy == "document":
            self.put_back(stream)
        if lr is not None:
            self.lr[0 if self.shared else stream] = lr

    @one_call
    def set_lr(self, stream: int, lr: float) -> None:
        """The stream's own learning rate from now on."""
        lr = self._check_lr(lr)
        self.lr[0 if self.shared else self._check_stream(stream)] = lr

    @one_call
    @_on_device
    def reset(self, stream: int) -> None:
        """The stream's weights and optimizer state back to the prior; its memory stays."""
        stream = self._check_stream(stream)
        self.calls.moving()
        self.put_back(stream)

    def put_back(self, stream: int) -> None:
        """What ``reset`` does, inside a call."""
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
    @one_call
    @_on_device
    def step(self, tokens: torch.Tensor, lengths=None, streams=None, weights=None) -> torch.Tensor:
        """Score each row's tokens, then learn from them.

        Args:
            tokens: token ids [R, T+1], a tensor or array of any integer type or nested lists; inputs are tokens[:, :-1], targets
                tokens[:, 1:]. A stream's next call starts with the token that this one ended with.
            lengths: R numbers, how many targets of each row count; 0 = the row rests. None: all T.
            streams: R stream numbers, whose text each row is; None: rows 0..S-1 are the streams in order.
                With more streams than rows, documents enter and leave by these numbers alone.
            weights: R numbers of at least 0, what each row's loss counts in what is learned; None: 1 each.
                (Of these three, tensors on a device are waited for.)

        Returns:
            nll float32 [R, T] in nats on the engine's device, computed before the update that saw these tokens; 0 beyond
            ``lengths``. On a GPU the call returns before the work is done; reading the scores waits for it.

        Raises:
            ValueError: naming the argument that does not fit; nothing has changed.
            RuntimeError: an optimizer without its statistics; another call runs; an earlier step failed half-way.
        """
        if self.learners:
            self.learners[0].state.check_statistics()
        streams = check_streams(streams, self.streams)
        tokens = check_tokens(tokens, len(streams), self.segment + 1, self.config.vocab_size, self.device, looks=self.device.type == "cpu")
        if tokens.device.type != "cpu" and isinstance(self.memory, Overlap):
            raise ValueError(f"tokens is on {tokens.device}: memory=Overlap needs them on the CPU, where it keeps the last ones")
        lengths = check_lengths(lengths, len(streams), tokens.shape[1] - 1)
        self._row_weights = None if weights is None else self._weights_by_stream(check_weights(weights, len(streams)), streams)
        with self._counted():
            if self.static:
                return self.static.run(tokens, lengths, streams)
            if streams != list(range(self.streams)):
                tokens, lengths = self._scatter(tokens, lengths, streams)
                return self._step_host(tokens, lengths)[streams]
            return self._step_host(tokens, lengths)

    @contextmanager
    def _counted(self):
        """A step in the ledger, which a step that fails does not enter."""
        totals, last = dict(self.ledger.totals), self.last
        self.ledger.begin_step()
        try:
            yield
        except BaseException:
            self.ledger.totals, self.last = totals, last
            self.ledger.begin_step()
            if self.static:
                self.static.drop_graphs()  # a recording that never ran to its end
            raise

    @one_call
    @_on_device
    def score(self, tokens: torch.Tensor, stream: int = 0) -> torch.Tensor:
        """NLL [R, T] of token ids [R, T+1] with one stream's weights as they are now; for any number of rows.

        Nothing learns, and memory is neither read nor written. Its FLOPs count as forward; ``ledger.step`` has them alone.
        """
        tokens = check_tokens(tokens, None, self.window + 1, self.config.vocab_size, self.device)
        stream = self._check_stream(stream)
        stream = 0 if self.shared else stream
        rows, learner = tokens.to(self.device), self._learner([stream])
        slot = torch.tensor([0 if len(self.learners) > 1 else stream], dtype=torch.int32, device=self.device)
        numbers = range(tokens.shape[0])
        batch = Batch(rows[:, :-1].contiguous(), slot, torch.tensor(numbers, dtype=torch.int32, device=self.device), tuple(numbers))
        with self._counted(), self.without_memory():
            hidden = self.decoder.forward(batch, learner, None)
            nll, _ = self.decoder.score(hidden, None, rows[:, 1:].reshape(-1), None)
        return nll.view(tokens.shape[0], -1).clone()

    def generate(
        self,
        prompt,
        max_tokens: int = 128,
        *,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        stop=(),
        end=True,
        stream: int = 0,
        repetition_penalty: float = 1.0,
        on_text=None,
    ) -> Continuation:
        """Continue a text with one stream's weights as they are now. Nothing learns, and memory is neither read nor written.

        Args:
            prompt: text, or ids [tokens]. Of more than ``window`` tokens the last ones count.
            max_tokens: the most tokens that are made.
            temperature: 0 takes the likeliest token each time; above 0 draws from softmax(logits / temperature).
            top_k, top_p: draw from the k likeliest, or from the fewest likeliest whose probabilities sum to at least p.
            seed: of the draws; None: another text each time.
            stop: a string or several that end the text, which does not include them.
            end: True ends at the model's end-of-text tokens, False goes on past them, token ids end at those.
            repetition_penalty: as ``generation.generate``'s.
            on_text: called with each piece of text as it becomes known; it must not call the engine.

        Returns:
            ``Continuation``: print it for the text; it has ``text``, ``ids``, ``prompt_ids`` and ``ended``.

        Raises:
            ValueError: naming the argument that does not fit. RuntimeError: the engine is in another call, or a failed one damaged it.
        """
        return continue_text(
            self, prompt, max_tokens, Sampler(temperature, top_k, top_p, seed), stop, end, stream, repetition_penalty, on_text
        )

    def _weights_by_stream(self, weights: list[float], streams: list[int]) -> list[float]:
        """Of all streams, 1 for those that have no row."""
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

    @contextmanager
    def without_memory(self):
        """Passes inside neither read nor write the segment memory."""
        memory, self.decoder.memory = self.decoder.memory, None
        try:
            yield
        finally:
            self.decoder.memory = memory

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
        self.calls.moving()
        resets = [s for i, s in enumerate(streams) if self._reset_due(s, counts[i], scores[i][: counts[i]])]
        if learn and len(resets) < len(streams):
            self.decoder.backward(batch, learner, self.lowest, dhidden, self.accumulate)
            if learner.owns_weights and self.accumulate:
                learner.passes += 1
            if update:
                self._update(learner, streams, resets)
        self.decoder.count_memory(batch.inputs.shape[1], self.decoder.lengths)
        for s in resets:
            self.put_back(s)
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
        self.ledger.add("update", sets * update_op.flops(parameters, self.optimizer.rule()))

    def _advance_streams(self, tokens, lengths, streams) -> None:
        for s in streams:
            self.state[s].segments += 1
            if isinstance(self.memory, Overlap):
                past = self.state[s].history + tokens[s, : lengths[s]].tolist()
                self.state[s].history = past[-self.memory.context :]

    # ---- statistics, saving

    @one_call
    @_on_device
    def gather_statistics(self, segments) -> int:
        """Frozen gradient statistics for ``RMS`` at the prior: MS = sqrt(mean over segments of g^2).

        Args:
            segments: iterable of token ids [T+1] of the statistics text, each one gradient.

        Returns:
            The number of segments used. These gradients are not counted in ``flops``.
        """
        return gradient_statistics.gather(self, segments)

    @one_call
    def load_adapter(self, directory, stream: int = 0) -> None:
        """Put a PEFT adapter of the same rank, alpha and targets into one stream; its optimizer state starts anew.

        The prior, to which decay and resets lead, stays what it was.
        """
        if not isinstance(self.adapt, LoRA):
            raise ValueError(f"adapt={self.adapt!r}: only an engine with LoRA takes adapters")
        slot = self._check_stream(stream)
        slot = 0 if self.shared else slot
        read_adapter(path("directory", directory), self.learners[0], self.config, slot)  # all of it or nothing
        self.learners[0].state.clear(slot)

    @one_call
    def save(self, directory) -> None:
        """Write everything that resuming bit for bit needs; LoRA adapters also as PEFT directories."""
        engine_state.save(self, path("directory", directory))

    def restore(self, directory) -> None:
        """Take back a state written by ``save`` in an engine of the same configuration, be it one that a failed step has damaged."""
        directory = path("directory", directory)
        with self.calls.call("restore", mends=True):
            engine_state.restore(self, directory)
