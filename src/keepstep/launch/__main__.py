"""``python -m keepstep.launch``: the trainer."""

from keepstep.launch.main import main

if __name__ == "__main__":
    main()
