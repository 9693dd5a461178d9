"""The tokenizer of a Hugging Face directory, with the ids that transformers' AutoTokenizer gives.

1. The class is chosen from tokenizer_config.json and config.json.
2. The backend is tokenizer.json as it is, or its vocabulary and merges in the pipeline that the class makes.
3. Tokens named in tokenizer_config.json, special_tokens_map.json and added_tokens.json are added to it.

What transformers would read and this does not is refused, naming file and key.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer as Backend
from tokenizers import processors

from .config import ModelConfig
from .errors import ModelError
from .hf_special_tokens import read_special_tokens
from .hf_tokenizer_class import CLASSES, choose_class
from .json_file import MAX_TOKENIZER_BYTES, MAX_TOKENIZER_VALUES, read_json
from .tokenizer import Tokenizer

TOKENIZER, SETTINGS = "tokenizer.json", "tokenizer_config.json"
_CONVERTED = ("tekken.json", "tokenizer.model", "tiktoken.model", "spiece.model", "sentencepiece.bpe.model", "vocab.txt")


def directory_tokenizer(path: Path, config: ModelConfig) -> Tokenizer | None:
    """The tokenizer of a Hugging Face directory, or None if it has none; ModelError naming what is not supported."""
    path = Path(path)
    if not (path / TOKENIZER).is_file():
        for name in _CONVERTED:
            if (path / name).is_file():
                raise ModelError(
                    f"{path / name}: a tokenizer without {TOKENIZER} is not supported; accepted: {TOKENIZER} "
                    f"(AutoTokenizer.from_pretrained(...).save_pretrained(...) writes it), or vocab.json with "
                    f"merges.txt"
                )
        if not (path / "vocab.json").is_file():
            return None
    return _read(path, config)


def _read(path, config):
    settings, legacy, added, raw = (
        _object(path / name) for name in (SETTINGS, "special_tokens_map.json", "added_tokens.json", "config.json")
    )
    text, content = _content(path / TOKENIZER)
    where = path / SETTINGS
    around = {key: settings.pop(key, None) for key in ("add_bos_token", "add_eos_token")}
    try:
        _refuse_settings(settings, legacy, around, raw)
        kind = choose_class(settings, raw, text)
        backend = _backend(path, kind, settings, text, content)
        special = read_special_tokens(settings, legacy, added, content, kind.special, _padding_token(content))
    except ModelError as error:
        named = str(error).startswith(str(path))
        other = str(error).startswith(("special_tokens_map.json: ", "added_tokens.json: ", "tokenizer.json: "))
        raise ModelError(error if named else f"{path}/{error}" if other else f"{where}: {error}") from error
    special.add_to(backend, again=kind.adds_special)
    names = special.names()
    if backend.post_processor is None or kind.drops_post_processor:
        # without tokenizer.json the settings say what is put around a text; with it, its post-processor does
        wanted = {} if content else around
        put_around(backend, *(names.get(f"{part}_token") if wanted.get(f"add_{part}_token") else None for part in ("bos", "eos")))
    ids = {name: backend.token_to_id(token) for name, token in names.items()}
    return Tokenizer(
        backend,
        config.bos_token_id,
        config.eos_token_id,
        limit=config.vocab_size,
        special_ids=ids,
        clean_up=_cleans_up(settings, backend),
        where=str(path / TOKENIZER),
    )


def _object(file):
    """The object in a JSON file, empty if there is no such file."""
    if not file.is_file():
        return {}
    value = read_json(file, MAX_TOKENIZER_BYTES, MAX_TOKENIZER_VALUES)
    if not isinstance(value, dict):
        raise ModelError(f"{file}: must hold an object")
    return value


def _content(file):
    """(text, parsed) of tokenizer.json, or ("", None)."""
    if not file.is_file():
        return "", None
    try:
        text = file.read_bytes().decode("utf-8")
        content = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{file}: cannot be read ({str(error)[:200]})") from error
    if not isinstance(content, dict):
        raise ModelError(f"{file}: must hold an object")
    return text, content


def _refuse_settings(settings, legacy, around, raw):
    for key, value in around.items():
        if value is not None and not isinstance(value, bool):
            raise ModelError(f"{key} = {value!r} must be true or false")
        if key in legacy:
            raise ModelError(f"special_tokens_map.json: {key} = {legacy[key]!r} is not supported; accepted: absent")
    for key in ("init_inputs", "fast_tokenizer_files", "gguf_file", "tokenizer_object"):
        if settings.get(key):
            raise ModelError(f"{key} = {settings[key]!r} is not supported; accepted: absent")
    if settings.get("split_special_tokens", False) is not False:
        raise ModelError(f"split_special_tokens = {settings['split_special_tokens']!r} is not supported; accepted: false")
    if settings.get("fix_mistral_regex") and raw.get("model_type") == "mistral":
        raise ModelError("fix_mistral_regex = true is not supported: save the tokenizer as transformers has mended it")


def _backend(path, kind, settings, text, content):
    file = path / TOKENIZER
    try:
        stored = None if content is None else Backend.from_str(text)
    except Exception as error:  # the tokenizers package raises plain Exception
        raise ModelError(f"{file}: not a tokenizer that the tokenizers package reads ({str(error)[:200]})") from error
    if kind.build is None:
        if stored is None:
            raise ModelError(
                f"{path}: vocab.json without {TOKENIZER} is not supported for tokenizer_class = {kind.name}; accepted "
                f"for: {', '.join(name for name, other in CLASSES.items() if other.reads_vocab)}"
            )
        return stored
    try:
        backend = kind.build(*_vocabulary(path, kind, content), settings)
    except (ModelError, KeyError):
        raise
    except Exception as error:
        raise ModelError(f"{file}: {kind.name} cannot be built of it ({str(error)[:200]})") from error
    if stored is not None:
        backend.post_processor = stored.post_processor
    return backend


def _vocabulary(path, kind, content):
    """(vocabulary, merges) for a class that builds its own BPE from them."""
    if content is None:
        files = [path / "vocab.json", path / "merges.txt"]
        if not kind.reads_vocab or not files[1].is_file():
            raise ModelError(
                f"{path}: vocab.json without {TOKENIZER} needs merges.txt and is read for tokenizer_class = "
                f"{', '.join(name for name, other in CLASSES.items() if other.reads_vocab)}, not {kind.name}"
            )
        return _object(files[0]), _merges(files[1])
    model = content.get("model")
    if not isinstance(model, dict) or model.get("type") != "BPE" or not isinstance(model.get("vocab"), dict):
        found = model.get("type") if isinstance(model, dict) else model
        raise ModelError(f"{path / TOKENIZER}: model.type = {found!r} is not supported for tokenizer_class = {kind.name}; accepted: BPE")
    merges = model.get("merges", [])
    return model["vocab"], [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in merges]


def _merges(file):
    """The pairs of a merges.txt: one a line, with a space between them, below a line that names the version."""
    try:
        lines = file.read_bytes().decode("utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise ModelError(f"{file}: cannot be read ({str(error)[:200]})") from error
    merges = [
        tuple(line.removesuffix("\r").split(" ")) for line in lines[: len(lines) - (not lines[-1])] if not line.startswith("#version")
    ]
    for number, merge in enumerate(merges):
        if len(merge) != 2:
            raise ModelError(f"{file}: merge {number} is {' '.join(merge)!r}; accepted: two tokens with a space between them")
    return merges


def _padding_token(content):
    """The token that a padding section makes a special one, although nothing is padded."""
    padding = (content or {}).get("padding")
    return None if padding is None else padding.get("pad_token")


def put_around(backend: Backend, begin: str | None, end: str | None) -> None:
    """A post-processor that begins and ends a text with these tokens."""
    single = " ".join([*([f"{begin}:0"] if begin else []), "$A:0", *([f"{end}:0"] if end else [])])
    around = dict.fromkeys(token for token in (begin, end) if token)
    backend.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[(token, backend.token_to_id(token)) for token in around]
    )


def _cleans_up(settings, backend):
    key = "clean_up_tokenization_spaces"
    forced = settings.get(f"{key}_for_bpe_even_though_it_will_corrupt_output", False)
    return bool(settings.get(key, False)) and (bool(forced) or type(backend.model).__name__ != "BPE")
