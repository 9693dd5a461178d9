"""A stream's learned weights, sent as patches while it learns."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from dynadapt.common.checks import integer
from dynadapt.engine.learned import learned_tensors
from dynadapt.engine.learners.peft import adapted_modules, halves_of
from dynadapt.engine.rate_mixture import RateMixture
from dynadapt.model.layout import hf_name, hf_tensor, to_hf_rows
from dynadapt.model.peft import tensor_key

from .patches import Patch, PatchError, write_patch


class PatchSender:
    """What one stream of an engine has learned, as patches (patches.py) for whoever has the state that it began with.

    ``sent`` is what receivers have: bf16 tensors by name. With ``Full`` or ``RowSparse`` these are the weights that learn, under Hugging
    Face's names and in their layout; the receiver is a transformers model in bf16. With ``LoRA`` they are the adapter's A and B under
    PEFT's names; the receiver begins with ``sent`` itself, since A is drawn by the engine.

    A patch leads from ``sent`` to the weights as they are now, rounded to bf16 to the nearest. What a rounding leaves out stays in the
    engine's float32 masters and is sent once it has grown to a step of bf16: behind each patch receivers have exactly the rounded
    weights, however many updates and patches went before (error feedback: what was not sent is never given up).

    Args:
        source: an ``Engine`` or a ``Session`` that learns, without a slow level.
        stream: whose weights. With ``shared`` there is one set.
        sent: of an earlier sender's, to go on with its chain; None: the weights as they are now.
        number: patches sent before.

    Raises:
        PatchError: what learns there can't be sent.
    """

    def __init__(self, source, stream: int = 0, sent: Mapping[str, torch.Tensor] | None = None, number: int = 0):
        if isinstance(source, RateMixture):
            raise PatchError(f"rates={source.rates!r}: a mixture has weights of each rate; give its engine and the stream of one")
        self.engine = getattr(source, "engine", source)
        if not self.engine.learners:
            raise PatchError("adapt=None: nothing learns in this engine; expected one with LoRA(...), RowSparse(...) or Full(...)")
        if self.engine.slow is not None:
            raise PatchError(f"slow={self.engine.slow!r}: an adapter fits the slow level's weights alone; expected slow=None")
        self.stream = 0 if self.engine.shared else self.engine._check_stream(stream)
        self.number = integer("number", number, 0)
        now = self._now()
        if sent is not None:
            shapes = lambda state: {name: (tuple(value.shape), value.dtype) for name, value in state.items()}  # noqa: E731
            if shapes(sent) != shapes(now):
                differ = sorted(shapes(sent).items() ^ shapes(now).items())
                raise PatchError(f"sent has not the tensors of this engine: {differ[0][0]} differs in name, shape or dtype")
        self.sent = now if sent is None else {name: value.clone() for name, value in sent.items()}

    def send(self, path) -> Patch:
        """Write a patch from ``sent`` to the weights as they are now, which ``sent`` is afterwards.

        Raises:
            PatchError: a weight is NaN or infinite; RunError: the disk fails. Then nothing was sent, and the next patch has it all.
        """
        now = self._now()
        patch = write_patch(self.sent, now, path, self.number + 1)
        self.sent, self.number = now, patch.number
        return patch

    @torch.no_grad()
    def _now(self) -> dict[str, torch.Tensor]:
        engine = self.engine
        with engine.calls.call("patch"):
            learner = engine.driver.step.learner(self.stream)
            named = self._weights(learner) if learner.owns_weights else self._adapter(learner)
            return {name: value.to("cpu", torch.bfloat16, copy=True).contiguous() for name, value in named}

    def _weights(self, learner):
        config = self.engine.config
        for name, value in learned_tensors(self.engine, learner).items():
            yield hf_name(config, name), hf_tensor(config, name, value)

    def _adapter(self, learner):
        config, row = self.engine.config, learner.state.master[self.engine.driver.step.slot(self.stream)]
        for adapted in adapted_modules(learner, config):
            A, Bt = halves_of(learner, row, adapted)
            yield tensor_key(adapted.module, "A"), A
            yield tensor_key(adapted.module, "B"), to_hf_rows(config, adapted.part, Bt.t())
