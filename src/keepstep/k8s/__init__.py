"""Manifests for Kubernetes: whether what has to agree does, with each other and with keepstep."""
