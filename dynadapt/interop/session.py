"""``attach``: adapt a live transformers model in place.

The engine scores and learns; the live model's own forward and ``generate`` see at once what it learned:

- LoRA: a forward hook on every adapted linear adds scale (x A^T) Bt, reading the engine's own adapter tensors at each call.
  No parameter of the model is touched.
- RowSparse and Full: what a step moved is written through into the model's parameters; ``detach`` puts the originals back.

What the engine remembers in activations (``memory``) is its own: the live model sees only the text that it is given.
"""

from __future__ import annotations

import sys
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from weakref import WeakSet

import torch

from dynadapt.adapt.methods import EMBED, HEAD, LoRA, RowSparse, learns_beside, whole_model
from dynadapt.adapt.targets import norms_and_biases, targeted
from dynadapt.common.checks import token_ids
from dynadapt.common.reprs import safe
from dynadapt.engine import DTYPES, Engine
from dynadapt.engine import state as engine_state
from dynadapt.engine.learners.peft import adapted_modules
from dynadapt.engine.settings import as_adapt
from dynadapt.model import ModelError, from_state, layout
from dynadapt.model.layout import canonical_order, canonical_value, hf_order, hf_rows, hf_value
from dynadapt.model.live import is_live, load_live, match_live
from dynadapt.model.live_state import refuse_changes, unlike

PROBE_TOKENS = 16  # scored by model and engine when they come together: two forwards
_held: WeakSet[torch.nn.Module] = WeakSet()  # every module of every model that a session holds


__all__ = ["Session", "Snapshot", "attach"]


@dataclass(frozen=True)
class Snapshot:
    """Where a session was: what it learned, optimizer state, memory and counters, as copies that later steps leave alone."""

    owner: int = field(repr=False)
    tensors: dict[str, torch.Tensor] = field(repr=False)
    counts: dict = field(repr=False)

    @property
    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in self.tensors.values())

    @safe
    def __repr__(self) -> str:
        return f"Snapshot({len(self.tensors)} tensors, {self.nbytes / 1e6:,.1f} MB)"


def attach(model, adapt=LoRA(), *, dtype: str | None = None, device: str | None = None, history: int | None = None, **engine) -> Session:
    """Adapt a live transformers model in place until ``detach``, which the end of a ``with`` block calls too.

    Args:
        model: a transformers model of a supported family, all of it on one device.
        adapt: ``LoRA``, ``RowSparse``, ``Full``, or None to score only; as ``Engine`` takes it.
        dtype: of the engine's arithmetic, "bf16", "fp32" or "fp64"; None: the model's own. RowSparse and Full take no other,
            since what they learn is written into the model.
        device: the engine's; None: the model's.
        history: how many steps ``rollback`` can take back. Each is a copy of what learns, its optimizer state and the memory,
            made at every step; None: 1 for LoRA, 0 for RowSparse and Full, whose copies are several times what learns.
        engine: what else ``Engine`` takes: optimizer, memory, streams, segment, reset, backend, ...

    The model's own forward and the engine score 16 tokens first, which costs two short forwards and tells what the config does not
    say: hooks, forwards that were replaced. Code that ``torch.compile`` made is made anew when a session begins and ends.

    Raises:
        ModelError: a model that the engine can't compute exactly, by name; from ``step`` for one that was changed meanwhile.
        ValueError: an argument that does not fit, or a model that another session holds.
    """
    if not is_live(model):
        raise ValueError(f"model is a {type(model).__name__}: attach takes a live transformers model (dynadapt.load takes files)")
    if any(module in _held for module in model.modules()):
        raise ValueError(f"model {type(model).__name__} is attached already: detach the session that holds it first")
    return Session(model, as_adapt(adapt), dtype, device, history, engine)


