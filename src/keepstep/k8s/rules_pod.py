"""What a pod that trains must say so that it saves in time, and finds the others."""

from collections.abc import Iterator

from keepstep.config import Config
from keepstep.k8s.manifest import Finding, at, items
from keepstep.k8s.quantity import size_of
from keepstep.k8s.workload import Workload

_DEFAULT_GRACE_SECONDS = 30
"""A kubelet's."""
_LEAVING_SECONDS = 5
"""Between the end of the workers and that of the pod."""
_SPOT_SECONDS = {
    "cloud.google.com/gke-spot": 15,
    "cloud.google.com/gke-preemptible": 15,
    "kubernetes.azure.com/scalesetpriority": 30,
}
"""What is left to a pod of a node that is being reclaimed, by the node's label."""
SHARED_MEMORY = "/dev/shm"  # noqa: S108  # a path in a pod
_LONGEST_ABSENCE_SECONDS = 60
_PROBES = ("startupProbe", "livenessProbe")


def grace(workload: Workload) -> Iterator[Finding]:
    """The kubelet's patience must outlast the trainer's."""
    given = workload.pod.get("terminationGracePeriodSeconds", _DEFAULT_GRACE_SECONDS)
    for name, needed in _stop_times(workload).items():
        if given < needed + _LEAVING_SECONDS:
            yield workload.of_pod(
                "terminationGracePeriodSeconds",
                f"is {given}, and {name} is {needed:g}: the pod is killed while it saves",
                f"write at least {needed + _LEAVING_SECONDS:g}, or lower {name}",
            )


def spot_notice(workload: Workload) -> Iterator[Finding]:
    """A save that is planned for longer than the machine lives is lost."""
    needed = max(_stop_times(workload).values())
    for label in workload.pod.get("nodeSelector") or {}:
        if (left := _SPOT_SECONDS.get(label)) is not None and needed > left:
            yield workload.of_container(
                "env",
                f"KEEPSTEP_PREEMPTION__GRACE_SECONDS or --shutdown-timeout is {needed:g}, and "
                f"nodes with {label} leave {left} s to pods",
                f"write at most {left}",
            )


def hooks(workload: Workload) -> Iterator[Finding]:
    if at(workload.container, "lifecycle.preStop") is not None:
        yield workload.of_container(
            "lifecycle.preStop",
            "uses up the time in which the trainer could save",
            "leave it out: keepstep listens to SIGTERM",
        )


def shared_memory(workload: Workload) -> Iterator[Finding]:
    volume = workload.mount_at(SHARED_MEMORY)
    if volume is None or at(volume, "emptyDir.medium") != "Memory":
        yield workload.of_container(
            "volumeMounts",
            f"{SHARED_MEMORY} is not mounted: pods have 64 MiB of it",
            "mount a volume with emptyDir: {medium: Memory, sizeLimit: 1Gi} there",
        )
        return
    size, limit = (
        at(volume, "emptyDir.sizeLimit"),
        at(workload.container, "resources.limits.memory"),
    )
    if size_of(size) is None:
        name = volume.get("name")
        yield workload.of_pod("volumes", f"{name} has no sizeLimit", "write one: it uses memory")
    elif limit is not None and (size_of(limit) or 0) <= (size_of(size) or 0):
        yield workload.of_container(
            "resources.limits.memory",
            f"is {limit}, of which {SHARED_MEMORY} alone may take {size}",
            "write more: shared memory counts against it",
        )


def probes(workload: Workload) -> Iterator[Finding]:
    for name in _PROBES:
        command = at(workload.container, f"{name}.exec.command")
        if not isinstance(command, list) or "health" not in command:
            wrong = "does not ask keepstep"
            yield workload.of_container(
                name, wrong, "write exec: {command: [keepstep, health, ...]}"
            )


