"""What must be so, found out without the code that is judged.

The oracle sees every change of the store as it happens. It knows what each rank meant to write, and
derives from the claims by itself which commits count.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

from keepstep.commit.blocks import sha256_digest
from keepstep.commit.layout import (
    GENERATIONS,
    MANIFEST,
    PRUNED,
    QUARANTINE,
    STEPS,
    CheckpointId,
    parse_pruned,
    shard_filename,
)
from keepstep.testing.simulation.media import Media
from keepstep.testing.simulation.trunk import Trunk

_digest_of = lru_cache(maxsize=256)(sha256_digest)


@dataclass(frozen=True, slots=True)
class Commit:
    """What a manifest says, as far as it matters here."""

    objects: dict[str, tuple[int, str]]
    """Size and digest, by key."""
    world_size: int


@dataclass
class Oracle:
    """Judges one history.

    Args:
        violate: Told of whatever must not be.
    """

    violate: Callable[[str], None]
    media: Media = field(init=False)
    states: dict[str, bytes] = field(default_factory=dict)
    """What shards are to hold, by key."""
    trunks: dict[CheckpointId, Trunk] = field(default_factory=dict)
    claims: dict[int, CheckpointId | None] = field(default_factory=dict)
    commits: dict[CheckpointId, Commit] = field(default_factory=dict)
    ever_committed: set[CheckpointId] = field(default_factory=set)
    reported: set[CheckpointId] = field(default_factory=set)
    aborted: set[CheckpointId] = field(default_factory=set)
    pinned: set[CheckpointId] = field(default_factory=set)
    """Of which somebody was told that they are."""
    damaged: set[CheckpointId] = field(default_factory=set)
    damaged_inside: set[CheckpointId] = field(default_factory=set)
    """Of these, those that only a full read can tell."""
    is_force_majeure: bool = False
    """What changes now is not the code's doing."""

    def observe(self, key: str, before: bytes | None, after: bytes | None) -> None:
        """Told of every change that everybody sees."""
        if key.startswith(STEPS):
            self._checkpoint_changed(key, before, after)
        elif key.startswith(GENERATIONS):
            self._claim_changed(key, before, after)
        elif key.startswith(QUARANTINE) and after is not None and not self.is_force_majeure:
            checkpoint = CheckpointId.parse(key.removeprefix(QUARANTINE).removesuffix(".json"))
            if checkpoint not in self.damaged:
                self.violate(f"I4: {checkpoint} is set aside, and was never damaged")

    def intends(self, checkpoint: CheckpointId, rank: int, state: bytes, trunk: Trunk) -> None:
        """A rank is about to save this."""
        self.states[checkpoint.key(shard_filename(rank, 0))] = state
        self.trunks[checkpoint] = trunk

    def committed(self, checkpoint: CheckpointId, rank: int) -> None:
        """A rank was told so."""
        if checkpoint not in self.ever_committed:
            self.violate(f"outcome: rank {rank} was told that {checkpoint} is committed")
        if checkpoint not in self.commits or checkpoint in self.damaged:
            return
        if flaws := self._flaws(checkpoint):
            self.violate(f"I1: {checkpoint} is reported as committed, but {flaws[0]}")
        elif self.media.is_durable(checkpoint.key(MANIFEST)):
            self.reported.add(checkpoint)
        else:
            self.violate(
                f"I1: rank {rank} reports {checkpoint} as committed, and it is not durable"
            )

    def aborted_by(self, checkpoint: CheckpointId, rank: int) -> None:
        """A rank was told so."""
        self.aborted.add(checkpoint)
        if checkpoint in self.ever_committed:
            self.violate(f"outcome: rank {rank} was told that {checkpoint} is aborted; it is not")

    def loaded(self, checkpoint: CheckpointId, states: list[bytes]) -> None:
        """Somebody has read this, and believes it."""
        wanted = [
            self.states.get(checkpoint.key(shard_filename(rank, 0))) for rank in range(len(states))
        ]
        if states != wanted:
            self.violate(f"I3: {checkpoint} was read as {states}, and is {wanted}")

    def line(self) -> dict[int, int | None]:
        """The last step of each generation that counts; ``None`` if all do."""
        line: dict[int, int | None] = {}
        number, last_step = max(self.claims, default=None), None
        while number is not None and number not in line and number in self.claims:
            line[number] = last_step
            source = self.claims[number]
            number, last_step = (source.generation, source.step) if source else (None, None)
        return line

    def counting(self) -> list[CheckpointId]:
        """Every commit that counts, oldest first."""
        line = self.line()
        return sorted(id for id in self.commits if _is_on(line, id))

    def is_on_line(self, checkpoint: CheckpointId) -> bool:
        """Whether it counts, or would if it were committed."""
        return _is_on(self.line(), checkpoint)

    def newest_good(self) -> CheckpointId | None:
        """What a start has to resume from.

        What a prune has marked counts for nothing, also when what it kept is damaged afterwards.
        """
        good = [id for id in self.counting() if id not in self.damaged]
        if self.damaged and self.claims:
            source, marked = self.claims[max(self.claims)], self.marked()
            good = [id for id in good if id not in marked or id == source]
        return max(good, default=None)

    def marked(self) -> set[CheckpointId | None]:
        """What some prune has put up a mark for."""
        return {parse_pruned(key) for key in self.media.seen if key.startswith(PRUNED)}

    def is_durable(self, checkpoint: CheckpointId) -> bool:
        """Whether a committed one is there as it was meant to be, and survives a power cut."""
        return self.media.is_durable(checkpoint.key(MANIFEST)) and not self._flaws(checkpoint)

    def check_one_history(self) -> None:
        """Every commit that counts lies on the way to the newest one (I2)."""
        counting = self.counting()
        newest = self.trunks[counting[-1]] if counting else Trunk()
        for id in counting:
            if not self.trunks[id].leads_to(newest):
                self.violate(f"I2: {id} counts: {self.trunks[id]}; the newest: {newest}")

    def check_all_whole(self) -> None:
        """Every commit that counts is whole (I1), unless it was damaged."""
        for id in self.counting():
            if id not in self.damaged and (flaws := self._flaws(id)):
                self.violate(f"I1: {id} counts, but {flaws[0]}")

    def check_source(self) -> None:
        """What the newest claim resumed from is there (I7)."""
        source = self.claims[max(self.claims)] if self.claims else None
        if source is not None and source not in self.commits and source not in self.damaged:
            self.violate(f"I7: {source}, which generation {max(self.claims)} resumed from, is gone")

    def check_pins(self) -> None:
        """What was pinned is there (I7)."""
        for id in self.pinned:
            if id not in self.commits and id not in self.damaged:
                self.violate(f"I7: {id} is pinned, and gone")

    def _claim_changed(self, key: str, before: bytes | None, after: bytes | None) -> None:
        number = int(key.removeprefix(GENERATIONS).removesuffix(".json"))
        if not self.is_force_majeure and before is not None:
            self.violate(f"I2: the claim of generation {number} has changed")
        if after is None:
            self.claims.pop(number, None)
            return
        name = json.loads(after)["resumed_from"]
        self.claims[number] = CheckpointId.parse(name) if name else None
        if number == max(self.claims):
            self.check_source()

    def _checkpoint_changed(self, key: str, before: bytes | None, after: bytes | None) -> None:
        name, _, file = key.removeprefix(STEPS).partition("/")
        id = CheckpointId.parse(name)
        assert id is not None
        if file != MANIFEST:
            if before is not None and id in self.commits and not self.is_force_majeure:
                self._object_changed(id, key)
            return
        if after is None:
            if not self.is_force_majeure:
                self._check_may_go(id)
            self.commits.pop(id, None)
            return
        if before is None:
            self._commit(id, after)
        elif not self.is_force_majeure:
            self.violate(f"I2: the manifest of {id} has changed")

    def _commit(self, id: CheckpointId, data: bytes) -> None:
        document = json.loads(data)
        self.commits[id] = Commit(
            {id.key(o["file"]): (o["bytes"], o["digest"]) for o in document["objects"]},
            document["world_size"],
        )
        self.ever_committed.add(id)
        if id in self.aborted:
            self.violate(f"outcome: {id} appears, and a rank was told that it is aborted")
        # One that was stopped before its create may find its objects pruned: it must not count.
        if self.is_on_line(id) and id not in self.damaged and (flaws := self._flaws(id)):
            self.violate(f"I1: {id} is committed, but {flaws[0]}")

    def _object_changed(self, id: CheckpointId, key: str) -> None:
        if self.is_on_line(id):
            self.violate(f"I1: {key} changes, and its manifest is there")

    def _flaws(self, id: CheckpointId) -> list[str]:
        """What is wrong with a committed one by what is in the store."""
        flaws = []
        for key, (size_bytes, digest) in self.commits[id].objects.items():
            data = self.media.seen.get(key)
            if data is None:
                flaws.append(f"{key} is missing")
            elif len(data) != size_bytes:
                flaws.append(f"{key} has {len(data)} bytes")
            elif key in self.states and data != self.states[key]:
                flaws.append(f"{key} holds {data!r} instead of {self.states[key]!r}")
            elif digest.startswith("sha256") and digest != _digest_of(data):
                flaws.append(f"{key} does not match its digest")
            elif not self.media.is_durable(key):
                flaws.append(f"{key} is not durable")
        return flaws

    def _check_may_go(self, id: CheckpointId) -> None:
        """Nothing that is still needed is removed (I7)."""
        if id in self.damaged:
            return
        if self.claims and id == self.claims[max(self.claims)]:
            self.violate(f"I7: {id} is removed; generation {max(self.claims)} resumed from it")
        if id in self.pinned:
            self.violate(f"I7: {id} is removed, and pinned")
        counting = self.counting()
        is_covered = any(
            other > id and (other not in self.damaged or other in self.damaged_inside)
            for other in counting
        )
        if id in counting and not is_covered:
            self.violate(f"I7: {id} is removed, and nothing newer is good")


def _is_on(line: dict[int, int | None], checkpoint: CheckpointId) -> bool:
    last_step = line.get(checkpoint.generation, -1)
    return last_step is None or checkpoint.step <= last_step
