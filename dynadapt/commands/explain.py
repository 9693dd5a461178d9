"""`dynadapt explain`: what serves each op of a step."""

from __future__ import annotations

from dynadapt.commands.early import check_model
from dynadapt.commands.settings import add_config_options, config_from

EXAMPLES = None


def add_options(command) -> None:
    add_config_options(command)
    command.add_argument("--time", action="store_true", help="also time each operation")


def run(arguments) -> int:
    config = config_from(arguments)
    check_model(config.model)
    import dynadapt.model
    from dynadapt.experiments.dyneval import build_engine
    engine = build_engine(dynadapt.model.load(config.model), config)
    print(engine.explain(time=arguments.time))
    return 0
