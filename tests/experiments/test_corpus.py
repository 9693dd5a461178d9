"""The corpus builder: plain text from pages, packages, duplicates, the split by document, and what it refuses."""

import json
import os
import re
import shutil
import subprocess

import pytest
from command_line import call

from dynadapt.experiments import corpus
from dynadapt.experiments.corpus import CorpusError, Deduplicator, Settings, build, read_documents, read_manifest, split
from dynadapt.experiments.corpus_sources import DOMAINS, Domain, Missing, Reader, files, packages
from dynadapt.experiments.debian import PackageError, package_files, r_strings
from dynadapt.experiments.plain_text import html_to_text, man_to_text

PAGE = r"""'\" t
.\" a comment
.TH SHEARS 1 2026 dynadapt
.SH NAME
shears \- cuts \fIwool\fP, and \(lqnot\(rq\~paper
.SH SYNOPSIS
.nf
.BI "int shear(int " count ", \
const char *" what );
    indented \\e here
.fi
.SH OPTIONS
.TP
.BR \-n , " \-\-number"
How many.
Two lines,
one paragraph.
.IP \[bu] 3
A bullet with \[u00FC] and \s-1SIZE\s0.
.\" .PP hidden
.PP
After
.B bold words
and
.IR joined (1).
.TS
l l.
Interface	Value
f()	safe
.TE
.de XX
never shown
..
.EX
a = 1

b = 2
.EE
"""


def test_a_manual_page_becomes_paragraphs():
    assert (
        man_to_text(PAGE)
        == """\
NAME

shears - cuts wool, and “not” paper

SYNOPSIS

int shear(int count, const char *what);
    indented \\e here

OPTIONS

-n, --number
How many. Two lines, one paragraph.

• A bullet with ü and SIZE.

After bold words and joined(1).

Interface Value
f() safe

a = 1

b = 2
"""
    )


@pytest.mark.parametrize("alias", [".so man3/other.3\n", ".Dd today\n.Sh NAME\n"])
def test_aliases_and_pages_of_other_macros_have_no_text(alias):
    assert man_to_text(alias) == ""


def test_html_keeps_what_a_person_reads():
    html = """<html><head><title>no</title></head><body><p id="title">no</p><ul class="docnav"><li>Prev<img src="x"></li></ul>
    <h2 class="title">1. Sheep &amp; wool</h2><div class="para">One
       <code>ls</code>.</div><pre>a  b
  c</pre><script>no()</script>tail<br/>end</body></html>"""
    assert html_to_text(html, ("#title", ".docnav")) == "1. Sheep & wool\n\nOne ls.\n\na  b\n  c\n\ntail\n\nend\n"


# -------------------------------------------------------------------------------------------------------------- duplicates


def paragraph(*words) -> str:
    return " ".join(f"{word} {number}" for word in words for number in range(20))


def test_repeated_paragraphs_go_and_so_do_documents_made_of_them():
    unique, licence = Deduplicator(), paragraph("licence")
    first = unique(f"{licence}\n\n{paragraph('one')}\n\n{paragraph('two')}\n\nshort\n")
    assert licence in first
    second = unique(f"{licence.replace(' ', '  ')}\n\n{paragraph('three')}\n \n{paragraph('four')}\n\nshort\n")  # spaces don't count
    assert second == f"{paragraph('three')}\n\n{paragraph('four')}\n\nshort\n" and unique.paragraphs == 1
    assert unique(f"{paragraph('one')}\n\n{paragraph('two')}\n\n{paragraph('five')}\n") is None
    assert unique(f"{paragraph('five')}\n\n{paragraph('six')}\n") is not None  # a dropped document doesn't count as seen
    assert unique("tiny\n") is None


def test_the_split_is_by_document_and_depends_on_names_and_seed_alone():
    documents = {f"d{number}": "x" * 1000 for number in range(100)}
    heldout, train = split(documents, 50_000, 0.1, "0:a")
    assert len(heldout) == 5 and len(train) == 45 and not set(heldout) & set(train)
    assert split(dict(reversed(documents.items())), 50_000, 0.1, "0:a") == (heldout, train)
    assert split(documents, 50_000, 0.1, "1:a") != (heldout, train)
    assert "large" not in split({**documents, "large": "x" * 3000}, 110_000, 0.1, "0:a")[0]  # a quarter of 10 kB is the most


# ----------------------------------------------------------------------------------------------------------------- build