class Session:
    """What ``attach`` returns. ``engine`` is the engine, ``model`` the live model, ``stream`` whose weights the model shows.

    After calls on ``engine`` itself, ``refresh`` shows the model what RowSparse and Full have learned; ``step``, ``enter``,
    ``reset`` and ``rollback`` do it themselves, and LoRA needs none.
    """

    def __init__(self, model, adapt, dtype, device, history, engine: dict):
        self.model, self.closed, self._stream = model, False, 0
        config, stored, state = match_live(model)
        if isinstance(adapt, LoRA) and (-1, EMBED) in targeted(adapt, config):
            raise ValueError(f"adapt={adapt!r}: a session's adapters are on linears; leave embed out of targets, or use an Engine")
        if isinstance(adapt, LoRA) and (adapt.also or adapt.dora):
            raise ValueError(
                f"adapt={adapt!r}: a session has plain adapters, or norms and biases; leave also and dora out, or use an Engine"
            )
        self._places = {name: [key] for name, key in stored.items()}
        self._add_second_head(config, state)
        self._originals = self._copies(adapt, config, state)
        dtype = _choose_dtype(dtype, adapt, state[stored["layers.0.down.weight"]].dtype, self._originals)
        source = load_live(model)
        if self._originals:  # the prior must not move with the live model
            own = {name: source.tensor(name) for name in source.names() if name not in self._originals}
            own |= {name: canonical_value(config, name, value) for name, value in self._originals.items()}
            source = from_state(source.config, own, source.tokenizer, source.name)
        if isinstance(engine.get("optimizer"), (list, tuple)):
            raise ValueError(f"optimizer={engine['optimizer']!r}: attach takes one for all streams; Engine takes one a stream")
        self.engine = Engine(source, adapt=adapt, dtype=dtype, device=device or _one_device(stored, state), **engine)
        self._check_same_scores(state, stored)
        self._history: deque[Snapshot] = deque(maxlen=_choose_history(history, adapt))
        self._hooks = self._hook_linears() if isinstance(adapt, LoRA) else []
        _forget_compiled()
        self._shared = {} if self._originals else {key: (state[key].data_ptr(), _version(state[key])) for key in stored.values()}
        self._modules = WeakSet(model.modules())
        _held.update(self._modules)

    def __enter__(self) -> Session:
        self._check_open()
        return self

    def __exit__(self, *exception) -> None:
        self.detach()

    @safe
    def __repr__(self) -> str:
        state = "detached" if self.closed else f"shows stream {self._stream}, {len(self._history)} steps kept"
        return f"Session({type(self.model).__name__}, {state}, {self.engine!r})"

    def _check_open(self) -> None:
        if self.closed:
            raise RuntimeError("session is closed: detach was called; attach the model again")

    # ---- learning

    def step(self, tokens, lengths=None, streams=None, weights=None) -> torch.Tensor:
        """``Engine.step``: nll [R, T] in nats of int64 tokens [R, T+1] (or [T+1], one row), scored before they are learned."""
        self._check_open()
        tokens = token_ids("tokens", tokens)
        tokens = tokens[None] if tokens.dim() == 1 else tokens
        self._check_unchanged()
        before = self.snapshot() if self._history.maxlen else None
        nll = self.engine.step(tokens, lengths, streams, weights)
        if before is not None:
            self._history.append(before)
        was_reset = self.engine.reset_policy != "never" and any(self.engine.last.was_reset)
        self._show(every_row=was_reset)
        return nll

    def generate(self, prompt, max_tokens: int = 128, **settings):
        """``Engine.generate``, with the weights of the stream that the model shows unless another is given."""
        self._check_open()
        self._check_unchanged()
        return self.engine.generate(prompt, max_tokens, **{"stream": self._stream, **settings})

    def enter(self, stream: int = 0, lr: float | None = None) -> None:
        """``Engine.enter``: a new document; memory and position cleared, weights back to the prior iff reset="document"."""
        self._check_open()
        self.engine.enter(stream, lr)
        self.refresh()

    def reset(self, stream: int | None = None) -> None:
        """Weights and optimizer state of one stream, or of all, back to the prior; memory stays."""
        self._check_open()
        for s in range(self.engine.streams) if stream is None else [stream]:
            self.engine.reset(s)
        self.refresh()

    def snapshot(self) -> Snapshot:
        """A copy of where the session is, which ``rollback`` goes back to as often as asked."""
        self._check_open()
        with self.engine.calls.call("snapshot"):
            tensors = {name: t.clone() for name, t in engine_state.state_tensors(self.engine).items()}
            return Snapshot(id(self), tensors, engine_state.state_counts(self.engine))

    def rollback(self, to: int | Snapshot = 1) -> None:
        """Back by ``to`` steps, or to what ``snapshot`` gave: the steps after it are as if they had not been.

        Their FLOPs stay counted. Going back to a snapshot empties the history of steps.
        """
        self._check_open()
        if isinstance(to, Snapshot):
            if to.owner != id(self):
                raise ValueError("to: a snapshot of another session")
            target = to
            self._history.clear()
        else:
            target = self._take_back(to)
        with self.engine.calls.call("rollback", mends=True):
            engine_state.set_state(self.engine, target.tensors, target.counts)
        self.engine.last = None
        self.refresh()

    def _take_back(self, steps: int) -> Snapshot:
        if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
            raise ValueError(f"to={steps!r}: expected a number of steps of at least 1, or a snapshot")
        if steps > len(self._history):
            raise ValueError(
                f"to={steps}: {len(self._history)} steps are kept (history={self._history.maxlen}); "
                "attach with a larger history, or keep a snapshot()"
            )
        for _ in range(steps):
            target = self._history.pop()
        return target

    def save(self, directory: str | Path) -> None:
        """``Engine.save``: everything that resuming needs, and LoRA adapters as PEFT directories."""
        self._check_open()
        self.engine.save(directory)

    def detach(self) -> None:
        """The model as it was before: every parameter bit for bit, hooks gone. Calling it again does nothing."""
        if self.closed:
            return
        for hook in self._hooks:
            hook.remove()
        _forget_compiled()
        for name, value in self._originals.items():
            self._write(name, value)
        _held.difference_update(self._modules)
        self._originals, self.closed = {}, True
        self._history.clear()

    # ---- that model and engine compute the same

    @torch.no_grad()
    def _check_same_scores(self, state, stored) -> None:
        """Score a few tokens with both, before anything is learned.

        Raises:
            ModelError: where they differ by more than their dtypes round: by 0.001 nats a token in float32 and float64, by 0.3 where
                either is narrower.
        """
        engine, model = self.engine, self.model
        tokens = torch.arange(1, min(PROBE_TOKENS, engine.window) + 2)[None] * 7919 % engine.config.vocab_size
        weight = state[stored.get("head.weight", stored["embed.weight"])]
        out = model(tokens[:, :-1].to(weight.device), use_cache=False)
        if hasattr(out, "logits"):
            logits = out.logits
        else:  # the base model alone
            logits = torch.nn.functional.linear(out[0], weight) / engine.config.logits_scaling
        expected = torch.nn.functional.cross_entropy(logits[0].double().cpu(), tokens[0, 1:], reduction="none")
        counted = dict(engine.ledger.totals)
        found = engine.score(tokens)[0].double().cpu()
        engine.ledger.totals = counted
        narrow = {weight.dtype, DTYPES[engine.dtype]} - {torch.float32, torch.float64}
        if not (error := (found - expected).abs().mean().item()) <= (0.3 if narrow else 1e-3):
            raise ModelError(
                f"{type(model).__name__}: its own forward and the decoder differ by {error:.3g} nats a token: the model "
                f"computes something that its config and weights do not say; found: {unlike(model)}"
            )

    def _check_unchanged(self) -> None:
        """Raise ModelError where the live model was changed since it was attached, which the engine has not seen."""
        name = type(self.model).__name__
        refuse_changes(self.model, self.engine.config, name)
        state = self.model.state_dict() if self._shared else {}
        for key, before in self._shared.items():
            if (state[key].data_ptr(), _version(state[key])) != before:
                raise ModelError(
                    f"{name}: tensor {key} was changed since attach, and the engine has its own copy; detach first, "
                    "then attach the changed model"
                )

    # ---- what the live model sees

    @property
    def stream(self) -> int:
        return self._stream

    @stream.setter
    def stream(self, stream: int) -> None:
        self._check_open()
        self._stream = self.engine._check_stream(stream)
        self.refresh()

    def refresh(self) -> None:
        """Write all that the stream has learned into the live model (RowSparse and Full; LoRA is read where it lies)."""
        self._check_open()
        self._show(every_row=True)

    def _show(self, every_row: bool) -> None:
        if not self._originals:
            return
        learner, config = self.engine.driver.step.learner(self._stream), self.engine.config
        if whole_model(self.engine.adapt) or learns_beside(self.engine.adapt):
            for name, value in learner.parameters().items():
                self._put(name, value)
        elif every_row and isinstance(self.engine.adapt, RowSparse):
            for name, value in learner.weights().items():
                layer, group, p = name.split(".")
                self._put(f"layers.{layer}.{layout(config, int(layer))[group][int(p)]}.weight", value)
        else:
            for (layer, group), p, rows, value in learner.learned_rows():
                self._put(f"layers.{layer}.{layout(config, layer)[group][p]}.weight", value, rows)

    def _put(self, name: str, value: torch.Tensor, rows: torch.Tensor | None = None) -> None:
        """A canonical tensor, or ``rows`` of one, into the live model's parameters."""
        self._write(name, hf_value(self.engine.config, name, value), rows)

    @torch.no_grad()
    def _write(self, name: str, value: torch.Tensor, rows: torch.Tensor | None = None) -> None:
        """What stands for a canonical tensor, its axes and rows in order, into the live model's parameters, which stay the same objects."""
        order = hf_rows(self.engine.config, name.split(".")[-2])
        if order is not None:
            rows = order if rows is None else order[rows.cpu()]
        for place in self._places[name]:
            view = hf_order(self.engine.config, name, self.model.get_parameter(place))
            if rows is None:
                view.copy_(value)
            else:
                view[rows.to(view.device)] = value.to(view)

    def _add_second_head(self, config, state) -> None:
        """A tied head that the live model keeps as a tensor of its own is written like the embedding."""
        head = "lm_head.weight"
        if config.tied_head and head in state and state[head].data_ptr() != state[self._places["embed.weight"][0]].data_ptr():
            self._places["embed.weight"].append(head)

    def _copies(self, adapt, config, state) -> dict[str, torch.Tensor]:
        """The tensors that will be written to, by canonical name, as they are but for the order of axes and rows; none for LoRA."""
        if adapt is None or isinstance(adapt, LoRA):
            return {}
        names = (
            self._places
            if whole_model(adapt)
            else norms_and_biases(adapt, config)
            if learns_beside(adapt)
            else [f"layers.{i}.{part}.weight" for i, group in targeted(adapt, config) for part in layout(config, i)[group]]
        )
        values = {name: state[self._places[name][0]] for name in names}
        return {name: canonical_order(config, name, value).clone(memory_format=torch.contiguous_format) for name, value in values.items()}

    def _hook_linears(self) -> list:
        handles, config = [], self.engine.config
        for adapted in adapted_modules(self.engine.learners[0], config):
            name = "head.weight" if adapted.part == HEAD else f"layers.{adapted.layer}.{adapted.part}.weight"
            place = self._places[name][0].removesuffix(".weight") if name in self._places else adapted.module  # a tied head
            handles.append(self.model.get_submodule(place).register_forward_hook(self._low_rank(adapted)))
        return handles

    def _low_rank(self, adapted):
        """A forward hook that adds the adapter of one linear to its output [..., O]."""
        engine, learner = self.engine, self.engine.learners[0]
        order = hf_rows(engine.config, adapted.part)
        columns = None if order is None else order.argsort()  # ours by theirs

        def add(module, inputs, output):
            A, Bt = learner.adapter(adapted.layer, adapted.group)
            slot = 0 if engine.shared else self._stream
            a, bt = (half.to(output) for half in adapted.halves(A[slot], Bt[slot]))
            bt = bt if columns is None else bt[:, columns.to(bt.device)]
            return output + adapted.scale * (inputs[0].to(output.dtype) @ a.t() @ bt)

        return add


