"""The process node: a Node whose pods are local processes. `python -m testbed.kubernetes.kubelet <config.json>`."""
