"""Every knob, typed and frozen, and where its value came from.

A value is looked for on the command line, then in the environment, then in the recipe files from
right to left, and is the default otherwise. Whatever is misspelt or out of bounds is an error that
names the setting, the value, its source and what to write instead.
"""

from keepstep.config.changes import explain_change
from keepstep.config.interval import Interval, parse_interval
from keepstep.config.keep import KeepPolicy, parse_keep
from keepstep.config.resolve import Resolved, resolve
from keepstep.config.schema import (
    BatchConfig,
    CheckpointConfig,
    Config,
    DataConfig,
    ModelConfig,
    OptimConfig,
    ParallelConfig,
    PreemptionConfig,
    TrainConfig,
    WatchdogConfig,
)

__all__ = [
    "Config",
    "BatchConfig",
    "CheckpointConfig",
    "DataConfig",
    "ModelConfig",
    "OptimConfig",
    "ParallelConfig",
    "PreemptionConfig",
    "TrainConfig",
    "WatchdogConfig",
    "Interval",
    "parse_interval",
    "KeepPolicy",
    "parse_keep",
    "Resolved",
    "resolve",
    "explain_change",
]
