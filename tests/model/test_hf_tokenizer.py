"""Tokenizers of Hugging Face directories: transformers' own ids for any file that loads, or a refusal by name."""

import json
import logging
import os
import random
import subprocess
import sys
import time

import pytest
from tiny import tiny_directory
from tiny_tokenizers import KINDS, template
from tokenizers import Tokenizer as Backend

from dynadapt.model import ModelError, Tokenizer, describe, load, random_model, tiny_config
from dynadapt.model.convert import write_directory
from dynadapt.model.hf_config import config_to_hf
from dynadapt.model.hf_tokenizer import directory_tokenizer
from dynadapt.runs import text as text_module
from dynadapt.runs.text import Source, TextError, TokenReader, streaming_tokenizer
from dynadapt.runs.texts import source as source_module

transformers = pytest.importorskip("transformers")

FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "config.json")
SPECIAL = ["<s>", "</s>", "<unk>", "<|endoftext|>", "<|x|>", "<pad>", "[MASK]", "cat", " sat", "▁the", "<image>", "<|im end|>", "é", "\n\n"]


@pytest.fixture(scope="module")
def stored():
    """kind -> the tokenizer.json of a small tokenizer."""
    return {kind: json.loads(make().to_str()) for kind, make in KINDS.items()}


# ---- seeded edits of the files


def a_token(pick, flags=True):
    token = pick.choice(SPECIAL)
    if not flags or pick.random() < 0.4:
        return token
    return {"__type": "AddedToken", **token_flags(pick, token)}


def token_flags(pick, token):
    entry = {"content": token, **{flag: pick.random() < 0.3 for flag in ("lstrip", "rstrip", "normalized", "single_word")}}
    if pick.random() < 0.2:
        del entry["normalized"]
    return entry


def some(pick, make, most=3):
    return [make() for _ in range(pick.randrange(most + 1))]


def next_id(content):
    vocab = content["model"]["vocab"]
    return max([len(vocab), *(entry["id"] + 1 for entry in content["added_tokens"])])


