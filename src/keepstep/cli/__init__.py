"""The ``keepstep`` command: looking at runs and settings.

Nothing here imports torch. Text output is plain and never cut; ``--json`` output has stable names.
"""
