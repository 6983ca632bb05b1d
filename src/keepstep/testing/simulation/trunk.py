"""Where a simulated state comes from: the jobs that trained it, and how far each had come."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Trunk:
    """The jobs on the way to a state, oldest first, each with the step up to which it counts."""

    parts: tuple[tuple[int, int], ...] = ()

    def grown(self, job: int, step: int) -> "Trunk":
        """After ``job`` has trained on to ``step``."""
        return Trunk((*self.parts, (job, step)))

    def leads_to(self, other: "Trunk") -> bool:
        """Whether training went from here to there."""
        if not self.parts:
            return True
        *earlier, (job, step) = self.parts
        if len(other.parts) < len(self.parts) or tuple(earlier) != other.parts[: len(earlier)]:
            return False
        other_job, other_step = other.parts[len(earlier)]
        return job == other_job and step <= other_step

    def state(self, rank: int) -> bytes:
        """What a rank saves: nobody else's bytes, and no other step's."""
        parts = " ".join(f"{job}:{step}" for job, step in self.parts)
        return f"rank {rank} of {parts}".encode()

    @classmethod
    def of_state(cls, state: bytes) -> "Trunk":
        """Of what :meth:`state` gave."""
        parts = (part.split(":") for part in state.decode().partition(" of ")[2].split())
        return cls(tuple((int(job), int(step)) for job, step in parts))

    def __str__(self) -> str:
        return " then ".join(f"job {job} to {step}" for job, step in self.parts) or "nothing"