@pytest.fixture
def domains(monkeypatch, tmp_path):
    """Three domains under tmp_path (two that share a licence text), and a third that is not there; the real limits scaled down."""
    for name in ("apples", "pears"):
        (tmp_path / name / "deep").mkdir(parents=True)
        for number in range(80):
            text = f"{paragraph('licence')}\n\n{paragraph(name + str(number))}\n\n{paragraph('more' + name + str(number))}\n"
            (tmp_path / name / "deep" / f"{number}.txt").write_text(text)
        (tmp_path / name / "latin1.txt").write_bytes("Größe".encode("latin-1") * 100)
        (tmp_path / name / "copy.txt").write_text((tmp_path / name / "deep" / "7.txt").read_text())
    local = lambda name: Domain(name, "English", "CC0-1.0", (files([str(tmp_path / name)], ["**/*.txt"], lambda text: text),))  # noqa: E731
    monkeypatch.setattr(corpus, "DOMAINS", {name: local(name) for name in ("apples", "pears", "plums")})
    monkeypatch.setattr(corpus, "LEAST_BYTES", 20_000)
    monkeypatch.setattr(corpus, "LEAST_DOMAINS", 2)
    return tmp_path


def test_a_corpus_is_built_with_its_manifest_and_without_overlap(domains):
    said = []
    manifest = build(domains / "out", Settings(megabytes=0.022), said.append)
    assert said[0] == "apples ..." and "plums: left out: nothing readable" in said[-1]
    assert manifest == read_manifest(domains / "out") and set(manifest["domains"]) == {"apples", "pears"}
    assert "plums" in manifest["missing"] and f"nothing readable under {domains / 'plums'}" in manifest["missing"]["plums"]
    parts = {}
    for name, entry in manifest["domains"].items():
        assert entry["licence"] == "CC0-1.0" and entry["sources"] == [{"folder": str(domains / name), "files": 81}]
        assert entry["documents_dropped"] == 1  # the copy; the one that isn't UTF-8 was never read
        for part in ("train", "heldout"):
            documents = dict(read_documents(domains / "out" / entry[part]["file"]))
            assert len(documents) == entry[part]["documents"] > 0
            assert sum(len(text.encode()) for text in documents.values()) == entry[part]["bytes"]
            parts[name, part] = {line for text in documents.values() for line in text.split("\n\n") if len(line) >= 80}
    assert not parts["apples", "train"] & parts["apples", "heldout"] and not parts["apples", "train"] & parts["pears", "train"]
    assert 18_000 < manifest["domains"]["pears"]["train"]["bytes"] <= 19_800
    again = build(domains / "again", Settings(megabytes=0.022))
    assert again == manifest and build(domains / "other", Settings(megabytes=0.022, seed=1)) != manifest


