"""A round on paper: what it will cost in time, memory, disk and money, by arithmetic alone.

``constants`` has every figure with its source, ``shapes`` a policy's size, ``workload`` the tokens of a round,
``memory``, ``timing`` and ``disk`` what they take; ``stages`` and ``plan`` put them together. ``deploy/SCALING.md``
derives the formulas and says which of them were compared with a measurement.
"""

from pipeline.planning.constants import ASSUMED, DEVICES, Assumptions, Device
from pipeline.planning.plan import Plan, StageTime, plan_round, streaming_needs
from pipeline.planning.shapes import KNOWN_SHAPES, ModelShape, shape_of_config, shape_of_warm_start
from pipeline.planning.stages import Factors, Mode, Split
from pipeline.planning.workload import Workload, workload_of

__all__ = [
    "ASSUMED",
    "DEVICES",
    "KNOWN_SHAPES",
    "Assumptions",
    "Device",
    "Factors",
    "Mode",
    "ModelShape",
    "Plan",
    "Split",
    "StageTime",
    "Workload",
    "plan_round",
    "shape_of_config",
    "shape_of_warm_start",
    "streaming_needs",
    "workload_of",
]
