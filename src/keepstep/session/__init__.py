"""The public API of a training loop: one object, few verbs; the loop stays the user's.

Imports nothing: what chooses a checkpoint needs no torch. ``keepstep`` itself has the names.
"""
