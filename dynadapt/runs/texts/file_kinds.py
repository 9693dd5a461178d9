"""What a file is by its name: plain text, documents in lines or rows, or something that has to be made text first."""

from __future__ import annotations

import os

PROSE = frozenset("txt text md markdown rst tex adoc asciidoc org rtx pod wiki textile log srt vtt".split())
CODE = frozenset(
    """
    py pyi pyx c h cc cpp cxx hh hpp hxx tcc inl cu cuh m mm rs go java kt kts scala groovy js jsx mjs cjs ts tsx vue svelte cs fs fsx vb swift
    dart rb php pl pm t lua r jl hs lhs ml mli ex exs erl hrl clj cljs lisp el scm rkt f f77 f90 f95 f03 for ada adb ads pas d nim zig v sv vhd
    vhdl asm s sh bash zsh fish ps1 bat cmd sql html htm css scss sass less xml xsl proto thrift graphql gql cmake mk make gradle tf hcl nix
    yaml yml toml ini cfg conf properties awk sed vim tcl sol move diff patch
    """.split()
)
RECORDS = {"jsonl": "lines", "ndjson": "lines", "json": "array", "parquet": "parquet"}
GATHERED = PROSE | CODE | {"jsonl", "ndjson", "parquet"}  # .json in a directory is configuration far more often than text

ARCHIVE = "an archive: unpack it and give the directory"
REFUSED = {
    **dict.fromkeys(("zip", "tar", "tgz", "tar.gz", "7z", "rar", "whl"), ARCHIVE),
    "zst": "compressed with zstd: unpack it, or pipe it, as in zstdcat FILE | dynadapt ... --text -",
    "bz2": "compressed with bzip2: unpack it, or pipe it, as in bzcat FILE | dynadapt ... --text -",
    "xz": "compressed with xz: unpack it, or pipe it, as in xzcat FILE | dynadapt ... --text -",
    "pdf": "no plain text: give what pdftotext makes of it",
    **dict.fromkeys(("docx", "doc", "odt", "epub", "rtf"), "no plain text: give what pandoc -t plain makes of it"),
    **dict.fromkeys(("arrow", "feather"), "no text: write the column to a .jsonl or .parquet file"),
    "ipynb": "a notebook in JSON: give what jupyter nbconvert --to script makes of it",
    "parquet.gz": "Parquet, which is compressed inside already: unpack it",
}


def suffix_of(path: str) -> tuple[str, bool]:
    """(the suffix without .gz, whether there was a .gz), in small letters; "" for none."""
    name = os.path.basename(path).lower()
    packed = name.endswith(".gz")
    stem, dot, suffix = (name[:-3] if packed else name).rpartition(".")
    return (suffix if dot and stem else ""), packed


def records_of(path: str) -> str | None:
    """ "lines", "array" or "parquet" for a file of several documents, None for one that is a document."""
    return RECORDS.get(suffix_of(path)[0])


def why_refused(path: str) -> str | None:
    """What to do about a file whose name says that it is no text; None for any other."""
    suffix, packed = suffix_of(path)
    return REFUSED.get(f"{suffix}.gz") if packed and f"{suffix}.gz" in REFUSED else REFUSED.get(suffix)
