"""What keepstep promises about its speed, held against one run's figures."""

from collections.abc import Callable

from benchmarks.plan import LIMITS
from benchmarks.results import Results
from benchmarks.scenario import Scenario
from benchmarks.verdicts import Claim, Found, Verdict

_DCP_ASYNC = ("dcp-async-default", "dcp-async-thread", "dcp-async-process", "dcp-async-pinned")
_MIB = 1 << 20


def judge(results: Results) -> list[Verdict]:
    """All claims, in the order in which they were made."""
    return [claim.judge(results) for claim in CLAIMS]


def _against_dcp(
    work: str,
    metric: str,
    chosen: Callable[[Scenario], bool],
    *,
    peers: tuple[str, ...] = ("dcp",),
) -> Callable[[Results], Found]:
    """keepstep's figure over stock DCP's, of several ways to use it the better one."""

    def find(results: Results) -> Found:
        for scenario in filter(chosen, results.scenarios()):
            ours = results.median(scenario, "keepstep", work, metric)
            theirs = [results.median(scenario, peer, work, metric) for peer in peers]
            known = [value for value in theirs if value]
            if ours is not None and known:
                yield scenario, ours / min(known)

    return find


def _of_limit(work: str, chosen: Callable[[Scenario], bool]) -> Callable[[Results], Found]:
    """The share of the fastest limit's speed that keepstep reaches."""

    def find(results: Results) -> Found:
        for scenario in filter(chosen, results.scenarios("durable")):
            ours = results.median(scenario, "keepstep", work, "seconds")
            limits = [results.median(scenario, limit, work, "seconds") for limit in LIMITS]
            known = [seconds for seconds in limits if seconds is not None]
            if ours and known:
                yield scenario, min(known) / ours

    return find


def _on_s3(work: str, other: str) -> Callable[[Results], Found]:
    """How many times the other's speed keepstep reaches."""

    def find(results: Results) -> Found:
        for scenario in results.scenarios("remote"):
            ours = results.median(scenario, "keepstep-s3", work, "seconds")
            theirs = results.median(scenario, other, work, "seconds")
            if ours and theirs:
                yield scenario, theirs / ours

    return find


def _extra_on_s3(results: Results) -> Found:
    """Of the ranks' mean: they do the same."""
    for scenario in results.scenarios("remote"):
        found = [results.most(scenario, "keepstep-s3", w, "extra_bytes") for w in ("save", "load")]
        known = [value for value in found if value is not None]
        if known:
            yield scenario, max(known) / scenario.ranks


def _figure(
    work: str, metric: str, chosen: Callable[[Scenario], bool], *, peer: str = "keepstep"
) -> Callable[[Results], Found]:
    """keepstep's own figure."""

    def find(results: Results) -> Found:
        for scenario in filter(chosen, results.scenarios()):
            value = results.median(scenario, peer, work, metric)
            if value is not None:
                yield scenario, value

    return find


def _against_async(metric: str, peers: tuple[str, ...]) -> Callable[[Results], Found]:
    """The asynchronous figure over the lowest of the peers that ran."""

    def find(results: Results) -> Found:
        for scenario in results.scenarios("background"):
            ours = results.median(scenario, "keepstep-async", "async save", metric)
            theirs = [results.median(scenario, peer, "async save", metric) for peer in peers]
            known = [value for value in theirs if value is not None]
            if ours is not None and known:
                yield scenario, ours / min(known)

    return find


def _failures(results: Results) -> Found:
    """Of keepstep, where it ran at all: an error, or data that are not those that were saved."""
    troubled = [problem.scenario for problem in results.failures]
    for scenario in dict.fromkeys([*results.scenarios(), *troubled]):
        if any(peer.startswith("keepstep") for peer in scenario.peers):
            yield scenario, troubled.count(scenario)


def _extra_of_copies(results: Results) -> Found:
    for scenario in filter(_is_copied, results.scenarios()):
        value = results.most(scenario, "keepstep", "save", "extra_bytes")
        if value is not None:
            yield scenario, value


def _in_mib(find: Callable[[Results], Found]) -> Callable[[Results], Found]:
    return lambda results: ((scenario, value / _MIB) for scenario, value in find(results))


def _is_usual(scenario: Scenario) -> bool:
    """A durable save or load of a state as training has it, in host memory."""
    return (
        scenario.section == "durable"
        and scenario.shape == "gpt"
        and scenario.device == "cpu"
        and scenario.num_tensors < 2_000
    )


def _is_usual_and_sharded(scenario: Scenario) -> bool:
    return _is_usual(scenario) and scenario.strategy == "fsdp"


def _is_large(scenario: Scenario) -> bool:
    return _is_usual(scenario) and scenario.size_mib >= 512


def _is_large_and_sharded(scenario: Scenario) -> bool:
    return _is_large(scenario) and scenario.strategy == "fsdp"


def _has_many_tensors(scenario: Scenario) -> bool:
    return scenario.section == "durable" and scenario.num_tensors >= 10_000


def _has_many_tensors_on_four(scenario: Scenario) -> bool:
    return _has_many_tensors(scenario) and scenario.ranks == 4


def _is_replicated(scenario: Scenario) -> bool:
    return scenario.section == "durable" and scenario.strategy == "ddp" and scenario.ranks > 1


