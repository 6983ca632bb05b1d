"""Judges of the work: which samples were used, what was computed, what was restored."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from math import isclose

from keepstep.drills.evidence import Evidence
from keepstep.drills.history import Step
from keepstep.drills.judges.digests import whole_digests
from keepstep.drills.judges.table import Judges
from keepstep.drills.remains import Checkpoint, TensorKey
from keepstep.drills.verdicts import Objection

_LOSS_TOLERANCE = 2e-3
"""Relative. Another number of ranks adds gradients in another order; a part of the state that did
not come back shows up well above this."""


def same_order(evidence: Evidence) -> str:
    """Each step used the same samples in the same order as the uninterrupted run."""
    steps, expected = evidence.history.steps, evidence.reference.steps
    numbers = [step.number for step in steps]
    if numbers != [step.number for step in expected] or not numbers:
        raise Objection(f"the steps that count are {numbers}, not 1 to {len(expected)}, once each")
    for step, other in zip(steps, expected, strict=True):
        if step.ids != other.ids:
            raise Objection(
                f"step {step.number} (generation {step.generation}) used samples "
                f"{_listed(step.ids[:4])}..., not {_listed(other.ids[:4])}..."
            )
    return f"{sum(len(step.ids) for step in steps)} sample ids in {len(steps)} steps equal"


def once_per_epoch(evidence: Evidence) -> str:
    """No sample twice in an epoch; in a complete one, none left out."""
    if not evidence.history.steps:
        raise Objection("no step was run")
    ids = _ids(evidence.history.steps)
    samples_per_epoch = evidence.samples_per_epoch or _first_epoch(_ids(evidence.reference.steps))
    _require_resumes_within(evidence, samples_per_epoch)
    size = samples_per_epoch or len(ids)
    epochs = [ids[start : start + size] for start in range(0, len(ids), size)]
    for number, epoch in enumerate(epochs):
        (sample, count), *_ = Counter(epoch).most_common(1)
        if count > 1:
            raise Objection(f"sample {sample} was used {count} times in epoch {number}")
        if samples_per_epoch == len(epoch) and set(epoch) != set(range(size)):
            missing = min(set(range(size)) - set(epoch))
            raise Objection(f"sample {missing} was left out of epoch {number}")
    complete = sum(len(epoch) == samples_per_epoch for epoch in epochs)
    return f"{len(ids)} samples, each once in its epoch; {complete} complete epochs"


def same_bits(evidence: Evidence) -> str:
    """Losses and the last checkpoint equal those of the uninterrupted run, bit for bit.

    Checkpoints of other numbers of ranks are compared tensor by tensor, however they are cut, with
    what belongs to ranks that both have.
    """
    for step, other in zip(evidence.history.steps, evidence.reference.steps, strict=False):
        _require_equal_losses(step, other)
    last, expected = evidence.history.last, evidence.reference.last
    if last is None or expected is None or last.id.step != expected.id.step:
        raise Objection(
            f"the last checkpoint is {last and last.id}, not {expected and expected.id}"
        )
    if last.world_size == expected.world_size:
        _require_equal_digests(last.digests, expected.digests)
    else:
        common = min(last.world_size, expected.world_size)
        _require_equal_digests(_whole(last, common), _whole(expected, common))
    losses = sum(len(step.losses) for step in evidence.history.steps)
    return (
        f"{losses} losses and {len(last.tensors)} tensors, {len(last.digests) - len(last.tensors)} "
        f"values of step {last.id.step} equal (parameters, optimizer, schedule, RNG), "
        f"world size {last.world_size} and {expected.world_size}"
    )


def hops_keep_state(evidence: Evidence) -> str:
    """What each start found in its tensors, on all its ranks, is what the checkpoint holds."""
    shown = []
    for start in evidence.history.starts:
        if start.resumed_from is None:
            continue
        source = evidence.history.checkpoint(start.resumed_from)
        if source is None:
            raise Objection(f"generation {start.generation} resumed from nothing that is there")
        if set(start.reported) != set(range(start.world_size)):
            raise Objection(f"generation {start.generation}: only {set(start.reported)} reported")
        if strangers := {r for r, name in start.reported.items() if name != source.id.name}:
            raise Objection(f"ranks {strangers} did not resume from {source.id}")
        if (total := _state_digest(source)) != source.state_digest:
            raise Objection(f"{source.id}: tensors add up to {total}, not {source.state_digest}")
        if others := {rank: d for rank, d in start.live_digests.items() if d != total}:
            raise Objection(f"generation {start.generation} restored {others}, not {total}")
        shown.append(f"{source.world_size}->{start.world_size} at {source.id.step}: {total}")
    if not shown:
        raise Objection("there was no resume")
    return "; ".join(shown)


def close_losses(evidence: Evidence) -> str:
    """The loss of each step is that of the uninterrupted run, up to rounding."""
    if not evidence.history.steps:
        raise Objection("no step was run")
    worst = 0.0
    for step, other in zip(evidence.history.steps, evidence.reference.steps, strict=False):
        loss, expected = _mean(step.losses), _mean(other.losses)
        if not isclose(loss, expected, rel_tol=_LOSS_TOLERANCE):
            raise Objection(f"loss of step {step.number} is {loss:.6f}, not {expected:.6f}")
        worst = max(worst, abs(loss / expected - 1))
    return f"largest relative difference {worst:.1e}"


def _ids(steps: Iterable[Step]) -> list[int]:
    return list(chain.from_iterable(step.ids for step in steps))


def _first_epoch(ids: Sequence[int]) -> int | None:
    """How many samples come before one of them comes again; ``None`` if none does.

    What was taken for an epoch because of a mistake does not hold all numbers from 0 on.
    """
    seen: set[int] = set()
    for count, sample in enumerate(ids):
        if sample in seen:
            return count
        seen.add(sample)
    return None


def _require_resumes_within(evidence: Evidence, size: int | None) -> None:
    """At least one resume lies inside an epoch: at its border nothing could go wrong."""
    per_step = len(evidence.history.steps[0].ids)
    resumed = [s.resumed_from.step for s in evidence.history.starts if s.resumed_from]
    if not any(size is None or step * per_step % size for step in resumed):
        raise Objection("no resume lay within an epoch")


def _require_equal_losses(step: Step, other: Step) -> None:
    for slot, (loss, expected) in enumerate(zip(step.losses, other.losses, strict=False)):
        if loss != expected:
            raise Objection(
                f"loss of step {step.number}, slot {slot} is {loss.hex()}, not {expected.hex()}"
            )
    if len(step.losses) != len(other.losses):
        raise Objection(f"step {step.number} has {len(step.losses)} slots, not {len(other.losses)}")


def _require_equal_digests(
    digests: Mapping[TensorKey, str], expected: Mapping[TensorKey, str]
) -> None:
    for key in sorted(digests.keys() | expected.keys()):
        if digests.get(key) != expected.get(key):
            fqn, offsets = key
            raise Objection(
                f"{fqn}{list(offsets) if offsets else ''} is {digests.get(key)}, "
                f"not {expected.get(key)}"
            )
    if not digests:
        raise Objection("the last checkpoint holds nothing")


def _whole(checkpoint: Checkpoint, common_ranks: int) -> dict[TensorKey, str]:
    """Digests of whole tensors and values, without those of ranks that only one side has."""
    owners = tuple(f"ranks.{rank:05d}." for rank in range(common_ranks))
    return {
        (fqn, ()): digest
        for fqn, digest in whole_digests(checkpoint).items()
        if not fqn.startswith("ranks.") or fqn.startswith(owners)
    }


def _state_digest(checkpoint: Checkpoint) -> str:
    """Of the training state: of all its tensors, what belongs to single ranks left out."""
    total = 0
    for key in checkpoint.tensors:
        if not key[0].startswith("ranks."):
            total ^= int(checkpoint.digests[key].removeprefix("crc64:"), 16)
    return f"crc64:{total:016x}"


def _mean(losses: tuple[float, ...]) -> float:
    return sum(losses) / len(losses)


def _listed(values: object) -> str:
    return ", ".join(map(str, values)) if isinstance(values, list | tuple) else str(values)


JUDGES: Judges = {
    "close_losses": ("I6", close_losses),
    "hops_keep_state": ("I6", hops_keep_state),
    "once_per_epoch": ("I6", once_per_epoch),
    "same_bits": ("I5", same_bits),
    "same_order": ("I6", same_order),
}
