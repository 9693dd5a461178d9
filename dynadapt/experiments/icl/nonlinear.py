"""Two-layer ReLU networks and decision trees, as in Garg et al. (arXiv 2208.01066, dtsip/in-context-learning src/tasks.py)."""

from __future__ import annotations

import math

from .function_class import FunctionClass, Functions, check_count, normal
from .lazy_torch import torch


class ReluNetwork(FunctionClass):
    """y = sqrt(2 / h) W2 relu(W1 x), all weights N(0, 1), h = `hidden` units, no biases."""

    name = "relu_network"

    def __init__(self, dims: int, *, hidden: int = 100, scale: float = 1.0):
        super().__init__(dims, scale=scale)
        self.hidden = check_count(f"{self.name}: hidden", hidden)

    @property
    def normaliser(self) -> float:
        return float(self.dims)

    def sample(self, prompts, generator, *, active=None, dtype=None) -> Functions:
        return {
            "w1": normal(generator, prompts, self.dims, self.hidden, dtype=dtype),
            "w2": normal(generator, prompts, self.hidden, 1, dtype=dtype),
        }

    def _values(self, functions, x):
        hidden = torch.relu(x @ functions["w1"])  # [B, N, h]
        return (hidden @ functions["w2"]).squeeze(2) * math.sqrt(2 / self.hidden)


class DecisionTree(FunctionClass):
    """A full binary tree of `depth` levels: node n asks whether a random coordinate of x is positive and goes on to 2n+1 (no) or
    2n+2 (yes); the leaves hold N(0, 1). A coordinate may be asked twice on a path, as in the source."""

    name, normaliser = "decision_tree", 1.0

    def __init__(self, dims: int, *, depth: int = 4, scale: float = 1.0):
        super().__init__(dims, scale=scale)
        self.depth = check_count(f"{self.name}: depth", depth, 1, 16)

    def sample(self, prompts, generator, *, active=None, dtype=None) -> Functions:
        inner = 2**self.depth - 1
        asked = torch.randint(self.dims, (prompts, inner), generator=generator, device=generator.device)
        return {"asked": asked, "leaves": normal(generator, prompts, inner + 1, dtype=dtype)}

    def _values(self, functions, x):
        prompts, points = x.shape[:2]
        asked, leaves = (functions[key].expand(prompts, -1) for key in ("asked", "leaves"))
        positive = x > 0
        node = torch.zeros(prompts, points, dtype=torch.long, device=x.device)
        for _ in range(self.depth):
            coordinate = asked.gather(1, node)  # [B, N]
            node = 2 * node + 1 + positive.gather(2, coordinate[:, :, None]).squeeze(2)
        return leaves.gather(1, node - (2**self.depth - 1))
