"""A control (mixer replay) is the run that it controls in everything but how its weights come about.

What it is not told is taken from that run; what it is told otherwise is refused by name, since two runs that differ in steps, rate
or size as well say nothing of their weights. The model and the texts are compared by what is in them, so that they may have moved.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

from dynadapt.experiments.config import ConfigError
from dynadapt.experiments.mixers.replay import static_weights_of
from dynadapt.runs.whole_files import read_json, read_json_or

from .config import ReweightConfig

OF_THE_MIXER = ("mixer", "settings", "weights", "target", "reference", "pace", "smoothing", "floor")
BY_CONTENT = ("model", "domains", "corpus")
FREE = ("evaluate", "device", "backend", "recompute", "compress", "powersgd_rank")  # how it computes, and how often it looks
EQUAL = tuple(field.name for field in fields(ReweightConfig) if field.name not in (*OF_THE_MIXER, *BY_CONTENT, *FREE))


def controlled(run: str | Path) -> dict:
    """The settings of the run that a control is for, with the steps that it made. ConfigError for what is no such run."""
    static_weights_of(run)
    path = Path(run)
    content = read_json_or(path / "config.json", {})
    if content.get("kind") != "reweight":
        raise ConfigError(f"run {str(run)!r}: no config.json of a reweighting run in it; a control takes its steps and rates from there")
    settings = {name: value for name, value in content.items() if name != "kind"}
    made = read_json(path / "summary.json").get("steps", settings["steps"])
    if made < settings["steps"] and settings["schedule"] != "constant":
        raise ConfigError(
            f"run {str(run)!r} ended after {made} of {settings['steps']} steps, with schedule {settings['schedule']!r}: a control "
            f"of {made} steps would have other rates; make that run again with --steps {made}"
        )
    return {**settings, "steps": made}


def with_run(given: Mapping) -> dict:
    """The settings of a command line, `given`, and what it leaves open as in the run that it is the control of."""
    if given.get("mixer") != "replay" or "run" not in given.get("settings", {}):
        return dict(given)
    run = controlled(given["settings"]["run"])
    taken = {name: value for name, value in run.items() if name not in OF_THE_MIXER}
    if given.keys() & {"domains", "corpus"}:
        del taken["domains"], taken["corpus"]
    return {**taken, **given}


def check_control(config: ReweightConfig) -> None:
    """ConfigError where a control is not what it controls, by name."""
    if config.mixer != "replay" or "run" not in config.settings:
        return
    name = str(config.settings["run"])
    run, own = controlled(name), json.loads(json.dumps(config.to_dict()))
    differing = [f"{key} {own[key]!r}, there {run[key]!r}" for key in EQUAL if key in run and own[key] != run[key]]
    if differing:
        raise ConfigError(
            f"mixer 'replay' is the control of {name}, from which it differs: {'; '.join(differing)}; leave them out, and "
            "they are taken from there"
        )


def check_inputs(config: ReweightConfig, inputs: Mapping[str, str]) -> None:
    """ConfigError where the model or a text is not the one of the run that this is the control of."""
    path = Path(str(config.settings.get("run"))) / "inputs.json"
    if config.mixer != "replay" or not path.is_file():
        return
    there = read_json(path)
    differing = [name for name, digest in inputs.items() if there.get(name, digest) != digest]
    if differing:
        raise ConfigError(
            f"mixer 'replay' is the control of {config.settings['run']}, from which it differs: {', '.join(differing)}; give the same files"
        )
