"""The work of one step, found by running it with ops that do nothing.

The decoder and the learners are the engine's own; their tensors live on torch's meta device, which has shapes and no memory.
So FLOPs are the ledger's, memory is what the step would hold, and traffic is every tensor that an op is given, read or written
once: what a kernel that keeps everything else on the chip would move.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from dynadapt.adapt.methods import LoRA, RowSparse, learns_beside, whole_model, words_beside
from dynadapt.adapt.optimizers import Adam
from dynadapt.adapt.targets import lowest, targeted
from dynadapt.engine.batch import Batch
from dynadapt.engine.decoder import Decoder
from dynadapt.engine.footprint import bytes_held
from dynadapt.engine.learners.make import make_learner
from dynadapt.engine.ledger import PHASES, Ledger
from dynadapt.engine.memory import MemoryState, Overlap, SegmentMemory
from dynadapt.engine.memory_after_pass import count_memory
from dynadapt.engine.weights import FrozenWeights, rotations
from dynadapt.engine.workspace import Workspace
from dynadapt.model import ModelConfig
from dynadapt.model.base import from_state
from dynadapt.model.layout import tensor_shapes
from dynadapt.ops import attention, delta_scratch
from dynadapt.ops import update as update_op
from dynadapt.ops.matrix import DenseMatrix
from dynadapt.ops.matrix_update import product_flops
from dynadapt.ops.precision import wide_dtype
from dynadapt.ops.quants import BLOCK_FORMATS, HEAD_FORMATS

META = torch.device("meta")


@dataclass
class OpWork:
    """All calls of one op in a step. ``flops``: matrix products, as the ledger counts them; ``skipped``: the part of them behind
    the causal mask, which kernels leave out; ``bytes``: traffic."""

    calls: int = 0
    flops: int = 0
    skipped: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class Work:
    """One step of ``streams`` x ``segment`` tokens: FLOPs by phase, work by op, bytes held by purpose."""

    streams: int
    segment: int
    dtype: torch.dtype
    flops: dict[str, int]
    ops: dict[str, OpWork]
    memory: dict[str, int] = field(default_factory=dict)
    learned_parameters: int = 0

    @property
    def tokens(self) -> int:
        return self.streams * self.segment

    @property
    def bytes_held(self) -> int:
        return sum(self.memory.values())


class WorkRecorder:
    """Stands in for the decoder's OpSet: every op is a call that notes its tensors and the FLOPs counted until the next call."""

    joins_activation = False

    def __init__(self, ledger: Ledger, dtype: torch.dtype):
        self.ledger, self.dtype, self.ops, self.last, self.seen = ledger, dtype, {}, None, 0
        self.delta_scratch: dict[tuple[str, int], int] = {}  # bytes of the buffers that a GPU's delta rule takes

    def __getattr__(self, name: str):
        if name.startswith("_"):
            raise AttributeError(name)

        return lambda *arguments: self._called(name, [arguments])

    def gathers_gradients(self, linears: list[tuple], streams: int, rows: int) -> bool:
        return False

    def lora_gradients(self, calls: list[tuple]) -> None:
        self._called("lora_gradient", calls)

    def decide(self, name: str, *arguments) -> None:
        """What a recorded step decides on the device: numbers a stream, and the host's on a CPU."""

    def _called(self, name: str, calls: list[tuple]) -> None:
        self.settle()
        self.last = self.ops.setdefault(name, OpWork())
        self.last.calls += len(calls)
        self.noted(name, calls)
        for arguments in calls:
            if name.startswith("delta_rule_"):
                self.delta_scratch |= _delta_scratch(name, *arguments)
            if name == "embedding_forward":
                arguments = (arguments[0], arguments[-1], arguments[-1])  # of the table, as many rows as are written
            if name == "adapted_embedding_forward":
                arguments = (arguments[0], *arguments[2:])  # of A, a column a token: less than the tokens' own bytes
            moved = sum(map(_bytes, arguments))
            self.last.bytes += 2 * moved if name == "update" else moved  # state is read and written

    def noted(self, name: str, calls: list[tuple]) -> None:
        """An op is called with these arguments, of several calls where they may be launched together; for those who want to know more of it."""

    def settle(self) -> None:
        """What was counted since the last call belongs to it."""
        total = sum(self.ledger.totals[phase] for phase in PHASES if phase != "update")
        if self.last is not None:
            self.last.flops += total - self.seen
        self.seen = total


