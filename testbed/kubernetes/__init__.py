"""A real Kubernetes control plane from Go modules, and nodes whose pods are local processes."""

from testbed.kubernetes import gpus
from testbed.kubernetes.api import ApiError, Object
from testbed.kubernetes.cluster import Cluster, KubectlError, available
from testbed.kubernetes.distribution import binaries
from testbed.kubernetes.images import Image
from testbed.kubernetes.node import Node

__all__ = ["ApiError", "Cluster", "Image", "KubectlError", "Node", "Object", "available", "binaries", "gpus"]
