"""What takes a step's passes through ``Step.run``: each as it comes, or recorded once per kind and replayed.

``Eager`` gives every pass buffers of just its shape. ``Captured`` keeps the buffers of a kind of pass, and what becomes of a pass is
written into them in one copy; nothing in between waits for the device, only reading scores and reports does. On a GPU the first
pass of a kind runs eagerly, the second is captured in a CUDA graph, all later ones replay it.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field

import torch

from .buffers import Arena, Kind, StepCall, fill, given_fields, made_fields
from .losses import CROSS_ENTROPY
from .plan import Pass, plan, plan_update
from .report import Outcome, StepReport
from .step import Step
from .workspace import KernelScratch

MOST_RECORDINGS = 32  # of each learner: beyond it, segments have ever new lengths


class Eager:
    """Passes have the shape of the rows that are active in them."""

    fixed = False

    def __init__(self, step: Step):
        self.step = step
        self.with_scratch = KernelScratch(step.settings.backend)

    def run(self, call: StepCall, apart: bool = False):
        """(scores [R, T], report) of one step, or with ``apart`` of all of it but the update; see ``Engine.step``."""
        s, rows, width = self.step, len(call.streams), call.tokens.shape[1] - 1
        passes = plan(s.settings, s.states, call.streams, call.lengths, call.weights, self.fixed, apart)
        outcomes, losses = [], None
        blank = lambda: torch.zeros(rows, width, dtype=s.decoder.stat_dtype, device=s.settings.device)  # noqa: E731
        whole = self.fixed and len(passes) == 1 and len(passes[0].rows) == rows
        nll = None if whole else blank()
        for p in passes:
            made = self._pass(p, call)
            nll = self._take(nll, p, made.pop("nll"))
            if "loss" in made:
                losses = self._take(blank() if losses is None else losses, p, made.pop("loss"))
            outcomes.append(Outcome(p, made, not s.fused))
        return nll, self._report(outcomes, losses)

    def _take(self, whole: torch.Tensor | None, p: Pass, part: torch.Tensor) -> torch.Tensor:
        """[R, T] of a call with what one pass has made of its scored tokens; ``whole`` None: they are all there are."""
        if whole is None:
            return part.view(len(p.rows), -1)
        if self.fixed:
            whole[p.rows[0] : p.rows[-1] + 1] = part.view(len(p.rows), -1)
            return whole
        for row, values in zip(p.rows, part.split(p.counts)):
            whole[row, : len(values)] = values
        return whole

    def _report(self, outcomes: list[Outcome], losses: torch.Tensor | None = None) -> StepReport:
        s = self.step
        report = StepReport.pending(s.settings.streams, outcomes, dict(s.decoder.ledger.step), losses)
        if not self.fixed:
            report.read()
        return report

    def update(self, streams: list[int], lr: float | None) -> StepReport:
        """One update by the gradients that wait; see ``Engine.optim_step``."""
        s = self.step
        rates = s.lr if lr is None else torch.full_like(s.lr, lr)
        with self.with_scratch():
            return self._report([Outcome(p, s.update(p, rates), True) for p in plan_update(s.settings, streams)])

    def _pass(self, p: Pass, call: StepCall) -> dict[str, torch.Tensor]:
        """What one pass leaves, in tensors that stay."""
        if p.apart and p.backward:
            self.step.hold(p)
        kind, again = self._kind(p, call)
        memory = self.step.decoder.memory
        memory_lengths = [] if memory is None else [memory.filled[s] for s in p.streams]
        made = self._execute(kind, p, call, again)
        self.step.move_on(kind, p, made, call.tokens, memory_lengths)
        return made

    def _kind(self, p: Pass, call: StepCall) -> tuple[Kind, float]:
        """The kind of a pass, and the share of its inputs that were scored before."""
        s, r, segment = self.step, len(p.rows), call.tokens.shape[1] - 1
        if self.fixed:
            width, scored = s.settings.context + segment, r * segment
            gathers, again = s.settings.context > 0, s.settings.context / width
        else:
            past = [len(s.states[stream].history) for stream in p.streams]
            width, scored = max(map(sum, zip(past, p.counts))), sum(p.counts)
            gathers, again = scored < r * width, sum(past) / (r * width)
        index = p.streams[0] if len(s.learners) > 1 and s.mixed is None else 0
        choosing = p.backward and s.settings.owns_weights and s.learners[index].choosing
        sets, adds = r if s.own_slots else 1, p.backward and (s.settings.accumulate or p.apart and s.waits(p))
        loss = call.loss if p.backward else CROSS_ENTROPY
        selects = p.backward and s.settings.learn_from is not None
        kind = Kind(r, width, scored, gathers, sets, p.backward, p.update, index, choosing, adds, loss.name, loss.candidates, selects)
        return kind, again

    def _fill(self, given: dict[str, torch.Tensor], p: Pass, call: StepCall, with_tokens: bool = True) -> None:
        s, places = self.step, p.counts
        if self.fixed:
            places = (len(given["targets"]) // len(p.rows),) * len(p.rows)
        fill(given, p, call, s.states, places, s.settings.every if s.settings.accumulate else 1, s.own_slots, with_tokens)

    def _execute(self, kind: Kind, p: Pass, call: StepCall, again: float) -> dict[str, torch.Tensor]:
        wide, device = self.step.decoder.stat_dtype, self.step.settings.device
        given = {name: torch.zeros(shape, dtype=dtype) for name, (dtype, shape) in given_fields(kind, wide).items()}
        self._fill(given, p, call)
        given = {name: t.to(device) for name, t in given.items()}
        made = {name: torch.zeros(shape, dtype=dtype, device=device) for name, (dtype, shape) in made_fields(kind, wide).items()}
        with self.with_scratch():
            self.step.run(kind, p, given, made, again)
        return made

    def drop_recordings(self) -> None:
        """Nothing is recorded here."""


@dataclass
class Recording:
    """The buffers of one kind of pass, what it costs, and on a GPU its graph."""

    given_arena: Arena
    made_arena: Arena
    given_buffer: torch.Tensor
    made_buffer: torch.Tensor
    given: dict[str, torch.Tensor] = field(init=False)
    made: dict[str, torch.Tensor] = field(init=False)
    runs: int = 0
    looked: bool = False  # whether the device has looked at the tokens of its last pass; those of the host are checked before it
    graph: torch.cuda.CUDAGraph | None = None
    grown: int = 0  # of the workspace, when the graph was captured
    flops: dict[str, int] = field(default_factory=dict)
    attended_back: int = 0

    def __post_init__(self):
        self.given, self.made = self.given_arena.views(self.given_buffer), self.made_arena.views(self.made_buffer)

    @property
    def launches(self) -> int:
        """Nodes of the graph: kernels, copies and fills."""
        assert self.graph is not None, "not captured yet"
        count = ctypes.c_size_t()
        status = ctypes.CDLL("libcuda.so.1").cuGraphGetNodes(ctypes.c_void_p(self.graph.raw_cuda_graph()), None, ctypes.byref(count))
        if status:
            raise RuntimeError(f"cuGraphGetNodes: CUDA error {status}")
        return count.value


class Captured(Eager):
    """Passes have the shape of the call, and buffers whose addresses stay; ``capture`` off keeps them eager (for timing single ops)."""

    fixed = True

    def __init__(self, step: Step):
        super().__init__(step)
        self.capture = step.settings.backend == "triton"  # references look at numbers on the host
        self.cuda = step.settings.device.type == "cuda"
        self.recordings: dict[Kind, Recording] = {}
        if self.cuda:
            self.stream = torch.cuda.Stream(step.settings.device)
        self.drop_recordings()

    def drop_recordings(self) -> None:
        """Passes are recorded anew: a buffer that they read has moved, or there are too many of them."""
        self.recordings.clear()
        self.with_scratch.drop()
        if self.cuda:  # a pool whose graphs are all gone must not be used again
            self.pool = torch.cuda.graph_pool_handle()

    def _execute(self, kind: Kind, p: Pass, call: StepCall, again: float) -> dict[str, torch.Tensor]:
        rec = self.recordings.get(kind) or self._record(kind)
        self._fill_recording(rec, p, call)
        self._run(rec, kind, p, again)
        made = rec.made_arena.views(rec.made_buffer.clone())  # the recording's buffers belong to the next pass
        if rec.looked:
            made["nll"].view(kind.rows, -1).masked_fill_((made["invalid"] != 0)[:, None], float("nan"))
        return made

    def _record(self, kind: Kind) -> Recording:
        if len(self.recordings) >= MOST_RECORDINGS * max(1, len(self.step.learners)):
            self.drop_recordings()
        wide, device = self.step.decoder.stat_dtype, self.step.settings.device
        given, made = Arena(given_fields(kind, wide)), Arena(made_fields(kind, wide))
        rec = self.recordings[kind] = Recording(given, made, given.empty(device), made.empty(device).zero_())
        return rec

    def _fill_recording(self, rec: Recording, p: Pass, call: StepCall) -> None:
        """The host's decisions and tokens, in one copy."""
        host_buffer = rec.given_arena.empty("cpu", pinned=self.cuda).zero_()
        on_host = call.tokens.device.type == "cpu"
        self._fill(rec.given_arena.views(host_buffer), p, call, on_host)
        rec.given_buffer.copy_(host_buffer, non_blocking=True)
        if rec.looked and on_host:
            rec.made["invalid"].zero_()
        rec.looked = not on_host
        if rec.looked:
            self._take_device_tokens(rec, call.tokens[p.rows[0] : p.rows[-1] + 1])  # no index tensor: it would wait for the device

    def _take_device_tokens(self, rec: Recording, tokens: torch.Tensor) -> None:
        """Tokens that are on the device already; ids outside the vocabulary stop the stream and are reported when read."""
        decoder, given = self.step.decoder, rec.given
        names = ("counts", "inputs", "targets", "moving")
        tokens = tokens.to(self.step.settings.device)
        decoder.ops.decide("take_tokens", tokens, decoder.config.vocab_size, *(given[name] for name in names), rec.made["invalid"])

    def _run(self, rec: Recording, kind: Kind, p: Pass, again: float) -> None:
        """The pass, in Python or as a graph; the ledger counts it either way."""
        decoder = self.step.decoder
        ledger, before = decoder.ledger, dict(decoder.ledger.step)
        if self._replayed(rec, kind, p, again):
            for phase, n in rec.flops.items():
                ledger.add(phase, n)
            decoder.attended_back = rec.attended_back
        else:
            rec.flops = {phase: n - before[phase] for phase, n in ledger.step.items()}
            rec.attended_back = decoder.attended_back
        rec.runs += 1  # those that completed: a first pass that failed has warmed nothing up

    def _replayed(self, rec: Recording, kind: Kind, p: Pass, again: float) -> bool:
        """Runs the pass; True where no Python did."""
        workspace = self.step.decoder.ws
        if not (self.cuda and self.capture):
            with self.with_scratch():
                self.step.run(kind, p, rec.given, rec.made, again)
            return False
        if rec.graph is not None and rec.grown == workspace.grown:
            self.step.moving()
            rec.graph.replay()
            return True
        current = torch.cuda.current_stream()
        if rec.runs == 0:  # compiles kernels, makes buffers and scratch memory; a real step all the same
            self.stream.wait_stream(current)
            with torch.cuda.stream(self.stream), self.with_scratch():
                self.step.run(kind, p, rec.given, rec.made, again)
            current.wait_stream(self.stream)
            return False
        graph = torch.cuda.CUDAGraph(keep_graph=True)  # kept to count its launches
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream), self.with_scratch():
            self.step.run(kind, p, rec.given, rec.made, again)
        rec.graph, rec.grown = graph, workspace.grown
        graph.replay()
        return False
