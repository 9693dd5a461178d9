"""lm-evaluation-harness over an engine. This is the public name of `dynadapt.interop.lm_eval`; `python -m dynadapt.lm_eval` runs it."""

from dynadapt.interop.lm_eval import *  # noqa: F403
from dynadapt.interop.lm_eval import __all__ as __all__

if __name__ == "__main__":
    from dynadapt.interop.lm_eval.__main__ import main

    main()
