"""Help for tests: a transformers model with the weights of one of ours, PEFT's adapters on it, and what it scores."""

import torch

from dynadapt.model import Model, ModelConfig, hf_name, linear_shapes, peft_name
from dynadapt.model.hf_config import config_to_hf
from dynadapt.model.layout import hf_order, hf_tensor, layout

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def token_rows(rows: int, count: int, seed: int = 0) -> torch.Tensor:
    """[rows, count] ids that every tiny model has."""
    return torch.randint(100, (rows, count), generator=seeded(seed))


@torch.no_grad()
def nll_of(live, rows: torch.Tensor) -> torch.Tensor:
    """[S, T] nats, float64, of a transformers model on rows [S, T + 1]."""
    scores = live(rows[:, :-1]).logits.double()
    return torch.nn.functional.cross_entropy(scores.flatten(0, 1), rows[:, 1:].flatten(), reduction="none").view(rows.shape[0], -1)


def peft_model(model: Model, std: float = 0.05, **settings):
    """The transformers model with a LoRA adapter of PEFT's on all linears whose B is not zero; `settings` of LoraConfig."""
    import peft

    gpt2 = model.config.family == "gpt2"
    c = model.config
    endings = sorted({peft_name(c, layer, part).split(".")[-1] for layer in range(c.layers) for part in linear_shapes(c, layer)})
    options = dict(r=3, lora_alpha=6, target_modules=endings, task_type="CAUSAL_LM")
    live = peft.get_peft_model(to_transformers(model), peft.LoraConfig(**{**options, "fan_in_fan_out": gpt2, **settings}))
    generator = seeded(5)
    for name, p in live.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=std, generator=generator)
    return live


def to_transformers(model: Model, dtype: torch.dtype = torch.float32):
    """The transformers model of the same config with a copy of `model`'s weights, in eval mode."""
    import transformers

    raw = config_to_hf(model.config)
    kind = raw.pop("model_type")
    architecture = getattr(transformers, raw.pop("architectures")[0])
    config = transformers.CONFIG_MAPPING[kind](**raw)
    config._attn_implementation = "eager"
    live = architecture(config)
    state = {hf_name(model.config, name): hf_tensor(model.config, name, model.tensor(name).to(dtype)).clone() for name in model.names()}
    missing, unexpected = live.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= ({"lm_head.weight"} if model.config.tied_head else set()), (missing, unexpected)
    live.tie_weights()
    return live.to(dtype).eval()


def descended(model: Model, tokens: torch.Tensor, loss, lr: float = 0.5) -> dict[str, torch.Tensor]:
    """Every parameter by its canonical name, behind a step of plain gradient descent by torch's autograd in float64 on ``loss`` of the
    logits [T, V] of one row [1, T + 1]."""
    live, config = to_transformers(model, torch.float64), model.config
    loss(live(tokens[:, :-1]).logits[0]).backward()
    parameters = dict(live.named_parameters())
    gradient = lambda name: hf_order(config, name, parameters[hf_name(config, name)].grad)  # noqa: E731
    return {name: model.tensor(name).double() - lr * gradient(name) for name in model.names()}


def descent_error(config: ModelConfig) -> float:
    """How far ``descended`` may be off: transformers computes RMSNorm and rotations in float32 whatever the model's dtype is."""
    return 1e-12 if config.family == "gpt2" else 5e-7


def linear_weights(learner, config: ModelConfig) -> dict[str, torch.Tensor]:
    """What a learner of linear weights has, by canonical name."""
    named = {}
    for name, weight in learner.weights().items():
        layer, group, part = name.split(".")
        named[f"layers.{layer}.{layout(config, int(layer))[group][int(part)]}.weight"] = weight
    return named