def absence(workload: Workload) -> Iterator[Finding]:
    """Of a node that does not answer any more."""
    tolerated = {
        one.get("key"): one.get("tolerationSeconds")
        for one in items(workload.pod, "tolerations")
        if one.get("effect") in (None, "NoExecute")
    }
    for key in ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"):
        seconds = tolerated.get(key)
        if seconds is None or seconds > _LONGEST_ABSENCE_SECONDS:
            yield workload.of_pod(
                "tolerations",
                f"a pod on a lost node is told to go after {seconds or 300} s only ({key})",
                "add it with effect: NoExecute, tolerationSeconds: 20",
            )


def last_words(workload: Workload) -> Iterator[Finding]:
    path = workload.container.get("terminationMessagePath", "/dev/termination-log")
    if (written := workload.option("--termination-log")) != path:
        wrong = f"the pod's message is read from {path}, and --termination-log is {written}"
        yield workload.of_container("args", wrong, f"write --termination-log={path}")


def identity(workload: Workload) -> Iterator[Finding]:
    """A job that is created anew under its old name has to be another one to the store."""
    name = workload.option("--rdzv-id") or ""
    entry = next(
        (one for one in items(workload.container, "env") if f"$({one.get('name')})" in name), {}
    )
    if "uid" not in str(at(entry, "valueFrom.fieldRef.fieldPath")):
        yield workload.of_container(
            "args",
            f"--rdzv-id={name} is the same for the next Job of this name, which would end at once",
            "write $(JOB_UID), a variable with fieldPath: "
            "metadata.labels['batch.kubernetes.io/controller-uid']",
        )


def address(workload: Workload) -> Iterator[Finding]:
    entries = items(workload.container, "env")
    paths = {f"$({one.get('name')})": at(one, "valueFrom.fieldRef.fieldPath") for one in entries}
    found = workload.option("--local-addr")
    if paths.get(found or "") != "status.podIP":
        yield workload.of_container(
            "args",
            f"--local-addr is {found}: the others may not know this pod's name",
            "write --local-addr=$(POD_IP), a variable with fieldPath: status.podIP",
        )


def gpus(workload: Workload) -> Iterator[Finding]:
    """One process each."""
    number = at(workload.container, "resources.limits")
    number = number.get("nvidia.com/gpu") if isinstance(number, dict) else None
    processes = workload.option("--nproc-per-node")
    if number is not None and processes not in (str(number), "gpu", "auto"):
        wrong = f"--nproc-per-node={processes}, with {number} GPUs"
        yield workload.of_container("args", wrong, f"write --nproc-per-node={number}")


def durable(workload: Workload) -> Iterator[Finding]:
    """Checkpoints must outlive the pod that wrote them."""
    uri = workload.environment.get("KEEPSTEP_URI", "")
    path = uri.removeprefix("file://")
    if not uri or "://" in path:
        return
    volume = workload.volume_of(path)
    if volume is None or "emptyDir" in volume:
        where = f"volume {volume.get('name')}, an emptyDir" if volume else "the container itself"
        yield workload.of_container(
            "env",
            f"KEEPSTEP_URI={uri} is in {where}: checkpoints would go with the pod",
            "mount a PersistentVolumeClaim there that all nodes share, or name an object store",
        )


OF_A_TRAINER = (
    grace,
    spot_notice,
    hooks,
    shared_memory,
    probes,
    last_words,
    identity,
    address,
    durable,
    gpus,
)
OF_LONG_RUNNING = (absence,)


def _stop_times(workload: Workload) -> dict[str, float]:
    """What trainers, and their launcher, may take to leave."""
    default = Config().preemption.grace_seconds
    given = {
        "KEEPSTEP_PREEMPTION__GRACE_SECONDS": workload.environment.get(
            "KEEPSTEP_PREEMPTION__GRACE_SECONDS", str(default)
        ),
        "--shutdown-timeout": workload.option("--shutdown-timeout") or "30",
    }
    return {name: float(text) for name, text in given.items() if text.replace(".", "").isdecimal()}