class _Blocks(DenseMatrix):
    """A weight kept in blocks of integers: the sizes of the plain one, the bytes of a format."""

    def __init__(self, weight: torch.Tensor, name: str):
        super().__init__(weight, copy=False)
        self.form = BLOCK_FORMATS[name]

    @property
    def nbytes(self) -> int:
        return self.weight.numel() // self.form.columns * self.form.size


def _in_blocks(weights: FrozenWeights, name: str) -> None:
    """Keeps the weights as a file in this format has them, which has another format, here none, for rows that are no whole blocks."""
    as_blocks = lambda matrix, form: matrix if matrix.shape[1] % BLOCK_FORMATS[form].columns else _Blocks(matrix.weight, form)  # noqa: E731
    weights.parts = {key: [as_blocks(part, name) for part in parts] for key, parts in weights.parts.items()}
    weights.head = as_blocks(weights.head, HEAD_FORMATS.get(name, name))
    weights.embedding = as_blocks(DenseMatrix(weights.table, copy=False), HEAD_FORMATS.get(name, name))
    weights.table = weights.table if weights.positions is not None else None


def _delta_scratch(name: str, *arguments) -> dict[tuple[str, int], int]:
    given = list(arguments) if name == "delta_rule_forward" else list(arguments[1:])
    qkv, slots, sizes, final = given[0], given[4], given[6:10], name == "delta_rule_forward" and given[-1] is not None
    return delta_scratch.buffers(name, qkv, slots, *sizes, final)


def _bytes(argument) -> int:
    if isinstance(argument, torch.Tensor):
        return argument.numel() * argument.element_size()
    if isinstance(argument, DenseMatrix):
        return argument.nbytes
    if isinstance(argument, update_op.UpdateState):
        argument = list(vars(argument).values())
    return sum(map(_bytes, argument)) if isinstance(argument, (list, tuple)) else 0


def step_work(
    config: ModelConfig,
    adapt=None,
    optimizer=None,
    memory=None,
    streams: int = 1,
    segment: int = 512,
    shared: bool = False,
    dtype: torch.dtype = torch.bfloat16,
    batch: int | None = None,
    recompute: bool = False,
    learn: bool = True,
    memory_only: bool = False,
    quants: str | None = None,
    on_gpu: bool = False,
    recorder: type[WorkRecorder] = WorkRecorder,
) -> Work:
    """The work of one step that scores, learns (where ``adapt`` is given and ``learn``) and updates, with its memory full.

    Arguments are ``Engine``'s. Streams with weights of their own run one by one, as they do there. With ``memory_only`` passes of
    equal size run once, which is all that what is held depends on: FLOPs and ops are not the step's then. ``quants``: the format
    (ops/quants.py) of the file whose blocks are kept, as ``base="quants"`` does; what learns is an adapter then. ``on_gpu``: the scratch
    memory that the delta rule takes there counts as held. ``recorder``: what stands in for the ops.

    Raises:
        ValueError: naming the argument that does not fit.
    """
    for name, value in (("streams", streams), ("segment", segment), ("batch", batch or 1)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value!r}: expected an integer of at least 1")
    if config.rope_theta is None and isinstance(memory, SegmentMemory):
        raise ValueError(f"memory={memory!r}: {config.family} has learned positions; use Overlap(context) instead")
    if quants is not None and not (adapt is None or isinstance(adapt, LoRA) or learns_beside(adapt)):
        raise ValueError(f"quants={quants!r} with adapt={adapt!r}: blocks of integers stay as they are; expected LoRA, or None")
    learn = learn and adapt is not None
    optimizer = Adam() if optimizer is None else optimizer
    model = from_state(config, {name: torch.empty(shape, dtype=dtype, device=META) for name, shape in tensor_shapes(config).items()})
    ledger = Ledger()
    noting, workspace = recorder(ledger, dtype), Workspace(dtype, META)
    own = adapt is not None and not isinstance(adapt, LoRA)
    apart = own or bool(words_beside(adapt))
    slots = 1 if shared or apart else streams
    turns = streams if apart and not shared else 1  # streams with weights of their own take turns
    learner = None if adapt is None else make_learner(adapt, optimizer, model, dtype, "meta", META, slots=slots)
    if isinstance(adapt, RowSparse) and adapt.select == "contrast":
        with learner.gathering() as reference:  # as if a reference text had been seen
            learner.take_reference(reference)
    learning = targeted(adapt, config)
    depth = lowest(adapt, config) if learn else None
    weights = learner.weights_view if whole_model(adapt) else FrozenWeights(model, "meta", dtype, set(learning) if own else set(), META)
    if quants is not None:
        _in_blocks(weights, quants)
    store = None
    if isinstance(memory, SegmentMemory):
        store = MemoryState.of(config, memory, streams, dtype, META)
        store.filled = [memory.capacity] * streams
    context = memory.context if isinstance(memory, Overlap) else 0
    length = segment + (context or (memory.capacity if store is not None else 0))
    rope = rotations(config, length, wide_dtype(dtype), META)
    decoder = Decoder(config, weights, noting, workspace, ledger, rope, store, recompute)

    passes = _passes(streams, 1 if turns > 1 else batch or streams)
    for rows in dict.fromkeys(passes) if memory_only else passes:
        _one_pass(decoder, learner, depth, rows, segment, context, slots)
    if learn:
        for _ in range(1 if memory_only else turns):
            moving = torch.empty(slots, dtype=torch.int32, device=META)
            learner.state.update(noting.update, moving, torch.empty(slots, device=META))
            noting.decide("count_updates", moving, moving, torch.empty(2, dtype=torch.int64, device=META), moving)
        factors = learner.state.rate_factor is not None
        ledger.add("update", turns * slots * update_op.flops(learner.layout.parameters, optimizer.rule(), learner.layout.parts, factors))
    noting.settle()
    if learn and optimizer.rule().arithmetic.prepared:  # products, beside what moves memory alone
        noting.ops["update"].flops += turns * slots * product_flops(learner.layout.parts.matrices)
    _skip_masked(noting.ops, config, streams, segment + context, 0 if store is None else memory.capacity)
    held = {
        "frozen weights": 0 if whole_model(adapt) else bytes_held(weights),
        "what learns, with its optimizer state": turns * bytes_held(learner),
        "segment memory": bytes_held(store),
        "activations and buffers": workspace.nbytes,
        "scratch of the delta rule": sum(noting.delta_scratch.values()) if on_gpu else 0,
    }
    return Work(
        streams,
        segment,
        dtype,
        dict(ledger.totals),
        noting.ops,
        {name: size for name, size in held.items() if size},
        learner.learned_parameters if learner else 0,
    )


