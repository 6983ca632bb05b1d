"""Restores that are broken on purpose: a drill that does not notice proves nothing.

The deed is done in the worker, after everything by which keepstep proves a restore
(``keepstep.train.sabotage``).
"""

from keepstep.errors import ConfigError

SABOTAGES = {
    "moment": "one element of one optimizer moment on rank 1 is off by one unit in the last place",
    "layer": "the parameters of one layer are not restored, on any rank",
    "rng": "the random generator of rank 1 starts anew",
    "sampler": "the position in the data is one sample ahead, on all ranks",
    "schedule": "the learning rate schedule starts anew, on all ranks",
    "older-shard": "rank 1 has its part of the model from the checkpoint before",
}
"""What there is."""

_OF_ONE_RANK = ("moment", "rng", "older-shard")


def spoiling(name: str) -> str:
    """The failpoint rule, for every start that resumes. *Raises:* ``ConfigError``."""
    if name not in SABOTAGES:
        raise ConfigError(
            f"there is no sabotage {name!r}; there are {', '.join(SABOTAGES)} "
            "(`keepstep drill list --sabotages`)"
        )
    rank = "@rank:1" if name in _OF_ONE_RANK else ""
    return f"load.after=spoil:{name}{rank}@restart:any"
