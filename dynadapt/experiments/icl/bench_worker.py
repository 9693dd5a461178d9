"""One provider of ``dynadapt bench icl``, in a process of its own.

Obeys lines of standard input as dynadapt/bench/step_worker.py does: ``check FILE``, ``threads N``, ``time N``, ``ceiling``.
A step draws a batch of prompts, predicts, and learns: for dynadapt what `dynadapt icl train` runs, for the peers the same
model in Hugging Face's GPT-2 with torch's fused Adam. All draw the same prompts.
"""

from __future__ import annotations

import json
import os
import sys
import time

import torch

from dynadapt.bench.step_worker import DTYPES, peak_memory

from .config import TrainConfig
from .model import initial_weights
from .prompts import draw
from .reference import HuggingFaceRegressor
from .train import Trainer


class Native:
    """dynadapt's own step."""

    def __init__(self, o: dict):
        from dynadapt.ops.dispatch import native_module

        self.config = TrainConfig.from_dict(o["config"])
        self.native = native_module() if self.config.device == "cpu" else None
        self.threads(o["threads"])
        self.trainer, self.made = Trainer(self.config), 0
        self.trainer.begin_interval(0)

    def threads(self, n: int) -> None:
        torch.set_num_threads(n)
        if self.native:
            self.native.set_num_threads(n)

    def step(self) -> None:
        if self.made % self.config.log == 0:
            self.trainer.begin_interval(self.made)
        self.trainer.step(self.made)
        self.made += 1

    def flops(self) -> int:
        return sum(n for phase, n in self.trainer.regressor.ledger.step.items() if phase != "update")

    def check(self, x, y) -> dict[str, torch.Tensor]:
        r = self.trainer.regressor
        with r.with_scratch():
            errors = r.gradients(x, y).double()
        return {"errors": errors, **{name: t.double() for name, t in r.named(r.learner.state.grad).items()}}


class HuggingFace:
    """transformers' GPT-2 in torch: forward, mean squared error, backward, Adam."""

    def __init__(self, o: dict, compiled: bool):
        import transformers

        transformers.logging.set_verbosity_error()
        self.config = config = TrainConfig.from_dict(o["config"])
        self.threads(o["threads"])
        self.kind, self.inputs = config.kind(), config.distribution()
        wide = torch.float64 if o["truth"] else torch.float32
        self.autocast = torch.bfloat16 if config.dtype == "bf16" and not o["truth"] else None
        model = HuggingFaceRegressor(config.geometry(), initial_weights(config.geometry(), config.seed))
        self.model = model.to(config.device, wide)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=config.lr, betas=config.betas, fused=True)
        self.generator = torch.Generator(config.device).manual_seed(config.seed)
        mode = "reduce-overhead" if config.device != "cpu" else None  # CUDA graphs
        self.predict = torch.compile(self.model, dynamic=False, mode=mode) if compiled else self.model

    def threads(self, n: int) -> None:
        torch.set_num_threads(n)

    def errors(self, x, y):
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.autocast is not None):
            predicted = self.predict(x, y)
        return (predicted.to(y.dtype) - y).square()

    def step(self) -> None:
        drawn = draw(self.kind, self.config.batch, self.config.points, self.generator, inputs=self.inputs)
        self.errors(drawn.x, drawn.y).mean().backward()
        if self.config.clip:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def flops(self) -> int:
        return 0  # the ledger is dynadapt's; rates of all providers use its count

    def check(self, x, y) -> dict[str, torch.Tensor]:
        wide = next(self.model.parameters()).dtype
        errors = self.errors(x.to(wide), y.to(wide))
        errors.mean().backward()
        found = {"errors": errors.detach().double(), **{name: t.double().clone() for name, t in self.model.gradients().items()}}
        self.optimizer.zero_grad(set_to_none=True)
        return found


def make(o: dict):
    return Native(o) if o["provider"] == "dynadapt" else HuggingFace(o, o["provider"] == "gpt2-compile")


class Timed:
    """A provider, checked at the initial weights, which all share, then at its first step."""

    def __init__(self, o: dict):
        self.provider, self.threads = make(o), o["threads"]
        config = self.provider.config
        self.cuda, self.dtype = config.device != "cpu", DTYPES[config.dtype]
        drawn = draw(config.kind(), config.batch, config.points, torch.Generator().manual_seed(7), inputs=config.distribution())
        self.found = self.provider.check(drawn.x.to(config.device), drawn.y.to(config.device))
        if not o["truth"]:
            self.time(1)

    def time(self, steps: int) -> list[float]:
        """Seconds of each step; on a GPU, which works while the host goes on, their mean."""
        seconds, first = [], time.perf_counter()
        for _ in range(steps):
            begin = time.perf_counter()
            self.provider.step()
            seconds.append(time.perf_counter() - begin)
        if not self.cuda:
            return seconds
        torch.cuda.synchronize()
        return [(time.perf_counter() - first) / steps]

    def obey(self, command: str, rest: list[str], threads: int) -> dict:
        if command == "time":
            seconds = self.time(int(rest[0]))
            memory = torch.cuda.max_memory_allocated() if self.cuda else peak_memory()
            return {"seconds": seconds, "peak_memory_bytes": memory, "flops": self.provider.flops()}
        if command == "threads":
            self.threads = int(rest[0])
            self.provider.threads(self.threads)
            return {}
        if command == "check":
            from safetensors.torch import save_file

            save_file({name: t.cpu().contiguous() for name, t in self.found.items()}, rest[0])
            return {}
        if command == "ceiling":
            from dynadapt.bench.ceiling import gemm_ceiling

            found = gemm_ceiling(self.dtype, threads, 1.0)
            self.provider.threads(self.threads)
            return found
        raise ValueError(f"command {command!r}: give check, threads, time or ceiling")


def main() -> None:
    options = json.loads(sys.stdin.readline())
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints goes to standard error

    def answer(record):
        print(json.dumps(record), file=channel, flush=True)

    provider = Timed(options)
    answer({"first_step_at": time.time()})
    for line in sys.stdin:
        command, *rest = line.split()
        answer(provider.obey(command, rest, options["threads"]))


if __name__ == "__main__":
    main()
