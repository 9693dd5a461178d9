"""Tokenizers in GGUF files whose token types, names and scores vary: transformers' own ids, in memory in proportion to the file."""

import json
import random
import subprocess
import sys
import time

import pytest
from gguf_files import write_gguf
from test_hf_tokenizer import SPECIAL, texts
from test_tokenizer import KINDS, byte_level, gguf_metadata, sentencepiece, without_lookup
from tokenizers import AddedToken, normalizers, pre_tokenizers

from dynadapt.model import ModelError, load, random_model, tiny_config

transformers = pytest.importorskip("transformers")

FAMILY = {"gpt-2": "gpt2", "qwen2": "qwen2"}
ALPHABET = set(pre_tokenizers.ByteLevel.alphabet())
KEY = "tokenizer.ggml."


@pytest.fixture(scope="module")
def stored():
    return {kind: sentencepiece() if kind == "spm" else byte_level(kind) for kind in KINDS}


def mutated(pick, kind, backend):
    """Metadata with some tokens replaced, retyped and named."""
    metadata = gguf_metadata(kind, backend)
    tokens, types = metadata[KEY + "tokens"], metadata[KEY + "token_type"]
    possible = [*SPECIAL, "▁▁", "  ", "▁cat", "<u>"]
    for token in (pick.choice(possible) for _ in range(pick.randrange(5))):
        if kind != "spm" and not set(token) <= ALPHABET:
            continue  # transformers spells it in bytes and no longer finds it; see below
        if token not in tokens:
            replaced, at = set(tokens), pick.randrange(len(tokens) - 60, len(tokens))
            replaced, tokens[at] = tokens[at], token
            if kind != "spm":
                metadata[KEY + "merges"] = [
                    merge for merge in metadata[KEY + "merges"] if replaced not in (*merge.split(" "), merge.replace(" ", ""))
                ]
        types[tokens.index(token)] = pick.choice([1, 2, 3, 4, 4, 5])
    for _ in range(pick.randrange(3)):
        metadata[f"{KEY}{pick.choice(['bos', 'eos', 'unknown', 'padding'])}_token_id"] = pick.randrange(len(tokens))
    for part in ("bos", "eos"):
        if pick.random() < 0.3:
            metadata[f"{KEY}add_{part}_token"] = pick.random() < 0.5
    if kind == "spm" and pick.random() < 0.3:
        metadata[KEY + "scores"] = [-float(pick.randrange(60)) for _ in tokens]  # many of the same score
    return metadata


def model_file(path, kind, metadata):
    model = random_model(tiny_config(FAMILY.get(kind, "llama"), vocab_size=len(metadata[KEY + "tokens"])))
    return write_gguf(model, path, metadata=metadata)


def as_the_model_does(kind, tokenizer, text):
    """Whether transformers does with a text what the model's own tokenizer does."""
    if "<|endoftext|>" in text and tokenizer.backend.token_to_id("<|endoftext|>") is None:
        return False  # transformers makes it a token of its own, beyond the vocabulary
    if kind == "smollm":
        return not any(char.isnumeric() for char in text)
    if kind == "qwen2":
        return normalizers.NFC().normalize_str(text) == text
    return kind != "llama-bpe" or tokenizer.encode(text) == without_lookup(tokenizer).encode(text)


def check_seed(seed, stored, path):
    pick = random.Random(seed)
    kind = pick.choice(["spm", "spm", "spm", *KINDS])
    file = model_file(path / "tiny.gguf", kind, mutated(pick, kind, stored[kind]))
    reference = transformers.AutoTokenizer.from_pretrained(path, gguf_file=file.name)
    tokenizer = load(file).tokenizer
    for text in [*texts(seed), "  two", " one", "the  cat", "a▁▁b", "<u>x <u> y"]:
        if not as_the_model_does(kind, tokenizer, text):
            continue
        for around in (False, True):
            ids = reference(text, add_special_tokens=around)["input_ids"]
            assert tokenizer.encode(text, add_special_tokens=around) == ids, (seed, kind, text, around)


def test_generated_files_give_transformers_ids(stored, tmp_path):
    end = time.monotonic() + 6
    for seed in range(60):
        check_seed(seed, stored, tmp_path)
        if seed > 10 and time.monotonic() > end:
            break


