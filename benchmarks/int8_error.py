"""What int8 costs: the error of every product, layer by layer, and the score of texts, without learning and with LoRA.

    python benchmarks/texts.py texts/ --more
    python benchmarks/int8_error.py texts/ --out int8-error
    python benchmarks/int8_error.py texts/ --tokens 1024 --layers-alone --out int8-error       # the quick part

Products: one segment of the first text goes through the model in float32; for every group of weights the same inputs and output
gradients go through int8 (the definition, dynadapt/ops/int8.py) and through bfloat16, each held against float64 in the 2-norm. Of the
head, the logits and the gradient of the hidden states. Scores: every text by `dynadapt.evaluate` with base="same" and "int8" in one dtype,
each text's difference in nats a token. What is written: results.json and results.md in --out.
"""

from __future__ import annotations

from pathlib import Path

import torch
from script import parser_of, write_results

import dynadapt
from dynadapt.adapt.methods import GROUPS
from dynadapt.engine.weights import source_weight
from dynadapt.model import layout
from dynadapt.ops import cross_entropy
from dynadapt.ops.int8 import Int8Matrix
from dynadapt.ops.matrix import DenseMatrix


def relative(found: torch.Tensor, truth: torch.Tensor) -> float:
    return float((found.double() - truth).norm() / truth.norm())


def captured(model, tokens: torch.Tensor) -> tuple[dict, tuple]:
    """({(layer, group): (x, dy)}, (h, targets) of the head) of one adapting step in float32."""
    engine = dynadapt.Engine(model, adapt=dynadapt.LoRA(), segment=tokens.shape[1] - 1, dtype="fp32")
    key_of = {id(parts): key for key, parts in engine.weights.parts.items()}
    inputs, gradients, head = {}, {}, []
    forward, backward, score = engine.ops.linear_forward, engine.ops.linear_backward, engine.ops.cross_entropy

    def linear_forward(x, parts, *rest):
        inputs[key_of[id(parts)]] = x.clone()
        forward(x, parts, *rest)

    def linear_backward(dy, parts, *rest):
        gradients[key_of[id(parts)]] = dy.clone()
        backward(dy, parts, *rest)

    def cross_entropy(h, matrix, targets, *rest):
        head.extend((h.clone(), targets.clone()))
        score(h, matrix, targets, *rest)

    engine.ops.linear_forward, engine.ops.linear_backward, engine.ops.cross_entropy = linear_forward, linear_backward, cross_entropy
    engine.step(tokens)
    return {key: (inputs[key], gradients[key]) for key in gradients}, tuple(head[:2])


def group_errors(model, layer: int, group: str, x: torch.Tensor, dy: torch.Tensor) -> dict[str, float]:
    """Of y = x W^T and dx = dy W over all parts of the group, in int8 and in bfloat16."""
    weights = [source_weight(model, layer, group, p).float() for p in range(len(layout(model.config)[group]))]
    gradients = dy.split([w.shape[0] for w in weights], 1)
    truth = torch.cat([x.double() @ w.double().t() for w in weights], 1), sum(d.double() @ w.double() for d, w in zip(gradients, weights))
    found = {}
    for name, make, dtype in (("int8", Int8Matrix, torch.float32), ("bf16", lambda w, _: DenseMatrix(w.bfloat16()), torch.bfloat16)):
        matrices = [make(w, dtype) for w in weights]
        y = torch.cat([m.times(x.to(dtype)) for m in matrices], 1)
        dx = sum(m.times_transposed(d.to(dtype)).float() for m, d in zip(matrices, gradients))
        found |= {f"y {name}": relative(y, truth[0]), f"dx {name}": relative(dx, truth[1])}
    return found


