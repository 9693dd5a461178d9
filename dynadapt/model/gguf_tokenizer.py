"""The tokenizer in a GGUF file's metadata, rebuilt with the tokenizers package.

Two kinds: "gpt2", a byte-level BPE with one of the pre-tokenizers below, and "llama", a SentencePiece BPE whose merges
follow from its scores. Ids are those of transformers' AutoTokenizer for the file; where that leaves out what the model's own
tokenizer.json does and the GGUF cannot say (Qwen2's NFC normalisation, Llama 3's whole-word look-up, SmolLM's single
digits), it is taken from the model.
"""

from __future__ import annotations

import math
from pathlib import Path

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from .config import ModelConfig
from .errors import ModelError
from .hf_special_tokens import SpecialTokens
from .hf_tokenizer import put_around
from .hf_tokenizer_class import CLASSES, WORDS
from .tokenizer import Tokenizer

_CONTROL, _USER_DEFINED = 3, 4
_NAMED = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
_MOST_MERGES = 64  # characters of merges for each character of the tokens: many times what a trained vocabulary has
_PRE_TOKENIZERS = {
    "gpt-2": "gpt-2",
    "gpt2": "gpt-2",
    "smollm": "smollm",
    "qwen2": "qwen2",
    "deepseek-r1-qwen": "qwen2",
    "llama-bpe": "llama-bpe",
    "llama3": "llama-bpe",
    "llama-v3": "llama-bpe",
}


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
            raise ModelError(
                f"tokenizer.ggml.tokens has {len(tokens)} tokens ({len(set(tokens))} different) for a vocabulary of {config.vocab_size}"
            )
        vocab = {token: i for i, token in enumerate(tokens)}
        backend = _byte_level(metadata, vocab) if kind == "gpt2" else _sentencepiece(metadata, vocab)
        special_ids = _add_special(backend, metadata, tokens)
        _add_around(backend, metadata, tokens, special_ids)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    except Exception as error:  # the tokenizers package raises plain Exception
        raise ModelError(f"{path}: the tokenizer cannot be built ({str(error)[:200]})") from error
    return Tokenizer(backend, config.bos_token_id, config.eos_token_id, limit=config.vocab_size, special_ids=special_ids, where=str(path))


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
    backend = Backend(models.BPE(vocab=vocab, merges=_pairs(metadata), ignore_merges=pre == "llama-bpe"))
    if pre == "qwen2":
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = _pre_tokenizer(pre)
    backend.decoder = decoders.ByteLevel()
    return backend


def _pairs(metadata):
    merges = [tuple(merge.split(" ")) for merge in _strings(metadata, "merges")]
    if any(len(merge) != 2 for merge in merges):
        raise ModelError("tokenizer.ggml.merges must be pairs of tokens with one space between them")
    return merges


