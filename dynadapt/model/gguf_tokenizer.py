"""The tokenizer in a GGUF file's metadata, rebuilt with the tokenizers package.

Two kinds: "gpt2", a byte-level BPE with one of the pre-tokenizers below, and "llama", a SentencePiece BPE whose merges
follow from its scores. They are built as the models' own tokenizer.json files are; where a model's GGUF cannot say
something (Qwen2's NFC normalisation, Llama 3's whole-word look-up), it is taken from the model.
"""
from __future__ import annotations

import math
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer as Backend, decoders, models, normalizers, pre_tokenizers

from dynadapt.model.config import ModelConfig
from dynadapt.model.errors import ModelError
from dynadapt.model.tokenizer import Tokenizer

_CONTROL, _USER_DEFINED = 3, 4
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_PRE_TOKENIZERS = {"gpt-2": "gpt-2", "gpt2": "gpt-2", "smollm": "smollm", "qwen2": "qwen2", "deepseek-r1-qwen": "qwen2",
                   "llama-bpe": "llama-bpe", "llama3": "llama-bpe", "llama-v3": "llama-bpe"}


def gguf_tokenizer(path: Path, metadata: dict, config: ModelConfig) -> Tokenizer | None:
    """The tokenizer that `metadata` describes, or None if it has none; ModelError naming what is not supported."""
    kind = metadata.get("tokenizer.ggml.model")
    if kind is None or kind == "no_vocab":
        return None
    try:
        if kind not in ("gpt2", "llama"):
            raise ModelError(f"tokenizer.ggml.model = {kind!r} is not supported; accepted: gpt2, llama")
        tokens = _strings(metadata, "tokens")
        if len(set(tokens)) != len(tokens) or len(tokens) > config.vocab_size:
            raise ModelError(f"tokenizer.ggml.tokens has {len(tokens)} tokens ({len(set(tokens))} different) for a "
                             f"vocabulary of {config.vocab_size}")
        vocab = {token: i for i, token in enumerate(tokens)}
        backend = _byte_level(metadata, vocab) if kind == "gpt2" else _sentencepiece(metadata, vocab)
        _add_special(backend, metadata, tokens)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    except Exception as error:  # the tokenizers package raises plain Exception
        raise ModelError(f"{path}: the tokenizer cannot be built ({str(error)[:200]})") from error
    return Tokenizer(backend, config.bos_token_id, config.eos_token_id, limit=config.vocab_size)


def _strings(metadata, key):
    value = metadata.get(f"tokenizer.ggml.{key}")
    if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
        raise ModelError(f"tokenizer.ggml.{key} must be a list of strings")
    return value


def _byte_level(metadata, vocab):
    pre = metadata.get("tokenizer.ggml.pre")
    if pre is None and metadata.get("general.architecture") == "gpt2":
        pre = "gpt-2"
    if pre not in _PRE_TOKENIZERS:
        raise ModelError(f"tokenizer.ggml.pre = {pre!r} is not supported; accepted: {', '.join(_PRE_TOKENIZERS)}")
    pre = _PRE_TOKENIZERS[pre]
    merges = [tuple(merge.split(" ")) for merge in _strings(metadata, "merges")]
    if any(len(merge) != 2 for merge in merges):
        raise ModelError("tokenizer.ggml.merges must be pairs of tokens with one space between them")
    backend = Backend(models.BPE(vocab=vocab, merges=merges, ignore_merges=pre == "llama-bpe"))
    if pre == "qwen2":
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = _pre_tokenizer(pre)
    backend.decoder = decoders.ByteLevel()
    return backend


def _pre_tokenizer(pre):
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if pre == "gpt-2":
        return words
    if pre == "smollm":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words])
    split = pre_tokenizers.Split(Regex(_WORDS % ("" if pre == "qwen2" else "{1,3}")), behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _sentencepiece(metadata, vocab):
    scores = metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(vocab) or not all(
            isinstance(score, float) and math.isfinite(score) for score in scores):
        raise ModelError(f"tokenizer.ggml.scores must be {len(vocab)} finite numbers")
    unknown = metadata.get("tokenizer.ggml.unknown_token_id", 0)
    if not isinstance(unknown, int) or not 0 <= unknown < len(vocab):
        raise ModelError(f"tokenizer.ggml.unknown_token_id = {unknown!r} must be a token id")
    backend = Backend(models.BPE(vocab=vocab, merges=_merges(vocab, scores), unk_token=list(vocab)[unknown],
                                 fuse_unk=True, byte_fallback=True))
    prefix = metadata.get("tokenizer.ggml.add_space_prefix", True)
    space = [normalizers.Replace(" ", "\u2581")]
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), *space] if prefix else space)
    strip = [decoders.Strip(" ", left=1)] if prefix else []
    backend.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    return backend


def _merges(vocab, scores):
    """Every split of a token into two tokens, best token first: the order in which SentencePiece would merge.

    SentencePiece merges the adjacent pair whose union has the highest score, so a pair's rank is its union's.
    """
    merges = []
    for token, i in vocab.items():
        pairs = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        merges += [(-scores[i], i, left, right) for left, right in pairs if left in vocab and right in vocab]
    return [(left, right) for _, _, left, right in sorted(merges, key=lambda merge: merge[:2])]


def _add_special(backend, metadata, tokens):
    """Control tokens (special) and user-defined ones (plain) are matched whole wherever they are spelled out."""
    kinds = metadata.get("tokenizer.ggml.token_type", [])
    if not isinstance(kinds, list) or len(kinds) not in (0, len(tokens)):
        raise ModelError(f"tokenizer.ggml.token_type must have a number for each of the {len(tokens)} tokens")
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False)
                                for token, kind in zip(tokens, kinds) if kind == _CONTROL])
    backend.add_tokens([AddedToken(token, special=False, normalized=False)
                        for token, kind in zip(tokens, kinds) if kind == _USER_DEFINED])
