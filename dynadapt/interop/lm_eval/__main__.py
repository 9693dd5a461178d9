"""The harness' own command line, with the model "dynadapt" known to it and the reset policy printed below the scores."""

from lm_eval.__main__ import cli_evaluate

from . import DynadaptLM


def main() -> None:
    cli_evaluate()
    for lm in DynadaptLM.made:
        print(lm.policy)


if __name__ == "__main__":
    main()
