"""Bytes under keys.

A *store* holds *objects* (bytes) under *keys* (relative, slash-separated names). This package knows
nothing of steps, ranks or tensors. The contract is :class:`~keepstep.storage.base.Storage`; every
implementation inherits the suite in ``keepstep.testing.conformance``.
"""
