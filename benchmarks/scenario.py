"""What one launch measures: a state, the ranks that hold it, and the peers that save it."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

Section = Literal["durable", "background", "reshard", "slice", "soak", "transfer", "remote"]
Strategy = Literal["plain", "ddp", "fsdp"]
Shape = Literal["gpt", "giant", "strided"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One line of the plan; all its peers run in the same processes, taking turns."""

    section: Section
    peers: tuple[str, ...]
    strategy: Strategy = "fsdp"
    size_mib: int = 256
    """Of the whole state: once under FSDP, on every rank under DDP."""
    num_tensors: int = 600
    ranks: int = 1
    load_ranks: int | None = None
    """Ranks of the job that loads, where it is another one."""
    shape: Shape = "gpt"
    """``giant``: one tensor has 80 % of the bytes. ``strided``: matrices are transposed views."""
    device: Literal["cpu", "cuda"] = "cpu"
    repetitions: int = 5
    """Counted ones; one more comes before them and is kept apart."""
    saves: int = 500
    """Of a soak."""

    @property
    def title(self) -> str:
        """For people, and as the key in the results."""
        ranks = f"{self.ranks} rank" + ("s" if self.ranks > 1 else "")
        if self.section == "slice":
            ranks += ", one part of 8"
        elif self.load_ranks is not None:
            ranks += f" to {self.load_ranks}"
        parts = [self.section, self.strategy, f"{self.size_mib} MiB", ranks]
        if self.shape == "gpt":
            parts.append(f"{self.num_tensors} tensors")
        else:
            parts.append(self.shape)
        return ", ".join([*parts, *(["cuda"] if self.device == "cuda" else [])])

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "Scenario":
        return cls(**fields | {"peers": tuple(fields["peers"])})
