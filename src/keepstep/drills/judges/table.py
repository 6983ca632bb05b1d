"""What a module of judges lists."""

from collections.abc import Callable

from keepstep.drills.evidence import Evidence

Judges = dict[str, tuple[str, Callable[[Evidence], str]]]
"""By name: the promise (``I1`` to ``I11``), and a function that returns what it found or raises an
``Objection``."""
