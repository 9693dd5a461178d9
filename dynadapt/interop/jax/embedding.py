"""Token embedding for jax."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from .call import call, check_dtype, f32, like, varied


def embedding(tokens, table, position_table=None, positions=None):
    """out [..., H] = table[tokens] (+ position_table[positions]); tokens, positions integers [...], tables [V, H] and [P, H].

    Source: ``dynadapt.ops.embedding``.
    """
    if (position_table is None) != (positions is None):
        raise ValueError("position_table and positions: expected both or neither")
    check_dtype("embedding", table, position_table=position_table)
    places = None if positions is None else jnp.broadcast_to(positions, tokens.shape).reshape(-1)
    return _embedding(*varied((tokens.reshape(-1), table, position_table, places))).reshape(*tokens.shape, table.shape[1])


@jax.custom_vjp
def _embedding(tokens, table, position_table, positions):
    results = [like(table, tokens.shape[0], table.shape[1])]
    return call("embedding_forward", results, [tokens, table, position_table, positions])[0]


def _embedding_gradient(kept, dout):
    tokens, table, position_table, positions = kept
    of = lambda index, t: call("embedding_backward", [f32(*t.shape)], [index, dout])[0].astype(t.dtype)  # noqa: E731
    return None, of(tokens, table), None if positions is None else of(positions, position_table), None


_embedding.defvjp(lambda *inputs: (_embedding(*inputs), inputs), _embedding_gradient)
