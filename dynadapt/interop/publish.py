"""``dynadapt publish``: adapters as versioned PEFT directories that an inference server loads while it runs.

A version is a directory NAME-vN of its own and is served under that name, because servers key their prefix cache by an
adapter's name: the same name with other weights would mix keys and values of both. A number is used once, even if
publishing it failed; NAME.json beside the versions remembers the last one and what each server has been asked to load.

    1. the adapter is checked: a LoRA that PEFT reads, finite, of a rank that the server takes;
    2. written to a hidden directory, synced to disk, and renamed: NAME-vN is there whole or not at all;
    3. the server loads NAME-vN; if it does not, NAME-vN is removed and what was served before stays served;
    4. versions older than the ``keep`` newest are unloaded, then removed.
"""

from __future__ import annotations

import fcntl
import re
import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dynadapt.engine.learners.peft import write_adapter
from dynadapt.engine.rate_mixture import RateMixture
from dynadapt.experiments.export import run_adapter
from dynadapt.model import ModelError
from dynadapt.model.family import FAMILIES
from dynadapt.model.peft import SETTINGS, TENSORS, one_scale, read_settings, read_tensors, tensor_key, write_files, write_settings
from dynadapt.model.peft_fields import check_targets
from dynadapt.runs.rundir import sync_tree, write_json
from dynadapt.runs.whole_files import read_json_or

from .inference_server import ENDPOINTS, KEEP, PublishError, Server

__all__ = ["ENDPOINTS", "KEEP", "PublishError", "Published", "Server", "publish"]
FILES = (SETTINGS, TENSORS)
# what servers know a module by: with the base model's prefix in front, as in a causal language model
MODULE = re.compile(
    "|".join(
        rf"{re.escape(f.hf_layers)}\.\d+\.({'|'.join(re.escape(f.hf_modules[part]) for parts in (*f.groups.values(), *(f.delta_groups or {}).values()) for part in parts)})"
        for f in FAMILIES.values()
    )
)


@dataclass(frozen=True)
class Published:
    """What ``publish`` did: the directory, its name, and (name, reason) of what could neither be unloaded nor removed."""

    path: Path
    name: str
    left: tuple[tuple[str, str], ...] = ()


