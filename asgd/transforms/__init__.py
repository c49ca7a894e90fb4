"""Remedies for staleness as Optax gradient transformations, usable on their own.

A transformation here takes what it needs of these extra arguments, by keyword:

================  ==========================  ==========================================
argument          type                        meaning
================  ==========================  ==========================================
``staleness``     int32 scalar                server updates between read and arrival
``stale_params``  tree like ``params``        the snapshot the gradient was computed on
``worker``        int32 scalar                who computed it
``delay``         float32 scalar              virtual seconds from read to arrival
``update``        bool scalar                 the server updates right after this gradient
================  ==========================  ==========================================

Without a server, where agents mix with their neighbours, the arguments are those of
:func:`asgd.predict_clip`, and ``worker``.
"""

from asgd.transforms.aliases import dc_asgd_a, dc_asgd_c, staleness_aware_sgd
from asgd.transforms.average_until_update import AverageUntilUpdateState, average_until_update
from asgd.transforms.compensate_delay import CompensateDelayState, compensate_delay
from asgd.transforms.consensus import consensus
from asgd.transforms.delayed_nesterov import DelayedNesterovState, delayed_nesterov
from asgd.transforms.predict_clip import PredictClipState, predict_clip
from asgd.transforms.rows import read_row, weighted_sum
from asgd.transforms.staleness import (
    constant,
    delay_adaptive,
    exponential,
    hinge,
    inverse,
    polynomial,
    rule_from_text,
    scale_by_staleness,
)
