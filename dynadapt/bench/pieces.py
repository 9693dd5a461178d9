"""The text that steps are timed on."""

from __future__ import annotations


def pieces(model: str, streams: int, segment: int) -> list[list[list[int]]]:
    """Four [S, T+1] pieces of real text, as ids.

    Raises:
        ValueError: the model has no tokenizer, or the text not even one piece of this size.
    """
    from dynadapt.model import load
    from dynadapt.runs.text import BUILTINS

    tokenizer = load(model).tokenizer
    if tokenizer is None:
        raise ValueError(f"model {model!r} has no tokenizer, which the text that is timed needs; expected one with its tokenizer.json")
    ids = tokenizer.encode(BUILTINS["python-reference"]()[: 40 * streams * (segment + 1)])
    begin = list(tokenizer.begins)  # without it some models score far worse than they do
    size = streams * (segment + 1 - len(begin))
    found = [ids[i * size : (i + 1) * size] for i in range(4) if len(ids) >= (i + 1) * size]
    if not found:
        raise ValueError(f"{streams} x {segment} tokens: the text that is timed has {len(ids)}; take fewer streams or a shorter segment")
    each = segment + 1 - len(begin)
    return [[begin + piece[s * each : (s + 1) * each] for s in range(streams)] for piece in found]
