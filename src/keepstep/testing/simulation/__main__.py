import sys

from keepstep.testing.simulation.command import main

if __name__ == "__main__":
    sys.exit(main())
