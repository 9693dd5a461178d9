"""What calls of an earlier version did, they do for one minor version more, and say what to write instead."""

import inspect
import re
import warnings

import pytest

from dynadapt import RMS, SGD, Adam, AdamW, Engine, LoRA, SegmentMemory
from dynadapt.common.outdated import UNTIL
from dynadapt.common.version import VERSION
from dynadapt.model import random_model, tiny_config

MODEL = random_model(tiny_config("llama", max_positions=8))
POSITIONAL = {
    Adam: (1e-3, (0.5, 0.9), 1e-6, 0.1, 2.0),
    AdamW: (1e-3, (0.5, 0.9), 1e-6, 0.1, 2.0, 0.3),
    RMS: (1e-3, 1e-6, 0.1, 2.0),
    SGD: (1e-3, 0.5, 0.1, 2.0),
    Engine: (MODEL, LoRA(2), SGD(), SegmentMemory(2, 1), 2, 4, False, 2, True, 9, "fp32", "reference", 3, "cpu", 1, True, "same", False),
}
NEWER = {Engine: {"guard", "keep", "slow", "learn_from", "hypergradient"}}  # by name alone


@pytest.mark.parametrize("made", POSITIONAL)
def test_settings_by_position_are_those_by_name(made):
    given = POSITIONAL[made]
    named = dict(zip(inspect.signature(made).parameters, given))
    shown = lambda thing: thing.settings if made is Engine else thing  # noqa: E731
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected = made(*given[:2], **dict(list(named.items())[2:]))
    name, value = list(named.items())[-1]
    with pytest.warns(
        DeprecationWarning, match=rf"of {made.__name__}'s arguments by position works until .*{name}={re.escape(repr(value))}"
    ) as caught:
        found = made(*given)
    assert shown(found) == shown(expected) and caught[0].filename == __file__
    assert set(inspect.signature(made).parameters) - set(named) == NEWER.get(made, set())
    with pytest.raises(TypeError, match="positional argument"):
        made(*given, 1)
    with pytest.raises(TypeError, match=f"multiple values for (keyword )?argument '{name}'"), pytest.warns(DeprecationWarning):
        made(*given, **{name: value})


def test_a_warning_of_what_is_made_names_the_line_that_made_it():
    with pytest.warns(UserWarning, match="exceeds the model's 8 positions") as caught:
        Engine(MODEL, segment=16)
    assert caught[0].filename == __file__


def test_the_version_that_ends_them_is_still_to_come():
    assert tuple(map(int, VERSION.split("."))) < tuple(map(int, UNTIL.split(".")))