def head_errors(model, h: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
    """Of the logits and of the gradient of the hidden states."""
    weight = model.tensor("embed.weight" if model.config.tied_head else "head.weight").float()

    def run(matrix, dtype):
        x = h.to(dtype)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        nll, lse, dh = torch.empty(len(x), dtype=wide), torch.empty(len(x), dtype=wide), torch.empty_like(x)
        cross_entropy.cross_entropy(x, matrix, targets, None, nll, lse, dh)
        return matrix.logits(x), dh, nll

    truth = run(DenseMatrix(weight.double()), torch.float64)
    found = {}
    for name, matrix, dtype in (
        ("int8", Int8Matrix(weight, torch.float32), torch.float32),
        ("bf16", DenseMatrix(weight.bfloat16()), torch.bfloat16),
    ):
        logits, dh, nll = run(matrix, dtype)
        found |= {
            f"logits {name}": relative(logits, truth[0]),
            f"dh {name}": relative(dh, truth[1]),
            f"nll {name}": float((nll.double() - truth[2]).mean()),
        }
    return found


def products(model, text: Path, segment: int) -> dict:
    """The errors of every group, in the order of the layers, and of the head."""
    ids = model.tokenizer.encode(text.read_text("utf-8")[: 16 * segment])[: segment + 1]
    calls, (h, targets) = captured(model, torch.tensor([ids]))
    layers = [
        {"layer": layer, "group": group, **group_errors(model, layer, group, *calls[layer, group])}
        for layer in range(model.config.layers)
        for group in GROUPS
        if (layer, group) in calls
    ]
    return {"text": text.name, "tokens": len(ids) - 1, "layers": layers, "head": head_errors(model, h, targets)}


def scores(name: str, texts: list[Path], tokens: int, segment: int, dtype: str) -> list[dict]:
    """nats a token of each text, static and with LoRA, and what int8 adds."""
    rows = []
    for text in texts:
        for adapt in ("none", "lora"):
            nll = {
                base: dynadapt.evaluate(name, str(text), adapt=adapt, tokens=tokens, segment=segment, dtype=dtype, base=base).nll
                for base in ("same", "int8")
            }
            rows.append(
                {"text": text.name, "adapt": adapt, "same": nll["same"], "int8": nll["int8"], "difference": nll["int8"] - nll["same"]}
            )
            print(f"{text.name} {adapt}: {nll['same']:.4f} in {dtype}, {nll['int8'] - nll['same']:+.4f} in int8", flush=True)
    return rows


def page(results: dict) -> str:
    found = results["products"]
    keys = ("y int8", "y bf16", "dx int8", "dx bf16")
    lines = [
        f"# Error of int8: {results['model']}",
        "",
        f"Products, {found['tokens']} tokens of {found['text']}, 2-norm against float64:",
        "",
    ]
    lines += ["| layer | group | " + " | ".join(keys) + " |", "|---|---|" + "---|" * len(keys)]
    lines += [f"| {r['layer']} | {r['group']} | " + " | ".join(f"{r[k]:.2%}" for k in keys) + " |" for r in found["layers"]]
    head = found["head"]
    lines += ["", "Head: " + ", ".join(f"{k} {v:+.5f} nats" if k.startswith("nll") else f"{k} {v:.2%}" for k, v in head.items()), ""]
    if results["scores"]:
        lines += [f"Scores, {results['tokens']} tokens, {results['dtype']}, nats a token:", ""]
        lines += ["| text | learns | same | int8 | difference |", "|---|---|---|---|---|"]
        lines += [f"| {r['text']} | {r['adapt']} | {r['same']:.4f} | {r['int8']:.4f} | {r['difference']:+.4f} |" for r in results["scores"]]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = parser_of(__doc__, "int8-error")
    parser.add_argument("texts", type=Path, help="folder with .txt files")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--tokens", type=int, default=2048, help="tokens scored of each text")
    parser.add_argument("--segment", type=int, default=512)
    parser.add_argument("--dtype", default="bf16", choices=("bf16", "fp32"), help="arithmetic beside int8, and of base=same")
    parser.add_argument("--layers-alone", action="store_true", help="no scores")
    given = parser.parse_args()
    texts = sorted(given.texts.glob("*.txt"))
    if not texts:
        raise SystemExit(f"{given.texts}: holds no .txt files")
    given.out.mkdir(parents=True, exist_ok=True)
    results = {
        "model": given.model,
        "dtype": given.dtype,
        "tokens": given.tokens,
        "segment": given.segment,
        "products": products(dynadapt.load(given.model), texts[0], given.segment),
        "scores": [] if given.layers_alone else scores(given.model, texts, given.tokens, given.segment, given.dtype),
    }
    write_results(given.out, results, page(results))
    print(page(results))


if __name__ == "__main__":
    main()
