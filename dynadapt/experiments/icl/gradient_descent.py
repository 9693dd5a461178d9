"""A two-layer network trained on each prompt's examples, for all prompts at once."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .baselines import check_prompts
from .function_class import check_count, check_number, uniform

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8


def network_gradient_descent(
    x: Tensor, y: Tensor, query: Tensor | None = None, *, hidden: int = 100, steps: int = 100, lr: float = 5e-3, seed: int = 0
) -> Tensor:
    """For every prefix a new network w2 relu(W1 x + b1) + b2 (torch's default initialisation), `steps` steps of Adam on the squared error
    over all its examples; baselines.py's signature.

    Garg et al. have the same with batches of up to 100 examples: the same thing for prompts of up to 101 points.
    """
    query = check_prompts(x, y, query)
    check_count("network_gradient_descent: hidden", hidden)
    check_count("network_gradient_descent: steps", steps)
    check_number("network_gradient_descent: lr", lr, 0.0, above=True)
    generator = torch.Generator(x.device).manual_seed(seed)
    predictions = torch.zeros_like(y)
    for k in range(1, x.shape[1]):
        network = _trained(x[:, :k], y[:, :k], hidden, steps, lr, generator)
        predictions[:, k] = _forward(network, query[:, k, None])[1][:, 0]
    return predictions


def _forward(network: list[Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """(hidden units [B, k, h], outputs [B, k])."""
    w1, b1, w2, b2 = network
    units = torch.relu(torch.baddbmm(b1, x, w1))
    return units, torch.baddbmm(b2, units, w2).squeeze(2)


def _trained(x: Tensor, y: Tensor, hidden: int, steps: int, lr: float, generator: torch.Generator) -> list[Tensor]:
    prompts, examples, dims = x.shape
    shapes = ((dims, hidden), dims), ((1, hidden), dims), ((hidden, 1), hidden), ((1, 1), hidden)
    network = [uniform(generator, prompts, *shape, low=-1.0, high=1.0, dtype=x.dtype) / math.sqrt(fan) for shape, fan in shapes]
    first, second = ([torch.zeros_like(tensor) for tensor in network] for _ in range(2))
    for step in range(1, steps + 1):
        size = lr * math.sqrt(1 - BETA2**step) / (1 - BETA1**step)
        for tensor, gradient, m, v in zip(network, _gradients(network, x, y), first, second):
            m.lerp_(gradient, 1 - BETA1)
            v.mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
            tensor.addcdiv_(m, v.sqrt().add_(EPS * math.sqrt(1 - BETA2**step)), value=-size)
    return network


def _gradients(network: list[Tensor], x: Tensor, y: Tensor) -> list[Tensor]:
    """Of the mean squared error of each prompt's own examples."""
    units, outputs = _forward(network, x)
    error = (outputs - y)[:, :, None] * (2 / x.shape[1])  # [B, k, 1]
    below = error @ network[2].transpose(1, 2) * (units > 0)  # [B, k, h]
    return [x.transpose(1, 2) @ below, below.sum(1, keepdim=True), units.transpose(1, 2) @ error, error.sum(1, keepdim=True)]
