"""Real texts for benchmarks and sweeps, from Debian packages and CPython itself; nothing of them is kept in git.

    python benchmarks/texts.py texts/              # --more: six instead of three

writes prose.txt (Jane Austen, Mansfield Park, 1814, public domain; Debian package r-cran-janeaustenr),
code.txt (CPython's standard library, PSF licence) and german.txt (Debian reference, German translation, GPL;
package debian-reference-de). Needs apt-get and dpkg-deb for the first and the last. With --more also emma.txt (Emma, 1815), french.txt and
italian.txt (the same reference in these languages).
"""

from __future__ import annotations

import argparse
import gzip
import sysconfig
from pathlib import Path

from dynadapt.experiments.debian import debian_file, r_database

CODE = (
    "argparse.py",
    "asyncio/base_events.py",
    "ast.py",
    "configparser.py",
    "dataclasses.py",
    "decimal.py",
    "difflib.py",
    "doctest.py",
    "email/_header_value_parser.py",
    "ipaddress.py",
    "logging/__init__.py",
    "mailbox.py",
    "pathlib.py",
    "pickle.py",
    "statistics.py",
    "subprocess.py",
    "tarfile.py",
    "typing.py",
    "zipfile.py",
)


def novel(title: str = "MANSFIELD PARK") -> str:
    """One of Jane Austen's novels out of R's lazy-load database."""
    for lines in r_database(debian_file("r-cran-janeaustenr", "data/Rdata.rdb")):
        if lines[0] == title:
            return "\n".join(lines) + "\n"
    raise SystemExit(f"r-cran-janeaustenr holds no novel titled {title!r}")


def code() -> str:
    root = Path(sysconfig.get_path("stdlib"))
    return "".join((root / name).read_text("utf-8") for name in CODE if (root / name).is_file())


def reference(language: str) -> str:
    """The Debian reference in one language."""
    return gzip.decompress(debian_file(f"debian-reference-{language}", f"debian-reference.{language}.txt.gz")).decode("utf-8")


TEXTS = {"prose": novel, "code": code, "german": lambda: reference("de")}
MORE = {"emma": lambda: novel("EMMA"), "french": lambda: reference("fr"), "italian": lambda: reference("it")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the files go")
    parser.add_argument("--more", action="store_true", help="also emma.txt, french.txt and italian.txt")
    given = parser.parse_args()
    folder = given.folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in {**TEXTS, **(MORE if given.more else {})}.items():
        text = make()
        (folder / f"{name}.txt").write_text(text, "utf-8")
        print(f"{folder / name}.txt: {len(text.encode()):,} bytes")


if __name__ == "__main__":
    main()
