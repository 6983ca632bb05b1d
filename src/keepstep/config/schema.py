"""The settings: types, bounds, defaults, and which of them alter the mathematics."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)
from pydantic.fields import FieldInfo

from keepstep.config.interval import parse_interval
from keepstep.config.keep import parse_keep

MATHEMATICS = "mathematics"

T = TypeVar("T")
Math = Annotated[T, MATHEMATICS]
"""A setting that alters what is computed: a resume refuses a change of it unless told otherwise."""

NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
Text = Annotated[str, Field(min_length=1)]


def _interval_text(value: object) -> object:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _checked_interval(value: str) -> str:
    parse_interval(value)
    return value


IntervalText = Annotated[
    str, BeforeValidator(_interval_text, str | int), AfterValidator(_checked_interval)
]


def _checked_keep(value: str) -> str:
    parse_keep(value)
    return value


KeepText = Annotated[str, AfterValidator(_checked_keep)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DataConfig(_Section):
    path: Text = "runs/data"
    """Tokens of the text task, by `keepstep data prepare`; else the standard library's source."""
    context: Math[PositiveInt] = 64
    """Tokens per sample of the text task."""
    validation_samples: PositiveInt = 256
    """Samples per evaluation."""


class BatchConfig(_Section):
    global_size: Math[PositiveInt] = 24
    """Samples per optimizer step, whatever the world size."""
    microbatch: Math[PositiveInt] = 2
    """Samples per forward pass; divides ``global_size``."""


class ModelConfig(_Section):
    layers: Math[PositiveInt] = 3
    width: Math[PositiveInt] = 96
    heads: Math[PositiveInt] = 4
    """Attention heads of the text model."""
    tied: Math[bool] = True
    """Whether input and output embeddings of the text model are one tensor."""
    dropout: Math[BelowOne] = 0.0


class OptimConfig(_Section):
    lr: Math[PositiveFloat] = 3e-3
    weight_decay: Math[NonNegative] = 0.1
    betas: Math[tuple[BelowOne, BelowOne]] = (0.9, 0.95)
    clip_norm: Math[NonNegative] = 1.0
    """Greatest norm of the whole gradient; 0 leaves gradients alone."""
    warmup_steps: Math[NonNegativeInt] = 20
    decay_steps: Math[PositiveInt] = 400
    """Horizon of the cosine, independent of ``train.steps``."""
    min_lr_ratio: Math[Fraction] = 0.1
    """Learning rate at the horizon, relative to ``lr``."""


class TrainConfig(_Section):
    steps: PositiveInt = 400
    precision: Math[Literal["fp32", "bf16", "fp16"]] = "fp32"
    numerics: Math[Literal["auto", "exact", "fast"]] = "auto"
    """The same bits at any world size, or at the same one; ``auto``: exact on CPU, else fast."""
    evaluate_every: NonNegativeInt = 50
    """Steps between evaluations; 0 means never."""
    log_every: PositiveInt = 10
    """Steps between printed lines."""
    early_stop_patience: NonNegativeInt = 0
    """Evaluations in a row without a better val_loss, after which training stops and takes back the
    best weights; 0 means never."""
    spike_factor: NonNegative = 0.0
    """A loss so many times the usual one, or one that is not finite, makes the job go back to the
    last checkpoint before it and leave the data out; 0 means never."""
    spike_steps: NonNegativeInt = 10
    """Steps before a spike whose data is left out as well."""
    log_samples: bool = False
    """Whether the ids of the consumed samples go into the ledger."""
    log_state: bool = False
    """Whether digests of every tensor and value go into the ledger after a start, as they were
    restored."""
    threads: NonNegativeInt = 1
    """Intra-op threads per rank; 0 leaves torch's choice."""


class ParallelConfig(_Section):
    strategy: Literal["auto", "ddp", "fsdp", "hsdp"] = "auto"
    shard_size: NonNegativeInt = 0
    """Ranks per shard group of ``hsdp``; 0 means the local world size."""
    activation_checkpoint: Literal["none", "full"] | Annotated[int, Field(ge=2)] = "none"
    """Recompute in backward: no block, every block, or every n-th block."""
    compile: bool = False
    timeout_seconds: PositiveFloat = 120.0
    """Longest wait of a collective."""


class CheckpointConfig(_Section):
    every: IntervalText = "50"
    """Steps (``50``) or time (``10min``) between saves, or ``auto``: by their cost and failures."""
    keep: KeepText = "all"
    """What outlives later checkpoints: ``last=3,every=1h,best=val_loss:min:2``; the rest goes."""
    mode: Literal["sync", "async", "overlap"] = "async"
    """Training goes on once a save is committed, copied, or at once."""
    when_busy: Literal["wait", "skip"] = "wait"
    """What happens to a save that is due while another is in flight."""
    read_once: Literal["auto", "always", "never"] = "auto"
    """Read replicas once at a resume and send them on; ``auto``: if the store is remote."""
    timeout_seconds: PositiveFloat = 120.0
    """Longest wait of a save for a rank that gives no sign of life."""
    deadline_seconds: PositiveFloat = 1800.0
    """Longest that a rank copies and writes before it gives a save up."""
    failed_saves_allowed: NonNegativeInt = 10
    """Failed saves in a row after which ``when_failing`` applies."""
    when_failing: Literal["stop", "continue", "pause"] = "stop"
    """Stop training, go on without checkpoints, or wait until one is committed."""
    longest_pause_seconds: PositiveFloat = 3600.0
    """After which training stops all the same."""


