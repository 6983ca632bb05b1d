"""What makes a step real.

An *attempt* is one try at saving one step; it has a name that no other try shares. A *checkpoint*
is an attempt whose *manifest* exists. A *generation* is one incarnation of a run's process group.
This package decides which checkpoints there are and which of them count; it knows keys, bytes and
checksums, and nothing of tensors.
"""
