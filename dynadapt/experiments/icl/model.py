"""A transformer over (x, y) pairs: read-in, GPT-2 blocks with learned positions, read-out with squared error, all on the
engine's ops.

The sequence is x_0, y_0, x_1, ..., x_{n-1} (prompts.py; the last y predicts nothing), T = 2n - 1 positions of one prompt; a
prompt is a stream of its own to attention. The prediction of y_k is read at position 2k. Model and initial weights are those of
Garg et al. (arXiv 2208.01066, dtsip/in-context-learning src/models.py), GPT-2's token table left out: Hugging Face's
GPT2Model(inputs_embeds=...) between two linear layers, with the initial weights that these have.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dynadapt.adapt.methods import Full
from dynadapt.adapt.optimizers import Adam
from dynadapt.engine.batch import Batch
from dynadapt.engine.decoder import Decoder
from dynadapt.engine.learners.beside_tensors import bias_name
from dynadapt.engine.learners.whole_model import ModelLearner
from dynadapt.engine.ledger import Ledger
from dynadapt.engine.op_set import OpSet
from dynadapt.engine.settings import DTYPES
from dynadapt.engine.weights import ModelTensors
from dynadapt.engine.workspace import KernelScratch, Workspace
from dynadapt.model.layout import tensor_shapes
from dynadapt.ops import choose_backend, choose_device, linear_mse
from dynadapt.ops import update as update_op

from .checks import IclError
from .geometry import Geometry
from .prompts import interleaved

LOWEST = (-1, "embed")  # backward goes down to the read-in


class Weights:
    """Tensors by canonical name, as a learner reads them."""

    def __init__(self, geometry: Geometry, tensors: dict[str, Tensor]):
        self.config, self.tensors = geometry.decoder(), tensors
        shapes = {**tensor_shapes(self.config), **geometry.ends()}
        del shapes["embed.weight"]
        for name, shape in shapes.items():
            if name not in tensors or tuple(tensors[name].shape) != shape:
                found = list(tensors[name].shape) if name in tensors else "missing"
                raise IclError(f"weight {name}: expected shape {list(shape)}, found {found}")

    def tensor(self, name: str) -> Tensor:
        return self.tensors[name]


def initial_weights(geometry: Geometry, seed: int) -> Weights:
    """Hugging Face GPT-2's initial weights (normal, deviation 0.02, divided by sqrt(2 layers) in front of the residual), and
    for the read-in and the read-out torch's for linear layers (uniform within 1/sqrt(in))."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in {**tensor_shapes(geometry.decoder()), **geometry.ends()}.items():
        module, kind = name.split(".")[-2:]
        if name == "embed.weight":
            continue
        if module in ("read_in", "read_out"):
            bound = (geometry.dims if module == "read_in" else geometry.hidden) ** -0.5
            tensors[name] = (2 * torch.rand(shape, generator=generator) - 1) * bound
        elif "norm" in module:
            tensors[name] = torch.full(shape, 1.0 if kind == "weight" else 0.0)
        elif kind == "bias":
            tensors[name] = torch.zeros(shape)
        else:
            std = 0.02 / math.sqrt(2 * geometry.layers) if module in ("o", "down") else 0.02
            tensors[name] = torch.randn(shape, generator=generator) * std
    return Weights(geometry, tensors)


class RegressionLearner(ModelLearner):
    """All of the blocks, positions, read-in and read-out in one flat buffer; no token table and no head."""

    def __init__(self, geometry: Geometry, weights: Weights, optimizer, dtype: torch.dtype, backend: str, device):
        self.geometry = geometry
        super().__init__(Full(targets="model"), optimizer, weights, dtype, backend, device)

    def _shapes_around(self) -> dict[str, tuple[int, ...]]:
        shapes = super()._shapes_around()
        del shapes[self.head_name]
        return {**shapes, **self.geometry.ends()}

    def _bind(self) -> None:
        grad = lambda name: self.layout.view(self.state.grad, name)[0]  # noqa: E731
        bias = lambda get: {key: get(bias_name(key)) for key in self.biased}  # noqa: E731
        nothing = self.state.grad[0, :0]  # the head that is not there
        self.weights_view = ModelTensors(self.config, self._plain, bias(self._plain), None, None)
        self.gradient_view = ModelTensors(self.config, grad, bias(grad), nothing, None)
        self.ends = {name: self._plain(name) for name in self.geometry.ends()}
        self.ends["read_out.bias"] = self._master("read_out.bias")  # float32: the read-out's kernel reads it so
        self.end_gradients = {name: grad(name) for name in self.geometry.ends()}
        self.added_to = self.state.grad[0, self.layout.offsets[next(iter(self.around))] :]

    def zero_gradients(self) -> None:
        """Before the read-out, whose gradients are the first that are added."""
        self.added_to.zero_()

    def begin_gradient(self, accumulate: bool) -> None:
        """Nothing: the read-out's gradients are there already (``zero_gradients``)."""


