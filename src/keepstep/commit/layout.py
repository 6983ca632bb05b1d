"""Names of things on storage: building and parsing keys. See docs/format.md."""

import re
import secrets
from dataclasses import dataclass
from typing import Self

RUN_KEY = "run.json"
GENERATIONS = "generations/"
STEPS = "steps/"
QUARANTINE = "quarantine/"
LEDGER = "ledger/"
SKIPS = "skips/"
PINS = "pins/"
PRUNED = "pruned/"
STARTING = "starting/"

MANIFEST = "manifest.json"
METADATA = ".metadata"
"""Stock DCP's metadata, for readers without keepstep."""

_CHECKPOINT = re.compile(r"(\d{12})-g(\d{6})-([0-9a-f]{12})\Z")
_GENERATION = re.compile(r"generations/(\d{6})\.json\Z")
_SKIP = re.compile(r"skips/(\d{15})-(\d{15})\.json\Z")
_INDEX = re.compile(r"__(\d+)\.index\.json\Z")
_STARTING = re.compile(r"starting/g(\d{6})-[0-9a-f]{12}\Z")


@dataclass(frozen=True, slots=True, order=True)
class CheckpointId:
    """One attempt at one step. Sorts by step, then generation."""

    step: int
    generation: int
    attempt: str

    @property
    def name(self) -> str:
        """Zero-padded, so that the order of names is the order of steps."""
        return f"{self.step:012}-g{self.generation:06}-{self.attempt}"

    @property
    def prefix(self) -> str:
        """What all keys of this attempt start with."""
        return f"{STEPS}{self.name}/"

    def key(self, filename: str) -> str:
        """The key of one of this attempt's objects."""
        return self.prefix + filename

    @classmethod
    def parse(cls, name: str) -> Self | None:
        """The id a name stands for, or ``None`` for a name that is not one."""
        match = _CHECKPOINT.match(name)
        return cls(int(match[1]), int(match[2]), match[3]) if match else None

    def __str__(self) -> str:
        return f"step {self.step} (generation {self.generation}, attempt {self.attempt})"


def new_attempt() -> str:
    """An id that no other try shares: 48 random bits."""
    return secrets.token_hex(6)


def shard_filename(rank: int, number: int) -> str:
    """A shard's file, named as stock DCP names it."""
    return f"__{rank}_{number}.distcp"


def index_filename(rank: int) -> str:
    """What one rank wrote."""
    return f"__{rank}.index.json"


def index_rank(filename: str) -> int | None:
    """The rank whose index a file is, or ``None`` for another file."""
    match = _INDEX.match(filename)
    return int(match[1]) if match else None


def generation_key(generation: int) -> str:
    """The claim of a generation."""
    return f"{GENERATIONS}{generation:06}.json"


def parse_generation(key: str) -> int | None:
    """The generation a key claims, or ``None`` for another key."""
    match = _GENERATION.match(key)
    return int(match[1]) if match else None


def quarantine_key(checkpoint: CheckpointId) -> str:
    """The mark that sets a checkpoint aside. The checkpoint's own objects stay where they are."""
    return f"{QUARANTINE}{checkpoint.name}.json"


def pin_key(checkpoint: CheckpointId) -> str:
    """The mark that keeps a checkpoint from being pruned."""
    return f"{PINS}{checkpoint.name}.json"


def pruned_key(checkpoint: CheckpointId, word: str) -> str:
    """The mark that one prune puts up before it removes a checkpoint."""
    return f"{PRUNED}{checkpoint.name}-{word}"


def parse_pruned(key: str) -> CheckpointId | None:
    """The checkpoint that is marked, or ``None`` for another key."""
    return CheckpointId.parse(key.removeprefix(PRUNED).rpartition("-")[0])


def starting_key(newest_generation: int, word: str) -> str:
    """The mark of whoever is about to claim the generation after the newest one."""
    return f"{STARTING}g{newest_generation:06}-{word}"


def parse_starting(key: str) -> int | None:
    """The generation that was the newest when the mark was made, or ``None`` for another key."""
    match = _STARTING.match(key)
    return int(match[1]) if match else None


def skip_key(start: int, stop: int) -> str:
    """The mark of a stretch of samples that is left out."""
    return f"{SKIPS}{start:015}-{stop:015}.json"


def parse_skip(key: str) -> tuple[int, int] | None:
    """The stretch a key marks, or ``None`` for another key."""
    match = _SKIP.match(key)
    return (int(match[1]), int(match[2])) if match else None


def ledger_key(generation: int, rank: int) -> str:
    """The log of one rank in one generation."""
    return f"{LEDGER}g{generation:06}/rank-{rank:05}.jsonl"
