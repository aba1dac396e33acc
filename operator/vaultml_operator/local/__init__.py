"""The same resource, reconcile, decision and worker on one machine, without Kubernetes."""