def edit_tokenizer(pick, content):
    model = content["model"]
    edit = pick.choice(["dropout", "truncation", "padding", "add", "add", "drop", "flags", "post", "normalizer", "pre", "model", "merges"])
    if edit == "dropout":
        model["dropout"] = pick.choice([0.0, 0.1, None])
    elif edit == "truncation":
        content["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    elif edit == "padding":
        content["padding"] = {
            "strategy": {"Fixed": 12},
            "direction": pick.choice(["Left", "Right"]),
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": pick.choice(SPECIAL),
        }
    elif edit == "add":
        token = pick.choice(SPECIAL)
        known = {entry["content"] for entry in content["added_tokens"]}
        if token not in known:
            entry = {"normalized": False, **token_flags(pick, token), "special": pick.random() < 0.5}
            content["added_tokens"].append({"id": id_of(content, token), **entry})
    elif edit == "drop":
        content["added_tokens"] = content["added_tokens"][: pick.randrange(len(content["added_tokens"]) + 1)]
    elif edit == "flags" and content["added_tokens"]:
        pick.choice(content["added_tokens"]).update(
            {pick.choice(["lstrip", "rstrip", "normalized", "single_word", "special"]): pick.random() < 0.5}
        )
    elif edit == "post":
        content["post_processor"] = pick.choice(
            [
                None,
                {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
                template(first_token(content), 0),
            ]
        )
    elif edit == "normalizer":
        content["normalizer"] = pick.choice(
            [
                None,
                {"type": "NFC"},
                {"type": "Lowercase"},
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ]
        )
    elif edit == "pre":
        content["pre_tokenizer"] = pick.choice(
            [
                None,
                {"type": "Digits", "individual_digits": True},
                {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
                {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
            ]
        )
    elif edit == "model" and model["type"] == "BPE":
        model.update(
            pick.choice(
                [
                    {"ignore_merges": True},
                    {"byte_fallback": True},
                    {"fuse_unk": True},
                    {"unk_token": None},
                    {"continuing_subword_prefix": ""},
                ]
            )
        )
    elif edit == "merges" and model["type"] == "BPE":
        model["merges"] = [" ".join(merge) for merge in model["merges"]]


def first_token(content):
    vocab = content["model"]["vocab"]
    return vocab[0][0] if isinstance(vocab, list) else min(vocab, key=vocab.get)


def id_of(content, token):
    vocab = content["model"]["vocab"]
    vocab = {text: i for i, (text, _) in enumerate(vocab)} if isinstance(vocab, list) else vocab
    return vocab.get(token, next_id(content))


CLASSES = [
    "PreTrainedTokenizerFast",
    "TokenizersBackend",
    "PreTrainedTokenizer",
    "LlamaTokenizer",
    "LlamaTokenizerFast",
    "GPT2Tokenizer",
    "GPT2TokenizerFast",
    "Qwen2Tokenizer",
    "Qwen2TokenizerFast",
    "GPTNeoXTokenizerFast",
    "BertTokenizer",
    "T5TokenizerFast",
    None,
    "",
]
READ = [
    "added_tokens_decoder",
    "additional_special_tokens",
    "extra_special_tokens",
    "model_specific_special_tokens",
    "bos_token",
    "image_token",
    "add_prefix_space",
    "legacy",
    "tokenizer_class",
    "add_bos_token",
    "clean_up_tokenization_spaces",
    "split_special_tokens",
    "auto_map",
]
NAMES = ["bos_token", "eos_token", "unk_token", "pad_token", "mask_token", "cls_token", "sep_token", "image_token", "eot_token"]


def edit_settings(pick, settings, content):
    edit = pick.choice(
        ["class", "class", "named", "named", "named", "extra", "extra", "decoder", "decoder", "prefix", "legacy", "bos", "other", "retype"]
    )
    if edit == "class":
        settings["tokenizer_class"] = pick.choice(CLASSES)
    elif edit == "named":
        settings[pick.choice(NAMES)] = pick.choice([None, *(a_token(pick) for _ in range(6))])
    elif edit == "extra":
        key = pick.choice(["additional_special_tokens", "extra_special_tokens"])
        settings[key] = pick.choice([some(pick, lambda: a_token(pick)), {"boi_token": a_token(pick, False)}, None])
    elif edit == "decoder":
        tokens = settings.get("added_tokens_decoder")
        tokens = settings["added_tokens_decoder"] = tokens if isinstance(tokens, dict) else {}
        for token in some(pick, lambda: pick.choice(SPECIAL), 4):
            number = pick.choice([id_of(content, token), id_of(content, token), next_id(content) + pick.randrange(4), pick.randrange(300)])
            tokens[str(number)] = {**token_flags(pick, token), "special": pick.random() < 0.6}
    elif edit == "prefix":
        settings["add_prefix_space"] = pick.choice([True, False, None])
    elif edit == "legacy":
        settings["legacy"] = pick.choice([True, False, None])
    elif edit == "bos":
        settings[pick.choice(["add_bos_token", "add_eos_token"])] = pick.random() < 0.7
    elif edit == "retype":
        settings[pick.choice(READ)] = pick.choice([3, "x", [], {}, True, None, [3], ["<|x|>"], {"a": 1}, {"a_token": "<|x|>"}])
    else:
        settings.update(
            pick.choice(
                [
                    {"split_special_tokens": True},
                    {"clean_up_tokenization_spaces": True},
                    {"model_max_length": 3},
                    {"chat_template": "x"},
                    {"auto_map": {"AutoTokenizer": ["a.B", None]}},
                    {"padding_side": "left"},
                    {"truncation_side": "left"},
                    {"sp_model_kwargs": {}},
                    {"backend": "tokenizers"},
                    {"init_inputs": []},
                    {"clean_up_tokenization_spaces": True, "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output": True},
                ]
            )
        )


def edit_legacy(pick, files):
    if pick.random() < 0.05:
        files.setdefault(pick.choice(["special_tokens_map.json", "added_tokens.json"]), {})[pick.choice(READ)] = pick.choice(
            [3, [], {}, None, [3]]
        )
    elif pick.random() < 0.5:
        names = files.setdefault("special_tokens_map.json", {})
        token = pick.choice([a_token(pick, False), token_flags(pick, pick.choice(SPECIAL))])
        names[pick.choice(NAMES)] = token
        if pick.random() < 0.3:
            names["additional_special_tokens"] = some(pick, lambda: a_token(pick, False))
        if pick.random() < 0.2:
            names["extra_special_tokens"] = pick.choice(
                [some(pick, lambda: a_token(pick, False)), {"boi_token": a_token(pick, False)}, [token_flags(pick, pick.choice(SPECIAL))]]
            )
    else:
        added = files.setdefault("added_tokens.json", {})
        for token in some(pick, lambda: pick.choice(SPECIAL)):
            added[token] = next_id(files["tokenizer.json"]) + len(added)


def edit_config(pick, raw):
    raw.update(
        pick.choice([{"tokenizer_class": pick.choice(CLASSES[:-2])}, {"transformers_version": "4.40.0"}, {"transformers_version": "5.1.0"}])
    )


def mutated(seed, stored):
    """The files of a directory with some edits."""
    pick = random.Random(seed)
    kind = pick.choice(["byte-level", "byte-level", "metaspace", "metaspace", *KINDS])
    family = pick.choice(
        ["llama", "llama", "gpt2", "qwen2", "qwen3", "mistral"] if "BPE" in stored[kind]["model"]["type"] else ["llama", "mistral"]
    )
    raw = config_to_hf(tiny_config("llama" if family == "mistral" else family))
    if family == "mistral":
        raw = {**raw, "model_type": "mistral", "architectures": ["MistralForCausalLM"]}
    files = {"tokenizer.json": json.loads(json.dumps(stored[kind])), "config.json": raw}
    if pick.random() < 0.85:
        files["tokenizer_config.json"] = {"tokenizer_class": pick.choice(CLASSES[:8])} if pick.random() < 0.7 else {}
    for _ in range(pick.randrange(1, 6)):
        where = pick.random()
        if where < 0.35:
            edit_tokenizer(pick, files["tokenizer.json"])
        elif where < 0.8:
            edit_settings(pick, files.setdefault("tokenizer_config.json", {}), files["tokenizer.json"])
        elif where < 0.95:
            edit_legacy(pick, files)
        else:
            edit_config(pick, files["config.json"])
    return files


def write(path, files):
    path.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        (path / name).unlink(missing_ok=True)
        if name in files:
            (path / name).write_text(json.dumps(files[name], ensure_ascii=False), encoding="utf-8")
    return path


PIECES = [
    *SPECIAL,
    "the cat",
    " sat ",
    "don't",
    " 1984",
    "\n\n",
    "  ",
    "naïve",
    "é",
    "e\u0301",
    "漢字",
    "🙂👩‍👧",
    "\x00\x07",
    "\u200b",
    "▁",
    "The CAT",
    "x y,z . !",
]


def texts(seed, count=12):
    pick = random.Random(seed)
    return ["", " ", "the cat<|x|> sat", *("".join(pick.choice(PIECES) for _ in range(pick.randrange(1, 9))) for _ in range(count))]


def theirs(path):
    """transformers' tokenizer, or None where it cannot load it."""
    try:
        return transformers.AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except Exception:  # whatever transformers raises
        return None


def difference(ours, reference, some_texts):
    """What is not transformers' own, or None."""
    for text in some_texts:
        for around in (False, True):
            ids, expected = ours.encode(text, add_special_tokens=around), reference(text, add_special_tokens=around)["input_ids"]
            if ids != expected:
                return f"{text!r} with add_special_tokens={around}: {ids}, transformers {expected}"
            if ours.decode(ids) != reference.decode(ids) or ours.decode(ids, True) != reference.decode(ids, skip_special_tokens=True):
                return f"{ids} decode to {ours.decode(ids)!r}, transformers {reference.decode(ids)!r}"
    for name in ("bos_token", "eos_token", "pad_token"):
        if ours.special_ids.get(name) != getattr(reference, f"{name}_id"):
            return f"{name}: {ours.special_ids.get(name)}, transformers {getattr(reference, f'{name}_id')}"
    return None


def streamed_difference(ours, path, text):
    """What reading `text` in small windows gives other than encoding it whole does, or None; also where it is refused."""
    source = path / "text.txt"
    source.write_bytes(text.encode())
    tokenizer = streaming_tokenizer(ours)
    reader, ids, sizes = TokenReader(Source(str(source)), tokenizer), [], []
    try:
        while len((part := reader.read(100))[0]):
            ids, sizes = ids + part[0].tolist(), sizes + part[1].tolist()
    except TextError as error:
        return None if "can't be streamed" in str(error) else str(error)
    if ids != ours.encode(text):
        return f"streamed ids are not those of the whole of {text!r}"
    if min(sizes) < 0 or sum(sizes) != len(text.encode()):
        return f"bytes {sum(sizes)} of {len(text.encode())}"
    return None


def long_text(seed):
    pick = random.Random(seed)
    return "".join(pick.choice(PIECES) + pick.choice(["", " ", " the "]) for _ in range(150))


def check_seeds(seeds, stored, path, seconds, least=40):
    """(equal, refused, not loaded by transformers) of as many seeds as there is time for, and at least some."""
    write(path, plain_files(stored))
    assert theirs(path) is not None  # and transformers' imports are not timed
    config, counts, end = tiny_config("llama", vocab_size=10**6), [0, 0, 0], time.monotonic() + seconds
    for seed in seeds:
        if sum(counts) >= least and time.monotonic() > end:
            break
        files = mutated(seed, stored)
        write(path, files)
        reference = theirs(path)
        try:
            ours = directory_tokenizer(path, config)
        except ModelError as error:
            assert str(error).startswith(str(path)) and any(name in str(error) for name in FILES), f"seed {seed}: {error}"
            counts[1] += 1
            continue
        if reference is None:
            counts[2] += 1
            continue
        wrong = difference(ours, reference, texts(seed)) or streamed_difference(ours, path, long_text(seed))
        assert wrong is None, f"seed {seed}: {wrong}"
        counts[0] += 1
    return counts


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "level", logging.CRITICAL)


@pytest.fixture(autouse=True)
def small_windows(monkeypatch):
    monkeypatch.setattr(source_module, "CHUNK", 201)
    for name, size in (("WINDOW", 400), ("LOOKAHEAD", 100), ("CONTEXT", 48)):
        monkeypatch.setattr(text_module, name, size)


def test_edited_files_give_transformers_ids_or_are_refused_by_name(stored, tmp_path):
    equal, refused, _ = check_seeds(range(100), stored, tmp_path / "edited", seconds=8)
    assert equal > 25 and refused > 2


@pytest.mark.slow
def test_edited_files_at_length(stored, tmp_path):
    check_seeds(range(1000, 100_000), stored, tmp_path / "edited", seconds=300)


# ---- cases by name


def read(path, files, vocab_size=10**6):
    write(path, files)
    return directory_tokenizer(path, tiny_config("llama", vocab_size=vocab_size))


def plain_files(stored, kind="byte-level", family="llama", **settings):
    return {
        "tokenizer.json": json.loads(json.dumps(stored[kind])),
        "config.json": config_to_hf(tiny_config(family)),
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", **settings},
    }


X = {"content": "<|x|>", "lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config.json": {"added_tokens_decoder": {"400": X}}},
        {"tokenizer_config.json": {"additional_special_tokens": ["<|x|>"]}},
        {"tokenizer_config.json": {"extra_special_tokens": {"x_token": "<|x|>"}}},
        {"tokenizer_config.json": {"eot_token": "<|x|>"}},
        {"tokenizer_config.json": {"pad_token": "<|x|>"}},
        {"added_tokens.json": {"<|x|>": 400}},
        {"special_tokens_map.json": {"eos_token": "<|x|>"}},
        {"special_tokens_map.json": {"additional_special_tokens": ["<|x|>"]}},
    ],
)
def test_a_token_of_any_file_is_recognised_whole(files, stored, tmp_path):
    without = read(tmp_path / "without", plain_files(stored)).encode("the cat<|x|> sat")
    tokenizer = read(tmp_path / "with", plain_files(stored) | files)
    ids, vocab = tokenizer.encode("the cat<|x|> sat"), len(stored["byte-level"]["model"]["vocab"])
    assert ids.count(vocab) == 1 and len(ids) == len(without) - 4
    assert difference(tokenizer, theirs(tmp_path / "with"), texts(1)) is None
    with pytest.raises(ModelError, match=f"id {vocab} .'<.x.>'.*vocabulary ends at {vocab - 1}"):
        read(tmp_path / "with", plain_files(stored) | files, vocab_size=vocab).encode("<|x|>")


def test_dropout_is_refused_where_transformers_would_draw(stored, tmp_path):
    files = plain_files(stored)
    files["tokenizer.json"]["model"]["dropout"] = 0.1
    with pytest.raises(ModelError, match=r"tokenizer.json: model.dropout = 0.1 .* accepted: null or 0"):
        read(tmp_path / "plain", files)
    files["tokenizer_config.json"]["tokenizer_class"] = "GPT2Tokenizer"  # which takes vocabulary and merges only
    assert difference(read(tmp_path / "gpt2", files), theirs(tmp_path / "gpt2"), texts(2)) is None
    backend = Backend.from_str(json.dumps(stored["byte-level"]))
    backend.model.dropout = 0.5
    for use in (Tokenizer, streaming_tokenizer):
        with pytest.raises(ModelError, match="model.dropout = 0.5"):
            use(backend)


@pytest.mark.parametrize("family, name", [("gpt2", "GPT2Tokenizer"), ("qwen2", "Qwen2Tokenizer"), ("llama", "GPT2Tokenizer")])
def test_vocabulary_and_merges_without_tokenizer_json(family, name, stored, tmp_path):
    files = plain_files(stored, family=family, bos_token="<|endoftext|>", add_bos_token=True)
    files["tokenizer_config.json"]["tokenizer_class"] = name
    model = files.pop("tokenizer.json")["model"]
    write(tmp_path, files)
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), encoding="utf-8")
    with pytest.raises(ModelError, match="vocab.json without tokenizer.json needs merges.txt"):
        directory_tokenizer(tmp_path, tiny_config("llama"))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(map(" ".join, model["merges"])) + "\n", encoding="utf-8")
    tokenizer = directory_tokenizer(tmp_path, tiny_config("llama", vocab_size=1000))
    assert difference(tokenizer, theirs(tmp_path), texts(3, 60)) is None
    assert tokenizer.encode("the", add_special_tokens=True)[0] == tokenizer.special_ids["bos_token"]
    (tmp_path / "tokenizer_config.json").write_text("{}")
    if family == "llama":
        with pytest.raises(ModelError, match="vocab.json without tokenizer.json is not supported for tokenizer_class = TokenizersBackend"):
            directory_tokenizer(tmp_path, tiny_config("llama"))