def test_what_cannot_be_built_is_refused_and_nothing_is_left(domains):
    with pytest.raises(CorpusError, match="1 of 2 domains found; missing: plums: nothing readable under"):
        build(domains / "out", Settings(domains=("apples", "plums"), megabytes=0.022))
    shutil.rmtree(domains / "pears" / "deep")
    (domains / "apples" / "novel.txt").write_text("\n\n".join(paragraph(f"p{number}") for number in range(300)))
    shutil.rmtree(domains / "apples" / "deep")
    with pytest.raises(
        CorpusError,
        match="0 of 2 .*apples: its 2 documents from .* are too long to be split; pears: 672 bytes in 1 documents from .*pears; at least",
    ):
        build(domains / "out", Settings(megabytes=0.06))
    assert not list(domains.glob("*out*")) and not list(domains.glob(".out*"))
    (domains / "full").mkdir()
    (domains / "full" / "x").touch()
    with pytest.raises(CorpusError, match="full is not an empty directory"):
        build(domains / "full")


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"domains": ("plumz",)}, "unknown domain 'plumz'; there are python-code"),
        ({"megabytes": 0.5}, "megabytes 0.5: give at least 1"),
        ({"heldout": 0}, "heldout 0"),
        ({"heldout": 0.6}, "heldout 0.6"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(CorpusError, match=message):
        Settings(**settings)


def test_the_command_builds_from_this_machine(tmp_path, capsys):
    """CPython's library source is there wherever this runs."""
    assert (
        call("corpus", "build", "--out", tmp_path / "c", "--domains", "python-code", "--offline", "--megabytes", "1.5") == 0
        and "1 domains in" in capsys.readouterr().out
    )
    entry = read_manifest(tmp_path / "c")["domains"]["python-code"]
    assert entry["licence"] == "PSF-2.0" and entry["train"]["bytes"] > 1e6 and entry["heldout"]["bytes"] > 1e5
    assert call("corpus", "build", "--out", tmp_path / "n", "--domains", "novels", "--offline") == 2
    assert "missing: novels: it comes from the package index only" in capsys.readouterr().err


def test_every_domain_has_a_licence_and_a_source():
    assert len(DOMAINS) >= 9 and all(domain.licence and domain.language and domain.readers for domain in DOMAINS.values())


def test_the_first_source_that_is_there_is_used(tmp_path):
    (tmp_path / "a.txt").write_text("text")

    def fails():
        raise Missing("package x: not there")

    readers = (Reader(False, fails), files([str(tmp_path)], ["*.txt"], str))
    assert corpus._read(Domain("d", "", "", readers), offline=False)[1] == {f"{tmp_path.name}/a.txt": "text"}
    with pytest.raises(Missing, match="package x: not there; nothing readable under /nowhere"):
        corpus._read(Domain("d", "", "", (readers[0], files(["/nowhere"], ["*"], str))), offline=False)


# ---------------------------------------------------------------------------------------------------------------- packages


@pytest.fixture
def index(monkeypatch, tmp_path):
    """A package index of one package, sheep: apt-get is a script that copies it, dpkg-deb the real one."""
    if not shutil.which("dpkg-deb"):
        pytest.skip("dpkg-deb is not on this machine")
    root = tmp_path / "sheep"
    (root / "DEBIAN").mkdir(parents=True)
    (root / "DEBIAN" / "control").write_text(
        "Package: sheep\nVersion: 1:2.3-4\nArchitecture: all\nMaintainer: A <a@b.c>\nDescription: wool\n"
    )
    (root / "usr/share/doc").mkdir(parents=True)
    (root / "usr/share/doc/a.txt").write_text("wool")
    (root / "usr/share/doc/link.txt").symlink_to("a.txt")
    subprocess.run(["dpkg-deb", "--build", root, tmp_path / "sheep.deb"], check=True, capture_output=True)
    (tmp_path / "bin").mkdir()
    script = (
        f'#!/bin/sh\nif [ "$3" = sheep ]; then cp {tmp_path}/sheep.deb .; else echo "E: Unable to locate package $3" >&2; exit 100; fi\n'
    )
    (tmp_path / "bin" / "apt-get").write_text(script)
    (tmp_path / "bin" / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")


def test_files_come_out_of_a_package(index):
    source, found = package_files("sheep", lambda path: path.endswith(".txt"))
    assert found == {"usr/share/doc/a.txt": b"wool"} and source["version"] == "1:2.3-4" and len(source["sha256"]) == 64
    with pytest.raises(PackageError, match=re.escape("package goat: Unable to locate package goat (apt-get update may help)")):
        package_files("goat", lambda path: True)
    either = packages(("goat", "sheep"), r".*\.txt", str.upper, any_of=True)
    assert either.read()[1] == {"sheep/doc/a.txt": "WOOL"}
    assert packages(("sheep", "goat"), r".*\.txt", str).read()[0] == [source]  # the manifest says which were there
    with pytest.raises(Missing, match="package goat: Unable"):
        packages(("goat",), r".*\.txt", str).read()
    with pytest.raises(Missing, match="nothing readable in package sheep"):
        packages(("sheep",), r".*\.html", str).read()


def test_a_machine_without_apt_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PackageError, match="package sheep: apt-get is not on this machine"):
        package_files("sheep", lambda path: True)


def test_r_strings_are_found():
    blob = b"\0\0\0\x10" + b"\0\0\0\2" + b"\0\x04\0\x09\0\0\0\x04wool" + b"\0\x04\0\x09\0\0\0\x05sheep"
    assert r_strings(blob) == ["wool", "sheep"]


# ------------------------------------------------------------------------------------------------------------------- read


def test_a_domain_is_read_from_files_and_directories(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"id": "one", "text": "1"}\n\n{"text": "2"}\n')
    (tmp_path / "b.txt").write_text("three")
    (tmp_path / "c.bin").write_bytes(b"\xff")
    assert list(read_documents(tmp_path)) == [("one", "1"), ("a.jsonl:3", "2"), ("b.txt", "three")]
    assert list(read_documents(tmp_path / "a.jsonl")) == [("one", "1"), ("a.jsonl:3", "2")]


@pytest.mark.parametrize(
    "content, message",
    [
        ("", "is empty"),
        ('{"text": " "}\n', "is empty"),
        ('{"text": "a"}\n{', "line 2 is not JSON"),
        ('{"txt": "a"}\n', 'line 1 has no "text"'),
        ("[1]\n", 'line 1 has no "text"'),
    ],
)
def test_a_domain_that_cannot_be_read_is_refused(content, message, tmp_path):
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(CorpusError, match=message):
        list(read_documents(tmp_path / "a.jsonl"))


def test_missing_and_foreign_corpora_are_refused(tmp_path):
    with pytest.raises(CorpusError, match="no such file or directory"):
        list(read_documents(tmp_path / "x"))
    with pytest.raises(CorpusError, match="a directory without text files"):
        list(read_documents(tmp_path))
    with pytest.raises(CorpusError, match="make a corpus with `dynadapt corpus build"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(CorpusError, match="format 99; this version reads 1"):
        read_manifest(tmp_path)
