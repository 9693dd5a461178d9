"""The engine: score a segment of many streams, then learn from it.

``Engine.step`` runs, for every stream of the call:

1. forward over the T inputs, attending to [sinks; memory; segment];
2. linear cross-entropy: per-token NLL, and d-hidden from the same pass when an update is due;
3. the score is recorded; from here on nothing changes it;
4. backward: input gradients through frozen weights, weight gradients only for what learns, none into memory;
5. per-stream clip and one fused update, or a reset to the prior; a non-finite gradient skips its stream and says so;
6. the segment enters memory, detached.

``Engine.forward_backward`` is all of it but the update, whose gradient waits and adds up; ``Engine.optim_step`` is the update.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch

from dynadapt.adapt.methods import whole_model
from dynadapt.adapt.targets import targeted
from dynadapt.common.checks import number, path
from dynadapt.common.outdated import positional_before
from dynadapt.common.reprs import counted, safe
from dynadapt.model import load
from dynadapt.ops import UnsupportedOp
from dynadapt.ops.precision import wide_dtype
from dynadapt.ops.profiler_ranges import ranged

from . import adapter_start, gradient_statistics, guarding, snapshots, split_step
from . import explain as explanation
from . import state as engine_state
from .calls import Calls, on_device, one_call, plain_torch
from .continuation import Continuation, continue_text
from .decoder import Decoder
from .drivers import Captured, Eager
from .each_stream import said
from .keeping import Keeping
from .learners.make import make_learners
from .ledger import Ledger
from .memory import MemoryState, SegmentMemory
from .needed_ops import needed_ops
from .op_set import OpSet
from .plan import StreamState
from .report import StepReport
from .sampling import Sampler
from .settings import FIXED, NEVER, EngineSettings
from .settings_for_model import check_model
from .slow_level import SLOW_WINDOW, SlowLevel
from .snapshots import StreamSnapshot
from .step import Step
from .step_arguments import check_stream, check_tokens
from .weights import FrozenWeights, check_quantised, rotations
from .workspace import Workspace


class Engine:
    """Scores a stream of tokens and learns from each segment right after scoring it, for many streams at once.

    Args:
        model: what ``dynadapt.load`` returns or takes: a known name, a path, a live transformers model.
        adapt: ``LoRA``, ``RowSparse``, ``Full`` or None (static evaluation); "lora", "rows", "full", "none" or a class for its defaults.
            A list of one ``LoRA`` a stream: streams of different ranks, scales, targets and layers, in one step.
        optimizer: ``Adam``, ``AdamW``, ``SGD``, ``RMS``, ``Lion`` or ``Muon``, or its name ("adam", ...) or class for its defaults; None
            with ``adapt`` given means ``Adam()``. With ``LoRA`` also a list of one a stream.
        memory: ``SegmentMemory``, ``Overlap`` or None.
        streams: S independent streams, each with its own adapter, optimizer state, memory and position.
        segment: T, the largest number of tokens a step scores per stream.
        shared: the S rows share one set of weights: the step is ordinary training on their mean loss.
        every: update at every k-th segment of a stream. The others pay for no backward, or, with
            ``accumulate``, add their gradient to the update to come, which is by the mean of its k segments' (docs/learning.md).
        reset: back to the prior never, at each "document", every N tokens, or "auto", with a guard also
            ``Alarm``: part of the way, to the best of a ring of copies, with a lower rate for a while (adapt/resets.py).
        dtype: "bf16" or "fp32"; "fp64" on the reference backend; "auto": the fastest here that is at least as exact
            (engine/arithmetic.py), which ``explain`` names.
        backend: "cpu" (native kernels), "triton" (GPU kernels), "reference" (plain torch), "auto" (by device; reference for fp64).
        seed: of the adapters' initial A.
        device: "cpu", "cuda", "cuda:1"...; "auto": the GPU where torch sees one and the backend can use it.
        batch: streams that go through the layers together; the others follow in further passes of the same step, which costs
            less memory and changes no result. None: all, but with the native kernels only as many as keep the threads at work (256
            tokens each). Streams with weights of their own always go one by one.
        recompute: norm outputs and activations are made again in backward instead of kept for it, with the same bits. None: with the
            native kernels, which make them on the way.
        base: "same" (``dtype``); "float8": frozen linear weights in float8 with a scale per row (ops/float8.py); "int8": these and the
            head in int8 with a scale per row and group of 64, multiplied as whole numbers (ops/int8.py), where adapters or nothing
            learn; or "quants": those of a quantised GGUF file in the file's own blocks of integers (ops/quants.py), which scores the
            same in less memory.
        static: fixed shapes and no host decision inside a step, as a CUDA graph needs; None: on a GPU only.
        guard: the score is never worse than the model's without adaptation, up to a bound (adapt/guard.py): "exact", N for the prior
            on every N-th segment, ``Guard`` or None.
        slow: ``Slow``: beside what each stream learns, one level that learns from all of them every so many tokens and is never reset
            (adapt/slow.py); it makes the streams one text: scores depend on what other streams were scored before. None: streams are
            independent.
        keep: ``KeepPrior``: each update also pulls towards the model as it was loaded on pieces of a reference text, so that learning
            one text costs less of the others (adapt/keep_prior.py).
        learn_from: ``Selection``, or its words ("below=0.3,above=4,tokens=0.2:0.95"): segments and tokens are left out of what is learned from by
            their scores (adapt/selection.py); a pass of which nothing is left has no backward. None: all are learned from.
        hypergradient: ``Hypergradient``, its words ("step=0.02,limit=8") or "on": of each stream's adapters every A and B has a factor on its
            rate, which grows while its steps go one way and shrinks where they turn back (adapt/hypergradient.py). None: rates stay.

    A call runs alone: one that begins while another runs, in a thread or a callback, is refused, and so are calls in a forked
    process. A step completes or changes nothing: arguments are checked first, and where a step fails after it has begun to move
    weights, every call but ``restore`` is refused from then on.

    Raises:
        ValueError: naming the argument that does not fit, its value, and what would; ``ModelError`` for a model that can't be loaded.
        UnsupportedOp: naming the ops of this configuration that the backend can't serve here, before any weight is read.
    """

    @partial(positional_before, but=("guard", "slow", "keep", "learn_from", "hypergradient"))
    def __init__(
        self,
        model,
        adapt=None,
        *,
        optimizer=None,
        memory=None,
        streams: int = 1,
        segment: int = 512,
        shared: bool = False,
        every: int = 1,
        accumulate: bool = False,
        reset="never",
        dtype: str = "auto",
        backend: str = "auto",
        seed: int = 0,
        device: str | torch.device = "auto",
        batch: int | None = None,
        recompute: bool | None = None,
        base: str = "same",
        static: bool | None = None,
        guard=None,
        slow=None,
        keep=None,
        learn_from=None,
        hypergradient=None,
    ):
        settings = EngineSettings(
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
            guard,
            slow,
            keep,
            learn_from,
            hypergradient,
        )
        with plain_torch():
            self._make(load(model), settings)

    # ---- construction

    def _make(self, model, settings: EngineSettings) -> None:
        self.model, self.config, self.settings = model, model.config, settings
        check_model(settings, self.config)
        if settings.base == "quants":
            check_quantised(model)
        self.adapt, self.optimizer, self.memory = settings.adapt, settings.optimizer, settings.memory
        self.streams, self.segment, self.window = settings.streams, settings.segment, settings.window
        self.shared, self.every, self.accumulate, self.reset_policy = settings.shared, settings.every, settings.accumulate, settings.reset
        self.seed, self.recompute, self.base = settings.seed, bool(settings.recompute), settings.base
        self.batch = settings.batch or settings.streams
        self.dtype, self.torch_dtype, self.device, self.backend = settings.dtype, settings.torch_dtype, settings.device, settings.backend
        self.lowest, self.guard, self.slow = settings.lowest(self.config), settings.guard, settings.slow
        self.keep, self.learn_from, self.hypergradient = settings.keep, settings.learn_from, settings.hypergradient
        self.calls = Calls()
        self._resolve_ops()
        self._build()

    def _resolve_ops(self) -> None:
        """Every op that a call of this configuration may need, before anything is made for it."""
        self.ops, static = OpSet(self.backend, self.torch_dtype), self.settings.fixed
        try:
            self.ops.resolve(needed_ops(self, static, self.settings.why_not_fused is None))
        except UnsupportedOp as error:
            remedy = "; use static=False" if static and self.backend == "cpu" else ""
            raise UnsupportedOp(f"backend={self.backend!r} with dtype={self.dtype!r}, static={static}: {error}{remedy}") from error

    def _build(self) -> None:
        c, given, dtype, device = self.config, self.settings, self.torch_dtype, self.device
        self.workspace, self.ledger = Workspace(dtype, device), Ledger()
        self.learners = make_learners(given, self.model)
        self.slow_level = None if self.slow is None else self._make_slow()
        if self.slow_level is not None:
            self.weights = self.slow_level.weights
        elif whole_model(self.adapt):
            self.weights = self.learners[0].weights_view  # nothing is frozen
        else:
            own = set(targeted(self.adapt, c)) if given.owns_weights else set()
            self.weights = FrozenWeights(self.model, self.backend, dtype, own, device, self.base)
        rates = [given.optimizer_of(s).lr if given.learns else 0.0 for s in range(given.sets)]
        self.lr = torch.tensor(rates, dtype=torch.float32, device=device)
        store = MemoryState.of(c, self.memory, self.streams, dtype, device) if isinstance(self.memory, SegmentMemory) else None
        rope = rotations(c, self.window, wide_dtype(dtype), device, 0 if self.keep is None else self.keep.tokens)
        self.decoder = Decoder(c, self.weights, self.ops, self.workspace, self.ledger, rope, store, self.recompute, given.fixed)
        step = Step(given, self.decoder, self.learners, self.lr, self.calls.moving, asks=not given.fixed)
        self.state = step.states
        self.driver = Captured(step) if given.fixed else Eager(step)
        self.guarding = guarding.made(self)
        self.keeping = step.keeping = None if given.keep is None else Keeping(self, given.keep)
        self.last: StepReport | None = None

    def _make_slow(self) -> SlowLevel:
        given, slow = self.settings, self.slow
        window = slow.window or min(SLOW_WINDOW, self.config.max_positions)
        place = {"dtype": self.dtype, "backend": self.backend, "device": self.device, "seed": self.seed, "static": False}
        learner = Engine(self.model, slow.adapt, optimizer=slow.optimizer, segment=window, recompute=given.recompute, **place)
        return SlowLevel(learner, slow, self.streams)

    def __setattr__(self, name: str, value) -> None:
        """Settings are read when the engine is made: another one would be ignored, and is refused by AttributeError."""
        if name in FIXED and hasattr(self, name):
            raise AttributeError(f"engine.{name} = {value!r}: what an engine was made with stays as it is; {FIXED[name]}")
        super().__setattr__(name, value)

    # ---- what it is

    @property
    def flops(self) -> dict[str, int]:
        """FLOPs by phase since the engine was made (see ledger.py)."""
        return dict(self.ledger.totals)

    @property
    def static(self) -> Captured | None:
        """What runs steps of fixed shapes; None where shapes are those of the streams' segments."""
        return self.driver if isinstance(self.driver, Captured) else None

    @property
    def updates(self) -> int:
        """Updates made, over all streams."""
        return int(self.driver.step.counters[0])

    @property
    def skipped_updates(self) -> int:
        """Updates that a gradient which was not finite has cost."""
        return int(self.driver.step.counters[1])

    @property
    def learned_parameters(self) -> int:
        """Parameters that learn, per set of weights; of the largest where streams differ."""
        return max((learner.learned_parameters for learner in self.learners), default=0)

    @safe
    def __repr__(self) -> str:
        learns = f"{said(self.adapt)}, {said(self.optimizer)}" if self.adapt is not None else "static"
        made = "" if self.static or self.adapt is None else f", {counted(self.updates, 'update')}"  # on a GPU the count is the device's
        damaged = ", DAMAGED by a failed call" if self.calls.damage else ""
        return (
            f"Engine({self.model.name!r}, {learns}, {self.memory!r}, {counted(self.streams, 'stream')} of {self.segment}, {self.dtype}, "
            f"{self.backend} on {self.device}{made}{damaged})"
        ).replace(", None,", ",")

    def describe(self) -> dict:
        """The configuration as plain data; two engines with equal descriptions can exchange saved states."""
        mixed = {} if self.guarding is None else self.guarding.described
        return {"model": self.model.fingerprint(), **self.settings.describe(), **mixed}

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
    @on_device
    def enter(self, stream: int, lr: float | None = None, *, adapter=None, prior: bool = False) -> None:
        """A new document takes the slot: memory and position cleared, adapter reset iff reset="document".

        Args:
            adapter: what the stream starts with instead, with ``LoRA``: the directory of a PEFT adapter of its ranks, scales and targets,
                or a snapshot, whose adapter is taken. Its optimizer state starts anew.
            prior: that adapter is also what this stream's resets and ``decay`` lead back to from now on.
        """
        stream, lr = self._check_stream(stream), None if lr is None else self._check_lr(lr)
        row = adapter_start.row_of(self, stream, adapter, prior)
        self.calls.moving()
        old = self.state[stream]
        waits_on = self.accumulate and row is None and self.reset_policy != "document"  # what waits counts towards the next update
        self.state[stream] = StreamState(old.segments if waits_on else 0, old.since_reset, old.waiting)
        if self.decoder.memory is not None:
            self.decoder.memory.clear(stream)
        if row is not None:
            adapter_start.start(self, stream, row, prior)
        elif self.reset_policy == "document":
            self.driver.step.put_back(stream)
        if self.guarding is not None:
            self.guarding.enter(stream)
        if self.slow_level is not None:
            self.slow_level.end_document(stream)
        if lr is not None:
            self.lr[0 if self.shared else stream] = lr

    @one_call
    def learn_no_more(self) -> None:
        """Steps only score from now on: no update is due any more."""
        settings = replace(self.settings, every=NEVER)
        vars(self).update(every=NEVER, settings=settings)  # set from outside, it would be refused
        self.driver.step.settings = settings

    @one_call
    def set_lr(self, stream: int, lr: float) -> None:
        """The stream's own learning rate from now on."""
        lr = self._check_lr(lr)
        self.lr[0 if self.shared else self._check_stream(stream)] = lr

    @one_call
    @on_device
    def reset(self, stream: int) -> None:
        """The stream's weights and optimizer state back to the prior (with ``LoRA(keep_a=True)`` all but A); its memory stays."""
        stream = self._check_stream(stream)
        self.calls.moving()
        self.driver.step.put_back(stream)
        if self.guarding is not None and self.guarding.alarms is not None:
            self.guarding.alarms.forget(stream)

    @one_call
    @on_device
    def snapshot(self, stream: int = 0) -> StreamSnapshot:
        """A copy, in this engine's memory, of where a stream is: what it learned, optimizer state, memory, position (snapshots.py).

        With ``shared`` the rows are one whole, whichever is named.
        """
        return snapshots.take(self, self._check_stream(stream))

    @one_call
    @on_device
    def rollback(self, stream: int, snapshot: StreamSnapshot) -> None:
        """The stream goes on from ``snapshot`` as the one that it was taken of did, to the bit; FLOPs and updates stay counted.

        The snapshot may be of another stream, or of another engine of the same configuration and model.

        Raises:
            ValueError: naming what of its configuration this engine has otherwise; nothing has changed.
        """
        snapshots.put(self, self._check_stream(stream), snapshot)

    # ---- the step

    @ranged("step")
    @one_call
    @on_device
    def step(self, tokens: torch.Tensor, lengths=None, streams=None, weights=None) -> torch.Tensor:
        """Score each row's tokens, then learn from them.

        Args:
            tokens: token ids [R, T+1], a tensor or array of any integer type or nested lists; inputs are tokens[:, :-1], targets
                tokens[:, 1:]. A stream's next call starts with the token that this one ended with.
            lengths: R numbers, how many targets of each row count; 0 = the row rests. None: all T.
            streams: R stream numbers, whose text each row is; None: rows 0..S-1 are the streams in order.
                With more streams than rows, documents enter and leave by these numbers alone.
            weights: finite numbers of at least 0, what a loss counts in what is learned; scores are as without. [R, T], a bool mask
                for one: of each token's, and a row learns from the sum of weight x NLL over the number of tokens whose weight isn't 0
                (``shared``: those of all rows). R numbers: factors of each row's mean, which a 0 leaves as it is. A row without a
                weight above 0 moves no weights of its own. None: 1 each. (Of these three, tensors on a device are waited for.)

        Returns:
            nll float32 [R, T] in nats on the engine's device, computed before the update that saw these tokens; 0 beyond
            ``lengths``. On a GPU the call returns before the work is done; reading the scores waits for it.

        Raises:
            ValueError: naming the argument that does not fit; nothing has changed.
            RuntimeError: an optimizer without its statistics; another call runs; an earlier step failed half-way.
        """
        if self.slow_level is not None and weights is not None:
            raise ValueError(f"weights with slow={self.slow!r}: the slow level learns from all tokens alike; expected None")
        given = split_step.checked(self, tokens, lengths, streams, weights, looks=self.device.type == "cpu")
        split_step.refuse_waiting(self, given.streams)
        with self._counted():
            nll, self.last = self._run(given)
        if self.slow_level is not None and self.every != NEVER:
            self._learn_slowly(self.slow_level, given)
        return nll

    def _learn_slowly(self, level: SlowLevel, given) -> None:
        """What was scored is kept for the slow level, and its update made once there is enough."""
        level.keep(given.tokens, given.lengths, given.streams)
        if level.kept >= level.slow.every:
            self.calls.moving()
            for phase, flops in level.update().items():
                self.ledger.add(phase, flops)
            if self.last is not None:
                self.last.flops = dict(self.ledger.step)

    @ranged("forward_backward")
    @one_call
    @on_device
    def forward_backward(
        self, tokens: torch.Tensor, lengths=None, streams=None, weights=None, loss: str = "cross_entropy", inputs=None
    ) -> torch.Tensor:
        """``step`` without its update: scores each row, and adds the gradient of its loss to what waits for ``optim_step``.

        ``every`` does not matter here; with ``accumulate`` a segment counts 1/``every`` as in ``step``. Segments enter memory, and
        resets are made, as in ``step``: a stream that goes back to the prior has no gradient left.

        Args:
            tokens, lengths, streams, weights: as ``step``'s. Tokens on a device are waited for.
            loss: what the weights and means are of: "cross_entropy"; "importance_sampling", -exp(logp - old logp) x advantage; "kl",
                from a teacher's probabilities of K tokens to the model's (losses.py, docs/learning.md).
            inputs: what the loss takes, by name. importance_sampling: logp [R, T], each token's log-probability when it was sampled, and
                advantages [R, T] or [R]. kl: ids [R, T, K] of different tokens (-1: none) and their log-probabilities logp [R, T, K].

        Returns:
            nll float32 [R, T] of the targets, as ``step``'s, whatever the loss; ``last.loss`` has that of a teacher.

        Raises:
            ValueError: naming the argument that does not fit, or adapt=None; nothing has changed.
            RuntimeError: as ``step``; ``learn_no_more`` was called.
        """
        return split_step.forward_backward(self, tokens, lengths, streams, weights, loss, inputs)

    @ranged("optim_step")
    @one_call
    @on_device
    def optim_step(self, streams=None, lr: float | None = None) -> StepReport:
        """The update of ``step``, by the sum of the gradients that wait: clip, optimizer, decay to the prior.

        A stream whose gradient is not finite is skipped and says so; the gradient is gone either way.

        Args:
            streams: whose; None: all for which a gradient waits. (With ``shared`` it is one update for all.)
            lr: the learning rate of this update alone; None: each stream's own.

        Returns:
            What it did, which is ``last`` too.

        Raises:
            ValueError: a stream for which no gradient waits. RuntimeError: none waits at all; another call runs; an earlier one failed half-way.
        """
        return split_step.optim_step(self, streams, lr)

    def _run(self, call, apart: bool = False):
        """(scores [R, T], report) of one step, guarded or not; see ``Eager.run``."""
        return self.driver.run(call, apart) if self.guarding is None else self.guarding.run(self.driver, call, apart)

    @contextmanager
    def _counted(self):
        """A step in the ledger, which a step that fails does not enter."""
        totals = dict(self.ledger.totals)
        self.ledger.begin_step()
        try:
            yield
        except BaseException:
            self.ledger.totals = totals
            self.ledger.begin_step()
            self.driver.drop_recordings()  # one may never have run to its end
            if self.driver.step.undo():
                self.calls.still()
            raise

    @one_call
    @on_device
    def score(self, tokens: torch.Tensor, stream: int = 0) -> torch.Tensor:
        """NLL [R, T] of token ids [R, T+1] with one stream's weights as they are now; for any number of rows.

        Nothing learns, and memory is neither read nor written. Its FLOPs count as forward; ``ledger.step`` has them alone.
        """
        tokens = check_tokens(tokens, None, self.window + 1, self.config.vocab_size, self.device)
        stream = self._check_stream(stream)
        rows, step = tokens.to(self.device), self.driver.step
        with self._counted(), self.without_memory():
            hidden = self.decoder.forward(step.batch_of(stream, rows[:, :-1].contiguous()), step.learner(stream), None)
            nll, _ = self.decoder.score(hidden, None, rows[:, 1:].flatten().contiguous(), None)
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

    @contextmanager
    def without_memory(self):
        """Passes inside neither read nor write the segment memory."""
        memory, self.decoder.memory = self.decoder.memory, None
        try:
            yield
        finally:
            self.decoder.memory = memory

    # ---- statistics, saving

    @one_call
    @on_device
    def gather_statistics(self, segments) -> int:
        """Frozen gradient statistics at the prior: for ``RMS`` MS = sqrt(mean over segments of g^2), for ``RowSparse(select="contrast")``
        the mean of its row scores.

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
        adapter_start.load(self, self._check_stream(stream), path("directory", directory))

    @one_call
    def save(self, directory) -> None:
        """Write everything that resuming bit for bit needs; LoRA adapters also as PEFT directories."""
        engine_state.save(self, path("directory", directory))

    def restore(self, directory) -> None:
        """Take back a state written by ``save`` in an engine of the same configuration, be it one that a failed step has damaged."""
        directory = path("directory", directory)
        with self.calls.call("restore", mends=True):
            engine_state.restore(self, directory)
