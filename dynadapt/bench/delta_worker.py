"""One provider of ``dynadapt bench delta``, in a process of its own (worker.py).

{"do": "make", "backward": false} makes the call, checks its first tokens against the float64 reference and says {"error": relative
2-norm}, or {"absent": why}; "time" then times it.
"""

from __future__ import annotations

import torch

from dynadapt.engine.batch import Batch
from dynadapt.engine.delta_mixer import DeltaMixer
from dynadapt.engine.ledger import Ledger
from dynadapt.engine.op_set import OpSet
from dynadapt.engine.weights import DeltaTensors
from dynadapt.engine.workspace import Workspace
from dynadapt.model.config import ModelConfig, tiny_config
from dynadapt.model.delta_layers import DeltaLayers

from .worker import Worker, serve

CHECKED = 96  # tokens of the first stream: the reference goes from token to token and keeps a state for each
LIMIT = {torch.bfloat16: 0.03, torch.float32: 1e-4}  # relative 2-norm from float64


def config_of(sizes: dict) -> ModelConfig:
    """Two layers, the first of which is the one that is timed."""
    heads = sizes["key_heads"], sizes["value_heads"], sizes["key_dim"], sizes["value_dim"]
    return tiny_config("qwen3_5", layers=2, delta=DeltaLayers((True, False), *heads, sizes["taps"]))


class DeltaWorker(Worker):
    """The layer between its linears, on one input; a provider has `forward() -> y [N, values]`, and `backward(dy) -> draw` behind it."""

    COMMANDS = (*Worker.COMMANDS, "make")

    def __init__(self, o: dict, native: bool):
        super().__init__(o, native)
        self.sizes, self.config = o["sizes"], config_of(o["sizes"])
        delta, generator = self.config.delta, torch.Generator().manual_seed(0)
        draw = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
        self.rows = self.sizes["streams"] * self.sizes["tokens"]
        self.raw = draw(self.rows, delta.channels + delta.values + 2 * delta.value_heads).to(self.dtype)
        self.dy = torch.zeros(self.rows, delta.values)
        self.dy[:CHECKED] = draw(min(CHECKED, self.rows), delta.values)
        self.dy = self.dy.to(self.dtype)
        taps, norm = 0.5 * draw(delta.channels, delta.taps), 1 + 0.1 * draw(delta.value_dim)
        wide = draw(delta.value_heads) - 3, draw(delta.value_heads)  # decays as trained models have them: half in some tens of tokens
        self.weights = DeltaTensors(taps.to(self.dtype), *wide, norm.to(self.dtype))

    def make(self, backward: bool) -> dict:
        try:
            self.step = self.both if backward else self.forward
            found = self.step()
        except (RuntimeError, ImportError) as error:  # no compiler, say, or another version of the library
            return {"absent": f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"}
        n = min(CHECKED, self.sizes["tokens"])
        exact = reference(self.config, self.raw[:n].detach(), self.weights, self.dy[:n] if backward else None)
        error = float((found.detach()[:n].double() - exact).norm() / exact.norm())
        if not error <= LIMIT[self.dtype]:
            return {"absent": f"its result is off by {error:.3g} (2-norm, relative to float64)"}
        return {"error": error}

    def both(self) -> torch.Tensor:
        self.forward()
        return self.backward(self.dy)


class Mixer:
    """This package's layer, on any backend."""

    def __init__(self, config: ModelConfig, backend: str, dtype: torch.dtype, raw: torch.Tensor, weights: DeltaTensors, streams: int):
        self.mixer, self.ledger = DeltaMixer(config, OpSet(backend, dtype), Workspace(dtype)), Ledger()
        self.raw, self.weights = raw, weights
        shape, slots = torch.zeros(streams, len(raw) // streams, dtype=torch.int64), torch.arange(streams, dtype=torch.int32)
        self.batch = Batch(shape, slots, slots, tuple(range(streams)))

    def forward(self) -> torch.Tensor:
        count = lambda flops: self.ledger.add("forward", flops)  # noqa: E731
        y, self.kept = self.mixer.forward(self.batch, None, 0, self.raw, self.weights, 0, count)
        return y

    def backward(self, dy: torch.Tensor) -> torch.Tensor:
        return self.mixer.backward(self.batch, None, 0, self.kept, self.weights, dy, self.ledger)


def reference(config: ModelConfig, raw: torch.Tensor, weights: DeltaTensors, dy: torch.Tensor | None) -> torch.Tensor:
    """y, or draw where there is a dy, of one stream's first tokens in float64."""
    wide = Mixer(config, "reference", torch.float64, raw.double(), DeltaTensors(*(t.double() for t in weights)), 1)
    y = wide.forward()
    return y if dy is None else wide.backward(dy.double())


class Native(DeltaWorker):
    """dynadapt's own layer."""

    def __init__(self, o: dict):
        super().__init__(o, native=True)
        self.layer = Mixer(self.config, "cpu", self.dtype, self.raw, self.weights, self.sizes["streams"])
        self.forward, self.backward = self.layer.forward, self.layer.backward


class _Columns(torch.nn.Module):
    """Stands where a linear was: some columns of its input."""

    def __init__(self, first: int, count: int):
        super().__init__()
        self.columns = slice(first, first + count)

    def forward(self, x):
        return x[..., self.columns]


class Transformers(DeltaWorker):
    """transformers' layer in torch, its linears taken out; its parameters are frozen, as they are beside adapters."""

    def __init__(self, o: dict):
        super().__init__(o, native=False)
        from transformers.models.qwen3_5 import modeling_qwen3_5 as theirs
        from transformers.models.qwen3_5.configuration_qwen3_5 import Qwen3_5TextConfig

        d = self.config.delta
        settings = Qwen3_5TextConfig(
            hidden_size=8,
            num_hidden_layers=2,
            layer_types=["linear_attention", "full_attention"],
            linear_num_key_heads=d.key_heads,
            linear_num_value_heads=d.value_heads,
            linear_key_head_dim=d.key_dim,
            linear_value_head_dim=d.value_dim,
            linear_conv_kernel_dim=d.taps,
            rms_norm_eps=self.config.norm_eps,
        )
        layer, first = theirs.Qwen3_5GatedDeltaNet(settings, 0), 0
        for name, count in zip("qkv z b a".split(), (d.channels, d.values, d.value_heads, d.value_heads)):
            setattr(layer, f"in_proj_{name}", _Columns(first, count))
            first += count
        layer.out_proj = torch.nn.Identity()
        layer.to(self.dtype).requires_grad_(False)
        layer.conv1d.weight.copy_(self.weights.taps[:, None])
        layer.norm.weight.copy_(self.weights.norm)
        layer.A_log.data, layer.dt_bias.data = self.weights.a_log.clone(), self.weights.dt_bias.clone()
        self.layer = layer
        if o["provider"] == "torch-compile":
            if o["isa"] == "avx2":
                from torch._inductor import config

                config.cpp.simdlen = 256  # it looks at the processor, not at what ATen was told
            self.layer = torch.compile(layer, dynamic=False)

    def make(self, backward: bool) -> dict:
        self.raw.requires_grad_(backward)
        return super().make(backward)

    def forward(self) -> torch.Tensor:
        with torch.set_grad_enabled(self.raw.requires_grad):
            self.y = self.layer(self.raw.view(self.sizes["streams"], self.sizes["tokens"], -1)).flatten(0, 1)
        return self.y

    def backward(self, dy: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(self.y, self.raw, dy)[0]


if __name__ == "__main__":
    serve(lambda o: Native(o) if o["provider"] == "dynadapt" else Transformers(o))
