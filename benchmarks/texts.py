"""Real texts for benchmarks and sweeps, from Debian packages and CPython itself; nothing of them is kept in git.

    python benchmarks/texts.py texts/

writes prose.txt (Jane Austen, Mansfield Park, 1814, public domain; Debian package r-cran-janeaustenr),
code.txt (CPython's standard library, PSF licence) and german.txt (Debian reference, German translation, GPL;
package debian-reference-de). Needs apt-get and dpkg-deb for the first and the last.
"""

from __future__ import annotations

import argparse
import gzip
import io
import struct
import subprocess
import sysconfig
import tarfile
import tempfile
import zlib
from pathlib import Path

CODE = ("argparse.py", "asyncio/base_events.py", "ast.py", "configparser.py", "dataclasses.py", "decimal.py", "difflib.py",
        "doctest.py", "email/_header_value_parser.py", "ipaddress.py", "logging/__init__.py", "mailbox.py", "pathlib.py",
        "pickle.py", "statistics.py", "subprocess.py", "tarfile.py", "typing.py", "zipfile.py")


def debian_file(package: str, suffix: str) -> bytes:
    """The one file of a Debian package whose path ends with ``suffix``."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["apt-get", "download", "-q", package], cwd=folder, check=True, capture_output=True)
        archive = next(Path(folder).glob("*.deb"))
        tar = subprocess.run(["dpkg-deb", "--fsys-tarfile", archive], check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(tar)) as members:
        name = next(n for n in members.getnames() if n.endswith(suffix))
        return members.extractfile(name).read()


def r_strings(blob: bytes) -> list[str]:
    """The strings of one serialised R character vector (XDR): each is flags with type 9, a length, the bytes."""
    found, at = [], 0
    while at + 8 <= len(blob):
        flags, length = struct.unpack_from(">ii", blob, at)
        if flags & 0xFF == 9 and 0 < flags < 1 << 20 and 0 <= length < 5000:
            found.append(blob[at + 8 : at + 8 + length].decode("utf-8", "replace"))
            at += 8 + length
        else:
            at += 1
    return found


def novel(title: str = "MANSFIELD PARK") -> str:
    """One of Jane Austen's novels out of R's lazy-load database (length-prefixed zlib streams)."""
    database, at = debian_file("r-cran-janeaustenr", "data/Rdata.rdb"), 0
    while at + 4 < len(database):
        stream = zlib.decompressobj()
        lines = r_strings(stream.decompress(database[at + 4 :]))
        if lines and lines[0] == title:
            return "\n".join(lines) + "\n"
        at = len(database) - len(stream.unused_data)
    raise SystemExit(f"r-cran-janeaustenr holds no novel titled {title!r}")


def code() -> str:
    root = Path(sysconfig.get_path("stdlib"))
    return "".join((root / name).read_text("utf-8") for name in CODE if (root / name).is_file())


def german() -> str:
    return gzip.decompress(debian_file("debian-reference-de", "debian-reference.de.txt.gz")).decode("utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the three files go")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in (("prose", novel), ("code", code), ("german", german)):
        text = make()
        (folder / f"{name}.txt").write_text(text, "utf-8")
        print(f"{folder / name}.txt: {len(text.encode()):,} bytes")


if __name__ == "__main__":
    main()
