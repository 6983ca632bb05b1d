"""Power cuts at every system call of a run, on real file systems, and a judge of what is left.

``calls`` sees the system calls, ``cut`` ends one of them early, ``story`` is what a run does,
``judge`` recovers and looks for broken promises, ``sweep`` tries every point. ``python -m
keepstep.testing.power`` runs it.
"""
