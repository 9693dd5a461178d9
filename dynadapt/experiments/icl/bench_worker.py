"""One provider of ``dynadapt bench icl``, in a process of its own.

A step draws a batch of prompts, predicts, and learns: for dynadapt what `dynadapt icl train` runs, for the peers the same
model in Hugging Face's GPT-2 with torch's fused Adam. All draw the same prompts. {"do": "check", "out": FILE} writes errors and
gradients at the initial weights, which all share.
"""

from __future__ import annotations

import time

import torch

from dynadapt.bench.worker import Worker, serve

from .config import TrainConfig
from .model import initial_weights
from .prompts import draw
from .reference import HuggingFaceRegressor
from .train import Trainer


class IclWorker(Worker):
    """A provider, checked at the initial weights, then at its first step."""

    COMMANDS = (*Worker.COMMANDS, "check")

    def __init__(self, o: dict):
        self.config = config = TrainConfig.from_dict(o["config"])
        self.cuda = config.device != "cpu"
        super().__init__(o, native=o["provider"] == "dynadapt" and not self.cuda)

    def begin(self) -> dict:
        config = self.config
        drawn = draw(config.kind(), config.batch, config.points, torch.Generator().manual_seed(7), inputs=config.distribution())
        self.found = self.gradients(drawn.x.to(config.device), drawn.y.to(config.device))
        if self.dtype != torch.float64:
            self.time(1)
        return {}

    def time(self, runs: int) -> dict:
        """On a GPU, which works while the host goes on, the mean of all steps stands for each."""
        begin = time.perf_counter()
        found = super().time(runs)
        if self.cuda:
            torch.cuda.synchronize()
            found |= {"seconds": [(time.perf_counter() - begin) / runs], "peak_memory_bytes": torch.cuda.max_memory_allocated()}
        return found

    def check(self, out: str) -> dict:
        from safetensors.torch import save_file

        save_file({name: t.cpu().contiguous() for name, t in self.found.items()}, out)
        return {}


class Native(IclWorker):
    """dynadapt's own step."""

    def __init__(self, o: dict):
        super().__init__(o)
        self.trainer, self.made = Trainer(self.config), 0
        self.trainer.begin_interval(0)

    def step(self) -> None:
        if self.made % self.config.log == 0:
            self.trainer.begin_interval(self.made)
        self.trainer.step(self.made)
        self.made += 1

    def flops(self) -> int:
        return sum(n for phase, n in self.trainer.regressor.ledger.step.items() if phase != "update")

    def gradients(self, x, y) -> dict[str, torch.Tensor]:
        r = self.trainer.regressor
        with r.with_scratch():
            errors = r.gradients(x, y).double()
        return {"errors": errors, **{name: t.double() for name, t in r.named(r.learner.state.grad).items()}}


class HuggingFace(IclWorker):
    """transformers' GPT-2 in torch: forward, mean squared error, backward, Adam."""

    def __init__(self, o: dict):
        super().__init__(o)
        import transformers

        transformers.logging.set_verbosity_error()
        config = self.config
        self.kind, self.inputs = config.kind(), config.distribution()
        model = HuggingFaceRegressor(config.geometry(), initial_weights(config.geometry(), config.seed))
        self.model = model.to(config.device, torch.float64 if self.dtype == torch.float64 else torch.float32)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=config.lr, betas=config.betas, fused=True)
        self.generator = torch.Generator(config.device).manual_seed(config.seed)
        mode = "reduce-overhead" if config.device != "cpu" else None  # CUDA graphs
        self.predict = torch.compile(self.model, dynamic=False, mode=mode) if o["provider"] == "gpt2-compile" else self.model

    def errors(self, x, y):
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            predicted = self.predict(x, y)
        return (predicted.to(y.dtype) - y).square()

    def step(self) -> None:
        drawn = draw(self.kind, self.config.batch, self.config.points, self.generator, inputs=self.inputs)
        self.errors(drawn.x, drawn.y).mean().backward()
        if self.config.clip:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def gradients(self, x, y) -> dict[str, torch.Tensor]:
        wide = next(self.model.parameters()).dtype
        errors = self.errors(x.to(wide), y.to(wide))
        errors.mean().backward()
        found = {"errors": errors.detach().double(), **{name: t.double().clone() for name, t in self.model.gradients().items()}}
        self.optimizer.zero_grad(set_to_none=True)
        return found


if __name__ == "__main__":
    serve(lambda o: Native(o) if o["provider"] == "dynadapt" else HuggingFace(o))
