"""From a pod's template to a pod that can be started on its node."""

from collections.abc import Callable, Mapping
from pathlib import Path

from keepstep.testing.cluster.container import Container
from keepstep.testing.cluster.env import PodFields, container_environ, expand
from keepstep.testing.cluster.manifests import Manifest, Manifests
from keepstep.testing.cluster.pod import Identity, Pod
from keepstep.testing.cluster.runtime import Order, Runtime
from keepstep.testing.cluster.volumes import Mount, make_volumes, mounts_of


def make_pod(
    identity: Identity,
    manifests: Manifests,
    runtime: Runtime,
    directory: Path,
    *,
    services: Mapping[str, str],
    extra_mounts: list[Mount],
    now_seconds: float,
    seconds_scale: float,
    tell: Callable[..., None],
) -> Pod:
    """A pod that is bound to its node and has not been started.

    Args:
        directory: Of the cluster.
        services: Variables that tell of services.
        extra_mounts: Of every container.
    """
    home = directory / "pods" / identity.name
    volumes = make_volumes(identity.spec, manifests, home, directory / "claims")
    fields = _fields(identity, manifests)

    def made(container: Manifest) -> Container:
        environ = container_environ(container, fields, manifests, services)
        message_path = home / "messages" / container["name"]
        message_target = container.get("terminationMessagePath", "/dev/termination-log")
        mounts = [
            *mounts_of(container, volumes),
            *extra_mounts,
            Mount(message_target, str(message_path)),
        ]
        order = _order(container, identity, home, mounts, environ, runtime)
        return Container(
            container, order, runtime, identity.address, message_path, tell, identity.grace_seconds
        )

    return Pod(
        identity,
        [made(each) for each in identity.spec["containers"]],
        [made(each) for each in identity.spec.get("initContainers", [])],
        now_seconds,
        seconds_scale,
        tell,
    )


def _fields(identity: Identity, manifests: Manifests) -> PodFields:
    metadata = identity.template.get("metadata", {})
    return PodFields(
        name=identity.name,
        namespace=manifests.namespace,
        uid=identity.uid,
        node_name=identity.node_name,
        pod_ip=identity.address,
        service_account=identity.spec.get("serviceAccountName", "default"),
        labels=identity.labels,
        annotations=dict(metadata.get("annotations") or {}),
    )


def _order(
    container: Manifest,
    identity: Identity,
    home: Path,
    mounts: list[Mount],
    environ: dict[str, str],
    runtime: Runtime,
) -> Order:
    name = container["name"]
    command = container.get("command") or list(runtime.entrypoint)
    if not command:
        raise ValueError(f"container {name} has no command, and what its image runs is not known")
    words = [*command, *container.get("args", [])]
    security = dict(identity.spec.get("securityContext") or {})
    security |= container.get("securityContext") or {}
    return Order(
        argv=[expand(str(word), environ) for word in words],
        environ=environ,
        mounts=mounts,
        hostname=identity.hostname,
        machine=identity.machine,
        log=home / f"{name}.log",
        directory=home / "containers" / name,
        cwd=container.get("workingDir", "/"),
        is_read_only=bool(security.get("readOnlyRootFilesystem", False)),
        user=security.get("runAsUser"),
        group=security.get("runAsGroup", security.get("fsGroup")),
    )
