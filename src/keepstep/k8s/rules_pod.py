"""What a pod must say so that it can save in time, and has no more rights than it needs."""

import re
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
_TEMPORARY = "/tmp"  # noqa: S108  # the same
_LONGEST_ABSENCE_SECONDS = 60
_SHELLS = re.compile(r"(^|/)(sh|bash|dash|ash|zsh)$")
_STATIC_KEYS = re.compile(
    r"^(AWS_(ACCESS_KEY_ID|SECRET_ACCESS_KEY|SESSION_TOKEN)|AZURE_STORAGE_(ACCOUNT_)?KEY"
    r"|AZURE_(STORAGE_(CONNECTION_STRING|SAS_TOKEN)|CLIENT_SECRET)|GOOGLE_API_KEY)$"
)
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


def exec_form(workload: Workload) -> Iterator[Finding]:
    """A shell does not pass signals on, and ends with codes of its own."""
    words = workload.words
    if any(_SHELLS.search(word) for word in words[:3]):
        yield workload.of_container(
            "command",
            f"goes through a shell ({words[0]}): SIGTERM does not reach keepstep",
            f"write [tini, --, keepstep], and args: [{workload.verb}, ...]",
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
                f"a pod on a lost node is replaced after {seconds or 300} s ({key})",
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


def rights(workload: Workload) -> Iterator[Finding]:
    own = workload.container.get("securityContext") or {}
    both = {**(workload.pod.get("securityContext") or {}), **own}
    wanted = {
        "runAsNonRoot": True,
        "readOnlyRootFilesystem": True,
        "allowPrivilegeEscalation": False,
    }
    for field, value in wanted.items():
        if both.get(field) is not value:
            wrong = f"is {both.get(field)}"
            yield workload.of_container(
                f"securityContext.{field}", wrong, f"write {str(value).lower()}"
            )
    if "ALL" not in (at(own, "capabilities.drop") or []):
        field = "securityContext.capabilities"
        yield workload.of_container(field, "keeps capabilities", "write drop: [ALL]")
    if at(both, "seccompProfile.type") not in ("RuntimeDefault", "Localhost"):
        field = "securityContext.seccompProfile"
        yield workload.of_container(field, "is missing", "write type: RuntimeDefault")


def scratch(workload: Workload) -> Iterator[Finding]:
    is_read_only = at(workload.container, "securityContext.readOnlyRootFilesystem")
    if is_read_only and workload.mount_at(_TEMPORARY) is None:
        yield workload.of_container(
            "volumeMounts",
            f"the root is read-only and nothing is at {_TEMPORARY}",
            "mount an emptyDir there",
        )


def static_keys(workload: Workload) -> Iterator[Finding]:
    """Environments are shown by describe, inherited by every process, and never renewed."""
    for entry in items(workload.container, "env"):
        if _STATIC_KEYS.match(str(entry.get("name"))):
            yield workload.of_container(
                f"env.{entry.get('name')}",
                "a static key in the environment",
                "annotate the service account with a role; or mount a Secret as a file and name it "
                "by AWS_SHARED_CREDENTIALS_FILE",
            )


def token(workload: Workload) -> Iterator[Finding]:
    if workload.pod.get("automountServiceAccountToken") is not False:
        field = "automountServiceAccountToken"
        wrong = "pods get a token for the cluster's API that they do not need"
        yield workload.of_pod(field, wrong, "write false: roles of a cloud come by other ways")


def service_links(workload: Workload) -> Iterator[Finding]:
    if workload.pod.get("enableServiceLinks") is not False:
        yield workload.of_pod(
            "enableServiceLinks",
            "a Service called keepstep-... becomes variables KEEPSTEP_..., which are no settings",
            "write false",
        )


def memory(workload: Workload) -> Iterator[Finding]:
    if at(workload.container, "resources.limits.memory") is None:
        field = "resources.limits.memory"
        yield workload.of_container(field, "is missing", "write one: else a node kills at random")


OF_A_TRAINER = (
    grace,
    spot_notice,
    hooks,
    shared_memory,
    probes,
    last_words,
    identity,
    address,
)
OF_LONG_RUNNING = (absence,)
OF_ANY = (exec_form, rights, scratch, static_keys, token, service_links, memory)


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
