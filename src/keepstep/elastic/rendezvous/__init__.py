"""How the nodes of a job find each other, again and again: ``torchrun --rdzv-backend=keepstep``.

=============  ===================================================================================
``roster``     what the nodes agree on, and how one of them may change it: pure
``rules``      when a round may form, when its members come together again: pure
``liveness``   who has fallen silent, by what this node has seen and its own monotonic clock
``settings``   what ``--rdzv-endpoint`` and ``--rdzv-conf`` may say
``link``       the roster and the heartbeats in a TCPStore
``keeper``     the thread that keeps both up to date, and outlives the loss of the store
``handler``    what torchrun's agent talks to
=============  ===================================================================================

Written against the public interface ``RendezvousHandler`` alone. docs/elastic.md says what it does
otherwise than the stock backends, and why.
"""
