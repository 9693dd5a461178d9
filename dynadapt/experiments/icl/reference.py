"""The regressor as its users write it with Hugging Face's GPT-2: what tests and `dynadapt bench icl` compare with."""

from __future__ import annotations

import torch
from torch import Tensor

from dynadapt.model.layout import hf_name, hf_transposed

from .model import Geometry, Weights
from .prompts import interleaved


class HuggingFaceRegressor(torch.nn.Module):
    """Garg et al.'s model (dtsip/in-context-learning src/models.py) over GPT2Model(inputs_embeds=...), which needs
    transformers."""

    def __init__(self, geometry: Geometry, weights: Weights):
        from transformers import GPT2Config, GPT2Model

        super().__init__()
        g, config = geometry, geometry.decoder()
        self.read_in, self.read_out = torch.nn.Linear(g.dims, g.hidden), torch.nn.Linear(g.hidden, 1)
        self.backbone = GPT2Model(
            GPT2Config(
                vocab_size=1,
                n_positions=g.positions,
                n_embd=g.hidden,
                n_layer=g.layers,
                n_head=g.heads,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                use_cache=False,
                bos_token_id=0,
                eos_token_id=0,
            )
        )
        del self.backbone.wte  # inputs are embedded already
        theirs = {
            name: name if name.startswith("read") else hf_name(config, name).replace("transformer.", "backbone.")
            for name in weights.tensors
        }
        self.theirs = {name: (found, hf_transposed(config, name)) for name, found in theirs.items()}
        own = dict(self.named_parameters())
        with torch.no_grad():
            for name, (found, transposed) in self.theirs.items():
                value = weights.tensors[name]
                own[found].copy_((value.t() if transposed else value).view_as(own[found]))

    def forward(self, xs: Tensor, ys: Tensor) -> Tensor:
        """Predictions [B, n] from xs [B, n, d] and ys [B, n]; the last y, which nothing reads, is left out."""
        embedded = self.read_in(interleaved(xs, ys)[:, :-1].to(self.read_in.weight.dtype))
        return self.read_out(self.backbone(inputs_embeds=embedded).last_hidden_state)[:, ::2, 0]

    def gradients(self) -> dict[str, Tensor]:
        """By canonical name and in the canonical shape."""
        own = dict(self.named_parameters())
        named = {name: own[found].grad for name, (found, _) in self.theirs.items()}
        named = {name: grad.t() if self.theirs[name][1] else grad for name, grad in named.items()}
        return {name: grad.view(-1) if name == "read_out.weight" else grad for name, grad in named.items()}