class Regressor:
    """Predicts y_k from x_k and the pairs before it, and learns to.

    Args:
        geometry: sizes.
        optimizer: as ``Engine`` takes it; without clipping or decay in Garg et al.
        weights: where to start; None: ``initial_weights(geometry, seed)``.
        dtype, backend, device: as for ``Engine``.

    Raises:
        IclError, ValueError: naming the argument that does not fit.
    """

    def __init__(
        self,
        geometry: Geometry,
        optimizer=Adam(lr=1e-4, clip=0.0),
        weights: Weights | None = None,
        *,
        dtype: str = "fp32",
        backend: str = "auto",
        device: str = "auto",
        seed: int = 0,
    ):
        if dtype not in DTYPES:
            raise IclError(f"dtype {dtype!r}: give one of {', '.join(DTYPES)}")
        self.geometry, self.optimizer, self.dtype, self.torch_dtype = geometry, optimizer, dtype, DTYPES[dtype]
        self.device = choose_device(device, backend, self.torch_dtype)
        self.backend = choose_backend(backend, self.torch_dtype, self.device.type)
        self.learner = RegressionLearner(
            geometry, weights or initial_weights(geometry, seed), optimizer, self.torch_dtype, self.backend, self.device
        )
        self.ops, self.ledger = OpSet(self.backend, self.torch_dtype), Ledger()
        self.workspace = Workspace(self.torch_dtype, self.device)
        self.decoder = Decoder(
            geometry.decoder(), self.learner.weights_view, self.ops, self.workspace, self.ledger, [(None, None)] * geometry.layers, None
        )
        zeros = lambda n, dtype: torch.zeros(n, dtype=dtype, device=self.device)  # noqa: E731
        self.slot, self.lr = zeros(1, torch.int32), zeros(1, torch.float32) + optimizer.lr
        self.norm, self.skipped = zeros(1, torch.float32), zeros(1, torch.int32)  # of the last update
        self._batches: dict[tuple[int, int], tuple[Batch, Tensor]] = {}
        self.with_scratch = KernelScratch(self.backend)

    @property
    def parameters(self) -> int:
        return self.learner.layout.parameters

    # ---- passes

    def _batch(self, prompts: int, segment: int) -> tuple[Batch, Tensor]:
        """The shape of a pass, and the weight [N] of each row's error in the mean over prompts and points: 0 where a y stands."""
        key = (prompts, segment)
        if key not in self._batches:
            shape = torch.zeros(prompts, segment, dtype=torch.int64, device=self.device)
            streams = torch.arange(prompts, dtype=torch.int32, device=self.device)
            weights = torch.zeros(prompts, segment, dtype=self.decoder.stat_dtype, device=self.device)
            weights[:, ::2] = 1.0 / (prompts * ((segment + 1) // 2))
            self._batches[key] = Batch(shape, self.slot, streams, tuple(range(prompts))), weights.view(-1)
        return self._batches[key]

    def _sequence(self, xs: Tensor, ys: Tensor) -> Tensor:
        """[N, d] in the working dtype."""
        return interleaved(xs, ys)[:, :-1].reshape(-1, self.geometry.dims).to(self.torch_dtype)

    def _read_in(self, sequence: Tensor, prompts: int) -> Tensor:
        """[N, H]: W z + b, and the position of each row in its prompt."""
        ends, segment = self.learner.ends, sequence.shape[0] // prompts
        embedded = self.workspace("embedded", sequence.shape[0], self.geometry.hidden)
        torch.addmm(ends["read_in.bias"], sequence, ends["read_in.weight"].t(), out=embedded)
        embedded.view(prompts, segment, -1).add_(self.learner.weights_view.positions[:segment])
        self.ledger.add("forward", 2 * sequence.numel() * self.geometry.hidden)
        return embedded

    def _read_in_gradient(self, sequence: Tensor, d: Tensor, prompts: int) -> None:
        """From d [N, H] of what went in."""
        g, segment = self.learner.end_gradients, sequence.shape[0] // prompts
        by_position = d.view(prompts, segment, -1).to(g["read_in.bias"].dtype).sum(0)  # [T, H]
        self.learner.gradient_view.positions[:segment].copy_(by_position)
        g["read_in.bias"].copy_(by_position.sum(0))
        g["read_in.weight"].copy_(d.t() @ sequence)
        self.ledger.add("backward", 2 * sequence.numel() * self.geometry.hidden)

    def _read_out(self, hidden: Tensor, target: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """pred [N], squared error [N] and, with ``weights``, dhidden [N, H] of the weighted sum; gradients of the read-out are
        added."""
        n, ends, g = hidden.shape[0], self.learner.ends, self.learner.end_gradients
        wide = lambda name: self.workspace(name, n, dtype=self.decoder.stat_dtype)  # noqa: E731
        pred, loss = wide("pred"), wide("loss")
        learns = weights is not None
        dh = self.workspace("dhidden", *hidden.shape) if learns else None
        self.ops.linear_mse(
            hidden,
            ends["read_out.weight"],
            ends["read_out.bias"],
            target,
            weights,
            pred,
            loss,
            dh,
            g["read_out.weight"] if learns else None,
            g["read_out.bias"] if learns else None,
        )
        flops = linear_mse.flops(n, self.geometry.hidden, False)
        self.ledger.add("forward", flops)
        if learns:
            self.ledger.add("backward", flops)
        return pred, loss, dh

    def _targets(self, ys: Tensor) -> Tensor:
        """[N]: y_k where x_k stands, 0 where y_k does."""
        prompts, points = ys.shape
        targets = self.workspace("targets", prompts, 2 * points - 1, dtype=self.decoder.stat_dtype)
        targets[:, 1::2] = 0
        targets[:, ::2] = ys
        return targets.view(-1)

    def gradients(self, xs: Tensor, ys: Tensor) -> Tensor:
        """Forward and backward of one batch: squared errors [B, n] in a buffer that the next pass reuses; the gradient of their
        mean is in ``learner.state.grad``. xs [B, n, d], ys [B, n] on the device. Nothing waits for the device."""
        prompts, points = ys.shape
        sequence = self._sequence(xs, ys)
        batch, weights = self._batch(prompts, 2 * points - 1)
        self.learner.zero_gradients()
        hidden = self.decoder.forward(batch, self.learner, LOWEST, self._read_in(sequence, prompts))
        _, loss, dhidden = self._read_out(hidden, self._targets(ys), weights)
        d = self.decoder.backward(batch, self.learner, LOWEST, dhidden, False)
        self._read_in_gradient(sequence, d, prompts)
        return loss.view(prompts, -1)[:, ::2]

    def learn(self, xs: Tensor, ys: Tensor) -> Tensor:
        """One training step at the rate ``lr``: squared errors [B, n] before the update, in a buffer that the next step
        reuses."""
        loss = self.gradients(xs, ys)
        self.learner.update(self.ops, self.slot, self.lr, self.norm, self.skipped)
        self.ledger.add("update", update_op.flops(self.learner.layout.parameters, self.optimizer.rule(), self.learner.layout.parts))
        return loss

    def predict(self, xs: Tensor, ys: Tensor, batch: int = 64) -> Tensor:
        """Predictions [B, n] of y_k, float32, each from x_k and the pairs before it, of xs [B, n, d] and ys [B, n]. Nothing
        learns.

        ``batch``: prompts that go through the model together.
        """
        if xs.ndim != 3 or xs.shape[2] != self.geometry.dims or ys.shape != xs.shape[:2]:
            raise IclError(
                f"predict: xs has shape {tuple(xs.shape)} and ys {tuple(ys.shape)}; give [B, n, {self.geometry.dims}] and [B, n]"
            )
        self.geometry.check_points(xs.shape[1])
        found = torch.empty(ys.shape, dtype=torch.float32, device=ys.device)
        for start in range(0, len(xs), batch):
            x, y = (t[start : start + batch].to(self.device) for t in (xs, ys))
            shape, _ = self._batch(*y.shape[:1], 2 * y.shape[1] - 1)
            with self.with_scratch():
                hidden = self.decoder.forward(shape, self.learner, None, self._read_in(self._sequence(x, y), len(x)))
                pred, _, _ = self._read_out(hidden, self._targets(y), None)
            found[start : start + batch] = pred.view(len(x), -1)[:, ::2]
        return found

    # ---- keeping

    def named(self, buffer: Tensor) -> dict[str, Tensor]:
        """A flat buffer [1, P] of the learner (masters, gradient, moments) by canonical name, as views."""
        view = lambda name: self.learner.layout.view(buffer, name)[0]  # noqa: E731
        named = {name: view(name) for name in self.learner.around}
        for key, _p, _, name in self.learner._parts():
            stem = f"layers.{key[0]}.{_PARTS[key[1]]}"
            named[f"{stem}.weight"], named[f"{stem}.bias"] = view(name), named.pop(bias_name(key))
        return named

    def weights(self) -> dict[str, Tensor]:
        """Every parameter as it is now by canonical name, in the precision it is learned in."""
        return {name: t.clone() for name, t in self.named(self.learner.state.master).items()}

    def tensors(self) -> dict[str, Tensor]:
        """What resuming bit for bit needs; the gradient is made anew."""
        return {name: t for name, t in self.learner.state.tensors().items() if name != "grad"}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Takes back what ``tensors`` gave."""
        self.learner.state.load(tensors)
        self.learner._write_back()

    def save(self, directory) -> None:
        Path(directory).mkdir(parents=True, exist_ok=True)
        save_file({name: t.contiguous().cpu() for name, t in self.tensors().items()}, str(Path(directory) / "state.safetensors"))

    def restore(self, directory) -> None:
        self.load(load_file(str(Path(directory) / "state.safetensors")))


_PARTS = {"qkv": "qkv", "o": "o", "mlp_in": "up", "down": "down"}  # GPT-2: one part a group
