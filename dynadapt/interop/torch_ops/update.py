"""One optimizer step, in place (ops/update.py): its state and rule are spelled out as their fields."""

from __future__ import annotations

import dynadapt.adapt.optimizers  # noqa: F401  (registers the kinds)
from dynadapt.ops.update import UpdateRule, UpdateState

from .registry import kernel, mutating


@mutating(
    "update(str kind, Tensor(a!) master, Tensor(b!) grad, Tensor(c!)? first, Tensor(d!)? second, Tensor? prior, "
    "Tensor? stat, Tensor(e!)? working, Tensor slots, Tensor lr, Tensor(f!) step, Tensor(g!) norms, Tensor(h!) skipped, "
    "Tensor? prior_rate=None, Tensor? rate_factor=None, *, float decay=0, float clip=0, float beta1=0.9, float beta2=0.999, "
    "float eps=1e-8, float weight_decay=0, float momentum=0) -> ()"
)
def update(
    kind, master, grad, first, second, prior, stat, working, slots, lr, step, norms, skipped, prior_rate=None, rate_factor=None, **numbers
):
    shared = {"prior": prior, "stat": stat, "prior_rate": prior_rate, "rate_factor": rate_factor}
    state = UpdateState(master, grad=grad, first=first, second=second, working=working, step=step, **shared)
    # master's dtype, not working's: the kernels serve either in `working`
    kernel("update", master)(state, UpdateRule(kind, **numbers), slots, lr, norms, skipped)
