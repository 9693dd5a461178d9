"""A call of every op of dynadapt.torch_ops, small, for the tests that go through all of them."""

import torch

I32 = {"dtype": torch.int32}


def rand(*shape, seed=0, dtype=torch.float32, grad=False):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_(grad)


def adapter(dtype, grad):
    """Two parts, two of three slots, six rows of five."""
    weights = [rand(4, 5, dtype=dtype, grad=grad), rand(3, 5, seed=1, dtype=dtype, grad=grad)]
    A, Bt = rand(3, 4, 5, seed=3, dtype=dtype, grad=grad), rand(3, 2, 7, seed=4, dtype=dtype, grad=grad)
    return rand(6, 5, dtype=dtype, grad=grad), weights, rand(7, dtype=dtype, grad=grad), A, Bt, torch.tensor([2, 0], **I32), 0.7


def memory(dtype, rotary=True):
    """Two streams of three tokens, two heads on one, a memory of four entries filled to 3 and 0."""
    mem = rand(2, 4, 4, seed=5, dtype=dtype), rand(2, 4, 4, seed=6, dtype=dtype), torch.tensor([3, 0], **I32)
    angles = torch.arange(8)[:, None] * torch.tensor([1.0, 0.3])
    rope = (angles.cos(), angles.sin()) if rotary else (None, None)
    if dtype == torch.float64:
        rope = tuple(r if r is None else r.double() for r in rope)
    return *mem, torch.tensor([1, 0], **I32), *rope, 2, 1, 4, 0.5


TARGETS = torch.tensor([3, -1, 0, 10, 7, 2])


def calls(dtype, grad):
    """op -> its arguments; ``grad`` where the op has a gradient."""
    g = {"dtype": dtype, "grad": grad}
    wide = {"dtype": torch.float64 if dtype == torch.float64 else torch.float32}
    linear = adapter(dtype, grad)
    frozen = adapter(dtype, False)
    dy, u, dU = rand(6, 7, seed=8, dtype=dtype), rand(6, 4, seed=9, dtype=dtype), rand(6, 4, seed=10, dtype=dtype)
    stat = torch.stack([torch.zeros(6), rand(6).abs() + 0.5], 1).to(**wide)
    slot = torch.zeros(1, **I32)
    row = lambda *s: rand(*s, **wide)  # noqa: E731
    return {
        "linear": linear,
        "linear_backward": (dy, *frozen[1:2], *frozen[3:], True),
        "lora_gradient": (dy, frozen[0], u, dU, [4, 3], 0.7, frozen[5], 3),
        "weight_gradient": (dy, frozen[0], torch.tensor([1, 4], **I32)),
        "row_scores": (dy, frozen[0]),
        "bias_gradient": (dy,),
        "cross_entropy": (rand(6, 5, **g), rand(11, 5, seed=1, **g), TARGETS, grad),
        "cross_entropy_weight_gradient": (rand(6, 5, dtype=dtype), rand(11, 5, dtype=dtype), TARGETS, None, row(6)),
        "scored_targets": (TARGETS, 11, -1),
        "linear_mse": (rand(6, 5, **g), rand(5, seed=1, **g), rand(1, seed=2, grad=grad, **wide), rand(6, seed=3, grad=grad, **wide)),
        "linear_mse_backward": (rand(6, 5, dtype=dtype), rand(5, dtype=dtype), None, row(6), row(6)),
        "norm": (rand(6, 8, **g), rand(8, seed=1, **g), rand(8, seed=2, **g), 1e-5, "layer"),
        "add_norm": (rand(6, 8, **g), rand(6, 8, seed=3, **g), rand(8, seed=1, **g), None, 1e-5, "rms"),
        "norm_backward": (
            rand(6, 8, dtype=dtype),
            rand(6, 8, seed=1, dtype=dtype),
            rand(8, dtype=dtype),
            stat,
            "rms",
            rand(6, 8, seed=4, dtype=dtype),
        ),
        "head_norm": (rand(6, 16, **g), rand(4, seed=1, **g), rand(4, seed=2, **g), 1e-6, 2, 1, 4),
        "head_norm_backward": (
            rand(6, 16, dtype=dtype),
            rand(6, 16, dtype=dtype),
            rand(4, dtype=dtype),
            rand(4, dtype=dtype),
            row(6, 3).abs(),
            2,
            1,
            4,
        ),
        "activation": (rand(6, 8, **g), "swiglu"),
        "activation_backward": (rand(6, 8, dtype=dtype), rand(6, 8, seed=1, dtype=dtype), "gelu"),
        "embedding": (torch.tensor([1, 4, 1]), rand(5, 3, **g), rand(4, 3, seed=1, **g), torch.tensor([0, 1, 2])),
        "embedding_backward": (torch.tensor([1, 4, 1]), rand(3, 3, dtype=dtype), 5),
        "attention": (rand(6, 16, **g), *memory(dtype)),
        "attention_backward": (
            rand(6, 8, dtype=dtype),
            rand(6, 16, dtype=dtype),
            rand(6, 8, dtype=dtype),
            row(2, 2, 3).abs() + 3,
            *memory(dtype),
        ),
        "update": (
            "adam",
            row(2, 5),
            row(2, 5),
            row(2, 5),
            row(2, 5).abs(),
            row(5),
            None,
            rand(2, 5, dtype=dtype),
            torch.tensor([1], **I32),
            torch.full((2,), 0.1),
            torch.zeros(2, **I32),
            torch.zeros(1),
            torch.zeros(1, **I32),
        ),
        "reset": (torch.ones(1, **I32), slot, row(5), row(2, 5), None, row(2, 5), None, None, torch.ones(2, **I32)),
        "memory_advance": (
            rand(2, 6, 5, dtype=dtype),
            [0, 3],
            [rand(2, 3, 4, 2, dtype=dtype), rand(2, 3, 4, 2, seed=1, dtype=dtype)],
            torch.tensor([1, 0, 3], **I32),
            torch.tensor([2, 0], **I32),
            torch.tensor([3, 1], **I32),
            1,
        ),
        "memory_fill": (torch.tensor([1, 0, 3], **I32), torch.tensor([2, 0], **I32), torch.tensor([3, 1], **I32), 4),
        "lora_gradient_update": (
            dy,
            frozen[0],
            u,
            dU,
            [4, 3],
            0.7,
            frozen[5],
            torch.ones(2, **I32),
            row(3, 4, 5),
            rand(3, 4, 5, dtype=dtype),
            None,
            None,
            None,
            None,
            row(3, 2, 7),
            rand(3, 2, 7, dtype=dtype),
            None,
            None,
            None,
            None,
            torch.full((3,), 0.1),
            torch.zeros(2, **I32),
        ),
        "weight_gradient_update": (
            dy,
            frozen[0],
            torch.tensor([1, 4], **I32),
            rand(7, 5, dtype=dtype),
            row(2, 5),
            None,
            None,
            None,
            None,
            None,
            torch.full((1,), 0.1),
            torch.zeros(1, **I32),
        ),
    }


KEYWORDS = {"lora_gradient_update": {"kind": "sgd"}, "weight_gradient_update": {"kind": "sgd"}, "update": {"clip": 1.0, "decay": 0.1}}
