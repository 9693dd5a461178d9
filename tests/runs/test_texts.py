"""One loader for every command: the same documents however they are kept, refusals by name, runs that go on in the middle of a file."""

import gzip
import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from run_files import Killed, kill_at, scores_of
from tiny import english, eval_config, tiny_directory, tiny_tokenizer

from dynadapt.common.notes import RunNote
from dynadapt.experiments.compare import read_compared
from dynadapt.experiments.config import ConfigError, EvalConfig
from dynadapt.experiments.corpus_read import CorpusError, read_documents
from dynadapt.experiments.diagnose.texts import gather
from dynadapt.experiments.distributed_eval import _check, merge, shared_out
from dynadapt.experiments.dyneval import RunOptions, run
from dynadapt.runs.rundir import RunDirectory, RunError
from dynadapt.runs.text import Source, TextError, TokenReader, expand, inputs, streaming_tokenizer
from dynadapt.runs.texts.expanding import selection

SPOILERS = ["größer ", "東京 ", "😀 ", "\r\n", "\n\n", "\t", '"quoted" ', "\\ ", "\u2028", "x" * 40]


def documents_of(seed: int, count: int = 6) -> list[str]:
    """Texts of several lengths, in no order, with what JSON and line ends could spoil."""
    rng = random.Random(seed)
    return [
        "".join(rng.choice([english(rng.randint(1, 25), rng.randrange(99)), rng.choice(SPOILERS)]) for _ in range(rng.randint(2, 8)))
        + "end"
        for _ in range(count)
    ]


def lines_of(documents, field="text") -> bytes:
    return "".join(json.dumps({"n": i, field: text}, ensure_ascii=i % 2 == 0) + "\n" for i, text in enumerate(documents)).encode()


def kept_as(form: str, documents: list[str], folder, field="text") -> list[str]:
    """What to give as texts for documents that are kept in one of FORMS."""
    folder.mkdir(parents=True)
    if form in ("files", "directory", "gz"):
        for i, text in enumerate(documents):
            content = text.encode()
            (folder / (f"{i:03d}.txt" + ".gz" * (form == "gz"))).write_bytes(gzip.compress(content) if form == "gz" else content)
        return [str(folder)] if form == "directory" else [str(path) for path in sorted(folder.iterdir())]
    path = folder / f"all.{form}"
    if form == "parquet":
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.table({"n": list(range(len(documents))), field: documents}), path, row_group_size=4)
    elif form == "json":
        path.write_text(json.dumps([text if i % 2 else {field: text} for i, text in enumerate(documents)]), "utf-8")
    else:
        path.write_bytes(gzip.compress(lines_of(documents, field)) if form.endswith(".gz") else lines_of(documents, field))
    return [str(path)]


FORMS = ("files", "directory", "gz", "jsonl", "ndjson.gz", "json", "parquet")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_directory(tmp_path_factory.mktemp("model"))


config_for = partial(eval_config, backend="cpu", memory=None)


# ---------------------------------------------------------------------------------------------------------------- same documents


@pytest.mark.parametrize("seed", range(6))
def test_documents_are_the_same_however_they_are_kept(seed, tmp_path):
    documents, rng = documents_of(seed, 11), random.Random(seed)
    field = rng.choice(["text", "body", "größe"])
    for form in FORMS:
        sources = expand(kept_as(form, documents, tmp_path / form, field), field)
        assert [source.content().decode() for source in sources] == documents, form
        assert [source.check()["bytes"] for source in sources] == [len(text.encode()) for text in documents]
        for i in rng.choices(range(11), k=8):  # back and forth
            assert sources[i].document()[1] == documents[i] and sources[i].content(5) == documents[i].encode()[:5]
        ids = [TokenReader(source, streaming_tokenizer(tiny_tokenizer())).read(10)[0].tolist() for source in sources[:2]]
        assert ids == [tiny_tokenizer().encode(text).ids[:10] for text in documents[:2]]
        chosen = sorted(rng.sample(range(11), 6))
        again = expand(selection([sources[i] for i in chosen]), field)
        assert [source.content().decode() for source in again] == [documents[i] for i in chosen]
        assert [source.spec for source in again] == [sources[i].spec for i in chosen]