def _pre_tokenizer(pre):
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if pre == "gpt-2":
        return words
    if pre == "smollm":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words])
    split = pre_tokenizers.Split(Regex(WORDS % ("" if pre == "qwen2" else "{1,3}")), behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _sentencepiece(metadata, vocab):
    scores = metadata.get("tokenizer.ggml.scores")
    if (
        not isinstance(scores, list)
        or len(scores) != len(vocab)
        or not all(isinstance(score, float) and math.isfinite(score) for score in scores)
    ):
        raise ModelError(f"tokenizer.ggml.scores must be {len(vocab)} finite numbers")
    for byte in range(256):
        if f"<0x{byte:02X}>" not in vocab:
            raise ModelError(f"tokenizer.ggml.tokens lacks <0x{byte:02X}>; accepted: a token for each of the 256 bytes")
    merges = _pairs(metadata) if "tokenizer.ggml.merges" in metadata else _merges(vocab, scores)
    prefix = metadata.get("tokenizer.ggml.add_space_prefix", True)
    if not isinstance(prefix, bool):
        raise ModelError(f"tokenizer.ggml.add_space_prefix = {prefix!r} must be true or false")
    if _class_of(metadata) == "GemmaTokenizer":
        if prefix:
            raise ModelError("tokenizer.ggml.add_space_prefix = True (or absent) is not supported for Gemma; accepted: False")
        return CLASSES["GemmaTokenizer"].build(vocab, merges, {})
    return CLASSES["LlamaTokenizer"].build(vocab, merges, {"add_prefix_space": prefix})


def _class_of(metadata):
    """The transformers class that the file's kind of tokenizer is."""
    if metadata["tokenizer.ggml.model"] == "gpt2":
        return "GPT2Tokenizer"
    return "GemmaTokenizer" if metadata.get("general.architecture") in ("gemma2", "gemma3") else "LlamaTokenizer"


def _merges(vocab, scores):
    """Every split of a token into two tokens, best token first: the order in which SentencePiece would merge.

    SentencePiece merges the adjacent pair whose union has the highest score, so a pair's rank is its union's. Memory is in
    proportion to the tokens: only cuts at which both parts have the length of some token are looked at, and what is kept is
    the vocabulary's own strings. ModelError where the tokens are made of each other in too many ways for that.
    """
    tokens, merges, left_over = list(vocab), [], _MOST_MERGES * (sum(map(len, vocab)) + 1024)
    lengths = sorted(set(map(len, tokens)))
    for union, token in enumerate(tokens):
        for cut in lengths:
            if cut >= len(token):
                break
            left = vocab.get(token[:cut])
            right = None if left is None else vocab.get(token[cut:])
            if right is None:
                continue
            left_over -= len(token)
            if left_over < 0:
                raise ModelError(
                    f"tokenizer.ggml.tokens are made of each other in more ways than is supported: token {union} of "
                    f"{len(token)} characters; accepted: {_MOST_MERGES} times as many characters in merges as in tokens"
                )
            merges.append((-scores[union], -cut, cut - len(token), union, left, right))
    merges.sort()
    return [(tokens[left], tokens[right]) for *_, left, right in merges]


def _add_special(backend, metadata, tokens):
    """Control tokens (special) and user-defined ones (plain) are matched whole wherever they are spelled out, and so are the
    tokens that have a name and those that the kind takes for special; returns the named ones' ids."""
    kinds = metadata.get("tokenizer.ggml.token_type", [])
    if not isinstance(kinds, list) or len(kinds) not in (0, len(tokens)):
        raise ModelError(f"tokenizer.ggml.token_type must have a number for each of the {len(tokens)} tokens")
    ids = {name: _named(metadata, key, len(tokens)) for name, key in _NAMED.items()}
    ids = {name: token for name, token in ids.items() if token is not None}
    backend.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token, kind in zip(tokens, kinds) if kind == _CONTROL]
    )
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token, kind in zip(tokens, kinds) if kind == _USER_DEFINED])
    usual = CLASSES[_class_of(metadata)].special.values()
    present = {token for token in usual if token is not None and backend.token_to_id(token) is not None}
    SpecialTokens({name: tokens[token] for name, token in ids.items()}, sorted(present), {}).add_to(backend)
    return ids


def _named(metadata, key, count):
    value = metadata.get(f"tokenizer.ggml.{key}_token_id")
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < count):
        raise ModelError(f"tokenizer.ggml.{key}_token_id = {value!r} must be a token id in 0..{count - 1}")
    return value


def _add_around(backend, metadata, tokens, special_ids):
    """What stands around a text where it is asked for; SentencePiece files that do not say have a beginning-of-text token."""
    parts = {}
    for part, usual in (("bos", metadata["tokenizer.ggml.model"] == "llama"), ("eos", False)):
        wanted = metadata.get(f"tokenizer.ggml.add_{part}_token", usual)
        if not isinstance(wanted, bool):
            raise ModelError(f"tokenizer.ggml.add_{part}_token = {wanted!r} must be true or false")
        token = special_ids.get(f"{part}_token")
        parts[part] = tokens[token] if wanted and token is not None else None
    put_around(backend, parts["bos"], parts["eos"])