@pytest.mark.parametrize("name", ["tokenizer.model", "spiece.model", "tekken.json", "vocab.txt"])
def test_other_files_alone_are_refused_by_name(name, tmp_path):
    assert directory_tokenizer(tmp_path, tiny_config("llama")) is None
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ModelError, match=f"{name}: a tokenizer without tokenizer.json is not supported"):
        directory_tokenizer(tmp_path, tiny_config("llama"))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"tokenizer_class": "BertTokenizer"}, "tokenizer_class = 'BertTokenizer'"),
        ({"auto_map": {"AutoTokenizer": ["a.B", None]}}, "auto_map"),
        ({"split_special_tokens": True}, "split_special_tokens = True"),
        ({"eos_token": 3}, "eos_token = 3 must be a token"),
        ({"additional_special_tokens": [1]}, "extra_special_tokens = .1. must be a list of tokens"),
        ({"init_inputs": ["a"]}, "init_inputs"),
        ({"added_tokens_decoder": {"x": X}}, "added_tokens_decoder.'x'."),
        ({"added_tokens_decoder": {"7": {"name": "x"}}}, "added_tokens_decoder.'7'."),
        ({"added_tokens_decoder": []}, "added_tokens_decoder = "),
        ({"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": 3}, "add_prefix_space = 3"),
        ({"extra_special_tokens": {"x_token": 3}}, "x_token = 3 must be a token"),
    ],
)
def test_settings_refused_by_name(settings, message, stored, tmp_path):
    with pytest.raises(ModelError, match=f"^{tmp_path}/tokenizer_config.json: .*{message}"):
        read(tmp_path, plain_files(stored, **settings))


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("special_tokens_map.json", {"additional_special_tokens": 3}, "additional_special_tokens = 3"),
        ("special_tokens_map.json", {"bos_token": {"lstrip": True}}, "bos_token = "),
        ("added_tokens.json", {"<|x|>": "4"}, "'<.x.>' = '4'"),
        ("special_tokens_map.json", {"add_bos_token": True}, "add_bos_token = True is not supported"),
    ],
)
def test_older_files_refused_by_name(name, content, message, stored, tmp_path):
    with pytest.raises(ModelError, match=f"^{tmp_path}/{name}: {message}"):
        read(tmp_path, plain_files(stored) | {name: content})