def test_every_form_scores_the_same_and_every_command_reads_the_same(model, tmp_path):
    documents = documents_of(7)
    found = {}
    for form in FORMS:
        texts = kept_as(form, documents, tmp_path / "texts" / form)
        summary = run(config_for(model, texts, reset="document"), tmp_path / form, RunOptions(scores=True))
        found[form] = scores_of(tmp_path / form)
        assert [document["number"] for document in summary["documents"]] == list(range(len(documents)))
        names = [document["name"] for document in summary["documents"]]
        assert names == {
            "files": [f"{i:03d}.txt" for i in range(6)],
            "gz": [f"{i:03d}.txt.gz" for i in range(6)],
            "directory": [f"{i:03d}.txt" for i in range(6)],
        }.get(form, [f"all.{form}:{i + 1}" for i in range(6)])
        assert [source.document()[1] for source in gather(texts)] == documents  # diagnose
        assert form in ("files", "gz") or [text for _, text in read_documents(texts[0])] == documents  # reweight
    assert all(np.array_equal(found["files"], other) for other in found.values())
    with pytest.raises(RunError, match="they did not score the same text"):  # documents of the same content, but other files
        read_compared([tmp_path / "directory", tmp_path / "jsonl"])


def test_a_directory_is_read_in_order_and_says_what_it_passes_over(tmp_path):
    for name, content in {
        "b/two.py": b"2",
        "a.md": b"1",
        "b-c/three.rs": b"3",
        "lines.jsonl": b'{"text": "4"}\n\n{"text": " "}\n{"text": "5"}',
        "README": b"6",
        "z.tex.gz": gzip.compress(b"7"),
        ".git/x.txt": b"no",
        "picture.png": b"no",
        "empty.txt": b"",
        "blank.txt": b" \n",
        "program": b"\x7fELF\0",
        "latin": b"gr\xf6\xdfe",
        "x.txt": b"a\0b",
        "package.json": b"{}",
    }.items():
        path = tmp_path / "texts" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    os.symlink("nowhere", tmp_path / "texts" / "gone.txt")
    with pytest.warns(RunNote) as notes:
        sources = expand([str(tmp_path / "texts")])
    assert [source.content() for source in sources] == [b"6", b"1", b"2", b"3", b"4", b"5", b"7"]
    assert [source.name for source in sources] == [
        "README",
        "a.md",
        "b/two.py",
        "b-c/three.rs",
        "lines.jsonl:1",
        "lines.jsonl:4",
        "z.tex.gz",
    ]
    assert [note.category for note in notes] == [RunNote]
    assert str(notes[0].message) == (
        f"texts passed over: in {tmp_path / 'texts'} 3 binary, 1 broken links, 2 empty, 1 hidden, 2 of other kinds "
        f"(.json, .png); {tmp_path / 'texts' / 'lines.jsonl'}: 1 document of nothing but spaces"
    )


# ---------------------------------------------------------------------------------------------------------------- refusals

