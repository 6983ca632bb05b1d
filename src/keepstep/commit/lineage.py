"""Generations and the valid line: why a zombie's late commit does not count.

Each start of a run's process group claims the next generation exclusively and writes down which
checkpoint it resumed from. The *valid line* follows from the claims alone: all commits of the
newest generation; of the generation it resumed from, those up to that step; and so on back. A
process of an older generation that goes on committing therefore adds nothing, and no lock is
needed.
"""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from keepstep.commit.canonical import seal, unseal
from keepstep.commit.layout import GENERATIONS, CheckpointId, generation_key, parse_generation
from keepstep.errors import (
    ClaimInDoubt,
    CorruptCheckpointError,
    FencedError,
    ObjectExists,
    StorageUnavailable,
)
from keepstep.storage.base import Storage


@dataclass(frozen=True, slots=True)
class Generation:
    """One claim."""

    number: int
    nonce: str
    """Tells our own claim from another's when a store loses its reply."""
    world_size: int
    started: str
    """UTC, ISO 8601. For people."""
    resumed_from: CheckpointId | None
    """``None`` for a fresh start."""

    def to_bytes(self) -> bytes:
        return seal(
            {
                "generation": self.number,
                "nonce": self.nonce,
                "world_size": self.world_size,
                "started": self.started,
                "resumed_from": self.resumed_from.name if self.resumed_from else None,
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes, key: str) -> "Generation":
        document = unseal(data, key)
        try:
            resumed_from = document["resumed_from"]
            return cls(
                number=document["generation"],
                nonce=document["nonce"],
                world_size=document["world_size"],
                started=document["started"],
                resumed_from=CheckpointId.parse(resumed_from) if resumed_from else None,
            )
        except (KeyError, TypeError) as error:
            raise CorruptCheckpointError(f"{key} is not a generation: {error}", key=key) from error


def list_generations(storage: Storage) -> list[int]:
    """Numbers of all claims, ascending."""
    numbers = (parse_generation(info.key) for info in storage.list(GENERATIONS))
    return sorted(number for number in numbers if number is not None)


def read_generation(storage: Storage, number: int) -> Generation:
    """One claim. *Raises:* ``ObjectNotFound``, ``CorruptCheckpointError``."""
    key = generation_key(number)
    try:
        return Generation.from_bytes(storage.get(key), key)
    except CorruptCheckpointError as error:
        raise CorruptCheckpointError(
            f"{error.args[0]}: without this claim nobody can say which commits count. Restore it "
            f"from a copy of {storage.uri}, or go on in a new run with init_from",
            key=key,
        ) from error


def claims_on_line(storage: Storage) -> dict[int, Generation]:
    """The newest claim and those it leads back to. *Raises:* as :func:`read_generation`."""
    claims: dict[int, Generation] = {}
    number = max(list_generations(storage), default=None)
    while number is not None and number not in claims:
        claims[number] = read_generation(storage, number)
        resumed_from = claims[number].resumed_from
        number = resumed_from.generation if resumed_from else None
    return claims


def claim_generation(
    storage: Storage, *, newest_seen: int, world_size: int, resumed_from: CheckpointId | None
) -> Generation:
    """Start generation ``newest_seen + 1``.

    *Ranks:* coordinator.
    *Durability:* the claim is durable once this returns.
    *Raises:* ``FencedError`` if another process group claimed it first; ``ClaimInDoubt`` if the
    store does not say.
    """
    claim = Generation(
        number=newest_seen + 1,
        nonce=secrets.token_hex(16),
        world_size=world_size,
        started=datetime.now(UTC).isoformat(timespec="milliseconds"),
        resumed_from=resumed_from,
    )
    key = generation_key(claim.number)
    try:
        is_ours = _create(storage, key, claim)
    except StorageUnavailable as error:
        raise ClaimInDoubt(str(error), key=key) from error
    if not is_ours:
        raise FencedError(
            f"another process group started generation {claim.number} of {storage.uri} at the "
            "same time; start only one job on a run",
            generation=claim.number,
        )
    return claim


def _create(storage: Storage, key: str, claim: Generation) -> bool:
    try:
        storage.create(key, claim.to_bytes())
    except ObjectExists:
        # The reply to our own create may have been lost and the create repeated: ask the store.
        return read_generation(storage, claim.number).nonce == claim.nonce
    return True


def check_not_fenced(storage: Storage, generation: int) -> None:
    """*Raises:* ``FencedError`` if a newer generation than ``generation`` has started."""
    newest = max(list_generations(storage), default=0)
    if newest > generation:
        raise FencedError(
            f"generation {newest} has taken over {storage.uri}; generation {generation} stops here",
            generation=generation,
        )


def valid_line(generations: Mapping[int, Generation]) -> dict[int, int | None]:
    """For each generation on the line, the last step of it that counts; ``None`` means all of them.

    Generations off the line are absent. ``generations`` needs to hold only those that the walk
    visits: the newest, the one it resumed from, and so on.
    """
    line: dict[int, int | None] = {}
    number = max(generations, default=None)
    last_step: int | None = None
    while number is not None and number not in line:
        line[number] = last_step
        resumed_from = generations[number].resumed_from
        if resumed_from is None:
            break
        number, last_step = resumed_from.generation, resumed_from.step
    return line
