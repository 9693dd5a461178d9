"""Where the domains of `dynadapt corpus build` come from: Debian packages first, so that two machines get the same text, else this machine.

A domain is one entry of DOMAINS: its language, its licence, and readers that are tried in order. A reader returns what it read from
(for the manifest) and the documents, {id: text}; it raises Missing with the reason when its source is not there.
"""

from __future__ import annotations

import gzip
import platform
import re
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from .debian import PackageError, package_files, r_database
from .plain_text import html_to_text, man_to_text


class Missing(RuntimeError):
    """A source that is not there; the message names it."""


Found = tuple[list[dict], dict[str, str]]


@dataclass(frozen=True)
class Reader:
    """read() -> Found. `local` readers need no package index."""

    local: bool
    read: Callable[[], Found]


@dataclass(frozen=True)
class Domain:
    name: str
    language: str
    licence: str
    readers: tuple[Reader, ...]


# ------------------------------------------------------------------------------------------------------------- readers


def packages(names: Iterable[str], wanted: str, text: Callable[[str], str], any_of: bool = False) -> Reader:
    """The files of Debian packages whose path matches `wanted`: of all that the index has, or (any_of) of the first that it has."""
    pattern, names = re.compile(wanted), tuple(names)

    def read() -> Found:
        sources, documents, errors = [], {}, []
        for name in names:
            try:
                source, files = package_files(name, lambda path: bool(pattern.fullmatch(path)))
            except PackageError as error:
                errors.append(str(error))
                continue
            sources.append(source)
            documents |= _texts({f"{name}/{_identity(path)}": content for path, content in files.items()}, text)
            if any_of:
                break
        if not documents:
            raise Missing("; ".join(errors) or f"nothing readable in package {', '.join(names)}")
        return sources, documents

    return Reader(False, read)


def files(folders: Iterable[str], patterns: Iterable[str], text: Callable[[str], str], unwanted: str = r"(?!)") -> Reader:
    """Files under folders of this machine, without those whose path in the folder matches `unwanted`."""
    folders, patterns, skip = tuple(folders), tuple(patterns), re.compile(unwanted)

    def read() -> Found:
        sources, documents = [], {}
        for folder in (Path(name) for given in folders for name in _expanded(given)):
            paths = sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file() and not path.is_symlink()})
            inside = {path.relative_to(folder).as_posix(): path for path in paths}
            contents = {f"{folder.name}/{_identity(name)}": path.read_bytes() for name, path in inside.items() if not skip.search(name)}
            if found := _texts(contents, text):
                sources.append({"folder": str(folder), "files": len(found)})
                documents |= found
        if not documents:
            raise Missing(f"nothing readable under {', '.join(folders)}")
        return sources, documents

    return Reader(True, read)


def _expanded(folder: str) -> Iterator[str]:
    """A folder, or those that a pattern with * stands for."""
    if "*" not in folder:
        yield folder
        return
    root = Path(folder).anchor or "."
    yield from sorted(str(path) for path in Path(root).glob(str(PurePosixPath(folder).relative_to(root))) if path.is_dir())


def _identity(path: str) -> str:
    """A path without what says nothing: usr/share, .gz."""
    return re.sub(r"^usr/(share/)?|\.gz$", "", path)


def _texts(contents: dict[str, bytes], text: Callable[[str], str]) -> dict[str, str]:
    """Decoded, unpacked and made plain; what is not UTF-8 is left out."""
    found = {}
    for name, content in contents.items():
        try:
            content = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
            found[name] = text(content.decode("utf-8"))
        except (UnicodeDecodeError, OSError, EOFError):
            continue
    return {name: plain for name, plain in found.items() if plain.strip()}


def _as_is(text: str) -> str:
    return text.replace("\r\n", "\n")


def _handbook_page(html: str) -> str:
    return html_to_text(html, ("#banner", "#title", ".docnav", ".toc", ".footnotes"))


