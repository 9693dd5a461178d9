"""Help for tests: a transformers model with the weights of one of ours."""

import torch

from dynadapt.model import Model, hf_name
from dynadapt.model.hf_config import config_to_hf
from dynadapt.model.layout import hf_tensor


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