def _version(tensor: torch.Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _forget_compiled() -> None:
    """Code that torch.compile made before hooks came or went does not look for them: it is made anew at the next call."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


def _one_device(stored, state) -> str:
    devices = sorted({str(state[key].device) for key in stored.values()})
    if len(devices) > 1:
        raise ValueError(f"model lies on {', '.join(devices)}: attach takes a model on one device")
    return devices[0]


def _choose_dtype(dtype: str | None, adapt, own: torch.dtype, written: dict[str, torch.Tensor]) -> str:
    """The engine's dtype: what is written through must not be rounded on its way."""
    names = {value: name for name, value in DTYPES.items()}
    kinds = {value.dtype for value in written.values()} or {own}
    if written and (len(kinds) > 1 or own not in names or dtype not in (None, names[own])):
        found = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
        raise ValueError(
            f"dtype={dtype!r} with adapt={type(adapt).__name__} on a model of {found}: what is learned is written "
            "into it; convert the model to one of bfloat16, float32, float64 and leave dtype out"
        )
    if dtype is None and own not in names:
        raise ModelError(f"model is {str(own).removeprefix('torch.')}: give dtype='bf16' or 'fp32' for the engine's arithmetic")
    return dtype or names[own]


def _choose_history(history: int | None, adapt) -> int:
    if history is None:
        return 0 if adapt is not None and not isinstance(adapt, LoRA) else 1
    if not isinstance(history, int) or isinstance(history, bool) or history < 0:
        raise ValueError(f"history={history!r}: expected a number of steps of at least 0")
    return history
