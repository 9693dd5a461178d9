"""The same ids as transformers, spans that tile the text, and tokenizers rebuilt from GGUF metadata."""

import json
import random

import pytest
from gguf_files import write_gguf
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend

from dynadapt.model import ModelError, Tokenizer, load, random_model, tiny_config
from dynadapt.model.convert import write_directory

TEXTS = [
    "",
    " ",
    "a",
    "Hello world",
    "  two leading spaces",
    "trailing  ",
    "tabs\tand\t\ttabs",
    "line\nline\n\n\nline",
    "CRLF\r\nCRLF\r\n",
    "digits 0 12 345 67890123456789",
    "3.14159e-10 1,000,000",
    "don't we'll I'd 'tis O'Neill's",
    "naïve café déjà",
    "e\u0301 combining a\u0308o\u0302",
    "\u0301lone combining",
    "emoji 🙂👩‍👩‍👧‍👦🇩🇪",
    "汉字 漢字かな交じり文 한국어",
    "العربية עברית हिन्दी ไทย",
    "\x00\x01\x07\x1b\x7f control",
    "\u200b\u200d\ufeff\u2028\u2029",
    "ﬁ ligature Å Å",
    "def f(x):\n    return x**2  # comment\n",
    "<|endoftext|> spelled out <s> </s>",
    "a<|endoftext|>b",
    "https://example.org/a?b=c&d=%20",
    "ẞßſ İı",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈",
    "\u00a0nbsp\u00a0",
    "x" * 300,
    "—dashes–and…dots",
    "½ ² Ⅷ ٣٤ ４２",
]
BYTES = list(pre_tokenizers.ByteLevel.alphabet())
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def corpus():
    return [text for text in TEXTS for _ in range(3)] + [
        "the quick brown fox jumps over the lazy dog, don't it? " * 4,
        "1234 5678 naïve 汉字 🙂",
    ]


def byte_level(pre):
    """A small trained byte-level BPE as the models with pre-tokenizer `pre` define theirs."""
    backend = Backend(models.BPE(ignore_merges=pre == "llama-bpe"))
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if pre == "gpt-2":
        backend.pre_tokenizer = plain
        backend.post_processor = processors.ByteLevel(trim_offsets=True)
    elif pre == "smollm":
        backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), plain])
    else:
        split = pre_tokenizers.Split(Regex(WORDS % ("{1,3}" if pre == "llama-bpe" else "")), behavior="isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    if pre == "qwen2":
        backend.normalizer = normalizers.NFC()
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        corpus(),
        trainers.BpeTrainer(vocab_size=500, special_tokens=["<|endoftext|>", "<|im_start|>"], initial_alphabet=BYTES, show_progress=False),
    )
    return backend


