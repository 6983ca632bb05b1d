"""What the Job controller adds to the template of a pod."""

from copy import deepcopy

from keepstep.testing.cluster.manifests import Manifest

COMPLETION_INDEX = "batch.kubernetes.io/job-completion-index"
_VARIABLE = "JOB_COMPLETION_INDEX"


def indexed_template(template: Manifest, job: str, uid: str, index: int) -> Manifest:
    """Of the pod for that index: labels, an annotation and a variable."""
    made = deepcopy(template)
    labels = {
        "job-name": job,
        "batch.kubernetes.io/job-name": job,
        "controller-uid": uid,
        "batch.kubernetes.io/controller-uid": uid,
        COMPLETION_INDEX: str(index),
    }
    metadata = made.setdefault("metadata", {})
    metadata["labels"] = (metadata.get("labels") or {}) | labels
    metadata["annotations"] = (metadata.get("annotations") or {}) | {COMPLETION_INDEX: str(index)}
    field = {"fieldRef": {"fieldPath": f"metadata.annotations['{COMPLETION_INDEX}']"}}
    for container in (*made["spec"]["containers"], *made["spec"].get("initContainers", [])):
        variables = container.setdefault("env", [])
        if not any(each["name"] == _VARIABLE for each in variables):
            variables.append({"name": _VARIABLE, "valueFrom": field})
    return made