def _passes(streams: int, together: int) -> list[int]:
    return [min(together, streams - start) for start in range(0, streams, together)]


def _one_pass(decoder: Decoder, learner, lowest, rows: int, segment: int, context: int, slots: int) -> None:
    """Score, and learn down to ``lowest``, ``rows`` streams together. Overlapping windows run ``context`` tokens again."""
    count = lambda n: torch.empty(n, dtype=torch.int32, device=META)  # noqa: E731
    tokens = torch.empty(rows, context + segment, dtype=torch.int64, device=META)
    batch = Batch(tokens, count(1 if slots == 1 else rows), count(rows), tuple(range(rows)), context / (context + segment))
    hidden = decoder.forward(batch, learner, lowest)
    scored = torch.empty(rows * segment, dtype=torch.int64, device=META)
    wide = lambda: torch.empty(rows * segment, dtype=wide_dtype(decoder.ws.dtype), device=META)  # noqa: E731
    weights = None if lowest is None else wide()
    _, dhidden = decoder.score(hidden, scored if context else None, scored, weights, nll=wide())
    if lowest is not None:
        decoder.backward(batch, learner, lowest, dhidden, False)
    if decoder.memory is not None:
        _attend_to_memory(decoder, segment)


def _attend_to_memory(decoder: Decoder, segment: int) -> None:
    """The decoder counts memories in one sum after the pass; that work belongs to attention."""
    recorder, ledger = decoder.ops, decoder.ledger
    recorder.settle()
    before = dict(ledger.totals)
    count_memory(decoder, segment, decoder.lengths)
    added = {phase: ledger.totals[phase] - before[phase] for phase in PHASES}
    recorder.ops["attention_forward"].flops += added["forward"]
    if "attention_backward" in recorder.ops:
        recorder.ops["attention_backward"].flops += added["backward"] + added["recompute"]
    recorder.seen += added["forward"] + added["backward"] + added["recompute"]


def _skip_masked(ops: dict[str, OpWork], c: ModelConfig, streams: int, segment: int, memory: int) -> None:
    """What attention kernels never compute (attention.masked_flops)."""
    layers = [
        attention.masked_flops(segment, c.heads, c.head_dim, attention.seen_memory(memory, c.window(i)), c.window(i))
        for i in c.attention_layers
    ]
    forward, backward = (sum(flops) for flops in zip(*layers))
    for name, flops in (("attention_forward", forward), ("attention_backward", backward)):
        if name in ops:
            ops[name].skipped = min(streams * flops, ops[name].flops)