def sentencepiece():
    """A small SentencePiece-like BPE with byte fallback, as transformers makes it of a Llama 2's files; its ids after the bytes are in
    merge order, as its scores say."""
    first = ["<unk>", "<s>", "</s>"] + [f"<0x{i:02X}>" for i in range(256)]
    backend = Backend(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", left=1)])
    backend.train_from_iterator(
        [line for text in corpus() for line in text.split("\n") if text.isascii()],
        trainers.BpeTrainer(vocab_size=500, special_tokens=first, show_progress=False),
    )
    content = json.loads(backend.to_str())
    content["added_tokens"] = content["added_tokens"][:3]
    return Backend.from_str(json.dumps(content))


KINDS = {
    "gpt-2": "GPT2Tokenizer",
    "smollm": "PreTrainedTokenizerFast",
    "qwen2": "Qwen2Tokenizer",
    "llama-bpe": "PreTrainedTokenizerFast",
    "spm": "PreTrainedTokenizerFast",
}


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def backend(kind):
    return sentencepiece() if kind == "spm" else byte_level(kind)


@pytest.fixture(scope="module")
def directory(kind, backend, tmp_path_factory):
    """A tiny model directory with this tokenizer, as transformers expects one."""
    path = tmp_path_factory.mktemp("tokenizer") / kind
    config = tiny_config({"gpt-2": "gpt2", "qwen2": "qwen2"}.get(kind, "llama"), vocab_size=backend.get_vocab_size())
    write_directory(random_model(config, tokenizer=Tokenizer(backend, 0, 1)), path)
    settings = json.loads((path / "tokenizer_config.json").read_text())
    (path / "tokenizer_config.json").write_text(json.dumps(settings | {"tokenizer_class": KINDS[kind]}))
    return path


def random_texts(count, seed=0):
    pick = random.Random(seed)
    letters = "ab \t\n\r019.,'’é\u0301漢🙂\u200dءß\x00-_<|>s"
    return ["".join(pick.choice(letters) for _ in range(pick.randrange(1, 40))) for _ in range(count)]


def check_against(tokenizer, reference, texts):
    for text in texts:
        ids = tokenizer.encode(text)
        assert ids == reference(text, add_special_tokens=False)["input_ids"], repr(text)
        assert_tiles(tokenizer, text, ids)


def assert_tiles(tokenizer, text, ids):
    same, spans = tokenizer.encode_offsets(text)
    assert same == ids and len(spans) == len(ids)
    done = 0
    for start, end in spans:
        assert start <= done <= end <= len(text)
        done = end
    assert done == len(text) or not ids


def test_same_ids_as_transformers(directory):
    import transformers

    tokenizer = load(directory).tokenizer
    check_against(tokenizer, transformers.AutoTokenizer.from_pretrained(directory), TEXTS + random_texts(300))


def test_round_trip_of_text(kind, directory):
    tokenizer = load(directory).tokenizer
    for text in TEXTS:
        if kind == "qwen2" and normalizers.NFC().normalize_str(text) != text or kind == "spm" and text.startswith(" "):
            continue  # normalised; a space at the start stands for the one that is put there
        assert tokenizer.decode(tokenizer.encode(text)) == text, repr(text)


def gguf_metadata(kind, backend):
    vocab = sorted(backend.get_vocab().items(), key=lambda item: item[1])
    tokens = [token for token, _ in vocab]
    special = {token.content for token in backend.get_added_tokens_decoder().values()}
    metadata = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": [3 if token in special else 1 for token in tokens]}
    if kind == "spm":
        return metadata | {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.scores": [-float(i) for i in range(len(tokens))],
            "tokenizer.ggml.unknown_token_id": 0,
        }
    merges = json.loads(backend.to_str())["model"]["merges"]
    return metadata | {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": kind,
        "tokenizer.ggml.merges": [" ".join(merge) for merge in merges],
    }


@pytest.fixture(scope="module")
def gguf_file(kind, backend, tmp_path_factory):
    config = tiny_config({"gpt-2": "gpt2", "qwen2": "qwen2"}.get(kind, "llama"), vocab_size=backend.get_vocab_size())
    return write_gguf(random_model(config), tmp_path_factory.mktemp("gguf") / f"{kind}.gguf", metadata=gguf_metadata(kind, backend))


def test_gguf_rebuilds_the_same_tokenizer(backend, gguf_file):
    rebuilt, original = load(gguf_file).tokenizer, Tokenizer(backend)
    assert rebuilt.vocab_size == original.vocab_size and (rebuilt.bos_id, rebuilt.eos_id) == (0, 1)
    for text in TEXTS + random_texts(300, seed=1):
        assert rebuilt.encode(text) == original.encode(text), repr(text)
        assert rebuilt.decode(rebuilt.encode(text)) == original.decode(original.encode(text)), repr(text)


def test_gguf_tokenizer_against_transformers_own(kind, gguf_file):
    """transformers rebuilds these too; where it leaves out what the model's own tokenizer does, texts that show it are left out.

    It does not split digits for smollm, has no NFC for qwen2, and no whole-word look-up for llama-bpe.
    """
    import transformers

    reference = transformers.AutoTokenizer.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name)
    tokenizer = load(gguf_file).tokenizer
    texts = TEXTS + random_texts(100, seed=2)
    if kind == "smollm":
        texts = [text for text in texts if not any(char.isnumeric() for char in text)]
    elif kind == "qwen2":
        texts = [text for text in texts if normalizers.NFC().normalize_str(text) == text]
    elif kind == "llama-bpe":
        texts = [text for text in texts if tokenizer.encode(text) == without_lookup(tokenizer).encode(text)]
        assert len(texts) > 100
    check_against(tokenizer, reference, texts)


