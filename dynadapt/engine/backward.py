"""One backward pass of the decoder, from the gradient of the hidden states to those of what learns."""

from __future__ import annotations

import torch

from dynadapt.adapt.methods import PLACES
from dynadapt.ops import attention, linear, lora_gradient, weight_gradient

from . import plain_head
from .batch import Batch
from .group_adapters import adapter_of, flops_of, has_lengths


class Backward:
    """The way back of what ``Decoder.forward`` left, with its arguments: ``batch``, ``learner`` and ``lowest``, below which nothing is
    computed. ``accumulate``: gradients are added to what is there.
    """

    def __init__(self, decoder, batch: Batch, learner, lowest, accumulate: bool):
        self.decoder, self.batch, self.learner, self.lowest, self.accumulate = decoder, batch, learner, lowest, accumulate
        self.config, self.ops, self.ws, self.ledger = decoder.config, decoder.ops, decoder.ws, decoder.ledger
        self.active, self.recompute, self.gathered = decoder.active, decoder.recompute, decoder.gathered
        self.gathers = False  # whether the gradients of the layer's adapters wait for each other
        self.grads = learner.gradient_view  # None where adapters or chosen rows alone learn

    def run(self, dhidden: torch.Tensor | None) -> torch.Tensor | None:
        """From dhidden [N, H] (None: of the head alone); see ``Decoder.backward``."""
        d, grads = self.decoder, self.grads
        if grads is not None:
            self.learner.begin_gradient(self.accumulate)
            if grads.head is not None:
                plain_head.gradient(d, grads, self.accumulate)
        if d.adapted_head is not None:
            d.adapted_head.gradient(None if d.scored is None else d.scored[2], self.accumulate)
        if dhidden is None or not d.learns_below:
            return None
        dx = self._norm(d.scale_hidden(dhidden), d.final, self.active.final_norm, "final", None, None, grads and grads.final_norm)
        for i in reversed(range(max(0, self.lowest[0]), self.config.layers)):
            dx = self._layer(i, dx)
            self.gathered.launch()
            if dx is None:
                return None
        if self.lowest[0] >= 0:
            return None
        if not d.embedded:
            self._embedding_gradient(dx)
        return dx

    def _embedding_gradient(self, d) -> None:
        """Gradient of the table and the positions, or of the embedding's adapters, from d [N, H] of what entered layer 0."""
        scale, grads, adapted = self.config.stream_scale, self.grads, self.decoder.adapted_embedding
        scaled = d if scale == 1.0 else torch.mul(d, scale, out=self.ws("dembedded", *d.shape))
        if adapted is not None:
            adapted.gradient(scaled, self.accumulate)
        if grads is not None and grads.table is not None:
            self.ops.embedding_backward(self.batch.inputs.reshape(-1), scaled, grads.table)
            if grads.positions is not None:
                self.ops.embedding_backward(self.decoder.positions_of(self.batch), scaled, grads.positions)

    # ---- norms

    def _norm(self, dy, res, norm, key, dres, y=None, grads=None):
        """d of what was normalised; ``y``: the norm's output is written there again; ``grads``: (dweight, dbias) where the norm learns.
        Without a norm ``dres`` itself, ``dy`` added to it."""
        if norm is None:
            return dres.add_(dy)
        dx = self.ws(("dres", key if key == "final" else key[0]), *dy.shape)  # never the buffer that dres is in
        stat, (weight, bias) = self.decoder.stat(("stat", key), dy.shape[0], 2), norm
        self.ops.norm_backward(dy, res, weight, stat, self.config.norm, dres, dx, *(grads or (None, None)), bias, y)
        return dx

    def _post_norm(self, d, x, norm, key, grads):
        """d of what attention or feed-forward gave, from d of what was added to the residual."""
        return d if norm is None else self._norm(d, x, norm, key, None, None, grads)

    def _norm_again(self, res, norm, key, y):
        """The norm's output from its residual, where no backward of it is run."""
        if norm is None:
            return
        stat = self.decoder.stat(("stat", key), res.shape[0], 2)
        self.ops.norm_forward(res, None, *norm, *self.decoder.norm_kind, None, y, stat)

    # ---- a layer

    def _layer(self, i, d):
        """Gradient of the layer's input residual, or None when nothing below learns.

        Attention and feed-forward are branches of their own where they read the same residual: ``d`` comes to both, and in the lowest
        layer each goes as far as what learns in it.

        A group's weight gradient needs its input. With ``recompute`` that was not kept: the op behind it writes it again
        on its way back, so each gradient is taken after that op. Else those of adapters may wait for each other, until the last norm writes
        where the first's dy is.
        """
        kept, w, kind, g, sizes = self.decoder.kept[i], self.active, self.config.activation, self.grads, self.learner.sizes
        parallel, given = self.config.parallel_residual, d
        self.gathers = self._may_gather(i)
        y, n1, n2 = kept["y"], kept["n1"], kept["n2"]
        again = lambda t: t if self.recompute else None  # noqa: E731

        ddown = self._post_norm(d, kept["down"], w.mlp_post_norm[i], ("mlp post", i), g and g.mlp_post_norm[i])
        dh, dn2 = self._gradient_before_activation(i, ddown, kept["h"], again(y)), None
        if dh is None and self.recompute and (i, "down") in sizes:
            self.ops.activation_forward(kept["h"], kind, y)
        self._weight_gradient(i, "down", ddown, y)
        if dh is not None:
            dn2 = self._input_gradient(i, "mlp_in", dh)
            if dn2 is not None:
                d = self._norm(dn2, kept["res2"], w.mlp_norm[i], ("mlp", i), d, again(n2), g and g.mlp_norm[i])
            elif self.recompute and (i, "mlp_in") in sizes:
                self._norm_again(kept["res2"], w.mlp_norm[i], ("mlp", i), n2)
            self._weight_gradient(i, "mlp_in", dh, n2)
        if dn2 is None and not parallel:
            return None

        do = self._post_norm(given if parallel else d, kept["o"], w.attn_post_norm[i], ("attn post", i), g and g.attn_post_norm[i])
        dmixed, dgate = self._input_gradient(i, "o", do), None
        if kept.get("both") is not None:
            dgate, dmixed = self._gate(i, kept, dmixed)
        self._weight_gradient(i, "o", do, kept["mixed"])
        if dmixed is None:
            return None
        dqkv = (self._delta if self.config.is_delta(i) else self._attention)(i, kept, dmixed)
        if dgate is not None:
            dqkv = self.decoder.gate.join(dgate, dqkv)

        dn1 = self._input_gradient(i, "qkv", dqkv)
        if not self.recompute:
            self._weight_gradient(i, "qkv", dqkv, n1)
            self.gathered.launch()
        if dn1 is not None:
            d = self._norm(dn1, kept["res1"], w.attn_norm[i], ("attn", i), d, again(n1), g and g.attn_norm[i])
        elif self.recompute and (i, "qkv") in sizes:
            self._norm_again(kept["res1"], w.attn_norm[i], ("attn", i), n1)
        if self.recompute:
            self._weight_gradient(i, "qkv", dqkv, n1)
        return None if dn1 is None else d

    def _attention(self, i, kept, dout):
        c, d, g, (streams, segment) = self.config, self.decoder, self.grads, self.batch.inputs.shape
        dqkv = self.ws("dqkv", *kept["qkv"].shape)
        lse = d.stat(("lse", i), streams, c.heads, segment)
        self.ops.attention_backward(
            dout, kept["qkv"], kept["out"], lse, *d.attention_context(self.batch, i), dqkv, c.window(i), c.attention_softcap
        )
        again, back = attention.backward_flops(segment, 0, c.heads, c.head_dim)
        self.ledger.add("recompute", streams * again)
        self.ledger.add("backward", streams * back)
        d.attended_back += 1
        if self.active.head_norm[i] is None:
            return dqkv
        draw = self.ws("draw", *dqkv.shape)
        rstd = d.stat(("head stat", i), dqkv.shape[0], d.normed_heads)
        learning = (g and g.head_norm[i]) or (None, None)
        self.ops.head_norm_backward(dqkv, kept["raw"], *self.active.head_norm[i], rstd, *d.heads, draw, *learning)
        return draw

    def _delta(self, i, kept, dmixed):
        """The same where the gated delta rule stands in attention's place."""
        d, g = self.decoder, self.grads
        learning = g and g.delta[i] and g.delta[i].norm
        return d.delta.backward(self.batch, d.memory, d.places[i], kept, self.active.delta[i], dmixed, self.ledger, learning)

    def _gate(self, i, kept, dmixed):
        """(gradient of the gate, of what attention gave), None twice where none is wanted."""
        both, y, gate = kept["both"], kept["mixed"], self.decoder.gate
        if dmixed is not None:
            return gate.backward(dmixed, both, y if self.recompute else None)
        if self.recompute and (i, "o") in self.learner.sizes:
            gate.again(both, y)
        return None, None

    # ---- gradients of a group's input

    def _goes_on(self, layer, group) -> bool:
        """Whether something learns in front of a group."""
        if layer > self.lowest[0]:
            return True
        if not self.config.parallel_residual:
            return PLACES.index(group) > PLACES.index(self.lowest[1])
        branch = PLACES[:3] if group in PLACES[:3] else PLACES[3:]
        return any(self._learns(layer, place) for place in branch[: branch.index(group)])

    def _learns(self, layer: int, place: str) -> bool:
        """Whether something learns in one place of a layer (PLACES)."""
        g, sizes = self.grads, self.learner.sizes
        if g is None or (layer, place) in sizes:
            return (layer, place) in sizes
        norms = {"attn_norm": g.attn_norm, "mlp_norm": g.mlp_norm, "qkv": g.head_norm}.get(place)
        return (layer, place) in g.bias or norms is not None and any(t is not None for t in norms[layer] or ())

    def _input_gradient(self, i, group, dy):
        """d-input of one group, None at ``lowest``; what the adapter's own gradient needs of it stays in "dU"."""
        need_dx = self._goes_on(i, group)
        given, dU, dx = self._for_input_gradient(i, group, dy, need_dx)
        if need_dx or dU is not None:
            self.ops.linear_backward(*given, dU, dx)
            self._count_input_gradient(i, group, len(dy), need_dx)
        return dx

    def _for_input_gradient(self, i, group, dy, need_dx=True):
        """(what linear_backward is given, dU or None, dx or None) of one group."""
        d, slots = self.decoder, self.batch.adapter_slots
        A, Bt, scale, width = adapter_of(self.learner, i, group)
        if has_lengths(self.learner, i, group):
            dy = d.dora.back(i, group, dy, self.batch)
        dU = None if A is None else self.ws((group, "dU"), len(dy), width)
        dx = self.ws((group, "dx"), len(dy), d.sizes[i, group][0]) if need_dx else None
        return (dy, d.parts(self.learner, i, group), A, Bt, slots, scale), dU, dx

    def _gradient_before_activation(self, i, ddown, h, y):
        """dh from the gradient of what "down" gave, None at ``lowest``; ``y``: the activation is written there again."""
        if self.ops.joins_activation and self._goes_on(i, "down"):
            dh, (given, dU, dx) = self.ws("dh", *h.shape), self._for_input_gradient(i, "down", ddown)
            self.ops.linear_activation_backward(*given, h, self.config.activation, dU, dx, dh, y)
            self._count_input_gradient(i, "down", len(ddown))
            return dh
        dx = self._input_gradient(i, "down", ddown)
        if dx is None:
            return None
        dh = self.ws("dh", *h.shape)
        self.ops.activation_backward(dx, h, self.config.activation, dh, y)
        return dh

    def _count_input_gradient(self, i, group, rows: int, *need_dx: bool) -> None:
        sizes = self.decoder.sizes[i, group]
        self.ledger.add("backward", flops_of(linear.backward_flops, self.learner, i, group, self.batch, rows, sizes, *need_dx))

    # ---- gradients of what learns

    def _may_gather(self, i) -> bool:
        """Whether the gradients of a layer's adapters are taken together: not where backward writes again what they read, nor with DoRA, whose
        groups share the buffer of their dy."""
        if self.recompute:
            return False
        learner, sizes = self.learner, self.decoder.sizes
        groups = [place for place in PLACES if (i, place) in learner.sizes and adapter_of(learner, i, place)[0] is not None]
        if any(has_lengths(learner, i, group) for group in groups):
            return False
        adapters = [(group, *adapter_of(learner, i, group)) for group in groups]
        linears = [(*sizes[i, group], scale, Bt.shape[-2] if Bt.dim() == 3 else 0) for group, _, Bt, scale, _ in adapters]
        return self.ops.gathers_gradients(linears, len(self.batch.adapter_slots), self.batch.rows)

    def _weight_gradient(self, i, group, dy, x):
        """The gradient of what learns in one group."""
        learner, batch, grads, dora = self.learner, self.batch, self.grads, self.decoder.dora
        if grads is not None and (i, group) in grads.bias:
            self.ops.bias_gradient(dy, grads.bias[i, group])
        if (i, group) not in learner.sizes:
            return
        if has_lengths(learner, i, group):
            dora.gradient(learner, i, group, self.active.bias.get((i, group)), dy, batch, self.accumulate)
            dy = dora.back(i, group, dy, batch)
        A, Bt, scale, width = adapter_of(learner, i, group)
        n = dy.shape[0]
        u = None if A is None else self.ws((group, "u", i), n, width)
        dU = None if A is None else self.ws((group, "dU"), n, width)
        ops = self.gathered if self.gathers else self.ops
        chosen = learner.gradient(ops, i, group, dy, x, u, dU, batch.adapter_slots, self.accumulate)
        sizes = self.decoder.sizes[i, group]
        low = A is not None
        flops = flops_of(lora_gradient.flops, learner, i, group, batch, n, sizes) if low else weight_gradient.flops(n, chosen, sizes[0])
        if self.gathered.calls:
            self.gathered.flops += flops
        else:
            self.ledger.add("backward", flops)
