"""The ops that a decoder and its learners call, by name."""

from __future__ import annotations

import time

import torch

from dynadapt.ops import UnsupportedOp, decisions, resolve
from dynadapt.ops.dispatch import Choice, kernel_module
from dynadapt.ops.profiler_ranges import named


class OpSet:
    """The ops of one backend and dtype, resolved by ``resolve`` or when first used; with ``seconds`` set it adds up seconds by op."""

    def __init__(self, backend: str, dtype: torch.dtype):
        self.backend, self.dtype = backend, dtype
        self.choices: dict[str, Choice] = {}
        self.seconds: dict[str, float] | None = None

    @property
    def joins_activation(self) -> bool:
        """Whether the activation goes with the linears around it, as one op each way (ops/linear_activation.py)."""
        return self.backend == "triton"

    def gathers_gradients(self, linears: list[tuple], streams: int, rows: int) -> bool:
        """Whether ``lora_gradients`` launches these at once: (K, part sizes, scale, rank) of each."""
        return self.backend == "triton" and kernel_module("lora_gradient").linears_fit(self.dtype, linears, streams, rows)

    def lora_gradients(self, calls: list[tuple]) -> None:
        """Calls of ``lora_gradient`` that ``gathers_gradients``, of which none reads what another writes: one launch, with the bits of one by one."""
        together = named(Choice("lora_gradient", "triton", kernel_module("lora_gradient").lora_gradients, "")).function
        (together if self.seconds is None else self._timed("lora_gradient", together, self.seconds))(calls)

    def decide(self, name: str, *arguments) -> None:
        """One of ops/decisions.py, by its kernel where the backend is Triton's: what a recorded step does in place of asking."""
        if self.backend != "triton":
            getattr(decisions, name)(*arguments)
            return
        decided = named(Choice(name, "triton", getattr(kernel_module("decisions"), name), "")).function
        (decided if self.seconds is None else self._timed(name, decided, self.seconds))(*arguments)

    def resolve(self, names: list[str]) -> None:
        """Finds the implementations of all ``names`` now.

        Raises:
            UnsupportedOp: naming those that nothing serves, and why.
        """
        missing: list[str] = []
        why: UnsupportedOp | None = None
        for name in names:
            try:
                self._choice(name)
            except UnsupportedOp as error:
                missing, why = [*missing, name], why or error
        if missing:
            raise UnsupportedOp(f"nothing serves {', '.join(missing)}: {why}") from why

    def _choice(self, name: str):
        return self.choices.get(name) or self.choices.setdefault(name, named(resolve(name, self.backend, self.dtype)))

    def __getattr__(self, name: str):
        if name.startswith("_"):
            raise AttributeError(name)
        choice = self._choice(name)
        return choice.function if self.seconds is None else self._timed(name, choice.function, self.seconds)

    @staticmethod
    def _timed(name: str, function, seconds: dict[str, float]):
        def call(*args):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            start = time.perf_counter()
            function(*args)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start

        return call