REFUSED = {
    "bad.jsonl": (b'{"text": "a"}\n{"text": ', r"bad.jsonl: line 2 is not JSON"),
    "key.jsonl": (
        b'\n{"body": "a", "id": 1}\n',
        r'key.jsonl: line 2 has no "text"; its keys are body, id: name the one that is the text with --field',
    ),
    "number.jsonl": (b'{"text": 5}\n', r'number.jsonl: line 1 has no "text" that is a string: it is 5'),
    "null.jsonl": (b'{"text": null}\n', r'line 1 has no "text" that is a string: it is null'),
    "string.jsonl": (b'"a"\n', r'line 1 has no "text": it is "a", not an object'),
    "latin.jsonl": (b'{"text": "\xff"}\n', r"line 1 is not UTF-8 at byte 10"),
    "nothing.jsonl": (b"\n\n", r"nothing.jsonl' is empty"),
    "spaces.jsonl": (b'{"text": " "}\n{"text": ""}', r"is empty: all of its 2 documents are"),
    "object.json": (b'{"text": "a"}', r"object.json' holds one JSON object, not documents: give an array .*--text - < .*object.json"),
    "value.json": (b"3", r"value.json' holds the JSON value 3, not documents"),
    "lines.json": (b'{"text": "a"}\n{"text": "b"}\n', r"lines.json' holds several JSON values: .* name it .jsonl"),
    "broken.json": (b"[1, ", r"broken.json' is not JSON"),
    "void.json": (b"", r"void.json' is empty"),
    "item.json": (b'["a", 3]', r'item.json: item 2 has no "text": it is 3'),
    "cut.txt.gz": (gzip.compress(english(500).encode())[:-9], r"cut.txt.gz' is not a whole gzip file"),
    "false.jsonl.gz": (b"plain", r"false.jsonl.gz' is not a whole gzip file"),
    "latin.txt": (b"gr\xf6\xdfe", r"latin.txt' is not UTF-8: byte 0xf6 at offset 2"),
    "a.zip": (b"PK", r"a.zip' is an archive: unpack it"),
    "a.tar.gz": (b"x", r"a.tar.gz' is an archive"),
    "a.txt.zst": (b"x", r"a.txt.zst' is compressed with zstd: .*zstdcat"),
    "a.pdf": (b"%PDF", r"a.pdf' is no plain text: .*pdftotext"),
    "a.parquet": (b"PAR1 no", r"a.parquet' can't be read as Parquet"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_text_is_refused_by_name_everywhere(name, tmp_path):
    content, said = REFUSED[name]
    path = tmp_path / name
    path.write_bytes(content)
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    with pytest.raises(TextError, match=said):
        gather([str(path)])
    with pytest.raises(CorpusError, match=said):
        list(read_documents(path))


def test_names_that_stand_for_nothing_or_for_one_thing_twice(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "l.jsonl").write_bytes(lines_of(["one", "two", "three"]))
    os.symlink("a.txt", tmp_path / "b.txt")
    for texts, said in [
        (["empty"], "a directory without text files"),
        (["l.jsonl:4"], "l.jsonl:4': no document there; the last one is line 3"),
        (["a.txt:1"], "a.txt:1': no such file"),
        (["a.txt", "a.txt"], "a.txt' is given twice"),
        (["a.txt", "b.txt"], "b.txt' is given twice, also by .*a.txt"),
        (["l.jsonl", "l.jsonl:2"], "l.jsonl:2' is given twice, also by"),
        (["a.txt", "."], "a.txt' is given twice, also by"),
    ]:
        with pytest.raises(TextError, match=said):
            expand([str(tmp_path / text) for text in texts])
    with pytest.raises(TextError, match="'/' is a directory with everything"):
        expand(["/"])
    with pytest.raises(TextError, match="field '': give the name"):
        expand(["-"], "")
    with pytest.raises(ConfigError, match="field '': give the name"):
        EvalConfig(field="")
    with pytest.raises(TextError, match="holds documents, not one text"):
        Source(str(tmp_path / "l.jsonl")).check()


def test_parquet_is_refused_with_what_is_missing(tmp_path, monkeypatch):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = str(tmp_path / "a.parquet")
    parquet.write_table(pyarrow.table({"body": ["a", None], "n": [1, 2]}), path)
    for field, said in (
        ("text", 'no column "text"; its columns are body, n: .*--field'),
        ("n", 'row 1 has no "n" that is a string: it is 1'),
        ("body", 'row 2 has no "body" that is a string: it is null'),
    ):
        with pytest.raises(TextError, match=said):
            expand([path], field)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(TextError, match="a.parquet': Parquet is read with pyarrow, which is not installed: pip install pyarrow"):
        expand([path], "body")


def test_refusals_of_lines_need_no_torch(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"body": "a"}\n')
    script = (
        f"import sys\nsys.modules['torch'] = None\nfrom dynadapt.cli import main\nmain(['eval', '--text', {str(tmp_path / 'a.jsonl')!r}])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100)
    assert done.returncode == 2 and 'line 1 has no "text"; its keys are body' in done.stderr


# ---------------------------------------------------------------------------------------------------------------- runs


@pytest.mark.parametrize("form", ["gz", "jsonl", "ndjson.gz", "parquet"])
def test_a_run_goes_on_in_the_middle_of_a_file_bit_for_bit(form, model, tmp_path):
    documents = [english(words, seed=words) for words in (60, 20, 90, 1, 45)]
    documents.insert(3, "t")  # one token: nothing to score
    texts = kept_as(form, documents, tmp_path / "texts")
    if form == "gz":
        texts = [str(tmp_path / "texts")]
    config, options = config_for(model, texts, streams=2, memory=16), RunOptions(scores=True, checkpoint=1)
    with pytest.warns(RunNote, match="1 of 6 documents had fewer than 2 tokens"):
        whole = run(config, tmp_path / "whole", options)
    assert whole["short_documents"] == 1 and [document["number"] for document in whole["documents"]] == [0, 1, 2, 4, 5]
    out = tmp_path / "killed"
    for at in range(2, whole["segments"], 7):
        with pytest.raises(Killed):
            run(config, out, replace(options, resume=at > 2), kill_at(segment=at))
    again = run(config, out, replace(options, resume=True))
    assert np.array_equal(scores_of(out), scores_of(tmp_path / "whole")) and again["documents"] == whole["documents"]
    assert len(json.loads((out / "inputs.json").read_text())) < 10 + len(documents)


@pytest.mark.parametrize("change", ["line", "added", "removed"])
def test_texts_that_changed_in_the_meantime_are_refused_by_name(change, model, tmp_path):
    kept_as("directory", documents_of(3), tmp_path / "texts")
    kept_as("jsonl", documents_of(4), tmp_path / "texts" / "lines")
    config = config_for(model, [tmp_path / "texts"])
    with pytest.raises(Killed):
        run(config, tmp_path / "run", RunOptions(checkpoint=1), kill_at(segment=2))
    lines = tmp_path / "texts" / "lines" / "all.jsonl"
    if change == "line":
        lines.write_bytes(lines.read_bytes().replace(b"end", b"End", 1))
    elif change == "added":
        (tmp_path / "texts" / "new.txt").write_text("new")
    else:
        (tmp_path / "texts" / "004.txt").unlink()
    said = {
        "line": "all.jsonl' has changed since this run began",
        "added": "new.txt' was added since",
        "removed": "004.txt' was removed since",
    }
    with pytest.raises(TextError, match=said[change]):
        run(config, tmp_path / "run", RunOptions(resume=True, checkpoint=1))


def test_a_line_that_changes_while_it_is_read_is_named(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines_of(["one", "two"]))
    sources = expand([str(path)])
    path.write_bytes(lines_of(["one", "TWO"]))
    assert sources[0].content() == b"one"
    with pytest.raises(TextError, match="a.jsonl: line 2 has changed since it was first read"):
        sources[1].content()


def test_processes_share_the_lines_of_a_file(model, tmp_path):
    documents = [english(words, seed=words) for words in (40, 90, 20, 60)] + ["t", english(30, seed=9)]
    texts = kept_as("jsonl", documents, tmp_path / "texts") + kept_as("gz", documents[:1], tmp_path / "more")
    config, options = config_for(model, texts, reset="document"), RunOptions(scores=True)
    whole = run(config, tmp_path / "whole", options)
    sources, facts = _check(config, 2)
    shares = shared_out([fact["bytes"] for fact in facts], 2)
    parts = []
    for rank, share in enumerate(shares):
        own = replace(config, text=tuple(selection([sources[i] for i in share])))
        assert len(own.text) <= 2 and ":" in own.text[0]
        parts.append(tmp_path / f"part-{rank}")
        run(own, parts[-1], options)
    directory = RunDirectory(tmp_path / "two", config.to_dict(), False, True)
    directory.begin()
    summary = merge(directory, parts, shares, True)
    directory.close()
    assert summary["documents"] == whole["documents"] and summary["short_documents"] == 1
    assert np.array_equal(scores_of(tmp_path / "two"), scores_of(tmp_path / "whole"))


def test_runs_on_lines_are_compared_from_anywhere(model, tmp_path, monkeypatch):
    documents = documents_of(5)
    kept_as("jsonl", documents, tmp_path / "made" / "texts", "body")
    kept_as("directory", documents[:2], tmp_path / "made" / "texts" / "more")
    monkeypatch.chdir(tmp_path / "made")
    for name, adapt in (("static", "none"), ("lora", "lora")):
        run(config_for(model, ["texts"], field="body", adapt=adapt), tmp_path / name, RunOptions(scores=True))
    assert json.loads((tmp_path / "lora" / "config.json").read_text())["field"] == "body"
    monkeypatch.chdir(tmp_path)
    compared = read_compared([tmp_path / "static", tmp_path / "lora"])
    assert compared.names == ("all.jsonl:1", *(f"all.jsonl:{i}" for i in range(2, 7)), "more/000.txt", "more/001.txt")
    for number, text in enumerate(documents + documents[:2]):
        inside = compared.document == number
        assert text.endswith("".join(piece for piece, one in zip(compared.pieces, inside) if one)) and inside.sum() > 3
    (tmp_path / "made" / "texts" / "more" / "000.txt").write_text("another")
    with pytest.raises(RunError, match="000.txt' is not what .*static scored: it has changed since"):
        read_compared([tmp_path / "static", tmp_path / "lora"])


def test_statistics_may_be_any_text_but_the_scored_one(model, tmp_path):
    documents = [english(200, seed=i) for i in range(4)]
    texts = kept_as("jsonl", documents[:2], tmp_path / "scored")
    settings = dict(adapt="rows", optimizer="rms", lr=1e-4)
    found = [
        run(config_for(model, texts, statistics=kept_as(form, documents[2:], tmp_path / form)[0], **settings), tmp_path / f"run-{form}")[
            "nll"
        ]
        for form in ("directory", "ndjson.gz")
    ]
    assert found[0] == found[1]
    for form in ("directory", "parquet"):  # the same content under another name
        same = kept_as(form, documents[1:3], tmp_path / f"seen-{form}")[0]
        with pytest.raises(ConfigError, match="statistics .* is the text to be scored"):
            run(config_for(model, texts, statistics=same, **settings), tmp_path / "never")


def test_one_text_of_many_documents_is_not_split(model, tmp_path):
    texts = kept_as("jsonl", documents_of(1), tmp_path / "texts")
    with pytest.raises(ConfigError, match="split: cuts one text into streams, but .*all.jsonl holds 6 documents"):
        run(config_for(model, texts, split=True, streams=2), tmp_path / "run")
    summary = run(config_for(model, [f"{texts[0]}:2"], split=True, streams=2), tmp_path / "one", RunOptions(scores=True, checkpoint=1))
    assert [document["name"].split("[")[0] for document in summary["documents"]] == ["all.jsonl:2"] * 2


def test_very_many_documents_cost_little_each(tmp_path):
    """Five thousand lines: nothing is done to a document for each other one, and no file that a run keeps has an entry for each."""
    path = tmp_path / "many.jsonl"
    path.write_text("".join(f'{{"text": "document {i}"}}\n' for i in range(5_000)))
    sources = expand([str(path)])
    facts = [source.check() for source in sources]
    assert len(sources) == 5_000 and list(inputs(sources, facts)) == [str(path)]
    assert inputs(sources, facts)[str(path)]["documents"] == 5_000
    assert selection(sources) == [f"{path}:1-5000"]
    half = selection(sources[::2])
    assert len(half) == 1 and len(expand(half)) == 2_500


def test_what_is_no_text_or_no_range_is_said_before_anything_is_loaded(tmp_path):
    (tmp_path / "wide.txt").write_bytes("some words".encode("utf-16-le"))
    with pytest.raises(TextError, match="wide.txt' has zero bytes: it is binary, or UTF-16"):
        Source(str(tmp_path / "wide.txt")).check()
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": f"line {i}"}) + "\n" for i in range(9)))
    with pytest.raises(TextError, match="7-5 goes backwards; write 5-7"):
        expand([f"{tmp_path}/a.jsonl:7-5,1"])
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "b.txt").write_text("words")
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir" / "a.txt").write_text("words")
    (tmp_path / "dir" / "linked").symlink_to(tmp_path / "elsewhere")
    with pytest.warns(RunNote, match="1 linked directories"):
        assert [os.path.basename(source.path) for source in expand([str(tmp_path / "dir")])] == ["a.txt"]


def test_every_command_takes_chosen_lines_by_one_rule(tmp_path):
    from dynadapt.commands.early import check_files

    (tmp_path / "a.jsonl").write_text('{"text": "line"}\n' * 3)
    check_files([f"{tmp_path}/a.jsonl:1-2", "-", "builtin:python-source"])
    for name in (f"{tmp_path}/b.jsonl:1-2", f"{tmp_path}/none.txt", "a\0b"):
        with pytest.raises(TextError, match="no such file"):
            check_files([name])
