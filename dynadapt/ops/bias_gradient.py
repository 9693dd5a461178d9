"""Gradient of a linear layer's bias: the sum of dy over the rows.

db_o = sum_n dy[n, o]                y = x W^T + b
"""

from __future__ import annotations


def bias_gradient(dy, db) -> None:
    """db [O] (float32 or wider) += the column sums of dy [N, O], whose rows may be strided.

    The order of the sums is fixed by N alone. torch's FlopCounterMode counts no FLOPs for sums, so the ledger counts none.
    """
    db += dy.to(db.dtype).sum(0)
