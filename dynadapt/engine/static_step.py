"""The step with fixed shapes and no host decision: what one CUDA graph per (rows, segment) can hold.

``StaticStep.run`` splits a step in two. The host decides what it can know without looking at scores: which streams the
rows are, how many tokens count, whose update is due. That goes to the device in one copy, into buffers whose addresses
never change. Everything after it (forward, score, backward, update, memory) reads those buffers, and only those: a stream
enters or leaves, rests, waits for its update or is reset by different numbers in the same buffers. The first step of a
kind runs eagerly, the second is captured, all later ones replay the graph.

Nothing in between waits for the device. Scores, gradient norms and skipped updates come back in one copy per step; only
reading them waits.
"""

from __future__ import annotations

import ctypes
import math
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch

from dynadapt.adapt import resets
from dynadapt.adapt.methods import whole_model
from dynadapt.adapt.resets import ChangePoint
from dynadapt.common.reprs import safe
from dynadapt.ops.dispatch import kernel_module

from .decoder import Batch
from .learners.fused import Fused, why_not_fused
from .memory import Overlap

ALIGN = 16


class Arena:
    """Named tensors side by side in one buffer, so that one copy moves them all."""

    def __init__(self, fields: dict[str, tuple[torch.dtype, tuple[int, ...]]]):
        self.fields, self.size = {}, 0
        for name, (dtype, shape) in fields.items():
            self.fields[name] = (dtype, shape, self.size)
            self.size += -(-math.prod(shape) * dtype.itemsize // ALIGN) * ALIGN

    def views(self, buffer: torch.Tensor) -> dict[str, torch.Tensor]:
        return {
            name: buffer[start : start + math.prod(shape) * dtype.itemsize].view(dtype).view(shape)
            for name, (dtype, shape, start) in self.fields.items()
        }

    def empty(self, device, pinned: bool = False) -> torch.Tensor:
        return torch.empty(self.size, dtype=torch.uint8, device=device, pin_memory=pinned)


class StaticReport:
    """What a step did, by stream, as ``StepReport``; reading anything but ``flops`` waits for the device."""

    def __init__(self, streams: int, flops: dict[str, int]):
        self.streams, self.flops = streams, flops
        self.parts: list[tuple[list[int], list[bool], dict[str, torch.Tensor]]] = []  # streams of the rows, who is due, outcome
        self.host_resets: set[int] = set()
        self.known: dict[str, list] | None = None

    def _read(self, name: str) -> list:
        if self.known is None:
            self.known = self._collect()
        return self.known[name]

    def _collect(self) -> dict[str, list]:
        flags = lambda: [False] * self.streams  # noqa: E731
        known = {"updated": flags(), "skipped": flags(), "was_reset": flags(), "grad_norm": [None] * self.streams}
        for stream in self.host_resets:
            known["was_reset"][stream] = True
        for streams, due, outcome in self.parts:
            host = {name: t.tolist() for name, t in outcome.items() if name != "nll"}
            if any(host["invalid"]):
                raise ValueError(
                    f"tokens of streams {[s for s, bad in zip(streams, host['invalid']) if bad]} hold ids outside the "
                    "vocabulary; their scores are NaN and they did not learn"
                )
            for i, stream in enumerate(streams):
                j = i if len(host["moving"]) > 1 else 0
                known["was_reset"][stream] |= bool(host["reset"][i])
                if due[i] and host["moving"][j] >= 0:
                    known["skipped"][stream] = bool(host["skipped"][j])
                    known["updated"][stream] = not host["skipped"][j]
                    norm = host["norms"][j]
                    known["grad_norm"][stream] = None if host["no_norm"][0] else norm
        return known

    @safe
    def __repr__(self) -> str:
        if self.known is None:  # asking would wait for the device
            return f"StaticReport({self.streams} stream{'s' * (self.streams != 1)}, not read from the device, {sum(self.flops.values()) / 1e9:.4g} GFLOP)"
        return f"StaticReport({sum(map(bool, self.updated))} of {self.streams} updated, {sum(self.flops.values()) / 1e9:.4g} GFLOP)"

    updated = property(lambda self: self._read("updated"))
    skipped = property(lambda self: self._read("skipped"))
    was_reset = property(lambda self: self._read("was_reset"))
    grad_norm = property(lambda self: self._read("grad_norm"))


@dataclass(frozen=True)
class Kind:
    """What a recorded step does; steps of one kind differ only in the numbers in their buffers."""

    rows: int
    segment: int
    learn: bool
    update: bool
    learner: int
    choosing: bool


@dataclass
class Recording:
    """The buffers of one kind of step, what it costs, and on a GPU its graph."""

    kind: Kind
    inputs: dict[str, torch.Tensor]
    input_buffer: torch.Tensor
    outcome: dict[str, torch.Tensor]
    outcome_buffer: torch.Tensor
    runs: int = 0
    graph: object = None
    flops: dict[str, int] = field(default_factory=dict)
    attended_back: int = 0


class StaticStep:
    """Runs the steps of one engine; ``capture`` off keeps every step eager (for timing single ops)."""

    def __init__(self, engine):
        self.engine, self.capture = engine, engine.backend == "triton"  # references look at numbers on the host
        self.cuda = engine.device.type == "cuda"
        self.context = engine.memory.context if isinstance(engine.memory, Overlap) else 0
        self.recordings: dict[Kind, Recording] = {}
        self.arenas: dict[tuple[int, int], tuple[Arena, Arena]] = {}
        self.counters = torch.zeros(2, dtype=torch.int64, device=engine.device)  # updates, skipped updates
        optimizer = engine.optimizer
        self.why_not_fused = None if optimizer is None else why_not_fused(optimizer, engine.accumulate, whole_model(engine.adapt))
        self.auto = engine.reset_policy == "auto" and bool(engine.learners)
        if self.auto:
            self.change = {
                name: torch.zeros(engine.streams, dtype=torch.float64, device=engine.device)
                for name in ("count", "mean", "squares", "statistic")
            }
        common = kernel_module("common") if engine.backend == "triton" else None
        scratch = common.Scratch() if common else None
        self.with_scratch = (lambda: common.scratch_of(scratch)) if common else nullcontext
        if self.cuda:
            self.stream, self.pool = torch.cuda.Stream(engine.device), torch.cuda.graph_pool_handle()

    # ---- counts and states that live on the device

    @property
    def updates(self) -> int:
        return int(self.counters[0])

    @property
    def skipped_updates(self) -> int:
        return int(self.counters[1])

    @property
    def fused(self) -> bool:
        """Whether the gradient kernels of this engine update."""
        return bool(self.engine.learners) and self.why_not_fused is None

    def drop_graphs(self) -> None:
        """Steps are recorded anew: a buffer that they read has moved."""
        self.recordings.clear()
        self.arenas.clear()  # they go by a recording's id, which a later one may get
        if self.cuda:  # a pool whose graphs are all gone must not be used again
            self.pool = torch.cuda.graph_pool_handle()

    def forget_scores(self, stream: int) -> None:
        """The change detector of one stream starts anew."""
        if self.auto:
            for t in self.change.values():
                t[stream] = 0

    def change_points(self) -> list[ChangePoint] | None:
        """The change detectors of all streams, for saving; waits for the device."""
        if not self.auto:
            return None
        columns = [self.change[name].tolist() for name in ("count", "mean", "squares", "statistic")]
        return [ChangePoint(int(count), *rest) for count, *rest in zip(*columns)]

    def set_change_points(self, points: list[ChangePoint]) -> None:
        if self.auto:
            for name, t in self.change.items():
                t.copy_(torch.tensor([getattr(p, name) for p in points], dtype=torch.float64))

    # ---- the host's part

    def run(self, tokens: torch.Tensor, lengths: list[int], streams: list[int]) -> torch.Tensor:
        """See ``Engine.step``; arguments are checked."""
        e = self.engine
        report = StaticReport(e.streams, {})
        e.last = report
        rows = list(range(len(streams)))
        groups = e._in_batches(rows) if len(e.learners) <= 1 else [[i] for i in rows]
        groups = [g for g in groups if any(lengths[i] for i in g)]
        nll = None
        if groups != [rows]:
            nll = torch.zeros(len(rows), tokens.shape[1] - 1, dtype=e.decoder.stat_dtype, device=e.device)
        for g in groups:
            chosen = tokens[g[0] : g[-1] + 1]  # no index tensor: it would wait for the device
            part = self._step(chosen, [lengths[i] for i in g], [streams[i] for i in g], report)
            if nll is None:
                nll = part
            else:
                nll[g[0] : g[-1] + 1] = part
        report.flops = dict(e.ledger.step)
        return nll

    def _step(self, tokens, lengths, streams, report) -> torch.Tensor:
        e = self.engine
        learner = e._learner(streams)
        due, reset_now = self._due(streams, lengths), self._reset_by_count(streams, lengths)
        moves = [d and s not in reset_now for d, s in zip(due, streams)]
        learn = bool(e.learners) and (any(moves) or (e.accumulate and len(reset_now) < len(streams)))
        update = learn and any(moves)
        choosing = learn and learner.owns_weights and learner.choosing
        kind = Kind(len(streams), tokens.shape[1] - 1, learn, update, 0 if len(e.learners) < 2 else streams[0], choosing)
        rec = self.recordings.get(kind) or self._record(kind)
        memory_lengths = [] if e.decoder.memory is None else [e.decoder.memory.filled[s] for s in streams]

        self._fill(rec, tokens, lengths, streams, due, moves)
        before = dict(e.ledger.step)
        if self._execute(rec, learner, tuple(streams)):
            rec.flops = {phase: n - before[phase] for phase, n in e.ledger.step.items()}
            rec.attended_back = e.decoder.attended_back
        else:
            for phase, n in rec.flops.items():
                e.ledger.add(phase, n)
        e.decoder.attended_back = rec.attended_back
        e.decoder.count_memory(kind.segment, memory_lengths)
        if update:
            e._count_update(sum(moves) if len(rec.inputs["moving"]) > 1 else 1, learner.state.updated)

        outcome = self._outcome(rec)
        report.parts.append((streams, due, outcome))
        report.host_resets |= set(reset_now)
        self._move_on(tokens, lengths, streams, learner, learn, update, reset_now)
        return outcome["nll"].view(kind.rows, kind.segment)

    def _due(self, streams, lengths) -> list[bool]:
        """Whose update is due; where weights are shared, all rows' at once."""
        e = self.engine
        due = [bool(e.learners) and n > 0 and (e.state[s].segments + 1) % e.every == 0 for s, n in zip(streams, lengths)]
        if not e.shared:
            return due
        first = next(i for i, n in enumerate(lengths) if n > 0)
        return [due[first] and n > 0 for n in lengths]

    def _reset_by_count(self, streams, lengths) -> list[int]:
        e = self.engine
        if not e.learners or not isinstance(e.reset_policy, int):
            return []
        return [s for s, n in zip(streams, lengths) if n > 0 and e.state[s].since_reset + n >= e.reset_policy]

    def _record(self, kind: Kind) -> Recording:
        e, r, n = self.engine, kind.rows, kind.rows * kind.segment
        sets = 1 if e.shared or len(e.learners) > 1 or (e.learners and e.learners[0].owns_weights) else r
        i32, i64, wide = torch.int32, torch.int64, e.decoder.stat_dtype
        fields = {
            "inputs": (i64, (r, self.context + kind.segment)),
            "targets": (i64, (n,)),
            "weights": (wide, (n,)),
            "slots": (i32, (r,)),
            "adapter": (i32, (sets,)),
            "counts": (i32, (r,)),
            "moving": (i32, (sets,)),
        }
        if self.context:
            fields["rows"] = (i64, (n,))
        given = Arena(fields)
        made = Arena(
            {
                "nll": (wide, (n,)),
                "norms": (torch.float32, (sets,)),
                "skipped": (i32, (sets,)),
                "moving": (i32, (sets,)),
                "reset": (i32, (r,)),
                "invalid": (i32, (r,)),
                "no_norm": (i32, (1,)),
            }
        )
        input_buffer, outcome_buffer = given.empty(e.device), made.empty(e.device)
        outcome_buffer.zero_()
        rec = Recording(kind, given.views(input_buffer), input_buffer, made.views(outcome_buffer), outcome_buffer)
        rec.outcome["no_norm"].fill_(int(self.fused))
        self.recordings[kind], self.arenas[id(rec)] = rec, (given, made)
        return rec

    def _fill(self, rec, tokens, lengths, streams, due, moves) -> None:
        """The host's decisions and tokens into the recording's buffers, in one copy."""
        e, kind, (given, _) = self.engine, rec.kind, self.arenas[id(rec)]
        host_buffer = given.empty("cpu", pinned=self.cuda).zero_()
        host = given.views(host_buffer)
        on_host = tokens.device.type == "cpu"
        host["targets"].fill_(-1)
        targets, weights = host["targets"].view(kind.rows, -1), host["weights"].view(kind.rows, -1)
        total = sum(lengths)
        for i, (stream, n) in enumerate(zip(streams, lengths)):
            past = e.state[stream].history
            if on_host:
                host["inputs"][i, : len(past)] = torch.tensor(past, dtype=torch.int64)
                host["inputs"][i, len(past) : len(past) + n] = tokens[i, :n]
                targets[i, :n] = tokens[i, 1 : n + 1]
            if self.context:
                self._scored_rows(host["rows"].view(kind.rows, -1)[i], i, len(past), n)
            if n and (due[i] or e.accumulate):
                own = 1.0 if e._row_weights is None else e._row_weights[stream]
                weights[i, :n] = own / (total if e.shared else n) / (e.every if e.accumulate else 1)
        host["slots"].copy_(torch.tensor(streams))
        host["counts"].copy_(torch.tensor(lengths))
        if len(host["moving"]) == len(streams) and not e.shared and not (e.learners and e.learners[0].owns_weights):
            host["adapter"].copy_(torch.tensor(streams))
            host["moving"].copy_(torch.tensor([s if moved else -1 for s, moved in zip(streams, moves)]))
        else:
            host["moving"].fill_(0 if any(moves) else -1)
        rec.input_buffer.copy_(host_buffer, non_blocking=True)
        rec.outcome["invalid"].zero_()
        if not on_host:
            self._take_device_tokens(rec, tokens)

    def _scored_rows(self, rows, i: int, past: int, n: int) -> None:
        """Row indices of the scored tokens behind ``past`` tokens of context; rows that score nothing fill the rest."""
        width, segment = self.context + rows.shape[0], rows.shape[0]
        rows[:n] = torch.arange(past, past + n)
        idle = torch.cat([torch.arange(past), torch.arange(past + n, width)])
        rows[n:] = idle[: segment - n]
        rows += i * width

    def _take_device_tokens(self, rec, tokens) -> None:
        """Tokens that are on the device already; ids outside the vocabulary stop the stream and are reported when read."""
        given, vocabulary = rec.inputs, self.engine.config.vocab_size
        tokens = tokens.to(self.engine.device)
        invalid = ((tokens < 0) | (tokens >= vocabulary)).any(1)
        counted = torch.arange(rec.kind.segment, device=tokens.device) < given["counts"][:, None]
        given["inputs"].copy_(tokens[:, :-1].clamp(0, vocabulary - 1))
        given["targets"].view(rec.kind.rows, -1).copy_(torch.where(counted & ~invalid[:, None], tokens[:, 1:], -1))
        stopped = invalid if len(given["moving"]) == len(invalid) else invalid.any().view(1)
        given["moving"].masked_fill_(stopped, -1)
        rec.outcome["invalid"].copy_(invalid)

    def _outcome(self, rec) -> dict[str, torch.Tensor]:
        """A copy of what the step made: the recording's buffers belong to the next step."""
        outcome = self.arenas[id(rec)][1].views(rec.outcome_buffer.clone())
        outcome["nll"].view(rec.kind.rows, -1).masked_fill_((outcome["invalid"] != 0)[:, None], float("nan"))
        return outcome

    def _move_on(self, tokens, lengths, streams, learner, learn, update, reset_now) -> None:
        e = self.engine
        if learn and learner.owns_weights:
            learner.passes += e.accumulate
            if update:
                learner.count_update()
        if e.learners and isinstance(e.reset_policy, int):
            for stream, n in zip(streams, lengths):
                e.state[stream].since_reset += n
        for stream in reset_now:
            e.put_back(stream)
        for i, (stream, n) in enumerate(zip(streams, lengths)):
            if n == 0:
                continue
            e.state[stream].segments += 1
            if e.decoder.memory is not None:
                e.decoder.memory.count(stream, n)
            if self.context:
                e.state[stream].history = (e.state[stream].history + tokens[i, :n].tolist())[-self.context :]

    @staticmethod
    def launches(rec) -> int:
        """Nodes of a recording's graph: kernels, copies and fills."""
        count = ctypes.c_size_t()
        status = ctypes.CDLL("libcuda.so.1").cuGraphGetNodes(ctypes.c_void_p(rec.graph.raw_cuda_graph()), None, ctypes.byref(count))
        if status:
            raise RuntimeError(f"cuGraphGetNodes: CUDA error {status}")
        return count.value

    # ---- the device's part

    def _execute(self, rec, learner, streams) -> bool:
        """True when the step ran through Python and so was counted by the ledger."""
        rec.runs += 1
        if not (self.cuda and self.capture):
            with self.with_scratch():
                self._body(rec, learner, streams)
            return True
        if rec.graph is not None:
            self.engine.calls.moving()
            rec.graph.replay()
            return False
        current = torch.cuda.current_stream()
        if rec.runs == 1:  # compiles kernels, makes buffers and scratch memory; a real step all the same
            self.stream.wait_stream(current)
            with torch.cuda.stream(self.stream), self.with_scratch():
                self._body(rec, learner, streams)
            current.wait_stream(self.stream)
            return True
        graph = torch.cuda.CUDAGraph(keep_graph=True)  # kept to count its launches
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream), self.with_scratch():
            self._body(rec, learner, streams)
        rec.graph = graph
        graph.replay()
        return True

    def _body(self, rec, learner, streams) -> None:
        """Forward, score, backward, update, memory: everything that a graph holds."""
        e, d, given, made, kind = self.engine, self.engine.decoder, rec.inputs, rec.outcome, rec.kind
        recomputed = self.context / (self.context + kind.segment)
        batch = Batch(given["inputs"], given["adapter"], given["slots"], streams, recomputed)
        hidden = d.forward(batch, learner, e.lowest if kind.learn else None)
        nll, dhidden = d.score(hidden, given.get("rows"), given["targets"], given["weights"] if kind.learn else None)
        made["nll"].copy_(nll)
        e.calls.moving()
        if self.auto:
            self._watch(rec)
        made["moving"].copy_(given["moving"])
        if kind.learn:
            self._learn(rec, learner, batch, dhidden)
        if self.auto:
            self._reset_flagged(rec, learner)
        if d.memory is not None:
            d.advance_memory_static(batch, given["counts"])

    def _learn(self, rec, learner, batch, dhidden) -> None:
        e, given, made, kind = self.engine, rec.inputs, rec.outcome, rec.kind
        lr = e.lr[kind.learner : kind.learner + 1] if learner.owns_weights and not e.shared else e.lr
        backward = lambda: e.decoder.backward(batch, learner, e.lowest, dhidden, e.accumulate)  # noqa: E731
        if not (kind.update and self.fused):
            backward()
            if kind.update:
                learner.update(e.ops, given["moving"], lr, made["norms"], made["skipped"])
        else:
            self._learn_fused(rec, learner, lr, backward)
        if kind.update:
            moved = given["moving"] >= 0
            skipped = (made["skipped"] != 0) & moved
            self.counters += torch.stack([(moved & ~skipped).sum(), skipped.sum()])

    def _learn_fused(self, rec, learner, lr, backward) -> None:
        """Backward whose gradient kernels update; a stream whose score is not finite is left out of it."""
        given, made = rec.inputs, rec.outcome
        moved = given["moving"] >= 0
        finite = torch.isfinite(made["nll"].view(len(moved), -1).sum(1))
        made["skipped"].copy_(~(finite & moved))
        learner.fused = Fused(moved.to(torch.int32), self.engine.optimizer.rule(), lr, made["skipped"])
        try:
            backward()
        finally:
            learner.fused = None
        stepped = moved & (made["skipped"] == 0)
        made["skipped"].mul_(moved)
        slots = given["adapter"].long()
        learner.state.step.index_add_(0, slots, stepped.to(torch.int32))

    def _watch(self, rec) -> None:
        """The change detectors (adapt/resets.py) of all rows at once; flags streams that go back to the prior."""
        given, made, c = rec.inputs, rec.outcome, self.change
        slots, counts = given["slots"].long(), given["counts"]
        old = {name: t[slots] for name, t in c.items()}
        x = made["nll"].view(len(slots), -1).double().sum(1) / counts.clamp(min=1)
        seen = (counts > 0) & torch.isfinite(x)
        std = (old["squares"] / (old["count"] - 1).clamp(min=1)).sqrt().clamp(min=resets.MIN_STD)
        warm = old["count"] >= resets.WARMUP
        raised = (old["statistic"] + (x - old["mean"]) / std - resets.DRIFT).clamp(min=0)
        statistic = torch.where(warm, raised, old["statistic"])
        flagged = seen & warm & (statistic > resets.THRESHOLD)
        count = old["count"] + 1
        mean = old["mean"] + (x - old["mean"]) / count
        new = {"count": count, "mean": mean, "squares": old["squares"] + (x - old["mean"]) * (x - mean), "statistic": statistic}
        for name, t in c.items():
            t.index_copy_(0, slots, torch.where(flagged, 0.0, torch.where(seen, new[name], old[name])))
        made["reset"].copy_(flagged)
        given["moving"].masked_fill_(flagged, -1)

    def _reset_flagged(self, rec, learner) -> None:
        s = learner.state
        self.engine.ops.reset(rec.outcome["reset"], rec.inputs["adapter"], s.prior, s.master, s.working, s.grad, s.first, s.second, s.step)
