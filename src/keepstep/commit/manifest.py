"""The commit record of a checkpoint."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from keepstep.commit.canonical import seal, unseal
from keepstep.commit.layout import CheckpointId, index_rank
from keepstep.errors import CorruptCheckpointError, InternalError


@dataclass(frozen=True, slots=True)
class ObjectRecord:
    """One object of the checkpoint: what the manifest vouches for."""

    file: str
    """Name within the checkpoint."""
    size_bytes: int
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A step is its manifest: it is written last, exclusively, and its existence is the commit."""

    run: str
    step: int
    generation: int
    attempt: str
    created: str
    """UTC, ISO 8601. For people: no decision rests on it."""
    keepstep_version: str
    torch_version: str
    world_size: int
    objects: tuple[ObjectRecord, ...]
    parent: CheckpointId | None = None
    """The checkpoint this one's training continued from, by commit or by resume."""
    parallel: Mapping[str, Any] = field(default_factory=dict)
    progress: Mapping[str, int] = field(default_factory=dict)
    """``samples`` and ``tokens`` consumed so far by the run; ``epoch`` where it is known."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    config_digest: str | None = None
    mathematics: Mapping[str, Any] = field(default_factory=dict)
    """The settings that alter the mathematics, by dotted name."""
    state_digest: str | None = None
    """Content digest of the training state, independent of world size and sharding."""
    adapted: str | None = None
    """Names the choice by which an earlier checkpoint was made to fit, if its training began so."""

    def __post_init__(self) -> None:
        files = [record.file for record in self.objects]
        if (
            len(set(files)) != len(files)
            or sum(f is not None for f in map(index_rank, files)) != self.world_size
        ):
            msg = f"{len(files)} objects do not hold one index for each of {self.world_size} ranks"
            raise InternalError(msg, step=self.step, attempt=self.attempt)

    @property
    def id(self) -> CheckpointId:
        return CheckpointId(self.step, self.generation, self.attempt)

    @property
    def total_bytes(self) -> int:
        """Of all objects, the manifest itself not counted."""
        return sum(record.size_bytes for record in self.objects)

    def record(self, file: str) -> ObjectRecord:
        """The record of one object. *Raises:* ``CorruptCheckpointError`` if there is none."""
        for record in self.objects:
            if record.file == file:
                return record
        raise CorruptCheckpointError(f"the manifest names no object {file}", key=self.id.key(file))

    def to_bytes(self) -> bytes:
        """Canonical bytes: equal manifests, equal bytes."""
        return seal(
            {
                "run": self.run,
                "step": self.step,
                "generation": self.generation,
                "attempt": self.attempt,
                "created": self.created,
                "keepstep_version": self.keepstep_version,
                "torch_version": self.torch_version,
                "world_size": self.world_size,
                "parent": self.parent.name if self.parent else None,
                "parallel": dict(self.parallel),
                "progress": dict(self.progress),
                "metrics": dict(self.metrics),
                "tags": list(self.tags),
                "config_digest": self.config_digest,
                "mathematics": dict(self.mathematics),
                "state_digest": self.state_digest,
                "adapted": self.adapted,
                "objects": [
                    {"file": record.file, "bytes": record.size_bytes, "digest": record.digest}
                    for record in sorted(self.objects, key=lambda record: record.file)
                ],
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes, key: str) -> "Manifest":
        """The manifest, checked against its own digest.

        *Raises:* ``CorruptCheckpointError``, ``UnsupportedFormatError``.
        """
        document = unseal(data, key)
        try:
            objects = tuple(
                ObjectRecord(record["file"], record["bytes"], record["digest"])
                for record in document.pop("objects")
            )
            parent = document.pop("parent")
            tags = tuple(document.pop("tags"))
            return cls(
                objects=objects,
                parent=CheckpointId.parse(parent) if parent else None,
                tags=tags,
                **document,
            )
        except (KeyError, TypeError, InternalError) as error:
            raise CorruptCheckpointError(f"{key} is not a manifest: {error}", key=key) from error
