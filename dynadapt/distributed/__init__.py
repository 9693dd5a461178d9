"""Several processes that train or score as one: `torchrun --nproc-per-node N -m dynadapt ...`.

processes.py      who they are, and what they tell each other;
data_parallel.py  each learns from its own rows, and gradients are averaged before every update;
sharded.py        the same, with masters and optimizer state spread over the processes.
"""

from .processes import Processes, join

__all__ = ["Processes", "join"]
