"""How near a text is to a reference text: Jensen-Shannon divergence of their n-grams of tokens, and embeddings if asked for.

A divergence between samples depends on their size, so both texts give equally many tokens and `within` says what two
samples of the text itself, each of that size, are apart: a divergence of `within` means "no different".
"""

from __future__ import annotations

import numpy as np

from .texts import read_text

PIECE = 256  # tokens that are drawn together
ORDERS = (1, 2, 3)


def jensen_shannon(first: np.ndarray, second: np.ndarray) -> float:
    """Divergence in bits, 0 (equal) to 1 (nothing in common), of two samples of keys [N] and [M]."""
    keys, of = np.unique(np.concatenate([first, second]), return_inverse=True)
    p = np.bincount(of[: len(first)], minlength=len(keys)) / len(first)
    q = np.bincount(of[len(first) :], minlength=len(keys)) / len(second)
    mixed = (p + q) / 2
    relative = lambda x: float(np.sum(x[x > 0] * np.log2(x[x > 0] / mixed[x > 0])))  # noqa: E731
    return min(1.0, max(0.0, (relative(p) + relative(q)) / 2))


def ngrams(tokens: np.ndarray, n: int, vocabulary: int) -> np.ndarray:
    """[N - n + 1] one key an n-gram; exact as long as vocabulary^n fits 63 bits."""
    if vocabulary**n >= 1 << 63:
        raise ValueError(f"n={n}: {n}-grams of {vocabulary} types do not fit 63 bits; give a smaller n")
    keys = np.zeros(len(tokens) - n + 1, np.int64)
    for i in range(n):
        keys = keys * vocabulary + tokens[i : len(tokens) - n + 1 + i]
    return keys


def compare(text: np.ndarray, reference: np.ndarray, vocabulary: int) -> dict:
    """{"tokens": size of each sample, "orders": [{"n", "divergence", "within"}]} of two token sequences."""
    halves = [_pieces(text, start) for start in (0, 1)]
    size = min(len(halves[0]), len(halves[1]), len(reference))
    if size <= max(ORDERS):
        raise ValueError(f"text has {len(text)} tokens and the reference {len(reference)}: too short to compare; give longer ones")
    spread = _spread(reference, size)
    orders = []
    for n in ORDERS:
        keys = [ngrams(sample[:size], n, vocabulary) for sample in (*halves, spread)]
        apart = [jensen_shannon(half, keys[2]) for half in keys[:2]]
        orders.append({"n": n, "divergence": sum(apart) / 2, "within": jensen_shannon(keys[0], keys[1])})
    return {"tokens": size, "orders": orders}


def _pieces(tokens: np.ndarray, start: int) -> np.ndarray:
    """Every second piece, so that both halves come from all over the text."""
    length = min(PIECE, max(1, len(tokens) // 2))
    places = range(start * length, max(len(tokens), start * length + 1), 2 * length)
    return np.concatenate([tokens[at : at + length] for at in places])


def _spread(tokens: np.ndarray, size: int) -> np.ndarray:
    """`size` tokens in pieces from all over a sequence."""
    if len(tokens) <= size:
        return tokens
    count = -(-size // PIECE)
    length = -(-size // count)
    starts = np.linspace(0, len(tokens) - length, count).astype(np.int64)
    return np.concatenate([tokens[start : start + length] for start in starts])[:size]


def with_reference(tokens: np.ndarray, texts, other: np.ndarray, reference, names, vocabulary: int, embeddings: str | None) -> dict:
    """What a summary says of a text (its tokens and documents) and the reference text: names, divergences and, by the model
    `embeddings`, the cosine of their beginnings."""
    compared = compare(tokens, other, vocabulary)
    if embeddings:
        words = ["\n".join(read_text(source, 1 << 20) for source in sources[:200]) for sources in (texts, reference)]
        compared["embedding_cosine"] = embedding_similarity(*words, embeddings)
    return {"reference": list(names), **compared}


def embedding_similarity(text: str, reference: str, name: str, chunk: int = 1000, chunks: int = 200) -> float:
    """Cosine of the mean sentence embeddings of two texts, by the sentence-transformers model of this name or directory."""
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise ValueError(f"embeddings {name!r}: needs the package sentence-transformers; install it, or leave out --embeddings") from None
    model, means = SentenceTransformer(name), []
    for whole in (text, reference):
        pieces = [whole[at : at + chunk] for at in range(0, len(whole), chunk)]
        pieces = [pieces[i] for i in np.linspace(0, len(pieces) - 1, min(chunks, len(pieces))).astype(int)]
        means.append(np.asarray(model.encode(pieces, normalize_embeddings=True)).mean(axis=0))
    return float(means[0] @ means[1] / (np.linalg.norm(means[0]) * np.linalg.norm(means[1])))
