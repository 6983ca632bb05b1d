"""A cluster of processes on one machine, for tests of manifests: what kubelets and controllers do.

::

    manifests = read_manifests(Path("rendered.yaml"))
    with Cluster(manifests, directory, times=Times(seconds_scale=0.1)) as cluster:
        cluster.wait_until(lambda: cluster.pod("trainer", 0).is_ready, "node 0 trains")
        cluster.preempt(cluster.node_of(cluster.pod("trainer", 0)), grace_seconds=15)
        assert cluster.wait_for_job("trainer") == "Complete"

As root every pod has a network namespace, its containers process, mount, host name and IPC
namespaces, and an overlay of this machine's root as their file system. Elsewhere pods are plain
processes on loopback, with directories in place of mount paths and addresses in place of names.

Done as in Kubernetes: Indexed Jobs (podFailurePolicy, backoff limits, successPolicy, replacement),
Deployments, headless and other Services, environment and downward API, volumes, probes, preStop,
grace, termination messages, security context (user, read-only root), node affinity, taints;
nodes that are preempted, that vanish, and pods that are evicted.

Not done: images (commands run with this machine's Python), resource requests and limits,
NetworkPolicy, ServiceAccount tokens and RBAC, PodDisruptionBudgets, quotas, priorities, admission,
device plugins, CronJobs, capabilities and seccomp; docs/local-cluster.md has the list.
"""

from keepstep.testing.cluster.cluster import Cluster
from keepstep.testing.cluster.manifests import parse_manifests, read_manifests, set_environ
from keepstep.testing.cluster.node import Pool
from keepstep.testing.cluster.node_controller import Times

__all__ = ["Cluster", "Pool", "Times", "parse_manifests", "read_manifests", "set_environ"]