@pytest.mark.slow
def test_generated_files_at_length(stored, tmp_path):
    for seed in range(1000, 4000):
        check_seed(seed, stored, tmp_path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("token", ["<|im end|>", "▁▁▁▁▁u", "\n\n\t", "é<u>"])
def test_user_defined_tokens_are_matched_as_they_are_spelled(kind, token, stored, tmp_path):
    """As the model's own tokenizer.json does, which has them as added tokens."""
    metadata = gguf_metadata(kind, stored[kind])
    metadata[KEY + "tokens"].append(token)
    metadata[KEY + "token_type"].append(4)
    if kind == "spm":
        metadata[KEY + "scores"].append(-1e4)
    tokenizer = load(model_file(tmp_path / "tiny.gguf", kind, metadata)).tokenizer
    original = type(stored[kind]).from_str(stored[kind].to_str())
    original.add_tokens([AddedToken(token, special=False, normalized=False)])
    for text in (token, f"the cat{token} sat", f"  {token}{token}x", *texts(5)):
        assert tokenizer.encode(text) == original.encode(text, add_special_tokens=False).ids, text
    assert len(metadata[KEY + "tokens"]) - 1 in tokenizer.encode(f"the{token}")


def test_no_space_prefix(stored, tmp_path):
    content = json.loads(stored["spm"].to_str())
    content["pre_tokenizer"]["prepend_scheme"] = "never"
    original = type(stored["spm"]).from_str(json.dumps(content))
    metadata = gguf_metadata("spm", stored["spm"]) | {KEY + "add_space_prefix": False}
    tokenizer = load(model_file(tmp_path / "tiny.gguf", "spm", metadata)).tokenizer
    for text in texts(6, 40):
        assert tokenizer.encode(text) == original.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(tokenizer.encode(" the cat")) == " the cat"


@pytest.mark.parametrize(
    "change, message",
    [
        ({"add_space_prefix": 3}, "add_space_prefix = 3 must be true or false"),
        ({"add_bos_token": 1}, "add_bos_token = 1 must be true or false"),
        ({"unknown_token_id": 10**6}, "unknown_token_id = 1000000 must be a token id"),
        ({"merges": ["abc"]}, "merges must be pairs"),
        ({"scores": [0.0]}, "scores must be"),
        ({"scores": None}, "scores must be"),
    ],
)
def test_what_is_refused_by_name(change, message, stored, tmp_path):
    metadata = gguf_metadata("spm", stored["spm"]) | {KEY + key: value for key, value in change.items()}
    path = model_file(tmp_path / "tiny.gguf", "spm", metadata)
    with pytest.raises(ModelError, match=f"{path}: tokenizer.ggml.{message}"):
        load(path).tokenizer


def test_a_byte_without_a_token_is_refused(stored, tmp_path):
    metadata = gguf_metadata("spm", stored["spm"])
    metadata[KEY + "tokens"][metadata[KEY + "tokens"].index("<0x41>")] = "other"
    with pytest.raises(ModelError, match="tokens lacks <0x41>"):
        load(model_file(tmp_path / "tiny.gguf", "spm", metadata)).tokenizer


PEAK = """
import resource, sys
from dynadapt.model import ModelError, load
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
models, before = [load(path) for path in sys.argv[1:]], peak()
for model in models:
    try:
        said = f"tokens {len(model.tokenizer.encode('the cat'))}"
    except ModelError as error:
        said = str(error)
    print(peak() - before, said)
"""


def test_memory_is_in_proportion_to_the_file(stored, tmp_path):
    """Tokens of tens of thousands of characters, or made of each other in very many ways: some MB more, whatever they are."""
    cases = [
        (["a" * 60_000], "tokens"),
        (["ab" * 30_000, "ab" * 15_000, "b" * 50_000], "tokens"),
        (["q" * count for count in range(2, 1200)], "made of each other in more ways than is supported"),
    ]
    paths = []
    for number, (more, _) in enumerate(cases):
        metadata = gguf_metadata("spm", stored["spm"])
        metadata[KEY + "tokens"] += more
        metadata[KEY + "token_type"] += [1] * len(more)
        metadata[KEY + "scores"] = [-float(i) for i in range(len(metadata[KEY + "tokens"]))]
        paths.append(model_file(tmp_path / f"{number}.gguf", "spm", metadata))
    done = subprocess.run([sys.executable, "-c", PEAK, *map(str, paths)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for line, (_, said) in zip(done.stdout.splitlines(), cases, strict=True):
        megabytes, told = line.split(" ", 1)
        assert said in told and int(megabytes) < 60, line
