"""Which scenarios a run goes through."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from benchmarks.scenario import Scenario, Section

LIMITS = ("limit-buffered", "limit-direct-1", "limit-direct-2", "limit-direct-4")
_CORE = (*LIMITS, "keepstep", "dcp", "safetensors")
_BRIEF = ("limit-buffered", "limit-direct-2", "limit-direct-4", "keepstep", "dcp", "safetensors")
_DURABLE = (*_CORE, "dcp-plan-cached", "torch.save", "torchsnapshot")
_BACKGROUND = (
    "limit-memcpy",
    "keepstep-async",
    "dcp-async-default",
    "dcp-async-thread",
    "dcp-async-process",
    "nvrx-fork",
    "torchsnapshot",
    "dlrover-flash",
)
_BACKGROUND_CUDA = (
    "keepstep-async",
    "keepstep-overlap",
    "dcp-async-thread",
    "dcp-async-process",
    "dcp-async-pinned",
    "nvrx-fork",
)
_MANY_TENSORS_MIB = 64
_SOAK_MIB = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The sizes of a run. The defaults are the full one."""

    sizes_mib: tuple[int, ...] = (512, 256, 2048, 4096)
    """The first is measured in every way, the others as FSDP states on the fewest ranks."""
    ranks: tuple[int, ...] = (1, 2, 4)
    num_tensors: int = 600
    many_tensors: int = 10_000
    """0: leave that state out."""
    repetitions: int = 5
    soak_saves: int = 500
    sections: tuple[Section, ...] = (
        "durable",
        "background",
        "reshard",
        "slice",
        "soak",
        "transfer",
        "remote",
    )
    is_brief: bool = False
    """One scenario of each kind."""
    peers: tuple[str, ...] = ()
    """Only these, where they apply; all by default."""

    def scenarios(self, *, with_cuda: bool) -> list[Scenario]:
        """In the order in which they run."""
        scenarios = [*self._on_cpu(), *(self._on_cuda() if with_cuda else ())]
        chosen = [
            replace(
                scenario,
                repetitions=self.repetitions,
                peers=tuple(p for p in scenario.peers if not self.peers or p in self.peers),
            )
            for scenario in scenarios
            if scenario.section in self.sections
        ]
        return [s for s in chosen if s.peers or s.section == "transfer"]

    def _on_cpu(self) -> Iterator[Scenario]:
        yield from self._durable()
        yield from self._background()
        yield from self._resharded()
        yield Scenario(
            section="soak",
            peers=("keepstep", "keepstep-async"),
            size_mib=_SOAK_MIB,
            num_tensors=100,
            ranks=min(2, max(self.ranks)),
            saves=self.soak_saves,
        )
        yield from self._remote()

    def _remote(self) -> Iterator[Scenario]:
        base = Scenario(
            section="remote",
            peers=("limit-s3-8", "keepstep-s3", "dcp-s3fs"),
            size_mib=2 * self.sizes_mib[0],
            num_tensors=self.num_tensors,
            ranks=min(2, max(self.ranks)),
        )
        yield base
        if not self.is_brief:
            yield replace(base, strategy="ddp")

    def _durable(self) -> Iterator[Scenario]:
        size, most = self.sizes_mib[0], max(self.ranks)
        base = Scenario(
            section="durable",
            peers=_BRIEF if self.is_brief else _DURABLE,
            size_mib=size,
            num_tensors=self.num_tensors,
        )
        for ranks in self.ranks:
            yield replace(base, ranks=ranks)
        many = replace(base, size_mib=min(size, _MANY_TENSORS_MIB), num_tensors=self.many_tensors)
        peers: tuple[str, ...] = ("keepstep", "dcp", "dcp-plan-cached", "safetensors")
        if self.many_tensors:
            yield replace(many, peers=peers, ranks=most)
        yield replace(base, strategy="ddp", ranks=min(2, most))
        if self.is_brief:
            return
        for other in self.sizes_mib[1:]:
            yield replace(base, peers=_CORE, size_mib=other, ranks=min(self.ranks))
        yield replace(base, peers=_CORE, num_tensors=100, ranks=min(2, most))
        yield replace(base, strategy="ddp", shape="giant", peers=("keepstep", "dcp"), ranks=most)
        copied = replace(base, peers=("keepstep", "dcp", "torch.save"), size_mib=2 * size)
        yield replace(copied, strategy="plain", shape="strided")

    def _background(self) -> Iterator[Scenario]:
        base = Scenario(
            section="background",
            peers=_BACKGROUND[:5] if self.is_brief else _BACKGROUND,
            size_mib=self.sizes_mib[0],
            num_tensors=self.num_tensors,
        )
        for ranks in self.ranks:
            if ranks <= 2:  # more ranks than cores would measure the cores
                yield replace(base, ranks=ranks)
        if len(self.sizes_mib) > 2:
            yield replace(base, size_mib=self.sizes_mib[2], peers=_BACKGROUND[:5])

    def _resharded(self) -> Iterator[Scenario]:
        size, most, half = self.sizes_mib[0], max(self.ranks), max(1, max(self.ranks) // 2)
        base = Scenario(
            section="reshard",
            peers=("keepstep", "dcp"),
            size_mib=size,
            num_tensors=self.num_tensors,
        )
        changes = [(most, half)] if self.is_brief else [(most, half), (half, most), (most, 1)]
        for ranks, load_ranks in dict.fromkeys(changes):
            if ranks != load_ranks:
                yield replace(base, ranks=ranks, load_ranks=load_ranks)
        if most > 1:
            peers = ("keepstep", "keepstep-read-once", "dcp")
            yield replace(base, strategy="ddp", peers=peers, ranks=most, load_ranks=most)
        yield replace(base, section="slice", ranks=min(2, most), load_ranks=1)

    def _on_cuda(self) -> Iterator[Scenario]:
        yield Scenario(section="transfer", peers=(), strategy="plain", device="cuda", size_mib=1)
        for size in self.sizes_mib:
            base = Scenario(
                section="durable",
                peers=(*LIMITS, "keepstep", "dcp", "torch.save", "safetensors"),
                strategy="plain",
                device="cuda",
                size_mib=size,
                num_tensors=self.num_tensors,
            )
            yield base
            yield replace(base, section="background", peers=_BACKGROUND_CUDA)


QUICK = Plan(
    sizes_mib=(128,),
    ranks=(2,),
    num_tensors=200,
    many_tensors=2_000,
    repetitions=3,
    soak_saves=50,
    is_brief=True,
)
"""A look in two minutes; too small and too few repetitions for a claim."""
