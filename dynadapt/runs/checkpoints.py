"""A run's saved states: checkpoint/NNNNNNNN, each with the digest of every file of it in its state.json.

A state is written beside the last one and named when it is whole and on the disk; then the last one goes, its name first. One that
takes the place of another of the same step is NNNNNNNN-1 until that one is gone. So at every instruction a whole state has a
name.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from dynadapt.common.digests import differs, digests_under, sync_tree

from .whole_files import RunError, discard, note, read_json

NAME = re.compile(r"(\d{8,})(?:-(\d+))?")
KEEPS_NO_DIGESTS = "was saved by a version that kept no checksums: it is read as it is"


def saved_states(run: Path) -> list[Path]:
    """Named states, the newest last."""
    found = []
    folder = run / "checkpoint"
    for entry in folder.iterdir() if folder.is_dir() else ():
        if (match := NAME.fullmatch(entry.name)) and entry.is_dir():
            found.append((int(match[1]), int(match[2] or 0), entry))
    return [entry for *_, entry in sorted(found)]


def read_state(state: Path) -> dict:
    """state.json of a state whose files are all as they were written; RunError names the one that is not."""
    content = read_json(state / "state.json")
    if not isinstance(content, dict):
        raise RunError(f"{state / 'state.json'} holds no state")
    if "files" not in content:
        note(f"{state} {KEEPS_NO_DIGESTS}")
        return content
    recorded = content.pop("digest", None)
    if recorded != state_digest(content):
        raise RunError(f"{state / 'state.json'} is damaged: it is not what was written")
    for name, expected in content["files"].items():
        if wrong := differs(state / name, expected):
            raise RunError(wrong)
    return content


def newest_whole(run: Path, also: Callable[[dict], None] = lambda state: None) -> tuple[Path | None, dict | None]:
    """(state, its state.json) of the newest state that is whole; (None, None) where none was saved.

    `also` may refuse one too. An older one in the place of a newer is said, by a warning; RunError when none is whole.
    """
    complaints = []
    for state in reversed(saved_states(run)):
        try:
            content = read_state(state)
            also(content)
        except RunError as error:
            complaints.append(str(error))
            continue
        if complaints:
            note(f"{complaints[0]}; going on from the older {state}")
        return state, content
    if complaints:
        raise RunError(f"{complaints[0]}. No other state of {run} is whole; put the file back from a copy, or choose another --out")
    return None, None


def last_state(run: str | Path, why: str = "it was stopped before its first checkpoint, or ran with --checkpoint 0") -> Path:
    """The newest whole state of a run. RunError when there is none."""
    state, _ = newest_whole(Path(run))
    if state is None:
        raise RunError(f"{run} saved no state ({why})")
    return state


def state_digest(content: dict) -> str:
    """Of all of state.json but itself."""
    plain = json.loads(json.dumps(content, allow_nan=False))  # as it will be read: keys are words there
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def write_state(run: Path, segments: int, write: Callable[[Path], None], content: dict) -> Path:
    """Has write(folder) fill a new state, names it and lets the others go. What is raised on the way leaves those."""
    folder = run / "checkpoint"
    temporary = folder / f".{segments:08d}.tmp"
    try:
        if temporary.exists():
            discard(temporary)
        if not folder.exists():
            folder.mkdir()
            sync_tree(run, deep=False)
        temporary.mkdir()
        write(temporary)
        content = {**content, "files": digests_under(temporary)}
        (temporary / "state.json").write_text(json.dumps({**content, "digest": state_digest(content)}, indent=2) + "\n", "utf-8")
        sync_tree(temporary)
        target = _free_name(folder, segments)
        os.rename(temporary, target)
        sync_tree(folder, deep=False)
    except BaseException:
        discard(temporary)
        raise
    return keep_only(run, target)


def _free_name(folder: Path, segments: int) -> Path:
    """A name that comes after those of all states of the same step."""
    taken = [int(match[2] or 0) for entry in folder.iterdir() if (match := NAME.fullmatch(entry.name)) and int(match[1]) == segments]
    return folder / (f"{segments:08d}-{max(taken) + 1}" if taken else f"{segments:08d}")


def keep_only(run: Path, state: Path) -> Path:
    """Removes every other state and gives this one its plain name. The disk may refuse: the next save tries again."""
    folder, plain = run / "checkpoint", state.with_name(state.name.partition("-")[0])
    for entry in sorted(folder.iterdir()):
        if entry == state:
            continue
        aside = folder / f".{entry.name}.old" if NAME.fullmatch(entry.name) else entry
        if aside != entry:  # no half of a state bears a state's name
            discard(aside)
            with suppress(OSError):
                os.rename(entry, aside)
        discard(aside)
    if state != plain and not plain.exists():
        with suppress(OSError):
            os.rename(state, plain)
            state = plain
    return state