def test_files_that_hold_no_object_are_refused(stored, tmp_path):
    for name in FILES[:-1]:
        for content in ("[]", "{", "3"):
            write(tmp_path, plain_files(stored))
            (tmp_path / name).write_text(content)
            with pytest.raises(ModelError, match=f"{tmp_path}/{name}: "):
                directory_tokenizer(tmp_path, tiny_config("llama"))


def test_a_written_model_keeps_its_special_tokens(stored, tmp_path):
    original = read(tmp_path / "in", plain_files(stored, eos_token="<|x|>", pad_token="<pad>", clean_up_tokenization_spaces=True))
    write_directory(random_model(tiny_config("llama", vocab_size=500), tokenizer=original), tmp_path / "out")
    again = directory_tokenizer(tmp_path / "out", tiny_config("llama", vocab_size=500))
    assert again.special_ids.items() >= original.special_ids.items()
    assert all(again.encode(text) == original.encode(text) for text in texts(4))
    assert difference(again, theirs(tmp_path / "out"), texts(4)) is None


def test_a_refused_tokenizer_does_not_hide_the_model(stored, tmp_path):
    path = tiny_directory(tmp_path / "tiny")
    (path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    model = load(path)
    assert "a tokenizer that is refused: " + str(path) in describe(model)
    with pytest.raises(ModelError, match="BertTokenizer"):
        model.tokenizer


IN_ASCII = """
import json, locale, sys
from pathlib import Path
from dynadapt.model import tiny_config
from dynadapt.model.hf_tokenizer import directory_tokenizer
from dynadapt.text import Source, TokenReader, streaming_tokenizer
assert locale.getpreferredencoding(False) == "ANSI_X3.4-1968", locale.getpreferredencoding(False)
found = []
for path in map(Path, sys.argv[1:]):
    tokenizer = directory_tokenizer(path, tiny_config("llama", vocab_size=1000))
    tokenizer.save(path / "tokenizer.json")
    again = directory_tokenizer(path, tiny_config("llama", vocab_size=1000))
    assert again.fingerprint() == tokenizer.fingerprint()
    found.append(TokenReader(Source(str(path / "text.txt")), streaming_tokenizer(again)).read(10**6)[0].tolist())
print(json.dumps(found))
"""


def test_an_ascii_locale_changes_nothing(stored, tmp_path):
    added = {
        "added_tokens_decoder": {"7": {**X, "content": "\u00e9"}},
        "additional_special_tokens": ["\u6f22\u5b57"],
        "bos_token": "\u2581the",
    }
    files = plain_files(stored, tokenizer_class="GPT2Tokenizer", **added)
    one, two = write(tmp_path / "mod\u00e8le" / "one", files), write(tmp_path / "mod\u00e8le" / "two", files)
    (two / "tokenizer.json").unlink()
    model = files["tokenizer.json"]["model"]
    (two / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), encoding="utf-8")
    (two / "merges.txt").write_text("\n".join(map(" ".join, model["merges"])), encoding="utf-8")
    text = long_text(7)
    for path in (one, two):
        (path / "text.txt").write_bytes(text.encode())
    expected = directory_tokenizer(one, tiny_config("llama", vocab_size=1000)).encode(text)
    env = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run([sys.executable, "-c", IN_ASCII, one, two], capture_output=True, text=True, timeout=200, env=env)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [expected, expected]
