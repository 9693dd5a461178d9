"""This package's own engine as a program for `dynadapt audit --command`: a LoRA, anew in each document.

python audited_engine.py VOCABULARY
"""

import json
import sys

import torch

from dynadapt import Adam, Engine, LoRA
from dynadapt.model import random_model, tiny_config


def tiny_engine(vocabulary: int, reset: str = "document") -> Engine:
    model = random_model(tiny_config("llama", vocab_size=vocabulary, layers=2), seed=1, std=0.1)
    return Engine(model, LoRA(rank=2), optimizer=Adam(lr=1e-2), segment=16, reset=reset, dtype="fp32", backend="reference")


def answer(engine: Engine, request: dict) -> tuple[list, dict]:
    """(nll, logprobs) of a whole document. A distribution is made of the scores of all tokens behind the same ones."""
    tokens, vocabulary = request["tokens"], engine.config.vocab_size
    engine.enter(0)
    nll, logprobs = [None], {}
    for begin in range(0, len(tokens) - 1, engine.segment):
        row = torch.tensor(tokens[begin : begin + engine.segment + 1])
        for position in (p for p in request["ask"] if begin < p < begin + len(row)):
            before = row[: position - begin].expand(vocabulary, -1)
            every = engine.score(torch.cat([before, torch.arange(vocabulary)[:, None]], 1))[:, -1]
            logprobs[str(position)] = (-every.double()).tolist()
        nll += engine.step(row[None])[0].tolist()
    return nll, logprobs


if __name__ == "__main__":
    made = tiny_engine(int(sys.argv[1]))
    for line in sys.stdin:
        nll, logprobs = answer(made, json.loads(line))
        print(json.dumps({"nll": nll, "logprobs": logprobs}), flush=True)
