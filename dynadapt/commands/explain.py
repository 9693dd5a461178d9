"""`dynadapt explain`: what serves each op of a step."""

from __future__ import annotations

from dynadapt.common.options import add_settings
from dynadapt.experiments.config import EvalConfig

from .early import check_model
from .settings import add_preset_option, config_from

EXAMPLES = None


def add_options(command) -> None:
    add_settings(command, EvalConfig)
    add_preset_option(command)
    command.add_argument("--time", action="store_true", help="also time each operation")


def run(arguments) -> int:
    asked = config_from(arguments)
    check_model(asked.model)
    import dynadapt.model
    from dynadapt.experiments.defaults import opening, settle
    from dynadapt.experiments.dyneval import build_engine

    from .evaluate import fit_width

    model = dynadapt.model.load(asked.model)
    config = settle(asked, model.config)
    engine = build_engine(model, config)
    print(fit_width(opening(asked, config, model.config, model)))
    print(engine.explain(time=arguments.time))
    return 0
