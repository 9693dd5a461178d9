"""Token embedding, with learned positions where the family has them.

out_n = table[token_n] (+ position_table[position_n])
"""

from __future__ import annotations


def embedding_forward(tokens, table, position_table, positions, out) -> None:
    """out [N, H]; tokens, positions int64 [N]; table [V, H]; position_table [P, H] or None."""
    rows = table[tokens]
    out.copy_(rows if position_table is None else rows + position_table[positions])


def embedding_backward(tokens, dout, dtable) -> None:
    """dtable [V, H] (float32 or wider) += the sum of dout over the places where each token stands."""
    dtable.index_add_(0, tokens, dout.to(dtable.dtype))
