"""The catalogue of reasons: every word that a condition or an Event of ours can give, with what to do about it."""

from typing import NamedTuple


class Reason(NamedTuple):
    """One reason: where it appears, what it means, what to do."""

    name: str
    conditions: str
    meaning: str
    remedy: str


CATALOGUE = (
    Reason("Running", "Ready", "As many workers as wanted are ready.", ""),
    Reason(
        "ScaledToZero",
        "Ready",
        "Nothing runs, as wanted: nothing waits, or `replicas` is 0.",
        "In the modes Manual and Advisory `kubectl scale` it up.",
    ),
    Reason("Suspended", "Ready", "`suspend` is true: no workers.", "Set `spec.suspend` to false."),
    Reason("Starting", "Ready, Progressing", "Workers are being started.", "Wait; a model takes time to load."),
    Reason(
        "Rolling", "Ready, Progressing", "Workers are being replaced by ones of the new spec or credentials.", "Wait."
    ),
    Reason("Stopping", "Ready, Progressing", "Workers that are too many finish their recordings.", "Wait."),
    Reason("Complete", "Progressing", "All workers are of the current spec and ready.", ""),
    Reason(
        "Stuck",
        "Ready, Progressing",
        "A rollout has made no progress for `worker.progressDeadlineSeconds`.",
        "Look at the pods: `kubectl describe pod`.",
    ),
    Reason("NotReady", "Ready, Progressing", "Workers run, but are not ready.", "Look at their log: `kubectl logs`."),
    Reason(
        "InvalidSpec",
        "Ready",
        "The stored resource can't be read by this operator (it was let in by another version of the CRD), or its pod "
        "template patch has a wrong shape.",
        "Apply it anew, corrected; the API server or the message says what is wrong.",
    ),
    Reason(
        "NameTaken",
        "Ready",
        "An object of the name that a child would get exists and belongs to someone else; it is left alone.",
        "Delete or rename it, or rename the pipeline.",
    ),
    Reason(
        "Refused",
        "Ready",
        "The API server refuses a child: a pod template patch that makes no sense, an admission policy, a quota.",
        "Do what the message says.",
    ),
    Reason(
        "GroupTaken",
        "Ready",
        "An older pipeline consumes with the same group on the same brokers: each would see part of the events, and "
        "both would be scaled on the same lag.",
        "Give `queue.kafka.group` another name, or delete one of the two.",
    ),
    Reason("SecretMissing", "Ready", "A Secret or ConfigMap that the spec names does not exist.", "Create it."),
    Reason("SecretKeyMissing", "Ready", "It exists, but lacks a key.", "Add the key."),
    Reason(
        "Checking",
        "Ready, QueueReachable, VaultReachable, ScalingLimited",
        "The first check has not ended yet.",
        "Wait.",
    ),
    Reason("Reachable", "QueueReachable, VaultReachable", "The last check succeeded.", ""),
    Reason("PerEvent", "VaultReachable", "No `spec.vault`: each event brings its own Vault.", ""),
    Reason("Blocked", "QueueReachable, VaultReachable", "Not checked: credentials are missing.", "See Ready."),
    Reason(
        "BrokerUnreachable",
        "Ready, QueueReachable",
        "No broker answers.",
        "Check `queue.kafka.brokers`, the network, and that the operator may reach them, too.",
    ),
    Reason(
        "AuthenticationFailed",
        "Ready, QueueReachable",
        "The broker refuses user, password or mechanism.",
        "Correct the Secret or `queue.kafka.mechanism`.",
    ),
    Reason(
        "TlsFailed",
        "Ready, QueueReachable",
        "TLS can't be agreed on: an authority that is not trusted, or TLS on one side only.",
        "Check `queue.kafka.security` and `queue.kafka.ca`.",
    ),
    Reason("TopicMissing", "Ready, QueueReachable", "The queue's or the target's topic does not exist.", "Create it."),
    Reason(
        "NotAuthorized",
        "Ready, QueueReachable",
        "The user may not see the topic.",
        "Grant it Describe and Read on the queue, Write on the target, Read on the group.",
    ),
    Reason(
        "VaultUnreachable",
        "Ready, VaultReachable",
        "Vault does not answer.",
        "Check `vault.apiUrl` and the network.",
    ),
    Reason("CredentialsRefused", "Ready, VaultReachable", "Vault refuses the keys.", "Correct the Secret."),
    Reason(
        "NotAVault",
        "Ready, VaultReachable",
        "Something answers there, but not a Vault.",
        "Check `vault.apiUrl`: newer Vaults are served under /api.",
    ),
    Reason("VaultFailing", "Ready, VaultReachable", "Vault answers with an error of its own.", "Look at Vault's log."),
    Reason(
        "NoGpuNode",
        "Ready",
        "No node that the workers may run on offers the GPU resource.",
        "Check `worker.gpu.resource` and `worker.nodeSelector`, and the GPU operator on the nodes.",
    ),
    Reason(
        "Unschedulable",
        "Ready",
        "A worker fits on no node now: the message is the scheduler's.",
        "Scale down, free GPUs, or add nodes.",
    ),
    Reason(
        "ImagePullFailed",
        "Ready",
        "The worker's image can't be pulled.",
        "Check `worker.image` and `worker.imagePullSecrets`.",
    ),
    Reason(
        "ContainerConfigError",
        "Ready",
        "A container can't be made: a Secret, ConfigMap, key or volume is missing.",
        "Do what the message says.",
    ),
    Reason(
        "CrashLooping",
        "Ready",
        "A worker ends again and again; the message ends with its last words.",
        "Do what they say; see `kubectl logs --previous`.",
    ),
    Reason("NotLimited", "ScalingLimited", "Nothing keeps the number of workers from what is needed.", ""),
    Reason(
        "GpusTaken",
        "ScalingLimited",
        "More workers are needed than GPUs can be had; the message says who has them.",
        "Add GPUs, or give this pipeline more `autoscaling.priority` or `weight`.",
    ),
    Reason(
        "AtMaximum",
        "ScalingLimited",
        "More workers are needed than maxReplicas allows.",
        "Raise `autoscaling.maxReplicas`.",
    ),
    Reason(
        "TooFewPartitions",
        "ScalingLimited",
        "More workers are needed than the topic has partitions: more would sit idle.",
        "Raise the partitions, by `queue.kafka.ensurePartitions` or yourself.",
    ),
    Reason(
        "ScalingPaused",
        "ScalingLimited",
        "The annotation ml.kerberos.io/pause-scale-in or -out keeps the number.",
        "Remove the annotation.",
    ),
    Reason("RateLimited", "ScalingLimited", "`autoscaling.scaleOut` or `scaleIn` allows no more for now.", "Wait."),
    Reason(
        "LagUnknown",
        "ScalingLimited",
        "The queue can't be read: the number of workers stays, or is `autoscaling.fallback`'s.",
        "See QueueReachable.",
    ),
    Reason(
        "EventsExpire",
        "EventsExpiring",
        "The oldest recording has waited for most of the time that the topic keeps events.",
        "Add workers, or raise the topic's `retention.ms`.",
    ),
    Reason("WithinRetention", "EventsExpiring", "No event is close to being deleted by the broker.", ""),
    Reason("NotPaused", "Paused", "The pipeline is reconciled.", ""),
    Reason(
        "PausedByAnnotation",
        "Paused",
        "The annotation ml.kerberos.io/paused is true: nothing is changed.",
        "Remove the annotation.",
    ),
    Reason("MonitorCreated", "Monitored", "The PodMonitor is there.", ""),
    Reason(
        "MonitorUnavailable",
        "Monitored",
        "The cluster knows no PodMonitor.",
        "Install the Prometheus operator, or set `monitoring.podMonitor` to false.",
    ),
)
NAMES = frozenset(each.name for each in CATALOGUE)
EVENTS = (
    Reason("Created", "", "A child was created.", ""),
    Reason("Updated", "", "A child was changed to what the spec says: after an edit of the spec or of the child.", ""),
    Reason("Scaled", "", "The number of workers was changed, by `spec.replicas`.", ""),
    Reason("ScaledOut", "", "The autoscaler began to add workers; the message says why.", ""),
    Reason("ScaledIn", "", "The autoscaler began to take workers away; the message says why.", ""),
    Reason("ReplicasIgnored", "", "`spec.replicas` was changed, which the mode Auto does not look at.", ""),
    Reason("PartitionsRaised", "", "`kafka.ensurePartitions` raised the topic's partitions.", ""),
    Reason("PartitionsNotRaised", "", "`kafka.ensurePartitions` could not be done; the message says why.", ""),
    Reason("CredentialsChanged", "", "A Secret or ConfigMap changed: the workers are replaced one by one.", ""),
    Reason("Removed", "", "A child that the spec no longer asks for was deleted.", ""),
)
"""Reasons that only Events carry, besides those of the conditions that they report."""


def reference() -> str:
    """docs/reasons.md: the catalogue as Markdown."""
    lines = [
        "# Reasons",
        "",
        "Written by `make docs` from `operator/vaultml_operator/reasons.py`: every reason that a pipeline's conditions",
        "can have. `kubectl get pipelines` shows the one of the condition Ready; each change of it is an Event, too.",
        "Everything here heals by itself once its cause is gone.",
        "",
        "| reason | conditions | meaning | what to do |",
        "| --- | --- | --- | --- |",
        *(f"| `{each.name}` | {each.conditions} | {each.meaning} | {each.remedy} |" for each in CATALOGUE),
        "",
        "Events that tell what the operator did:",
        "",
        "| reason | meaning |",
        "| --- | --- |",
        *(f"| `{each.name}` | {each.meaning} |" for each in EVENTS),
    ]
    return "\n".join(lines) + "\n"
