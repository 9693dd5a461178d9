"""Which of transformers' tokenizer classes AutoTokenizer takes for a directory, and the pipeline that each makes.

The general class takes tokenizer.json as it is. The others take its vocabulary, merges and post-processor, and put them
into a pipeline of their own: a normalizer or pre-tokenizer that tokenizer.json has besides does not count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from .errors import ModelError
from .reading import check_choice

# Words as Qwen2 and Llama 3 split them; %s: how many digits a number may have, "" for one.
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# As Qwen3.5 splits them: a letter keeps its marks.
MARKED_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_END = "<|endoftext|>"


@dataclass(frozen=True)
class TokenizerClass:
    """`build(vocabulary, merges, settings)` makes the backend, None: tokenizer.json as it is. `special` are the special
    tokens where none is given, `reads_vocab` that vocab.json and merges.txt serve too."""

    name: str
    build: Callable | None = None
    special: Mapping[str, str | None] = field(default_factory=dict)
    reads_vocab: bool = False
    adds_special: bool = False  # once more, as special ones, even if they were added before
    drops_post_processor: bool = False


def _llama(vocab, merges, settings):
    backend = Backend(models.BPE(vocab=vocab, merges=merges, fuse_unk=True, byte_fallback=True))
    prefix = _flag(settings, "add_prefix_space", True)
    scheme = ("always" if _flag(settings, "legacy", False) else "first") if prefix else "never"
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme=scheme, split=False)
    strip = [decoders.Strip(content=" ", left=1)] if prefix else []
    backend.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    return backend


def _gemma(vocab, merges, settings):
    backend = Backend(
        models.BPE(vocab=vocab, merges=merges, fuse_unk=True, byte_fallback=True, unk_token=settings.get("unk_token", "<unk>"))
    )
    backend.normalizer = normalizers.Replace(" ", "\u2581")
    backend.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    backend.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    return backend


def _byte_level(vocab, merges):
    backend = Backend(models.BPE(vocab=vocab, merges=merges, continuing_subword_prefix="", end_of_word_suffix=""))
    backend.decoder = decoders.ByteLevel()
    return backend


def _gpt2(vocab, merges, settings):
    backend = _byte_level(vocab, merges)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=_flag(settings, "add_prefix_space", False, null=False))
    return backend


def _gpt_neox(vocab, merges, settings):
    backend = _gpt2(vocab, merges, settings)
    backend.normalizer = normalizers.NFC()
    return backend


def _qwen2(vocab, merges, settings, words=WORDS % ""):
    backend = _byte_level(vocab, merges)
    backend.normalizer = normalizers.NFC()
    prefix = _flag(settings, "add_prefix_space", False)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(words), behavior="isolated"), pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=False)]
    )
    return backend


def _qwen3_5(vocab, merges, settings):
    return _qwen2(vocab, merges, settings, MARKED_WORDS)


def _flag(settings, key, default, null=True):
    """A setting that is true or false; null where the class takes that for its default."""
    value = settings.get(key, default)
    if value is None and null:
        return default
    if not isinstance(value, bool):
        raise ModelError(f"{key} = {value!r} must be true or false")
    return value


PLAIN = TokenizerClass("TokenizersBackend")
CLASSES = {
    kind.name: kind
    for kind in (
        PLAIN,
        TokenizerClass("LlamaTokenizer", _llama, {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}),
        TokenizerClass(
            "GemmaTokenizer",
            _gemma,
            {"unk_token": "<unk>", "bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "mask_token": "<mask>"},
        ),
        TokenizerClass(
            "GPT2Tokenizer", _gpt2, {"unk_token": _END, "bos_token": _END, "eos_token": _END, "pad_token": None}, reads_vocab=True
        ),
        TokenizerClass(
            "GPTNeoXTokenizer",
            _gpt_neox,
            {"unk_token": _END, "bos_token": _END, "eos_token": _END, "pad_token": "<|padding|>"},
            drops_post_processor=True,
        ),
        TokenizerClass(
            "Qwen2Tokenizer",
            _qwen2,
            {"unk_token": _END, "bos_token": None, "eos_token": _END, "pad_token": _END},
            reads_vocab=True,
            adds_special=True,
        ),
        TokenizerClass("Qwen3_5Tokenizer", _qwen3_5, {"unk_token": _END, "bos_token": None, "eos_token": _END, "pad_token": _END}),
    )
}
_GENERAL = ("TokenizersBackend", "PreTrainedTokenizer", "PreTrainedTokenizerFast", "PythonBackend", "BloomTokenizer")
_UNBELIEVED = ("qwen2", "qwen3_5")  # transformers does not believe which class files of these name
_OF_MODEL = {
    "gemma2": "GemmaTokenizer",
    "gemma3_text": "GemmaTokenizer",
    "gpt2": "GPT2Tokenizer",
    "gpt_neox": "GPTNeoXTokenizer",
    "granite": "TokenizersBackend",
    "phi3": "TokenizersBackend",
    "qwen2": "Qwen2Tokenizer",
    "qwen3": "Qwen2Tokenizer",
    "qwen3_5": "Qwen3_5Tokenizer",
    "qwen3_5_text": "Qwen3_5Tokenizer",
    "mistral": "TokenizersBackend",
    "olmo2": "TokenizersBackend",
    "olmo3": "TokenizersBackend",
}


def choose_class(settings: Mapping, raw: Mapping, text: str) -> TokenizerClass:
    """The class for tokenizer_config.json `settings`, config.json `raw` and the text of tokenizer.json.

    ModelError for a class that is not known here, or that comes with code of its own.
    """
    automatic = settings.get("auto_map")
    if isinstance(automatic, dict):
        automatic = automatic.get("AutoTokenizer")
    if automatic is not None:
        raise ModelError(f"auto_map = {automatic!r} is not supported (a tokenizer with code of its own); accepted: {', '.join(CLASSES)}")
    declared, model_type = settings.get("tokenizer_class"), raw.get("model_type")
    if declared is None:
        declared = raw.get("tokenizer_class")
    if declared is None:
        return CLASSES[_OF_MODEL.get(model_type, PLAIN.name)]
    check_choice("tokenizer_class", declared, [fast for name in (*CLASSES, *_GENERAL) for fast in (name, f"{name}Fast")])
    name = declared.removesuffix("Fast")
    if name == "LlamaTokenizer" and model_type not in _UNBELIEVED and '"ByteLevel"' in text:
        return PLAIN  # Llama 3's vocabulary under Llama 2's class
    own = _OF_MODEL.get(model_type)
    if own == PLAIN.name:
        return PLAIN
    if own is not None and (model_type in _UNBELIEVED or name in _GENERAL):
        # nor does transformers use the general class for its name alone
        return CLASSES[own] if model_type in _UNBELIEVED else PLAIN
    return PLAIN if name in _GENERAL else CLASSES[name]
