"""What any pod of keepstep's must say: it hears signals, and has no more rights than it needs."""

import re
from collections.abc import Iterator

from keepstep.k8s.manifest import Finding, at, items
from keepstep.k8s.workload import Workload

_TEMPORARY = "/tmp"  # noqa: S108  # a path in a pod
_SHELLS = re.compile(r"(^|/)(sh|bash|dash|ash|zsh)$")
_STATIC_KEYS = re.compile(
    r"^(AWS_(ACCESS_KEY_ID|SECRET_ACCESS_KEY|SESSION_TOKEN)|AZURE_STORAGE_(ACCOUNT_)?KEY"
    r"|AZURE_(STORAGE_(CONNECTION_STRING|SAS_TOKEN)|CLIENT_SECRET)|GOOGLE_API_KEY)$"
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


OF_ANY = (exec_form, rights, scratch, static_keys, token, service_links, memory)
