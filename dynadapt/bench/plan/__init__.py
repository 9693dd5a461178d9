"""What a step will cost before it is run: FLOPs, memory traffic, memory, and the time that a machine's ceilings leave.

``step_work`` runs the step's own code with ops that do nothing on tensors that hold nothing (work.py), ``predict`` holds each
op against the ceilings of a machine (ceilings.py), and measured.py says how far measured steps were from that.
"""

from .ceilings import Ceilings, datasheet, from_campaign, measured_here
from .datasheets import GPUS
from .fit import most_streams
from .predict import Prediction, predict
from .slow import SlowLevelWork, slow_work
from .work import OpWork, Work, step_work

__all__ = [
    "GPUS",
    "Ceilings",
    "OpWork",
    "Prediction",
    "SlowLevelWork",
    "Work",
    "datasheet",
    "from_campaign",
    "measured_here",
    "most_streams",
    "predict",
    "slow_work",
    "step_work",
]
