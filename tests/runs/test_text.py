"""Streamed tokenising equals encoding the whole text, in flat memory, and says clearly what it can't read."""

import json
import os
import random
import subprocess
import sys

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from dynadapt.runs import text as text_module
from dynadapt.runs.text import BUILTINS, Source, TextError, TokenReader, split, streaming_tokenizer
from dynadapt.runs.texts import source as source_module

LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CORPUS = [
    BUILTINS["python-reference"]()[:60000],
    "aaaa bbbb    cccc\n\n\n  1234567 Größe 東京は日本の首都です。😀👩‍👩‍👧‍👦 naïve\r\n\r\n\tfoo(bar);" * 20,
]


def _train(tokenizer: Tokenizer, **settings) -> Tokenizer:
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=700, show_progress=False, **settings))
    return tokenizer


def gpt2_like() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer.decoder = decoders.ByteLevel()
    return _train(tokenizer, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<|endoftext|>"])


def digits_like() -> Tokenizer:
    tokenizer = gpt2_like()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return tokenizer


def llama3_like() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(LLAMA3), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    return _train(tokenizer, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<s>"])


def llama2_like() -> Tokenizer:
    """No pre-tokeniser at all: merges may cross words; a space is put in front of the text; unknown characters become bytes."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"▁+[^▁]*|[^▁]+"), "isolated")
    _train(tokenizer, special_tokens=["<unk>", "<s>"] + [f"<0x{i:02X}>" for i in range(256)])
    tokenizer.pre_tokenizer = None
    return tokenizer


TOKENIZERS = {make.__name__: streaming_tokenizer(make()) for make in (gpt2_like, digits_like, llama3_like, llama2_like)}


def test_a_streaming_copy_is_the_tokenizer_but_for_what_cuts_pads_and_surrounds():
    mine = llama3_like()
    mine.enable_truncation(8)
    mine.enable_padding(length=20)
    mine.post_processor = processors.ByteLevel(trim_offsets=True)
    before = json.loads(mine.to_str())
    copy = json.loads(streaming_tokenizer(mine).to_str())
    assert copy == {**before, "post_processor": None, "truncation": None, "padding": None}
    assert json.loads(mine.to_str()) == before and before["truncation"] and before["padding"]


def nasty(kind: str, size: int = 9000) -> str:
    rng = random.Random(kind)
    words = ["the", "and", "größer", "naïve", "x", "12345", "foo(bar);", "東京", "😀", "👩‍👩‍👧‍👦", "e\u0301", "<|endoftext|>", "<s>"]
    text = {
        "words": lambda: " ".join(rng.choice(words) for _ in range(size // 4)),
        "spaces": lambda: "start" + " " * size + "end " + " " * size + "\n",
        "blanks": lambda: "".join(rng.choice(" \n\t\r") for _ in range(size)) + "x",
        "newlines": lambda: "a\n" + "\n" * size + "b",
        "crlf": lambda: "".join(rng.choice(words) + rng.choice([" ", "\r\n", "\r\n\r\n"]) for _ in range(size // 5)),
        "one letter": lambda: "a" * (size + 7),
        "no blanks": lambda: "".join(rng.choice("abcdefghijklmnop") for _ in range(size)),
        "digits": lambda: "".join(rng.choice("0123456789") for _ in range(size)),
        "cjk": lambda: "".join(chr(rng.randrange(0x4E00, 0x9FA5)) for _ in range(size)),
        "emoji": lambda: "".join(rng.choice(["😀", "👩‍👩‍👧‍👦", "🇫🇷", "❤️", "👍🏽"]) for _ in range(size // 3)),
        "combining": lambda: "".join("e\u0301" if rng.random() < 0.5 else "é\u0323" for _ in range(size // 2)),
        "long lines": lambda: "\n".join("word " * (size // 15) for _ in range(3)),
        "any": lambda: "".join(
            chr(rng.choice([rng.randrange(1, 0xD7FF), rng.randrange(0xE000, 0x10FFFF), rng.randrange(32, 127)])) for _ in range(size)
        ),
    }[kind]()
    return text


KINDS = [
    "words",
    "spaces",
    "blanks",
    "newlines",
    "crlf",
    "one letter",
    "no blanks",
    "digits",
    "cjk",
    "emoji",
    "combining",
    "long lines",
    "any",
]


def write(tmp_path, text) -> Source:
    path = tmp_path / "text.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return Source(str(path))


def read_all(reader: TokenReader, step: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    parts = []
    while len((part := reader.read(step))[0]):
        parts.append(part)
    return np.concatenate([ids for ids, _ in parts]), np.concatenate([sizes for _, sizes in parts])


@pytest.fixture
def small_windows(monkeypatch):
    """Many seams in a small text."""
    monkeypatch.setattr(source_module, "CHUNK", 401)
    monkeypatch.setattr(text_module, "WINDOW", 1200)
    monkeypatch.setattr(text_module, "LOOKAHEAD", 300)
    monkeypatch.setattr(text_module, "CONTEXT", 64)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TOKENIZERS)
def test_streamed_ids_are_those_of_the_whole_text(name, kind, tmp_path, small_windows):
    tokenizer, text = TOKENIZERS[name], nasty(kind)
    ids, sizes = read_all(TokenReader(write(tmp_path, text), tokenizer), step=777)
    assert ids.tolist() == tokenizer.encode(text, add_special_tokens=False).ids
    assert (sizes >= 0).all()
    assert int(sizes.sum()) == len(text.encode())


def test_memory_of_a_window_stays_small_on_a_run_without_seams_for_words(tmp_path, small_windows, monkeypatch):
    """A long run of blanks or letters has seams between tokens; the window does not have to grow to hold the run."""
    longest = 0
    encode = text_module._Encoded.__init__

    def watched(self, tokenizer, text):
        nonlocal longest
        longest = max(longest, len(text))
        encode(self, tokenizer, text)

    monkeypatch.setattr(text_module._Encoded, "__init__", watched)
    for kind in ("spaces", "one letter", "no blanks", "cjk"):
        read_all(TokenReader(write(tmp_path, nasty(kind)), TOKENIZERS["gpt2_like"]))
    assert longest < 2500


def test_token_bytes_are_those_of_their_characters(tmp_path):
    tokenizer = TOKENIZERS["gpt2_like"]
    text = "naïve words 😀 and\r\n東京"
    ids, sizes = read_all(TokenReader(write(tmp_path, text), tokenizer))
    pieces = [tokenizer.id_to_token(int(i)) for i in ids]
    whole = [len(p) for p in pieces]  # a byte-level token has one letter a byte
    assert sizes.sum() == sum(whole) == len(text.encode())
    emoji = [i for i, (size, own) in enumerate(zip(sizes, whole)) if size != own]
    assert emoji  # the emoji's bytes are counted at its last token
    for i in range(len(ids)):
        if i not in emoji:
            assert sizes[i] == whole[i]


@pytest.mark.parametrize("position", [0, 1, 399, 400, 1201, 3000])
@pytest.mark.parametrize("kind", ["words", "spaces", "emoji"])
def test_a_reader_goes_on_from_its_state(kind, position, tmp_path, small_windows):
    source, tokenizer = write(tmp_path, nasty(kind)), TOKENIZERS["llama2_like"]
    whole = np.asarray(tokenizer.encode(nasty(kind), add_special_tokens=False).ids)
    position = min(position, len(whole) - 1)
    reader = TokenReader(source, tokenizer)
    reader.read(position)
    resumed = TokenReader(source, tokenizer, state=reader.state())
    assert resumed.position == position
    assert np.array_equal(read_all(resumed)[0], whole[position:])
    assert np.array_equal(read_all(reader)[0], whole[position:])


@pytest.mark.parametrize("limit", [None, 501])
def test_split_parts_join_to_the_whole(limit, tmp_path, small_windows):
    source, tokenizer = write(tmp_path, nasty("words")), TOKENIZERS["gpt2_like"]
    whole = tokenizer.encode(nasty("words"), add_special_tokens=False).ids[:limit]
    documents = split(source, tokenizer, parts=4, limit=limit)
    joined = []
    for document in documents:
        reader = TokenReader(source, tokenizer, state=document.state)
        assert reader.position == document.start
        joined += reader.read(document.stop - document.start)[0].tolist()
    assert joined == whole
    sizes = [d.stop - d.start for d in documents]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", ["is empty"]),
        (b"ok so far \xff not", ["not UTF-8", "0xff", "offset 10"]),
        ("é".encode() * 300 + b"\xe2\x82", ["not UTF-8", "offset 600", "unexpected end"]),
        (b"x" * 70000 + b"\xc3\x28", ["not UTF-8", "offset 70000"]),
    ],
)
def test_bad_content_is_named(content, words, tmp_path):
    source = write(tmp_path, content)
    with pytest.raises(TextError) as error:
        source.check()
    for word in ["text.txt", *words]:
        assert word in str(error.value)


def test_bad_paths_are_named(tmp_path):
    with pytest.raises(TextError, match="is a directory"):
        Source(str(tmp_path)).check()
    with pytest.raises(TextError, match="no such file"):
        Source(str(tmp_path / "missing.txt")).check()
    with pytest.raises(TextError, match="builtin:python-reference"):
        Source("builtin:nothing").check()


def test_an_error_in_the_middle_keeps_what_was_before_it(tmp_path, small_windows):
    good = nasty("words").encode()
    reader = TokenReader(write(tmp_path, good + b"\xff"), TOKENIZERS["gpt2_like"])
    assert len(reader.read(500)[0]) == 500
    with pytest.raises(TextError, match=f"offset {len(good)}"):
        read_all(reader)


def test_builtin_texts_are_stable_and_long():
    for name in BUILTINS:
        source = Source(f"builtin:{name}")
        first, second = source.check(), source.check()
        assert first == second and first["bytes"] > 400_000


def test_a_pipe_streams_and_refuses_another_text_on_resume(tmp_path, small_windows):
    fifo = tmp_path / "pipe"
    os.mkfifo(fifo)
    tokenizer, text = TOKENIZERS["gpt2_like"], nasty("crlf")

    def reader_of(content: str, state=None):
        writer = subprocess.Popen(
            [sys.executable, "-c", "import sys; open(sys.argv[1], 'wb').write(sys.argv[2].encode())", str(fifo), content]
        )
        return TokenReader(Source(str(fifo)), tokenizer, state=state), writer

    reader, writer = reader_of(text)
    head = reader.read(900)[0]
    state = reader.state()
    tail = read_all(reader)[0]
    writer.wait()
    assert np.concatenate([head, tail]).tolist() == tokenizer.encode(text, add_special_tokens=False).ids
    resumed, writer = reader_of(text, state)
    assert np.array_equal(read_all(resumed)[0], tail)
    writer.wait()
    with pytest.raises(TextError, match="not the one the run began with"):
        reader_of(text.replace("the", "tha"), state)


@pytest.mark.slow
def test_a_long_stream_runs_in_flat_memory(tmp_path):
    """24 MB through a pipe, in a process of its own: the peak is not above that of the first 2 MB by more than 16 MB."""
    TOKENIZERS["gpt2_like"].save(str(tmp_path / "tokenizer.json"))
    script = f"""
import resource, sys
from tokenizers import Tokenizer
from dynadapt.text import Source, TokenReader
reader = TokenReader(Source("-"), Tokenizer.from_file({str(tmp_path / "tokenizer.json")!r}))
total, early = 0, None
while len((part := reader.read(512))[0]):
    total += int(part[1].sum())
    if early is None and total > 2_000_000:
        early = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(total, early, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    block = (BUILTINS["python-reference"]() + " " * 50000 + "a" * 50000).encode()
    process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    blocks = 24_000_000 // len(block)
    import threading

    feeder = threading.Thread(target=lambda: ([process.stdin.write(block) for _ in range(blocks)], process.stdin.close()))
    feeder.start()
    output = process.stdout.read().split()
    feeder.join()
    assert process.wait() == 0
    total, early, peak = map(int, output)
    assert total == blocks * len(block)
    assert peak - early < 16 * 1024