def _is_copied(scenario: Scenario) -> bool:
    """Tensors that cannot be written from where they are."""
    is_copied = scenario.shape == "strided" or scenario.device == "cuda"
    return scenario.section == "durable" and is_copied


def _is_resharded(scenario: Scenario) -> bool:
    return scenario.section == "reshard" and scenario.ranks != scenario.load_ranks


def _is_read_by_as_many(scenario: Scenario) -> bool:
    return scenario.section == "reshard" and scenario.ranks == scenario.load_ranks


def _is_slice(scenario: Scenario) -> bool:
    return scenario.section == "slice"


def _is_background(scenario: Scenario) -> bool:
    return scenario.section == "background"


def _is_soak(scenario: Scenario) -> bool:
    return scenario.section == "soak"


CLAIMS: tuple[Claim, ...] = (
    Claim("Errors of keepstep, wrong data among them", "at most", 0, _failures, ""),
    Claim(
        "Durable save, checksums on: CPU seconds per GB against DCP",
        "at most",
        0.5,
        _against_dcp("save", "cpu_seconds_per_gb", _is_usual),
    ),
    Claim(
        "Durable save, checksums on: wall time against DCP",
        "at most",
        0.4,
        _against_dcp("save", "seconds", _is_usual),
    ),
    Claim(
        "Durable save, 512 MiB and more: share of the write limit",
        "at least",
        0.85,
        _of_limit("save", _is_large),
    ),
    Claim(
        "Durable save, 10,000 tensors: wall time against DCP",
        "at most",
        0.1,
        _against_dcp("save", "seconds", _has_many_tensors, peers=("dcp", "dcp-plan-cached")),
    ),
    Claim(
        "Asynchronous save: stall against DCP's best mode",
        "at most",
        0.5,
        _against_async("stall_seconds", _DCP_ASYNC),
    ),
    Claim(
        "Asynchronous save: stall against one memcpy of the state",
        "at most",
        1.3,
        _against_async("stall_seconds", ("limit-memcpy",)),
    ),
    Claim(
        "Asynchronous save: allocations from the second save on, by keepstep's counter",
        "at most",
        0,
        _figure("summary", "grown_allocations", _is_background, peer="keepstep-async"),
        "",
    ),
    Claim(
        "Asynchronous save: growth of memory from the second save on",
        "at most",
        8,
        _in_mib(_figure("async save", "extra_bytes", _is_background, peer="keepstep-async")),
        " MiB",
    ),
    Claim(
        "Asynchronous save: slower training steps, against DCP's best mode",
        "at most",
        1.0,
        _against_async("slowdown", _DCP_ASYNC),
    ),
    Claim(
        "Verified load: CPU seconds per GB against DCP's unverified",
        "at most",
        0.5,
        _against_dcp("load warm", "cpu_seconds_per_gb", _is_usual),
    ),
    Claim(
        "Verified load, warm: wall time against DCP",
        "at most",
        0.35,
        _against_dcp("load warm", "seconds", _is_usual),
    ),
    Claim(
        "Verified load, warm, resharded: wall time against DCP",
        "at most",
        0.25,
        _against_dcp("load warm", "seconds", _is_resharded),
    ),
    Claim(
        "Verified load, cold, 512 MiB and more: share of the read limit",
        "at least",
        0.85,
        _of_limit("load cold", _is_large_and_sharded),
    ),
    Claim(
        "Load of an eighth: bytes read against bytes needed",
        "at most",
        1.25,
        _figure("load warm", "read_ratio", _is_slice),
    ),
    Claim(
        "Replicas: most bytes written by a rank against the mean",
        "at most",
        1.05,
        _figure("save", "imbalance", _is_replicated),
    ),
    Claim(
        "Replicas read once: bytes read by all ranks against one copy of the state",
        "at most",
        1.05,
        _figure("load cold", "read_copies", _is_read_by_as_many, peer="keepstep-read-once"),
    ),
    Claim(
        "Save of device or non-contiguous tensors: extra host memory",
        "at most",
        320,
        _in_mib(_extra_of_copies),
        " MiB",
    ),
    Claim(
        "10,000 tensors, 4 ranks: planning from the second save on",
        "at most",
        0.3,
        _figure("save", "plan_seconds", _has_many_tensors_on_four),
        " s",
    ),
    *(
        Claim(f"{work} on S3: times the speed of {what}", "at least", target, _on_s3(key, other))
        for work, key in (("Save", "save"), ("Load", "load"))
        for what, target, other in (
            ("DCP over s3fs", 2.0, "dcp-s3fs"),
            ("raw parallel requests", 0.7, "limit-s3-8"),
        )
    ),
    Claim("On S3: extra memory per rank", "at most", 256, _in_mib(_extra_on_s3), " MiB"),
    *(
        Claim(
            f"Many saves in a row, {mode}: growth of {what}",
            "at most",
            target,
            find(_figure("soak", f"{metric}_growth", _is_soak, peer=peer)),
            unit,
        )
        for mode, peer in (("synchronous", "keepstep"), ("asynchronous", "keepstep-async"))
        for what, metric, target, unit, find in (
            ("resident memory", "resident_bytes", 8, " MiB", _in_mib),
            ("open files", "file_descriptors", 0, "", lambda found: found),
            ("threads", "threads", 0, "", lambda found: found),
            ("shared memory", "shared_memory_bytes", 0, " MiB", _in_mib),
        )
    ),
)
