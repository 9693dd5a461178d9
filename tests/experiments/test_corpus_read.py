"""Reading corpora: files that are damaged, manifests that lead elsewhere, and mutations of both."""

import json
import os
import random
import shutil
from pathlib import Path

import pytest
from corpora import write_manifest
from tiny import english

from dynadapt.experiments.corpus_read import CorpusError, check_corpus, part_files, read_documents, read_manifest
from dynadapt.experiments.diagnose.texts import gather
from dynadapt.runs.text import TextError

DOMAINS = ("apples", "pears")


@pytest.fixture
def corpus(tmp_path) -> Path:
    """Two domains; a text has the characters at which other readers end a line."""
    folder = tmp_path / "corpus"
    for name in DOMAINS:
        (folder / name).mkdir(parents=True)
        for part, count in (("train", 4), ("heldout", 2)):
            lines = [
                json.dumps({"id": f"{name}{i}", "text": f"{i}\u2028{name}\x85{english(20, seed=i)}"}, ensure_ascii=False) + "\n"
                for i in range(count)
            ]
            (folder / name / f"{part}.jsonl").write_text("".join(lines), "utf-8")
    write_manifest(folder)
    return folder


def everything(corpus) -> dict:
    check_corpus(corpus)
    return {name: {part: list(read_documents(file)) for part, file in parts.items()} for name, parts in part_files(corpus).items()}


def test_a_whole_corpus_is_read_line_by_line(corpus):
    found = everything(corpus)
    assert list(found) == list(DOMAINS)
    assert [len(found["pears"][part]) for part in ("train", "heldout")] == [4, 2]
    assert found["pears"]["train"][0] == ("pears0", f"0\u2028pears\x85{english(20, seed=0)}")
    assert [source.document() for source in gather((str(corpus / "pears" / "train.jsonl"),))] == found["pears"][
        "train"
    ]  # diagnose: the same


@pytest.mark.parametrize(
    "line, said",
    [
        (b'{"text": "a\xff"}', "line 2 is not UTF-8 at byte 11"),
        (b'{"text": "\\ud800"}', "line 2 has half of a surrogate pair at character 0"),
        (b"[" * 5000, "line 2 is not JSON"),
        (b'{"text": ' + b"9" * 5000 + b"}", "line 2 is not JSON"),
        (b'{"text": 3}', 'line 2 has no "text"'),
        (b'{"text": "a"', "line 2 is not JSON"),
        (b'{"text": "a"}{"text": "b"}', "line 2 is not JSON"),
        (b'{"text": "a\tb"}', "line 2 is not JSON"),
    ],
)
def test_a_damaged_line_is_named(line, said, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "good"}\n' + line + b"\n")
    with pytest.raises(CorpusError, match=f"a.jsonl: {said}"):
        list(read_documents(path))
    with pytest.raises(TextError, match=f"a.jsonl: {said}"):
        gather((str(path),))


