"""Files out of Debian packages, without installing them. Needs apt-get, dpkg-deb and a package index."""

from __future__ import annotations

import hashlib
import shutil
import struct
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

TIMEOUT = 300  # seconds for one download


class PackageError(RuntimeError):
    """A package that can't be had; the message names it and says why."""


def package_files(package: str, wanted: Callable[[str], bool]) -> tuple[dict, dict[str, bytes]]:
    """({"package", "version", "sha256"}, {path: content}) of the regular files whose path, without the leading "./", is wanted."""
    for tool in ("apt-get", "dpkg-deb"):
        if not shutil.which(tool):
            raise PackageError(f"package {package}: {tool} is not on this machine")
    with tempfile.TemporaryDirectory() as folder:
        _run(["apt-get", "download", "-q", package], package, folder)
        archive = next(Path(folder).glob("*.deb"), None)
        if archive is None:
            raise PackageError(f"package {package}: apt-get download gave no file")
        version = _run(["dpkg-deb", "-f", archive, "Version"], package).decode().strip()
        described = {"package": package, "version": version, "sha256": hashlib.sha256(archive.read_bytes()).hexdigest()}
        return described, dict(_members(archive, package, wanted))


def debian_file(package: str, suffix: str) -> bytes:
    """The one file of a package whose path ends with `suffix`."""
    found = package_files(package, lambda path: path.endswith(suffix))[1]
    if not found:
        raise PackageError(f"package {package}: no file in it ends in {suffix}")
    return next(iter(found.values()))


def _members(archive: Path, package: str, wanted) -> Iterator[tuple[str, bytes]]:
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", archive], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as members:
                for member in members:
                    path = member.name.removeprefix("./")
                    if member.isreg() and wanted(path):
                        yield path, members.extractfile(member).read()
        except tarfile.TarError as error:
            raise PackageError(f"package {package}: not readable ({error})") from None


def _run(command: list, package: str, folder: str | None = None) -> bytes:
    try:
        return subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=TIMEOUT).stdout
    except subprocess.TimeoutExpired:
        raise PackageError(f"package {package}: no answer from the package index in {TIMEOUT} s") from None
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode("utf-8", "replace").strip().splitlines()
        errors = [line.removeprefix("E: ") for line in said if line.startswith("E: ")] or said[-1:] or [f"exit status {error.returncode}"]
        raise PackageError(f"package {package}: {errors[0]} (apt-get update may help)") from None


def r_database(database: bytes) -> Iterator[list[str]]:
    """The character vectors in R's lazy-load database: length-prefixed zlib streams, of which those with strings are yielded."""
    at = 0
    while at + 4 < len(database):
        stream = zlib.decompressobj()
        if lines := r_strings(stream.decompress(database[at + 4 :])):
            yield lines
        at = len(database) - len(stream.unused_data)


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
