"""Start with ``torchrun --standalone --nproc-per-node 2 launch/train.py [recipe.toml] [--flags]``.

The trainer is a loop on keepstep's public API: see ``keepstep/train/loop.py``.
"""

from keepstep.launch.main import main

if __name__ == "__main__":
    main()
