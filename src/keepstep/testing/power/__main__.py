"""``python -m keepstep.testing.power``."""

from keepstep.testing.power.command import main

main()
