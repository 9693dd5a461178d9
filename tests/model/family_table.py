"""The table of model families: every cell was run on a tiny model of the family, and agreed, or was refused by name.

    python tests/model/family_table.py [--why]         # prints it, and the refusals

Scores of a directory are held against transformers', of a GGUF file against the model that it was written from, three steps of learning
and remembering against float64, and the C engine's scores against transformers'.
"""

import os
import sys
import tempfile
import warnings
from pathlib import Path

os.environ.setdefault("TRITON_INTERPRET", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch  # noqa: E402
from gguf_files import write_gguf  # noqa: E402
from model.mutated_configs import TOKENS, TYPES, Readers  # noqa: E402

from dynadapt import SGD, Engine, Full, LoRA, RowSparse, SegmentMemory, load  # noqa: E402
from dynadapt.engine.needed_ops import needed_ops  # noqa: E402
from dynadapt.model import ModelError, random_model, tiny_config  # noqa: E402
from dynadapt.model.family import FAMILIES  # noqa: E402
from dynadapt.ops.dispatch import UnsupportedOp, resolve  # noqa: E402

NAMES = {
    "llama": "Llama 2 and 3, SmolLM2",
    "mistral": "Mistral",
    "qwen2": "Qwen2, Qwen2.5",
    "qwen3": "Qwen3",
    "qwen3_5_text": "Qwen3.5 (text)",
    "smollm3": "SmolLM3",
    "olmo2": "OLMo 2",
    "olmo3": "OLMo 3",
    "gemma3_text": "Gemma 3 (text)",
    "granite": "Granite 3",
    "phi3": "Phi-3, Phi-4-mini",
    "gpt_neox": "GPT-NeoX, Pythia",
    "gpt2": "GPT-2",
}
ADDS = {
    "llama": "rope scaling: linear, llama3, yarn, dynamic, longrope",
    "mistral": "sliding windows",
    "qwen2": "biases; windows in the upper layers",
    "qwen3": "queries and keys normalised by head",
    "qwen3_5_text": "the gated delta rule in most layers, a gate on attention",
    "smollm3": "layers without rotations",
    "olmo2": "norms behind, queries and keys normalised over all heads",
    "olmo3": "the same, and sliding windows",
    "gemma3_text": "norms on both sides, GEGLU, windows with another base",
    "granite": "factors on embeddings, scores, residual and logits",
    "phi3": "fused linears, heads rotated in part, longrope",
    "gpt_neox": "attention and feed-forward side by side, LayerNorm",
    "gpt2": "learned positions, LayerNorm, GELU",
}
# of these, llama.cpp knows which layers are special from the architecture alone
GGUF = {"smollm3": tiny_config("smollm3"), "olmo3": tiny_config("olmo2", layers=5, windows=(7, 7, 7, None, 7))}
CLOSE, LEARNED = 1e-4, 1e-3  # nats: of a score, and of scores behind two updates


def nll_of(model, tokens, steps: int = 1, **options) -> torch.Tensor:
    settings = {"segment": TOKENS, "dtype": "fp32", "backend": "cpu", "adapt": None, **options}
    engine = Engine(model, optimizer=None if settings["adapt"] is None else SGD(lr=0.05), **settings)
    return torch.stack([engine.step(tokens)[0].double() for _ in range(steps)])


def agree(a: torch.Tensor, b: torch.Tensor, within: float) -> None:
    difference = float((a.double() - b.double()).abs().max())
    if not difference <= within:
        raise AssertionError(f"off by {difference:.2g} nats, at most {within} is allowed")


class Checks:
    """What the columns say of one kind of model; each check returns, refuses, or fails."""

    def __init__(self, model_type: str, folder: Path):
        self.readers = Readers(model_type, folder)
        self.readers.write(self.readers.base[0])
        self.tokens, self.folder = self.readers.tokens, folder
        self.model = load(folder)

    def transformers(self):
        theirs = self.readers.theirs()
        assert isinstance(theirs, torch.Tensor), theirs
        agree(nll_of(self.model, self.tokens)[0], theirs, CLOSE)

    def gguf(self):
        if FAMILIES[self.model.config.family].from_gguf is None:
            raise ModelError("no GGUF file of this family is read")
        config = GGUF.get(self.readers.model_type)
        model = self.model if config is None else random_model(config, seed=7, std=0.2)
        path = write_gguf(model, self.folder / "model.gguf")
        agree(nll_of(load(path), self.tokens), nll_of(model, self.tokens), CLOSE)

    def learns(self, adapt, **options):
        """Three steps on the native kernels and in float64."""
        exact = nll_of(self.model, self.tokens, 3, adapt=adapt, dtype="fp64", backend="reference", **options)
        agree(nll_of(self.model, self.tokens, 3, adapt=adapt, **options), exact, LEARNED)

    def lora(self):
        self.learns(LoRA(rank=3))

    def rows(self):
        self.learns(RowSparse(density=0.5))
        self.learns(Full("all"))

    def whole(self):
        self.learns(Full("model"))

    def memory(self):
        self.learns(LoRA(rank=3), memory=SegmentMemory(length=16, sinks=2))

    def int8(self):
        exact, rounded = (nll_of(self.model, self.tokens, base=base) for base in ("same", "int8"))
        assert 0 < float((exact - rounded).abs().max()) < 0.5

    def c(self):
        scores = self.readers.c()
        if isinstance(scores, str):
            raise ModelError(scores)
        agree(scores, nll_of(self.model, self.tokens)[0], CLOSE)

    def triton(self):
        engine = Engine(self.model, adapt=LoRA(rank=3), optimizer=SGD(lr=0.1), segment=TOKENS, dtype="fp32", backend="reference")
        for op in needed_ops(engine, static=True, fused=False):
            resolve(op, "triton", torch.float32)


COLUMNS = {
    "as in transformers": Checks.transformers,
    "GGUF": Checks.gguf,
    "LoRA": Checks.lora,
    "rows, full": Checks.rows,
    "every weight": Checks.whole,
    "memory, sinks": Checks.memory,
    "int8": Checks.int8,
    "C engine": Checks.c,
    "GPU kernels": Checks.triton,
}


def cells(model_type: str) -> dict[str, str]:
    """What each check came to: "" where it passed, else the refusal. Whatever else goes wrong is raised."""
    found = {}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        checks = Checks(model_type, Path(folder) / "model")
        for name, check in COLUMNS.items():
            try:
                check(checks)
                found[name] = ""
            except (ModelError, UnsupportedOp, ValueError) as refusal:
                found[name] = str(refusal) or type(refusal).__name__
    return found


BEGIN, END = "<!-- family_table.py -->\n", "<!-- end -->\n"


def table() -> str:
    lines = ["| family | what it adds | " + " | ".join(COLUMNS) + " |", "| --- " * 2 + "| :-: " * len(COLUMNS) + "|"]
    for model_type in NAMES:
        marks = ["—" if refusal else "✓" for refusal in cells(model_type).values()]
        lines.append(f"| {NAMES[model_type]} | {ADDS[model_type]} | " + " | ".join(marks) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    assert set(NAMES) == set(TYPES)
    print(table(), end="")
    if "--why" in sys.argv:
        for each in NAMES:
            for name, refusal in cells(each).items():
                if refusal:
                    print(f"{each}, {name}: {refusal}")