CHAPTER = re.compile(r"^\s*(?:CHAPTER|Chapter|VOLUME)\s+[\dIVXLC]+\.?\s*$", re.MULTILINE)


def _austen() -> Found:
    """Jane Austen's six novels, a chapter a document."""
    try:
        source, found = package_files("r-cran-janeaustenr", lambda path: path.endswith("data/Rdata.rdb"))
    except PackageError as error:
        raise Missing(str(error)) from None
    documents = {}
    for lines in (lines for content in found.values() for lines in r_database(content) if len(lines) > 1000):
        title, text = lines[0].title().strip(), "\n".join(lines) + "\n"
        for number, chapter in enumerate(CHAPTER.split(text)[1:], 1):
            if chapter.strip():
                documents[f"{title}/{number:02d}"] = chapter.strip("\n") + "\n"
    if not documents:
        raise Missing("package r-cran-janeaustenr: no novels in it")
    return [source], documents


# ------------------------------------------------------------------------------------------------------------- domains


def _manual(language: str, code: str, names: tuple[str, ...]) -> Domain:
    """code: the folder under /usr/share/man, "" for English."""
    folder = f"/usr/share/man/{code}".rstrip("/")
    inside = rf"usr/share/man/{code}/" if code else "usr/share/man/"
    return Domain(
        f"man-{language.lower()}",
        language,
        "per page (GPL, BSD, Linux-man-pages and others): see the packages' copyright files",
        (packages(names, inside + r"man\d\w*/[^/]+\.gz", man_to_text), files([folder], ["man[1-8]*/*"], man_to_text)),
    )


CODE = files(
    [sysconfig.get_path("stdlib")],
    ["**/*.py"],
    _as_is,
    r"(^|/)(site-packages|dist-packages|test|tests|idlelib|pydoc_data|encodings|__pycache__)/",
)
PYTHON_DOCS = tuple(f"python3.{minor}-doc" for minor in (14, 13, 12, 11))
PYTHON_PAGES = (
    packages(PYTHON_DOCS, r".*/_sources/.*\.rst\.txt", _as_is, any_of=True),
    files(["/usr/share/doc/python3*/html/_sources"], ["**/*.rst.txt"], _as_is),
)
GCC = "GPL-3.0-or-later with the GCC Runtime Library Exception"
HEADERS = (
    packages(
        tuple(f"libstdc++-{major}-dev" for major in (14, 13, 12)),
        r"usr/include/.*c\+\+/(?:.*/)?[^/.]+(?:\.(?:h|hpp|tcc))?",
        _as_is,
        any_of=True,
    ),
    files(["/usr/include/c++/*"], ["**/*"], _as_is, r"\.\w+$(?<!\.h)(?<!\.hpp)(?<!\.tcc)"),
)
HANDBOOK = (
    packages(("debian-handbook",), r".*/html/en-US/[^/]+\.html", _handbook_page),
    files(["/usr/share/doc/debian-handbook/html/en-US"], ["*.html"], _handbook_page),
)
_ALL = (
    Domain("python-code", f"Python (CPython {platform.python_version()})", "PSF-2.0", (CODE,)),
    Domain("python-docs", "English", "PSF-2.0, code 0BSD", PYTHON_PAGES),
    Domain("cpp-headers", "C++", GCC, HEADERS),
    _manual("English", "", ("manpages", "manpages-dev")),
    _manual("German", "de", ("manpages-de", "manpages-de-dev")),
    _manual("French", "fr", ("manpages-fr", "manpages-fr-dev")),
    _manual("Japanese", "ja", ("manpages-ja", "manpages-ja-dev")),
    Domain("debian-handbook", "English", "GPL-2.0-or-later or CC-BY-SA-3.0", HANDBOOK),
    Domain("novels", "English (Jane Austen, 1811 to 1818)", "public domain", (Reader(False, _austen),)),
)
DOMAINS = {domain.name: domain for domain in _ALL}