@pytest.mark.parametrize("name", ["", ".", "..", "../apples", "/etc", "apples/../pears", "a\\b", "a\0b"])
def test_a_domain_is_a_folder_of_the_corpus(name, corpus):
    content = json.loads((corpus / "manifest.json").read_text())
    content["domains"][name] = content["domains"].pop("pears")
    (corpus / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(CorpusError, match="manifest.json: domain .* is not the name of a folder in"):
        read_manifest(corpus)


@pytest.mark.parametrize("file", ["/etc/passwd", "../secret.jsonl", "pears/../../secret.jsonl", "apples/train.jsonl", "", None, 3])
def test_a_file_is_that_of_its_domain(file, corpus):
    content = json.loads((corpus / "manifest.json").read_text())
    content["domains"]["pears"]["train"]["file"] = file
    (corpus / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(CorpusError, match="manifest.json: domain 'pears': train.file is .*; expected 'pears/train.jsonl'"):
        part_files(corpus)


def test_links_do_not_lead_out_of_the_corpus(corpus, tmp_path):
    shutil.copytree(corpus / "pears", tmp_path / "pears")
    (corpus / "linked").symlink_to(corpus)
    assert everything(corpus / "linked") == everything(corpus)  # to the corpus itself they may
    for path in (corpus / "pears", corpus / "pears" / "train.jsonl"):
        kept = tmp_path / "kept"
        path.rename(kept)
        path.symlink_to(tmp_path / path.relative_to(corpus))
        with pytest.raises(CorpusError, match="corpus/pears/train.jsonl leads out of the corpus, to "):
            check_corpus(corpus)
        path.unlink()
        path.symlink_to(path.name)
        with pytest.raises(CorpusError, match="pears/train.jsonl: named by the corpus's manifest and not to be read"):
            check_corpus(corpus)
        path.unlink()
        kept.rename(path)
    (corpus / "pears" / "train.jsonl").unlink()
    with pytest.raises(CorpusError, match="pears/train.jsonl: named by the corpus's manifest and not to be read"):
        check_corpus(corpus)
    os.mkfifo(corpus / "pears" / "train.jsonl")
    with pytest.raises(CorpusError, match="pears/train.jsonl: named by the corpus's manifest and not a file"):
        check_corpus(corpus)


@pytest.mark.parametrize(
    "key, value", [("documents", 5), ("bytes", 1), ("sha256", "0" * 64), ("documents", 4.0), ("bytes", True), ("sha256", None)]
)
def test_what_the_manifest_says_is_compared(key, value, corpus):
    content = json.loads((corpus / "manifest.json").read_text())
    content["domains"]["pears"]["train"][key] = value
    (corpus / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(CorpusError, match=rf"train.jsonl: its {key} is .*, the manifest says {value}|train.{key} is {value}; expected"):
        check_corpus(corpus)


@pytest.mark.parametrize(
    "content, said",
    [
        ("[]", r"format \[\]; this version reads 1"),
        ("3", "format 3"),
        ('{"format": 1}', "domains is None"),
        ('{"format": 1, "domains": {}}', "domains is {}"),
        ("[" * 100_000, "nested too deeply|not readable"),
        ('{"format": 1, "domains": {"a": 3}}', "domain 'a' has no 'train'"),
        ("", "not readable as JSON"),
    ],
)
def test_a_manifest_of_another_form_is_refused(content, said, tmp_path):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(CorpusError, match=f"manifest.json: {said}"):
        read_manifest(tmp_path)


# ------------------------------------------------------------------------------------------------------------ mutations

TOKENS = [
    "-1",
    "0",
    "1e309",
    "NaN",
    "null",
    "true",
    '""',
    '"x"',
    "[]",
    "{}",
    "9" * 40,
    "9" * 5000,
    '"\\ud800"',
    '"\\u0000"',
    '"../../etc/passwd"',
    '"/etc/passwd"',
    '"/dev/zero"',
    "[" * 2000,
    '"' + "x" * 10000 + '"',
]


def mutated(content: bytes, generator: random.Random) -> bytes:
    """One edit: a bit, a cut, a piece left out, twice or elsewhere, or a value in place of what stands between two quotes."""
    at, size = generator.randrange(len(content)), generator.randrange(1, 64)
    kind = generator.randrange(6)
    if kind == 0:
        return content[:at] + bytes([content[at] ^ 1 << generator.randrange(8)]) + content[at + 1 :]
    if kind == 1:
        return content[:at]
    if kind == 2:
        return content[:at] + content[at + size :]
    if kind == 3:
        return content[: at + size] + content[at:]
    if kind == 4:
        lines = content.split(b"\n")
        generator.shuffle(lines)
        return b"\n".join(lines)
    quotes = [i for i, byte in enumerate(content) if byte == ord('"')]
    first = generator.randrange(len(quotes) - 1)
    return content[: quotes[first]] + generator.choice(TOKENS).encode() + content[quotes[first + 1] + 1 :]


def check_mutations(corpus: Path, count: int, seed: int) -> dict[str, int]:
    """What a corpus with one mutated file gives: the documents that were written, or CorpusError naming a file. Counts of each."""
    generator, whole, tally = random.Random(seed), everything(corpus), {"refused": 0, "whole": 0, "read": 0}
    files = sorted(path for path in corpus.rglob("*") if path.is_file())
    for _ in range(count):
        file = generator.choice(files)
        content = file.read_bytes()
        changed = mutated(content, generator)
        file.write_bytes(changed)
        try:
            found = everything(corpus)
        except CorpusError as error:
            assert any(str(path) in str(error) for path in files)  # a digest that was changed names the file that it does not fit
            tally["refused"] += 1
        else:
            kept = {name: parts for name, parts in whole.items() if name in found}  # a manifest may name fewer domains
            assert found == kept and (changed == content or file.name == "manifest.json")
            tally["whole"] += 1
        if file.suffix == ".jsonl":  # and without a manifest
            try:
                list(read_documents(file))
                tally["read"] += 1
            except CorpusError as error:
                assert str(file) in str(error)
        file.write_bytes(content)
    return tally


def test_mutated_corpora_are_whole_or_refused(corpus):
    tally = check_mutations(corpus, 400, 0)
    assert tally["refused"] > 200 and tally["read"] > 20


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 9))
def test_many_mutated_corpora_are_whole_or_refused(seed, corpus):
    check_mutations(corpus, 2000, seed)