class PreemptionConfig(_Section):
    grace_seconds: PositiveFloat = 30.0
    """Between SIGTERM or SIGUSR1 and force."""
    notice_file: str = ""
    """A file whose appearance says that this process will be stopped, if any."""
    cloud: Literal["none", "aws", "gcp", "azure"] = "none"
    """Whose metadata service to ask whether this machine will be taken away."""
    metadata_url: str = ""
    """Of that service, where it is not at its usual address."""
    every_seconds: PositiveFloat = 2.0
    """Between two looks at the file and the service."""


class WatchdogConfig(_Section):
    enabled: bool = True
    """Whether a rank that hangs is ended, with exit code 88; off for debuggers."""
    floor_seconds: PositiveFloat = 60.0
    """No section of the work may take less."""
    factor: Annotated[float, Field(ge=1)] = 5.0
    """How many times as long as ever before a section may take."""
    unlearned_seconds: PositiveFloat = 1800.0
    """What a section may take that was never seen to end: above all the first step."""


class StorageConfig(_Section):
    single_writer: bool = False
    """Use a store that cannot create exclusively: never start two jobs on the run then."""
    retry_seconds: PositiveFloat = 60.0
    """How long a request to a remote store is repeated before it has failed."""


class Config(_Section):
    """One training job. Only ``resolve`` explains its refusals in terms of files and flags."""

    uri: Text = "runs/stdlib"
    """Where the run lives."""
    resume: Literal["auto", "must", "never"] | NonNegativeInt = "auto"
    """Newest good checkpoint if there is one, required, unwanted, or exactly this step."""
    init_from: str = ""
    """Weights for a fresh start, if any: a run, a checkpoint, a torch.save file or safetensors."""
    accept_change: bool = False
    """Whether a resume may change the mathematics."""
    seed: Math[NonNegativeInt] = 0
    task: Math[Literal["text", "digits"]] = "text"
    data: DataConfig = DataConfig()
    batch: BatchConfig = BatchConfig()
    model: ModelConfig = ModelConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    parallel: ParallelConfig = ParallelConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    storage: StorageConfig = StorageConfig()
    preemption: PreemptionConfig = PreemptionConfig()
    watchdog: WatchdogConfig = WatchdogConfig()

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        if found := disagreements(self):
            raise ValueError("; ".join(f"{one.field} {one.told(one.other)}" for one in found))
        return self

    def digest(self) -> str:
        """``sha256:...`` of the canonical JSON of every setting."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return f"sha256:{sha256(text.encode()).hexdigest()}"

    def mathematics(self) -> dict[str, object]:
        """The settings that alter what is computed, as JSON values by dotted name."""
        values = self.leaves()
        return {
            name: values[name] for name, field in FIELDS.items() if MATHEMATICS in field.metadata
        }

    def leaves(self) -> dict[str, object]:
        """Every setting as a JSON value, by dotted name."""
        return dict(_flatten(self.model_dump(mode="json")))


@dataclass(frozen=True, slots=True)
class Disagreement:
    """Two settings that are fine alone and impossible together."""

    field: str
    """The one to change."""
    other: str
    """The one it disagrees with."""
    reason: str
    """With ``{other}`` where that one is named."""

    def told(self, other: str) -> str:
        """The reason, with ``other`` for the name of the other setting."""
        return self.reason.format(other=other)


def disagreements(config: Config) -> list[Disagreement]:
    """What cannot go together in ``config``; empty if it is sound."""
    batch, model, optim, parallel = config.batch, config.model, config.optim, config.parallel
    found = []
    if batch.global_size % batch.microbatch:
        reason = f"must divide {{other}}: for instance {_near_divisors(batch)}"
        found.append(Disagreement("batch.microbatch", "batch.global_size", reason))
    if model.width % (2 * model.heads):
        reason = (
            "must be a multiple of twice {other}, since rotary embedding turns pairs in a head: "
            f"for instance {_near_multiples(model.width, 2 * model.heads)}"
        )
        found.append(Disagreement("model.width", "model.heads", reason))
    if optim.decay_steps <= optim.warmup_steps:
        reason = f"must be greater than {{other}}: {optim.warmup_steps + 1} or more"
        found.append(Disagreement("optim.decay_steps", "optim.warmup_steps", reason))
    if parallel.shard_size and parallel.strategy != "hsdp":
        reason = "has no effect with {other}: set that to hsdp, or leave this out"
        found.append(Disagreement("parallel.shard_size", "parallel.strategy", reason))
    return found


def _near_divisors(batch: BatchConfig) -> str:
    whole, wish = batch.global_size, min(batch.microbatch, batch.global_size)
    below = next(n for n in range(wish, 0, -1) if whole % n == 0)
    above = next(n for n in range(wish, whole + 1) if whole % n == 0)
    return " or ".join(map(str, sorted({below, above})))


def _near_multiples(number: int, unit: int) -> str:
    below = number - number % unit
    return " or ".join(str(n) for n in (below, below + unit) if n)


def _flatten(values: dict[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _section_of(field: FieldInfo) -> type[_Section] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, _Section) else None


def _fields(section: type[_Section], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in section.model_fields.items():
        if inner := _section_of(field):
            yield from _fields(inner, f"{prefix}{name}.")
        else:
            yield prefix + name, field


FIELDS: dict[str, FieldInfo] = dict(_fields(Config))
"""Every setting by dotted name, in the order of the classes."""

SECTIONS: tuple[str, ...] = tuple(
    name for name, field in Config.model_fields.items() if _section_of(field)
)
