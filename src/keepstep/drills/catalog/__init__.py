"""The catalog of drills: a module for each family."""

from fnmatch import fnmatchcase

from keepstep.drills.catalog.agents import agents
from keepstep.drills.catalog.clock import clock
from keepstep.drills.catalog.crash_loop import crash_loop
from keepstep.drills.catalog.damage import damage
from keepstep.drills.catalog.disk import disk
from keepstep.drills.catalog.hangs import hangs
from keepstep.drills.catalog.in_flight import in_flight
from keepstep.drills.catalog.kills import kills
from keepstep.drills.catalog.notice_moments import notice_moments
from keepstep.drills.catalog.notices import notices
from keepstep.drills.catalog.object_storage import object_storage
from keepstep.drills.catalog.partition import partition
from keepstep.drills.catalog.rescale import rescale
from keepstep.drills.catalog.scale_up import scale_up
from keepstep.drills.catalog.store import store
from keepstep.drills.catalog.stragglers import stragglers
from keepstep.drills.catalog.two_jobs import two_jobs
from keepstep.drills.catalog.zombie import zombie
from keepstep.drills.scenario import SMALL, Drill, Scale
from keepstep.errors import ConfigError

SMOKE = (
    "kill-write.middle-ddp",
    "kill-publish.middle-ddp",
    "kill-publish.after-fsdp",
    "kill-arrive.after-fsdp",
    "kill-load.middle-ddp",
    "kill-in-flight-async-ddp",
    "rescale-down-ddp",
    "rescale-up-ddp",
    "damage-flip",
    "damage-delete",
    "damage-all",
    "zombie",
)
"""One of each sort, in minutes. They share their uninterrupted runs."""

SABOTAGED = "kill-write.middle-ddp"
"""What a sabotage is tried on, if nothing is named."""

_FAMILIES = (
    *(kills, in_flight, rescale, damage, zombie, store, agents, notices, notice_moments, hangs),
    *(partition, clock, scale_up, object_storage, disk, stragglers, crash_loop, two_jobs),
)
"""Each a function from the scale to its drills."""


def catalog(scale: Scale = SMALL) -> tuple[Drill, ...]:
    """Every drill, in the order in which they are listed."""
    return tuple(drill for family in _FAMILIES for drill in family(scale))


def select(patterns: tuple[str, ...], scale: Scale = SMALL) -> tuple[Drill, ...]:
    """The drills that match any of the patterns: ``smoke``, ``all``, names, wildcards, families.

    *Raises:* ``ConfigError`` for a pattern that matches nothing.
    """
    drills = catalog(scale)
    wanted: set[str] = set()
    for pattern in patterns or ("smoke",):
        globs = {"smoke": SMOKE, "all": ("*",)}.get(pattern, (pattern,))
        matching = {
            drill.name
            for drill in drills
            for glob in globs
            if fnmatchcase(drill.name, glob) or drill.family == glob
        }
        if not matching:
            raise ConfigError(f"no drill is called {pattern!r}: see `keepstep drill list`")
        wanted |= matching
    return tuple(drill for drill in drills if drill.name in wanted)