def publish(
    source, to: str | Path, name: str, *, keep: int = KEEP, server: Server | None = None, max_rank: int | None = None, stream: int = 0
) -> Published:
    """Publish an adapter as ``to``/NAME-vN, N one more than ever before, and have ``server`` load it.

    Args:
        source: a PEFT adapter's directory, a run directory (its last checkpoint), an ``Engine`` or a ``Session`` with LoRA.
        to: the directory of versions, made if need be. Several names can share it; publishers take turns.
        name: letters, digits, dots, dashes and underscores.
        keep: versions that stay on disk, and on the server, the new one included. With 2, clients have until the next
            version to take up the new name.
        server: the server to tell; None: none.
        max_rank: refuse an adapter of a larger rank: the server's --max-lora-rank.
        stream: which stream's adapter, of a run or an engine.

    Raises:
        PublishError: nothing was published; what was served is served still.
        ModelError: the adapter is none that this package writes or reads.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise PublishError(f"name={name!r}: expected letters, digits, dots, dashes and underscores, the first a letter or digit")
    if not isinstance(keep, int) or isinstance(keep, bool) or keep < 1:
        raise PublishError(f"keep={keep!r}: expected at least 1 version")
    to = Path(to)
    try:
        to.mkdir(parents=True, exist_ok=True)
        with _turn(to / f".{name}.lock"):
            return _publish(source, to.resolve(), name, keep, server, max_rank, stream)
    except OSError as error:
        raise PublishError(f"{to}: can't write: {error.strerror or error}") from error


def _publish(source, to: Path, name: str, keep: int, server: Server | None, max_rank: int | None, stream: int) -> Published:
    record = _Record(to, name)
    temporary = to / f".{name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)  # of a publisher that was killed
    temporary.mkdir()
    try:
        _write(source, temporary, stream)
        _check(temporary, max_rank)
        sync_tree(temporary)
        version = f"{name}-v{record.take()}"
        temporary.rename(to / version)
        sync_tree(to, deep=False)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if server is not None:
        _load(server, version, to / version, record)
    return Published(to / version, version, tuple(_retire(to, name, keep, server, record)))


def _load(server: Server, version: str, path: Path, record: _Record) -> None:
    record.add(server.url, version)  # before the call: it may arrive though no answer does
    try:
        server.load(version, path)
    except PublishError as error:
        try:
            server.unload(version)
            record.remove(server.url, version)
        except PublishError:
            pass  # remembered: the next publication unloads it
        shutil.rmtree(path, ignore_errors=True)
        raise PublishError(f"{error}; {version} was taken back, what was served before is untouched") from error


def _retire(to: Path, name: str, keep: int, server: Server | None, record: _Record):
    """Unloads what this server has, then removes what no server has, of all but the ``keep`` newest versions."""
    there = _versions(to, name)
    kept = set(sorted(there, key=there.get)[-keep:])
    for version in record.loaded(server.url) if server else []:
        if version in kept:
            continue
        try:
            server.unload(version)
            record.remove(server.url, version)
        except PublishError as error:
            yield version, str(error)
    for version in there.keys() - kept:
        if not record.somewhere(version):
            shutil.rmtree(to / version)


def _write(source, to: Path, stream: int) -> None:
    engine = getattr(source, "engine", source)  # a Session's, or itself
    if isinstance(source, RateMixture):
        raise PublishError(f"rates={source.rates!r}: a mixture has an adapter of each rate; publish its engine with the stream of one")
    if hasattr(engine, "learners"):
        learners = engine.learners
        if not learners or learners[0].owns_weights:
            raise PublishError(f"adapt={engine.adapt!r}: only an engine with LoRA has an adapter to publish")
        with engine.calls.call("publish"):
            step, stream = engine.driver.step, 0 if engine.shared else engine._check_stream(stream)
            write_adapter(to, step.learner(stream), engine.config, step.slot(stream), engine.model.name)
        return
    source = Path(source)
    if not source.is_dir():
        raise PublishError(f"{source}: no such directory; give a run or a PEFT adapter")
    adapter = source if (source / FILES[0]).is_file() else run_adapter(source, stream)
    for file in FILES:
        if not (adapter / file).is_file():
            raise PublishError(f"{adapter} has no {file}; give a directory with {' and '.join(FILES)}")
        shutil.copyfile(adapter / file, to / file)


def _check(adapter: Path, max_rank: int | None) -> None:
    """A server that fails on an adapter says so late, or not at all: what can be seen here is refused here.

    Servers read the rank, lora_alpha and the tensors and little else, and not all of them know use_rslora or patterns: these
    become one rank and one scale that mean the same.
    """
    read = read_settings(adapter)
    there = read_tensors(adapter, read)
    settings, tensors = one_scale(read, there)
    if max_rank is not None and settings["r"] > max_rank:
        raise PublishError(f"the adapter's rank {settings['r']} exceeds max_rank={max_rank}, the largest that the server takes")
    for module in tensors:
        if not MODULE.fullmatch(module):
            raise ModelError(
                f"the adapter has tensors of {module}, which is no linear of a layer under the name that servers give "
                "it (model.layers.0.self_attn.q_proj, for example)"
            )
    check_targets(settings, tensors, (), "the adapter")
    if tensors is there:
        write_settings(adapter, settings)
    else:
        named = {tensor_key(module, which): half.contiguous() for module, pair in tensors.items() for which, half in zip("AB", pair)}
        write_files(adapter, named, settings)


def _versions(to: Path, name: str) -> dict[str, int]:
    """{directory name: number} of the versions that are there."""
    found = ((entry.name, re.fullmatch(re.escape(name) + r"-v(\d+)", entry.name)) for entry in to.iterdir() if entry.is_dir())
    return {entry: int(match[1]) for entry, match in found if match}


class _Record:
    """NAME.json: the last number used, and by server's address the versions it has been asked to load."""

    def __init__(self, to: Path, name: str):
        self.path = to / f"{name}.json"
        self.content = read_json_or(self.path, {"last": 0, "loaded": {}})
        self._check()
        self.content["last"] = max([self.content["last"], *_versions(to, name).values()])

    def _check(self) -> None:
        content = self.content if isinstance(self.content, dict) else {}
        last, loaded = content.get("last"), content.get("loaded")
        words = isinstance(loaded, dict) and all(
            isinstance(names, list) and all(isinstance(n, str) for n in names) for names in loaded.values()
        )
        if type(last) is not int or last < 0 or not words:
            raise PublishError(f"{self.path}: not a record of versions; remove it if no server has any of them loaded")

    def take(self) -> int:
        self.content["last"] += 1
        write_json(self.path, self.content)
        return self.content["last"]

    def loaded(self, url: str) -> list[str]:
        return list(self.content["loaded"].get(url, []))

    def somewhere(self, version: str) -> bool:
        return any(version in versions for versions in self.content["loaded"].values())

    def add(self, url: str, version: str) -> None:
        self.content["loaded"].setdefault(url, []).append(version)
        write_json(self.path, self.content)

    def remove(self, url: str, version: str) -> None:
        self.content["loaded"][url].remove(version)
        write_json(self.path, self.content)


@contextmanager
def _turn(path: Path):
    """One publisher of a name at a time; the others wait."""
    with open(path, "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
