"""Blocks of free TCP ports on loopback, claimed so that servers started at once do not collide."""

import random
import socket
from dataclasses import dataclass

PORTS_PER_BLOCK = 8
SHADOW_OFFSET = 10_000
_LOWEST, _HIGHEST = 12_000, 22_000  # with the offset, still below the kernel's ephemeral ports
_ATTEMPTS = 200


@dataclass(frozen=True, slots=True)
class PortBlock:
    """``PORTS_PER_BLOCK`` ports from ``first`` on, each with its port + 10000 free as well.

    The claim is a bound socket on the block's last port: it holds off every other claimant of this
    machine, and the kernel drops it with the process.
    """

    first: int
    claim: socket.socket

    def release(self) -> None:
        self.claim.close()


def claim_ports(preferred: int | None = None) -> PortBlock:
    """A free block, at ``preferred`` if that can be had.

    *Raises:* ``RuntimeError`` when the machine has none left.
    """
    candidates = range(_LOWEST, _HIGHEST - PORTS_PER_BLOCK, PORTS_PER_BLOCK)
    order = random.sample(candidates, _ATTEMPTS)
    for first in order if preferred is None else (preferred, *order):
        block = _claim(first)
        if block is not None:
            return block
    raise RuntimeError(
        f"no {PORTS_PER_BLOCK} free ports in a row between {_LOWEST} and {_HIGHEST} on 127.0.0.1 "
        f"(tried {_ATTEMPTS} places): end servers that are left over"
    )


def _claim(first: int) -> PortBlock | None:
    claim = _bind(first + PORTS_PER_BLOCK - 1)
    if claim is None:
        return None
    served = range(first, first + PORTS_PER_BLOCK - 1)
    if all(_is_free(port) and _is_free(port + SHADOW_OFFSET) for port in served):
        return PortBlock(first, claim)
    claim.close()
    return None


def _is_free(port: int) -> bool:
    probe = _bind(port)
    if probe is not None:
        probe.close()
    return probe is not None


def _bind(port: int) -> socket.socket | None:
    bound = socket.socket()
    # Ports that only wait out closed connections count as free, as they do for the server.
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(("127.0.0.1", port))
        bound.listen(1)  # two sockets may share a bound address, not a listening one
    except OSError:
        bound.close()
        return None
    return bound