def without_lookup(tokenizer):
    content = json.loads(tokenizer.backend.to_str())
    content["model"]["ignore_merges"] = False
    return Tokenizer(Backend.from_str(json.dumps(content)))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"tokenizer.ggml.model": "bert"}, "tokenizer.ggml.model = 'bert' is not supported; accepted: gpt2, llama"),
        ({"tokenizer.ggml.pre": "tekken"}, "tokenizer.ggml.pre = 'tekken' is not supported; accepted: gpt-2"),
        ({"tokenizer.ggml.pre": None}, "tokenizer.ggml.pre = None"),
        ({"tokenizer.ggml.tokens": ["a", "a"]}, "2 tokens .1 different."),
        ({"tokenizer.ggml.tokens": [1, 2]}, "tokens must be a list of strings"),
        ({"tokenizer.ggml.merges": ["ab"]}, "pairs of tokens"),
        ({"tokenizer.ggml.merges": ["zz yy"]}, "cannot be built"),
        ({"tokenizer.ggml.token_type": [1]}, "token_type must have a number"),
    ],
)
def test_gguf_tokenizer_refused_by_name(change, message, tmp_path):
    backend = byte_level("qwen2")
    model = random_model(tiny_config("llama", vocab_size=500))
    path = write_gguf(model, tmp_path / "tiny.gguf", metadata=gguf_metadata("qwen2", backend) | change)
    loaded = load(path)
    with pytest.raises(ModelError, match=message) as caught:
        loaded.tokenizer
    assert str(path) in str(caught.value)


def test_unusable_text_and_ids(backend):
    tokenizer = Tokenizer(backend, limit=100)
    with pytest.raises(ValueError, match="not valid Unicode"):
        tokenizer.encode("lone \ud800 surrogate")
    with pytest.raises(ValueError, match="text is a int"):
        tokenizer.encode(3)
    with pytest.raises(ModelError, match="vocabulary ends at 99"):
        for text in TEXTS:
            tokenizer.encode(text)


def test_truncation_and_padding_are_off(backend):
    backend = Backend.from_str(backend.to_str())
    backend.enable_truncation(4)
    backend.enable_padding(length=10)
    assert len(Tokenizer(backend).encode("one two three four five six seven")) > 4
    assert len(Tokenizer(backend).encode("a")) < 10


def test_a_fingerprint_is_of_what_decides_the_ids(backend):
    """Not of how the file is written, nor of what only cuts, pads, decodes or stands around a text."""
    content = json.loads(backend.to_str())
    fingerprint = Tokenizer(Backend.from_str(json.dumps(content)), 0, 1).fingerprint()

    def changed(change, bos=0, eos=1):
        other = json.loads(backend.to_str())
        change(other)
        return Tokenizer(Backend.from_str(json.dumps(other, indent=3)), bos, eos).fingerprint()

    def reverse_keys(other):
        for part in (other, other["model"]):
            for key in list(part)[::-1]:
                part[key] = part.pop(key)

    assert len(fingerprint) == 64 and int(fingerprint, 16)
    old = {"merges": [" ".join(merge) for merge in content["model"]["merges"]]}  # how older files write them
    padding = {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0, "pad_token": "x"}
    for same in (
        lambda other: None,
        reverse_keys,
        lambda other: other["model"].update(old),
        lambda other: other.update(decoder=None),
        lambda other: other.update(padding=padding),
        lambda other: other.update(post_processor=None),
    ):
        assert changed(same) == fingerprint
    swap = lambda items: items[2:3] + items[:2] + items[3:]  # noqa: E731
    others = [
        changed(lambda other: other["model"].update(merges=swap(content["model"]["merges"]))),
        changed(lambda other: other["added_tokens"][1].update(rstrip=True)),
        changed(lambda other: other["added_tokens"].pop()),
        changed(lambda other: other.update(normalizer={"type": "Lowercase"})),
        changed(lambda other: None, eos=2),
        changed(lambda other: other.update(pre_tokenizer={"type": "Whitespace"})),
        changed(lambda other: None, bos=None),
    ]
    assert len({fingerprint, *others}) == 1 + len(others)


def test_broken_tokenizer_file(tmp_path):
    write_directory(random_model(tiny_config("llama")), tmp_path / "tiny")
    for content in (b"", b"{}", b"\xff", b'{"model": {"type": "BPE"}}'):
        (tmp_path / "tiny/tokenizer.json").write_bytes(content)
        with pytest.raises(ModelError, match="tokenizer.json"):
            load(tmp_path / "tiny").tokenizer


@pytest.mark.model
def test_smollm2_same_ids_as_transformers(smollm2_directory):
    from pydoc_data import topics

    import transformers

    tokenizer = load("smollm2-135m").tokenizer
    reference = transformers.AutoTokenizer.from_pretrained(smollm2_directory)
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id) == (49152, 1, 2)
    check_against(tokenizer, reference, TEXTS + random_texts(300) + list(topics.topics.values())[:20])
    pieces = [tokenizer.decode([id]) for id in tokenizer.encode("In 1984 we'll go")]
    assert pieces == ["In", " ", "1", "9", "8", "4", " we", "'ll", " go"]
