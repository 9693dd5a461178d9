"""What the update op and the optimizers both know: the numbers of a step, and each kind's arithmetic.

An optimizer (adapt/optimizers, one file each) registers its kind with ``direction`` and makes an ``UpdateRule`` of its fields; the
update op (ops/update.py) finds the arithmetic by the rule's kind. Free of torch, so that the command line has the names at once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import KW_ONLY, dataclass, fields


@dataclass(frozen=True)
class Kind:
    """An optimizer's arithmetic, all [P].

    direction: ``(g, state, rule, lr, step) -> d``; it may change ``state.first`` and ``state.second`` in place; step counts from 1.
    uses: names of the UpdateState tensors, beside master and gradient, that a step by this rule reads.
    flops: arithmetic per element; square roots, divisions and signs count one.
    fused: whether the gradient kernels have it too (kernels/epilogue.py), for which it must need nothing but the element itself.
    prepared: where matrices move as wholes, the kind by which a backend's update takes what ops/matrix_update.py makes of the
        gradient; else "". elsewhere: what such a step needs beside ``uses`` where something is no matrix.
    """

    direction: Callable
    uses: Callable[[UpdateRule], Collection[str]]
    flops: Callable[[UpdateRule], int]
    fused: bool
    prepared: str
    elsewhere: tuple[str, ...]


KINDS: dict[str, Kind] = {}


def direction(
    kind: str,
    *,
    flops: Callable,
    uses: Callable = lambda rule: (),
    fused: bool = False,
    prepared: str = "",
    elsewhere: tuple[str, ...] = (),
):
    """Register the decorated function as the direction of ``kind``; see ``Kind``."""

    def register(function):
        KINDS[kind] = Kind(function, uses, flops, fused, prepared, elsewhere)
        return function

    return register


@dataclass(frozen=True)
class UpdateRule:
    """The numbers of a step; those that a kind has no use for are ignored. ``Optimizer.rule`` makes it.

    decay: the share of the way back to the prior; clip: the largest 2-norm of a stream's gradient, 0 for none.
    """

    kind: str
    _: KW_ONLY
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    momentum: float = 0.0
    decay: float = 0.0
    clip: float = 0.0

    def __str__(self) -> str:
        """ "sgd with momentum 0.9": the kind and what is not as it is by default."""
        other = [f"{f.name} {getattr(self, f.name):g}" for f in fields(self)[1:] if getattr(self, f.name) != f.default]
        return self.kind + (f" with {', '.join(other)}" if other else "")

    @property
    def arithmetic(self) -> Kind:
        """Raises ValueError for a kind that no optimizer has registered; dynadapt.adapt.optimizers registers those that there are."""
        if self.kind not in KINDS:
            raise ValueError(
                f"kind={self.kind!r}: expected one of {', '.join(KINDS) or 'those of dynadapt.adapt.optimizers, once it is imported'}"
            )
        return KINDS[self.kind]

    def check_fused(self, op: str) -> None:
        """Raises ValueError when the gradient kernels, which ``op`` is of, do not have this kind."""
        if not self.arithmetic.fused:
            served = " and ".join(kind for kind, known in KINDS.items() if known.fused)
            raise ValueError(f"{op}: kind={self.kind!r}: a fused update serves {served}; others go through ops.update")

    @property
    def uses(self) -> frozenset[str]:
        """Which tensors of an ``UpdateState`` the step needs, beside master, gradient, working copy and count."""
        return frozenset((*self.arithmetic.uses(self), *(("prior",) if self.decay else ())))
