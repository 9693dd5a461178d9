"""The decoder's forward and backward passes over the ops, for a batch of streams.

``Decoder`` knows the order of the layers and which activations backward needs; it does not know when to learn, what a
document is or what a score is for. Activations that backward will read are kept per layer, all others share buffers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dynadapt.adapt.methods import PLACES
from dynadapt.model import ModelConfig
from dynadapt.ops import attention, cross_entropy, linear, lora_gradient, weight_gradient
from dynadapt.ops.precision import wide_dtype
from dynadapt.ops.profiler_ranges import ranged
from dynadapt.ops.slot_adapters import SlotAdapters

from . import losses
from .adapted_embedding import AdaptedEmbedding
from .adapted_head import AdaptedHead
from .attention_gate import AttentionGate
from .delta_mixer import DeltaMixer
from .dora import Dora
from .gathered_gradients import GatheredGradients
from .handover import Handover
from .memory import MemoryState
from .op_set import OpSet
from .weights import FrozenWeights, ModelTensors, group_sizes

NOTHING: Mapping[str, torch.Tensor] = {}


@dataclass
class Batch:
    """One pass: inputs int64 [S, T]; whose adapter and whose memory each row uses."""

    inputs: torch.Tensor
    adapter_slots: torch.Tensor  # int32 [S], or [1] when all rows share one
    memory_slots: torch.Tensor  # int32 [S]
    streams: tuple[int, ...]  # the memory slots, for the host
    recomputed: float = 0.0  # share of the rows that were scored before (overlapping windows)
    lengths: torch.Tensor | None = None  # int32 [S], with a memory: the rows of each stream that count; None: all

    @property
    def rows(self) -> int:
        return self.inputs.numel()


def _adapter(learner, layer: int, group: str):
    """(A, Bt, the ops' scale, columns of u) of one group; None twice where it has no adapter."""
    A, Bt = (None, None) if learner is None else learner.adapter(layer, group)
    if A is None:
        return None, None, 0.0, 0
    scale = learner.scales[layer, group]
    return A, Bt, scale, scale.width if isinstance(scale, SlotAdapters) else A.shape[1]


def _flops(formula, learner, layer: int, group: str, batch: Batch, rows: int, sizes, *more) -> int:
    """Of a product with a group's weights and adapters; where ranks are each stream's own, each has its share of the rows."""
    k, parts = sizes
    A, _, _, _ = _adapter(learner, layer, group)
    ranks = 0 if A is None else learner.ranks_of(layer, group, batch.streams)
    if isinstance(ranks, list):
        return sum(formula(rows // len(ranks), k, parts, own, *more) for own in ranks)
    return formula(rows, k, parts, ranks, *more)


def _has_lengths(learner, layer: int, group: str) -> bool:
    """Whether a group's adapters are DoRA's."""
    return learner is not None and (layer, group) in learner.magnitudes


def _learns(learner, layer: int, place: str) -> bool:
    """Whether something learns in one place of a layer (PLACES)."""
    g = learner.gradient_view
    if g is None or (layer, place) in learner.sizes:
        return (layer, place) in learner.sizes
    norms = {"attn_norm": g.attn_norm, "mlp_norm": g.mlp_norm, "qkv": g.head_norm}.get(place)
    return (layer, place) in g.bias or norms is not None and any(t is not None for t in norms[layer] or ())


class Decoder:
    """Forward and backward through the layers."""

    def __init__(
        self,
        config: ModelConfig,
        weights: FrozenWeights | ModelTensors,
        ops: OpSet,
        workspace,
        ledger,
        rope,
        memory: MemoryState | None,
        recompute: bool = False,
        static: bool = False,
        first: int = 0,
    ):
        self.first = first  # layers below it are another decoder's
        self.config, self.ops, self.ws, self.ledger = config, ops, workspace, ledger
        self.gathered = GatheredGradients(ops, ledger)
        self.gathers = False  # whether the gradients of the layer's adapters wait for each other
        self.weights: Any = weights
        self.rope = rope  # (cos, sin) by layer
        self.memory = memory
        self.recompute = recompute  # norm outputs and activations are made again in backward instead of kept
        self.static = static  # the host must not look at lengths: fixed shapes, memory moved by the device
        self.sizes = group_sizes(config)
        self.count: Any = None if weights.positions is None else torch.arange(len(weights.positions), device=workspace.device)
        self.stat_dtype = wide_dtype(ops.dtype)
        self.heads = config.heads, config.kv_heads, config.head_dim
        self.dora = Dora(self)
        self.gate: Any = AttentionGate(config, ops, workspace) if config.attention_gate else None
        self.delta: Any = None if config.delta is None else DeltaMixer(config, ops, workspace)
        self.attention_layers = [i for i in config.attention_layers if i >= first]
        self.places = {i: place for kind in (self.attention_layers, config.delta_layers) for place, i in enumerate(kind)}
        self.attention_count = len(self.attention_layers)
        self.norm_kind = config.stream_eps, config.norm
        self.normed_heads = sum(n * config.head_dim // w for n, w in zip(self.heads, config.normed_widths))  # each or together, of a row
        self.active: Any = weights  # of the current pass: the learner's own where the whole model learns

    # ---- helpers

    def _stat(self, name, *shape):
        return self.ws(name, *shape, dtype=self.stat_dtype)

    def count_forward(self, batch: Batch, flops: int) -> None:
        """In the ledger; of rows that were scored before as done again."""
        again = round(flops * batch.recomputed)
        self.ledger.add("forward", flops - again)
        self.ledger.add("recompute", again)

    def _parts(self, learner, layer, group):
        own = learner.parts(layer, group) if learner is not None and learner.owns_weights else None
        return own if own is not None else self.weights.parts[layer, group]

    def _linear(self, learner, layer, group, x, batch, key, count, activated: torch.Tensor | None = None):
        """y [N, O] of one group; keeps u = x A^T under the same key for backward. ``activated`` [N, F]: the activation of y is written there."""
        A, Bt, scale, width = _adapter(learner, layer, group)
        y = self._output(layer, group, key, x.shape[0], sum(self.sizes[layer, group][1]))
        u = None if A is None else self.ws((group, "u", key), x.shape[0], width)
        bias, dora = self.active.bias.get((layer, group)), _has_lengths(learner, layer, group)
        given = x, self._parts(learner, layer, group), bias, A, Bt, batch.adapter_slots, scale
        joined = activated is not None and self.ops.joins_activation and not dora
        if joined:
            self.ops.linear_activation_forward(*given, self.config.activation, u, y, activated)
        else:
            self.ops.linear_forward(*given, u, self.dora.before(group, key, *y.shape) if dora else y)
        count(_flops(linear.forward_flops, learner, layer, group, batch, x.shape[0], self.sizes[layer, group]))
        if dora:
            self.dora.apply(learner, layer, group, bias, batch, key, count, y)
        if activated is not None and not joined:
            self.ops.activation_forward(y, self.config.activation, activated)
        return y

    def _output(self, layer, group, key, rows, width):
        """Where a linear group writes. With a memory, the layers' qkv lie in one buffer, from which they enter it together.
        What is only added to the residual is read once, by the norm behind it, and backward does without it; where a norm of its
        own comes first, backward reads it. What a gate is split from is read once, too."""
        delta = self.config.is_delta(layer)
        if group in ("o", "down") and self.config.norm_place == "before" or group == "qkv" and self.gate is not None and not delta:
            return self.ws((group, "shared"), rows, width)
        if group != "qkv" or self.memory is None or key != layer or delta:
            return self.ws((group, key), rows, width)
        return self.ws("raw qkv of all layers", self.attention_count, rows, width)[self.places[layer]]

    def _norm(self, x, delta, norm, key, y_key=None):
        """(res, y) of the norm behind a residual add; res is x itself when there is nothing to add, and y is res without a norm."""
        n, h = x.shape
        res = x if delta is None else self.ws(("res", key), n, h)
        if norm is None:
            return (res, res) if delta is None else (torch.add(x, delta, out=res), res)
        y = self.ws(("norm", key if y_key is None else y_key), n, h)
        stat, kind = self._stat(("stat", key), n, 2), self.norm_kind
        self.ops.norm_forward(x, delta, *norm, *kind, None if delta is None else res, y, stat)
        return res, y

    # ---- forward

    def embed(self, batch: Batch) -> torch.Tensor:
        c, w, tokens = self.config, self.active, batch.inputs.reshape(-1)
        x = self.ws("embedded", batch.rows, c.hidden_size)
        if w.table is None:
            w.embedding.gather_rows(tokens, x)
        else:
            self.ops.embedding_forward(tokens, w.table, w.positions, self._places(batch), x)
        if self.adapted_embedding is not None:
            self.adapted_embedding.add(batch, x)
        return x if c.stream_scale == 1.0 else x.mul_(c.stream_scale)

    def _places(self, batch: Batch) -> torch.Tensor | None:
        """Where each row stands in its stream's window, int64 [N], for families that learn a table of positions."""
        if self.active.positions is None:
            return None
        places = self.ws("places", *batch.inputs.shape, dtype=torch.int64)
        return places.copy_(self.count[: places.shape[1]]).view(-1)

    @ranged("forward")
    def forward(
        self, batch: Batch, learner, lowest, embedded: torch.Tensor | None = None, handover: Handover | None = None
    ) -> torch.Tensor:
        """Hidden states [N, H] after the final norm, divided as the logits are.

        ``lowest``: (layer, group) down to which backward will go, (-1, "embed") for all the way, (layers, "head") for no further than the
        head, or None for no backward.
        ``embedded`` [N, H], which backward will read: what stands in for the token embedding (``batch.inputs`` then gives the
        shape alone). ``handover``: what enters its layer is kept there, or taken from there where that is the first layer.
        """
        first_kept = self.config.layers if lowest is None else lowest[0]
        self.active = self.weights if learner is None or learner.weights_view is None else learner.weights_view.over(self.weights)
        self.scored: tuple | None = None
        self.adapted_head = AdaptedHead.of(self, batch, learner)
        self.adapted_embedding = AdaptedEmbedding.of(self, batch, learner)
        self.learns_below = lowest is None or lowest[0] < self.config.layers
        self.embedded = embedded is not None
        if self.first:
            assert handover is not None, "the layers below are another decoder's"
            x, delta = handover.take(batch, self.ws)
        else:
            x, delta = self.embed(batch) if embedded is None else embedded, None
        self.attended_back = 0
        self.kept: list[dict[str, Any]] = []
        self.lengths = [0 if self.memory is None else self.memory.filled[s] for s in batch.streams]
        for i in range(self.first, self.config.layers):
            if handover is not None and i == handover.layer and i > self.first:
                handover.keep(batch, x, delta)
            key = i if i >= first_kept else "shared"
            x, delta = self._layer(batch, learner, i, key, x, delta)
        if handover is not None and handover.layer == self.config.layers > self.first:  # only the head is other
            handover.keep(batch, x, delta)
        res, hidden = self._norm(x, delta, self.active.final_norm, "final")
        self.final = res
        return self._scale_hidden(hidden)

    def _scale_hidden(self, x: torch.Tensor) -> torch.Tensor:
        """In place: hidden states or their gradient, where logits are divided by a number. The head's own gradient reads the former."""
        c = self.config
        return x if c.logits_scaling == 1.0 else x.mul_(1 / c.logits_scaling)

    def _layer(self, batch, learner, i, key, x, delta):
        """One decoder layer: returns (residual, what is still to be added to it)."""
        count = lambda flops: self.count_forward(batch, flops)  # noqa: E731
        c, w = self.config, self.active
        again = "again" if self.recompute else None
        parallel = c.parallel_residual
        place = f"shared {i % 2}" if parallel and key == "shared" else key  # the sum is never written over one of its terms
        res1, n1 = self._norm(x, delta, w.attn_norm[i], ("attn", place), again)
        mixed, mixer = (self._delta if c.is_delta(i) else self._attend)(batch, learner, i, key, res1, n1, count)
        o = self._linear(learner, i, "o", mixed, batch, key, count)
        attended = self._post_norm(o, w.attn_post_norm[i], "attn post", key)
        res2, n2 = self._norm(res1, None if parallel else attended, w.mlp_norm[i], ("mlp", key), again)
        y = self.ws(("act", again or key), batch.rows, c.ffn_size)
        h = self._linear(learner, i, "mlp_in", n2, batch, key, count, y)
        down = self._linear(learner, i, "down", y, batch, key, count)
        kept = {"res1": res1, "n1": n1, "mixed": mixed, "o": o, "res2": res2, "n2": n2, "h": h, "y": y, "down": down}
        self.kept.append(kept | mixer)
        added = self._post_norm(down, w.mlp_post_norm[i], "mlp post", key)
        return res2, added.add_(attended) if parallel else added

    def _attend(self, batch, learner, i, key, res1, n1, count):
        """(what the linear behind attention reads, what backward needs of it)."""
        qkv_key = i if self.memory is not None else key
        raw = self._linear(learner, i, "qkv", n1, batch, qkv_key, count)
        both, raw = (None, raw) if self.gate is None else self.gate.split(raw, key)
        qkv = self._head_norm(i, raw, qkv_key)
        if self.memory is not None and self.memory.inputs is not None:
            self._reproject(batch, learner, i)
            self.ws("inputs of all layers", self.attention_count, *res1.shape)[self.places[i]].copy_(res1)
        out = mixed = self._attention(batch, i, qkv, key, count)
        if both is not None:
            mixed = self.ws(("gated", "again" if self.recompute else key), *out.shape)
            self.gate.forward(both, out, mixed)
        return mixed, {"raw": raw, "qkv": qkv, "out": out, "both": both}

    def _delta(self, batch, learner, i, key, res1, n1, count):
        """The same where the gated delta rule stands in attention's place."""
        raw = self._linear(learner, i, "qkv", n1, batch, key, count)
        return self.delta.forward(batch, self.memory, self.places[i], raw, self.active.delta[i], key, count)

    def _post_norm(self, x, norm, name, key):
        """What attention or feed-forward adds to the residual: ``x`` normalised, or as it is where no norm stands behind."""
        return x if norm is None else self._norm(x, None, norm, (name, key), "shared")[1]

    def _head_norm(self, i, raw, key):
        """qkv with normalised queries and keys, or as it is."""
        if self.active.head_norm[i] is None:
            return raw
        c = self.config
        stacked = self.memory is not None and key == i
        of_all = self.ws("normed qkv of all layers", self.attention_count, *raw.shape) if stacked else None
        qkv = self.ws(("normed qkv", key), *raw.shape) if of_all is None else of_all[self.places[i]]
        rstd = self._stat(("head stat", key), raw.shape[0], self.normed_heads)
        self.ops.head_norm_forward(raw, *self.active.head_norm[i], c.norm_eps, *self.heads, qkv, rstd)
        return qkv

    def _window(self, batch, i):
        """What attention is given beside its tensors: the layer's memory (or three Nones) and slots, rotations, heads, the scores' scale."""
        m = self.memory
        place = self.places[i]
        memory = (None, None, None) if m is None else (m.keys[place].rows, m.values[place].rows, m.length)
        return *memory, batch.memory_slots, *self.rope[i], *self.heads, self.config.scores_scale

    def _attention(self, batch, i, qkv, key, count):
        c, (streams, segment) = self.config, batch.inputs.shape
        out = self.ws(("attention", key), batch.rows, c.heads * c.head_dim)
        lse = self._stat(("lse", key), streams, c.heads, segment)
        self.ops.attention_forward(qkv, *self._window(batch, i), out, lse, c.window(i), c.attention_softcap)
        count(streams * attention.forward_flops(segment, 0, c.heads, c.head_dim))
        return out

    def count_memory(self, segment: int, lengths: list[int]) -> None:
        """Adds what attending to memories of these lengths cost in the last pass (the ops above count the segment alone)."""
        c = self.config
        back = self.attention_count - self.attended_back  # the lowest of these layers that backward reached
        for m in lengths:
            for place, i in enumerate(self.attention_layers):
                flops = attention.memory_flops(segment, attention.seen_memory(m, c.window(i)), c.heads, c.head_dim)
                self.ledger.add("forward", flops["forward"])
                if place >= back:
                    self.ledger.add("backward", flops["backward"])
                    self.ledger.add("recompute", flops["recompute"])

    def _reproject(self, batch, learner, i) -> None:
        """Memory keys and values of one layer from its kept inputs and the current weights (counted as recompute)."""
        c, m = self.config, self.memory
        assert m is not None and m.inputs is not None, "only a memory of inputs is projected anew"
        longest = m.memory.capacity if self.static else max(self.lengths)
        if not longest:
            return
        slots = batch.memory_slots.long()
        place = self.places[i]
        x = m.inputs[place].rows[slots, :longest].reshape(-1, c.hidden_size)
        _, n = self._norm(x, None, self.active.attn_norm[i], "memory")
        again = lambda flops: self.ledger.add("recompute", flops)  # noqa: E731
        raw = self._linear(learner, i, "qkv", n, batch, "memory", again)
        qkv = self._head_norm(i, raw, "memory").view(len(slots), longest, -1)
        q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
        m.keys[place].rows[slots, :longest] = qkv[:, :, q : q + kv]
        m.values[place].rows[slots, :longest] = qkv[:, :, q + kv :]

    # ---- the score

    @ranged("score")
    def score(
        self,
        hidden,
        rows,
        targets,
        weights,
        loss: str = "cross_entropy",
        inputs: Mapping[str, torch.Tensor] = NOTHING,
        choose=None,
        nll=None,
    ):
        """Per-token NLL of the scored rows and, where ``weights`` are given, d-hidden of the weighted sum of a loss (losses.py).

        Args:
            hidden: [N, H]; rows: int64 [n], which of them are scored, each once; None: all.
            targets: int64 [n], negative: not scored after all. weights: [n] or None for the score alone.
            loss: by name; inputs: what it is given, by name (``losses.given_fields``).
            choose: from the scores [n], factors [n] on the weights of a cross-entropy.
            nll: [n], where the scores are written; None: in a buffer that the next pass reuses.

        Returns:
            nll [n] and dhidden [N, H] or None, also where nothing below the head learns, in a buffer that the next pass reuses.
            ``loss`` of a teacher is left in ``self.loss``.
        """
        h = hidden if rows is None else torch.index_select(hidden, 0, rows, out=self.ws("scored", len(rows), hidden.shape[1]))
        n = len(targets)
        nll, lse = self._stat("nll", n) if nll is None else nll, self._stat("head lse", n)
        teacher = (inputs["ids"], inputs["logp"]) if loss == "kl" else None
        if self.adapted_head is not None:
            dh, dU = self.adapted_head.score(h, rows, targets, weights, nll, lse, self.learns_below)
        else:
            dh, dU = self._score(h, targets, weights, nll, lse, teacher), None
        if weights is None:
            return nll, None
        if loss == "importance_sampling":
            weights = losses.by_importance(nll, weights, (dh, dU), inputs["logp"], inputs["advantages"])
        if choose is not None:
            weights = losses.times(weights, (dh, dU), choose(nll))
        self.scored = (h, targets, weights, lse, teacher)
        if rows is not None and dh is not None:
            dh = self.ws("dhidden", *hidden.shape).zero_().index_copy_(0, rows, dh)
        return nll, dh

    def _score(self, h, targets, weights, nll, lse, teacher):
        """nll, lse and with ``weights`` dh of a head without adapters; the loss of a teacher is left in ``self.loss``."""
        n, cap = len(targets), self.config.logits_softcap
        dh = None if weights is None else self.ws("dhidden scored", *h.shape)
        if teacher is None:
            self.ops.cross_entropy(h, self.active.head, targets, weights, nll, lse, dh, cap)
        else:
            self.loss = self._stat("teacher's loss", n)
            self.ops.distillation(h, self.active.head, targets, *teacher, weights, nll, lse, self.loss, dh, cap)
        flops = cross_entropy.flops(n, h.shape[1], self.config.vocab_size, False)
        self.ledger.add("forward", flops)
        if weights is not None:
            self.ledger.add("backward", flops)
        return dh

    # ---- memory

    @ranged("memory")
    def advance_memory(self, batch: Batch, counts: Sequence[int] | torch.Tensor) -> None:
        """The first ``counts[s]`` rows of each stream's segment enter its memory, detached.

        ``counts``: numbers, or int32 [S] on the device, which then does it without the host looking (``MemoryState.count`` follows).
        """
        c, m = self.config, self.memory
        if m is None:
            return
        q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
        if m.input_stack is not None:
            source, columns, stores = self.ws("inputs of all layers", self.attention_count, batch.rows, c.hidden_size), [0], [m.input_stack]
        else:
            name = "normed" if c.qk_norm else "raw"
            source = self.ws(f"{name} qkv of all layers", self.attention_count, batch.rows, q + 2 * kv)
            columns, stores = [q, q + kv], [m.key_stack, m.value_stack]
        if isinstance(counts, torch.Tensor):
            if len(source):  # else no layer remembers, and the fill alone is counted
                self.ops.memory_advance(source, tuple(columns), stores, m.length, batch.memory_slots, counts, m.memory.sinks)
            self.ops.memory_fill(m.length, batch.memory_slots, counts, m.memory.capacity)
        else:
            m.advance(source, columns, stores, batch.streams, counts)
        if self.delta is not None:
            m.delta.advance(batch.memory_slots, self.delta.states(len(batch.streams)), self.delta.rows(len(batch.streams)))

    # ---- backward

    @ranged("backward")
    def backward(self, batch: Batch, learner, lowest, dhidden: torch.Tensor | None, accumulate: bool) -> torch.Tensor | None:
        """Gradients of what learns, from dhidden [N, H] (None: of the head alone); nothing below ``lowest`` = (layer, group) is computed.

        Returns the gradient [N, H] of what entered layer 0 when ``lowest`` is (-1, "embed"), in a buffer that the next pass
        reuses, else None.
        """
        grads = learner.gradient_view
        if grads is not None:
            learner.begin_gradient(accumulate)
            if grads.head is not None:
                self._head_gradient(grads, accumulate)
        if self.adapted_head is not None:
            self.adapted_head.gradient(None if self.scored is None else self.scored[2], accumulate)
        if dhidden is None or not self.learns_below:
            return None
        dhidden = self._scale_hidden(dhidden)
        d = self._norm_backward(dhidden, self.final, self.active.final_norm, "final", None, None, grads and grads.final_norm)
        for i in reversed(range(max(0, lowest[0]), self.config.layers)):
            d = self._layer_backward(batch, learner, lowest, i, d, accumulate)
            self.gathered.launch()
            if d is None:
                return None
        if lowest[0] >= 0:
            return None
        if not self.embedded:
            self._embedding_gradient(batch, grads, d, accumulate)
        return d

    def _embedding_gradient(self, batch, grads, d, accumulate: bool) -> None:
        """Of the table and the positions, or of the embedding's adapters, from d [N, H] of what entered layer 0."""
        scale = self.config.stream_scale
        scaled = d if scale == 1.0 else torch.mul(d, scale, out=self.ws("dembedded", *d.shape))
        if self.adapted_embedding is not None:
            self.adapted_embedding.gradient(scaled, accumulate)
        if grads is not None and grads.table is not None:
            self.ops.embedding_backward(batch.inputs.reshape(-1), scaled, grads.table)
            if grads.positions is not None:
                self.ops.embedding_backward(self._places(batch), scaled, grads.positions)

    def _head_gradient(self, grads, accumulate: bool) -> None:
        """The head's gradient from what the last score saw; zero where nothing was scored (another read-out)."""
        if self.scored is None:
            if not accumulate:
                grads.head.zero_()
            return
        h, targets, weights, lse, teacher = self.scored
        if teacher is not None:
            weights = losses.add_teacher(self.ops, h, targets, weights, teacher, grads.head, accumulate)
        self.ops.cross_entropy_weight_gradient(
            h, self.active.head, targets, weights, lse, grads.head, accumulate or teacher is not None, self.config.logits_softcap
        )
        again, back = cross_entropy.weight_gradient_flops(len(targets), h.shape[1], self.config.vocab_size)
        self.ledger.add("recompute", again)
        self.ledger.add("backward", back)

    def _norm_backward(self, dy, res, norm, key, dres, y=None, grads=None):
        """d of what was normalised; ``y``: the norm's output is written there again; ``grads``: (dweight, dbias) where the norm learns.
        Without a norm ``dres`` itself, ``dy`` added to it."""
        if norm is None:
            return dres.add_(dy)
        dx = self.ws(("dres", key if key == "final" else key[0]), *dy.shape)  # never the buffer that dres is in
        stat, (weight, bias) = self._stat(("stat", key), dy.shape[0], 2), norm
        self.ops.norm_backward(dy, res, weight, stat, self.config.norm, dres, dx, *(grads or (None, None)), bias, y)
        return dx

    def _post_norm_backward(self, d, x, norm, key, grads):
        """d of what attention or feed-forward gave, from d of what was added to the residual."""
        return d if norm is None else self._norm_backward(d, x, norm, key, None, None, grads)

    def _norm_again(self, res, norm, key, y):
        """The norm's output from its residual, where no backward of it is run."""
        if norm is None:
            return
        self.ops.norm_forward(res, None, *norm, *self.norm_kind, None, y, self._stat(("stat", key), res.shape[0], 2))

    def _layer_backward(self, batch, learner, lowest, i, d, accumulate):
        """Gradient of the layer's input residual, or None when nothing below learns.

        Attention and feed-forward are branches of their own where they read the same residual: ``d`` comes to both, and in the lowest
        layer each goes as far as what learns in it.

        A group's weight gradient needs its input. With ``recompute`` that was not kept: the op behind it writes it again
        on its way back, so each gradient is taken after that op. Else those of adapters may wait for each other, until the last norm writes
        where the first's dy is.
        """
        kept, w, kind, g = self.kept[i], self.active, self.config.activation, learner.gradient_view
        parallel, given = self.config.parallel_residual, d
        self.gathers = self._gathers(batch, learner, i)
        back = lambda group, dy: self._input_gradient(batch, learner, lowest, i, group, dy)  # noqa: E731
        learn = lambda group, dy, x: self._weight_gradient(batch, learner, i, group, dy, x, accumulate)  # noqa: E731
        y, n1, n2 = kept["y"], kept["n1"], kept["n2"]
        again = lambda t: t if self.recompute else None  # noqa: E731

        ddown = self._post_norm_backward(d, kept["down"], w.mlp_post_norm[i], ("mlp post", i), g and g.mlp_post_norm[i])
        dh, dn2 = self._gradient_before_activation(batch, learner, lowest, i, ddown, kept["h"], again(y)), None
        if dh is None and self.recompute and (i, "down") in learner.sizes:
            self.ops.activation_forward(kept["h"], kind, y)
        learn("down", ddown, y)
        if dh is not None:
            dn2 = back("mlp_in", dh)
            if dn2 is not None:
                d = self._norm_backward(dn2, kept["res2"], w.mlp_norm[i], ("mlp", i), d, again(n2), g and g.mlp_norm[i])
            elif self.recompute and (i, "mlp_in") in learner.sizes:
                self._norm_again(kept["res2"], w.mlp_norm[i], ("mlp", i), n2)
            learn("mlp_in", dh, n2)
        if dn2 is None and not parallel:
            return None

        do = self._post_norm_backward(given if parallel else d, kept["o"], w.attn_post_norm[i], ("attn post", i), g and g.attn_post_norm[i])
        dmixed, dgate = back("o", do), None
        if kept.get("both") is not None:
            dgate, dmixed = self._gate_backward(learner, i, kept, dmixed)
        learn("o", do, kept["mixed"])
        if dmixed is None:
            return None
        if self.config.is_delta(i):
            dqkv = self.delta.backward(
                batch, self.memory, self.places[i], kept, w.delta[i], dmixed, self.ledger, g and g.delta[i] and g.delta[i].norm
            )
        else:
            dqkv = self._attention_backward(batch, i, kept, dmixed, g and g.head_norm[i])
        if dgate is not None:
            dqkv = self.gate.join(dgate, dqkv)

        dn1 = back("qkv", dqkv)
        if not self.recompute:
            learn("qkv", dqkv, n1)
            self.gathered.launch()
        if dn1 is not None:
            d = self._norm_backward(dn1, kept["res1"], w.attn_norm[i], ("attn", i), d, again(n1), g and g.attn_norm[i])
        elif self.recompute and (i, "qkv") in learner.sizes:
            self._norm_again(kept["res1"], w.attn_norm[i], ("attn", i), n1)
        if self.recompute:
            learn("qkv", dqkv, n1)
        return None if dn1 is None else d

    def _gate_backward(self, learner, i, kept, dmixed):
        """(gradient of the gate, of what attention gave), None twice where none is wanted."""
        both, y = kept["both"], kept["mixed"]
        if dmixed is not None:
            return self.gate.backward(dmixed, both, y if self.recompute else None)
        if self.recompute and (i, "o") in learner.sizes:
            self.gate.again(both, y)
        return None, None

    def _goes_on(self, learner, lowest, layer, group) -> bool:
        """Whether something learns in front of a group."""
        if layer > lowest[0]:
            return True
        if not self.config.parallel_residual:
            return PLACES.index(group) > PLACES.index(lowest[1])
        branch = PLACES[:3] if group in PLACES[:3] else PLACES[3:]
        return any(_learns(learner, layer, place) for place in branch[: branch.index(group)])

    def _input_gradient(self, batch, learner, lowest, i, group, dy):
        """d-input of one group, None at ``lowest``; what the adapter's own gradient needs of it stays in "dU"."""
        need_dx = self._goes_on(learner, lowest, i, group)
        given, dU, dx = self._for_input_gradient(batch, learner, i, group, dy, need_dx)
        if need_dx or dU is not None:
            self.ops.linear_backward(*given, dU, dx)
            self.ledger.add("backward", _flops(linear.backward_flops, learner, i, group, batch, len(dy), self.sizes[i, group], need_dx))
        return dx

    def _for_input_gradient(self, batch, learner, i, group, dy, need_dx=True):
        """(what linear_backward is given, dU or None, dx or None) of one group."""
        A, Bt, scale, width = _adapter(learner, i, group)
        if _has_lengths(learner, i, group):
            dy = self.dora.back(i, group, dy, batch)
        dU = None if A is None else self.ws((group, "dU"), len(dy), width)
        dx = self.ws((group, "dx"), len(dy), self.sizes[i, group][0]) if need_dx else None
        return (dy, self._parts(learner, i, group), A, Bt, batch.adapter_slots, scale), dU, dx

    def _gradient_before_activation(self, batch, learner, lowest, i, ddown, h, y):
        """dh from the gradient of what "down" gave, None at ``lowest``; ``y``: the activation is written there again."""
        if self.ops.joins_activation and self._goes_on(learner, lowest, i, "down"):
            dh, (given, dU, dx) = self.ws("dh", *h.shape), self._for_input_gradient(batch, learner, i, "down", ddown)
            self.ops.linear_activation_backward(*given, h, self.config.activation, dU, dx, dh, y)
            self.ledger.add("backward", _flops(linear.backward_flops, learner, i, "down", batch, len(ddown), self.sizes[i, "down"]))
            return dh
        dx = self._input_gradient(batch, learner, lowest, i, "down", ddown)
        if dx is None:
            return None
        dh = self.ws("dh", *h.shape)
        self.ops.activation_backward(dx, h, self.config.activation, dh, y)
        return dh

    def _gathers(self, batch, learner, i) -> bool:
        """Whether the gradients of a layer's adapters are taken together: not where backward writes again what they read, nor with DoRA, whose
        groups share the buffer of their dy."""
        if self.recompute:
            return False
        groups = [place for place in PLACES if (i, place) in learner.sizes and _adapter(learner, i, place)[0] is not None]
        if any(_has_lengths(learner, i, group) for group in groups):
            return False
        adapters = [(group, *_adapter(learner, i, group)) for group in groups]
        linears = [(*self.sizes[i, group], scale, Bt.shape[-2] if Bt.dim() == 3 else 0) for group, _, Bt, scale, _ in adapters]
        return self.ops.gathers_gradients(linears, len(batch.adapter_slots), batch.rows)

    def _weight_gradient(self, batch, learner, i, group, dy, x, accumulate):
        """The gradient of what learns in one group."""
        if learner.gradient_view is not None and (i, group) in learner.gradient_view.bias:
            self.ops.bias_gradient(dy, learner.gradient_view.bias[i, group])
        if (i, group) not in learner.sizes:
            return
        if _has_lengths(learner, i, group):
            self.dora.gradient(learner, i, group, self.active.bias.get((i, group)), dy, batch, accumulate)
            dy = self.dora.back(i, group, dy, batch)
        A, Bt, scale, width = _adapter(learner, i, group)
        n = dy.shape[0]
        u = None if A is None else self.ws((group, "u", i), n, width)
        dU = None if A is None else self.ws((group, "dU"), n, width)
        ops = self.gathered if self.gathers else self.ops
        chosen = learner.gradient(ops, i, group, dy, x, u, dU, batch.adapter_slots, accumulate)
        sizes = self.sizes[i, group]
        low = A is not None
        flops = _flops(lora_gradient.flops, learner, i, group, batch, n, sizes) if low else weight_gradient.flops(n, chosen, sizes[0])
        if self.gathered.calls:
            self.gathered.flops += flops
        else:
            self.ledger.add("backward", flops)

    def _attention_backward(self, batch, i, kept, dout, grads=None):
        c, (streams, segment) = self.config, batch.inputs.shape
        dqkv = self.ws("dqkv", *kept["qkv"].shape)
        lse = self._stat(("lse", i), streams, c.heads, segment)
        self.ops.attention_backward(dout, kept["qkv"], kept["out"], lse, *self._window(batch, i), dqkv, c.window(i), c.attention_softcap)
        again, back = attention.backward_flops(segment, 0, c.heads, c.head_dim)
        self.ledger.add("recompute", streams * again)
        self.ledger.add("backward", streams * back)
        self.attended_back += 1
        if self.active.head_norm[i] is None:
            return dqkv
        draw = self.ws("draw", *dqkv.shape)
        rstd = self._stat(("head stat", i), dqkv.shape[0], self.normed_heads)
        self.ops.head_norm_backward(dqkv, kept["raw"], *self.active.head_norm[i], rstd, *self.heads, draw, *(grads or (None, None)))
        return draw
