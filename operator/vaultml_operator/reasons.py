"""The table of reasons: each word that a condition or an Event can carry, what it means and what to do about it.

Code compares members of `Reason`, never strings and never messages, so that a reason with the same facts is treated
the same everywhere. docs/reasons.md is this table.
"""

from collections.abc import Iterable
from enum import StrEnum
from typing import Self


class _Facts:
    """What a reason stands for, besides its name."""

    def __init__(
        self,
        conditions: Iterable[str],
        meaning: str,
        advice: str,
        *,
        blocks: bool = False,
        retried: bool = False,
        expected: bool = False,
    ) -> None:
        self.conditions = tuple(conditions)
        self.meaning = meaning
        self.advice = advice
        self.blocks = blocks
        self.retried = retried
        self.expected = expected


class Reason(StrEnum):
    """A reason of a condition.

    - `conditions`: the conditions that can have it. `meaning` and `advice` are sentences; `advice` may be empty.
    - `blocks`: without its cause removed, the queue and Vault can't be checked and no worker is started or changed.
    - `retried`: no watch reports that its cause is gone, so the pipeline is reconciled again after a few seconds.
    - `expected`: a stage that a healthy pipeline passes through; its Event is Normal.
    """

    conditions: tuple[str, ...]
    meaning: str
    advice: str
    blocks: bool
    retried: bool
    expected: bool

    def __new__(cls, name: str, facts: _Facts) -> Self:
        """Make a member that is its own name."""
        member = str.__new__(cls, name)
        member._value_ = name
        member.conditions = facts.conditions
        member.meaning, member.advice = facts.meaning, facts.advice
        member.blocks, member.retried, member.expected = facts.blocks, facts.retried, facts.expected
        return member

    RUNNING = (
        "Running",
        _Facts(["Ready"], "The desired workers are ready, or those that there were stay ready while more start.", ""),
    )
    SCALED_TO_ZERO = (
        "ScaledToZero",
        _Facts(
            ["Ready"],
            "Nothing runs, as wanted: nothing waits, or `replicas` is 0.",
            "In the modes Manual and Advisory `kubectl scale` it up.",
        ),
    )
    SUSPENDED = (
        "Suspended",
        _Facts(["Ready"], "`suspend` is true: no workers.", "Set `spec.suspend` to false.", expected=True),
    )
    STARTING = (
        "Starting",
        _Facts(
            ["Ready", "Progressing"],
            "Workers are being started.",
            "Wait; a model takes time to load.",
            retried=True,
            expected=True,
        ),
    )
    SCALING_OUT = (
        "ScalingOut",
        _Facts(
            ["Progressing"], "Additional workers are starting; those that there were are ready.", "Wait.", expected=True
        ),
    )
    ROLLING = (
        "Rolling",
        _Facts(
            ["Ready", "Progressing"],
            "Workers are being replaced by ones of the new spec or credentials.",
            "Wait.",
            expected=True,
        ),
    )
    STOPPING = (
        "Stopping",
        _Facts(["Ready", "Progressing"], "Surplus workers finish their recordings.", "Wait.", expected=True),
    )
    COMPLETE = "Complete", _Facts(["Progressing"], "All workers are of the current spec and ready.", "")
    STUCK = (
        "Stuck",
        _Facts(
            ["Ready", "Progressing"],
            "A rollout has made no progress for `worker.progressDeadlineSeconds`.",
            "Look at the pods: `kubectl describe pod`.",
        ),
    )
    NOT_READY = (
        "NotReady",
        _Facts(["Ready", "Progressing"], "Workers run, but are not ready.", "Look at their log: `kubectl logs`."),
    )
    INVALID_SPEC = (
        "InvalidSpec",
        _Facts(
            ["Ready"],
            "The operator can't read the stored resource (another version of the CRD accepted it), or "
            "`worker.podTemplate` makes an object that the API server can't accept. Workers that run stay.",
            "Correct the field that the message names.",
            blocks=True,
            retried=True,
        ),
    )
    NAME_TAKEN = (
        "NameTaken",
        _Facts(
            ["Ready"],
            "An object of the name that a child would get exists and belongs to someone else; it is left alone.",
            "Delete or rename it, or rename the pipeline.",
            retried=True,
        ),
    )
    REFUSED = (
        "Refused",
        _Facts(
            ["Ready", "Progressing"],
            "The API server refuses a child or a pod: an admission policy, a quota, missing rights. While the "
            "workers that exist are ready, only Progressing has it.",
            "Do what the message says.",
            retried=True,
        ),
    )
    GROUP_TAKEN = (
        "GroupTaken",
        _Facts(
            ["Ready"],
            "An older pipeline consumes with the same group on the same brokers: each would see part of the "
            "events, and both would be scaled on the same lag.",
            "Give `queue.kafka.group` another name, or delete one of the two.",
            retried=True,
        ),
    )
    SECRET_MISSING = (
        "SecretMissing",
        _Facts(["Ready"], "A Secret or ConfigMap that the spec names does not exist.", "Create it.", blocks=True),
    )
    SECRET_KEY_MISSING = (
        "SecretKeyMissing",
        _Facts(["Ready"], "It exists, but lacks a key.", "Add the key.", blocks=True),
    )
    CHECKING = (
        "Checking",
        _Facts(
            ["Ready", "QueueReachable", "VaultReachable", "ScalingLimited"],
            "The first check has not ended yet.",
            "Wait.",
        ),
    )
    REACHABLE = "Reachable", _Facts(["QueueReachable", "VaultReachable"], "The last check succeeded.", "")
    PER_EVENT = "PerEvent", _Facts(["VaultReachable"], "No `spec.vault`: each event brings its own Vault.", "")
    BLOCKED = (
        "Blocked",
        _Facts(
            ["QueueReachable", "VaultReachable"],
            "Not checked: credentials are missing, or the spec is invalid.",
            "See Ready.",
        ),
    )
    BROKER_UNREACHABLE = (
        "BrokerUnreachable",
        _Facts(
            ["Ready", "QueueReachable"],
            "No broker answers.",
            "Check `queue.kafka.brokers`, the network, and that the operator may reach them, too.",
        ),
    )
    AUTHENTICATION_FAILED = (
        "AuthenticationFailed",
        _Facts(
            ["Ready", "QueueReachable"],
            "The broker refuses user, password or mechanism.",
            "Correct the Secret or `queue.kafka.mechanism`.",
        ),
    )
    TLS_FAILED = (
        "TlsFailed",
        _Facts(
            ["Ready", "QueueReachable"],
            "TLS can't be agreed on: an authority that is not trusted, or TLS on one side only.",
            "Check `queue.kafka.security` and `queue.kafka.ca`.",
        ),
    )
    TOPIC_MISSING = (
        "TopicMissing",
        _Facts(["Ready", "QueueReachable"], "The queue's or the target's topic does not exist.", "Create it."),
    )
    NOT_AUTHORIZED = (
        "NotAuthorized",
        _Facts(
            ["Ready", "QueueReachable"],
            "The user may not see the topic.",
            "Grant it Describe and Read on the queue, Write on the target, Read on the group.",
        ),
    )
    VAULT_UNREACHABLE = (
        "VaultUnreachable",
        _Facts(
            ["Ready", "VaultReachable", "ScalingLimited"],
            "Vault does not answer.",
            "Check `vault.apiUrl` and the network.",
        ),
    )
    CREDENTIALS_REFUSED = (
        "CredentialsRefused",
        _Facts(["Ready", "VaultReachable", "ScalingLimited"], "Vault refuses the keys.", "Correct the Secret."),
    )
    NOT_A_VAULT = (
        "NotAVault",
        _Facts(
            ["Ready", "VaultReachable", "ScalingLimited"],
            "Something answers there, but not a Vault.",
            "Check `vault.apiUrl`: newer Vaults are served under /api.",
        ),
    )
    VAULT_FAILING = (
        "VaultFailing",
        _Facts(
            ["Ready", "VaultReachable", "ScalingLimited"],
            "Vault answers with an error of its own.",
            "Look at Vault's log.",
        ),
    )
    NO_GPU_NODE = (
        "NoGpuNode",
        _Facts(
            ["Ready", "Progressing"],
            "No node that the workers may run on offers the GPU resource.",
            "Check `worker.gpu.resource` and `worker.nodeSelector`, and the GPU operator on the nodes.",
        ),
    )
    UNSCHEDULABLE = (
        "Unschedulable",
        _Facts(
            ["Ready", "Progressing"],
            "A worker fits on no node now: the message is the scheduler's.",
            "Scale down, free GPUs, or add nodes.",
        ),
    )
    IMAGE_PULL_FAILED = (
        "ImagePullFailed",
        _Facts(
            ["Ready", "Progressing"],
            "The worker's image can't be pulled.",
            "Check `worker.image` and `worker.imagePullSecrets`.",
        ),
    )
    CONTAINER_CONFIG_ERROR = (
        "ContainerConfigError",
        _Facts(
            ["Ready", "Progressing"],
            "A container can't be created: a Secret, ConfigMap or key is missing.",
            "Do what the message says.",
        ),
    )
    VOLUME_MOUNT_FAILED = (
        "VolumeMountFailed",
        _Facts(
            ["Ready", "Progressing"],
            "A volume of a worker can't be mounted; the message names it.",
            "Create the Secret, ConfigMap, key or volume that the message names.",
            retried=True,
        ),
    )
    CRASH_LOOPING = (
        "CrashLooping",
        _Facts(
            ["Ready", "Progressing"],
            "A worker ends again and again; the message ends with its last words.",
            "Do what they say; see `kubectl logs --previous`.",
        ),
    )
    POD_REJECTED = (
        "PodRejected",
        _Facts(
            ["Ready", "Progressing"],
            "The kubelet rejected a worker that was scheduled to its node; the message is the kubelet's.",
            "Look at the node: `kubectl describe node`; a device plugin that restarted, or resources that others took.",
            retried=True,
        ),
    )
    POD_EVICTED = (
        "PodEvicted",
        _Facts(
            ["Ready", "Progressing"],
            "The kubelet evicted a worker, or ended it with its node; the message is the kubelet's.",
            "Raise the requests in `worker.resources`, or free the resource that the message names.",
            retried=True,
        ),
    )
    NOT_LIMITED = (
        "NotLimited",
        _Facts(["ScalingLimited"], "Nothing keeps the number of workers from what is needed.", ""),
    )
    GPUS_TAKEN = (
        "GpusTaken",
        _Facts(
            ["Ready", "ScalingLimited"],
            "More workers are needed than GPUs can be had; the message says who has them.",
            "Add GPUs, or give this pipeline more `autoscaling.priority` or `weight`.",
        ),
    )
    AT_MAXIMUM = (
        "AtMaximum",
        _Facts(
            ["Ready", "ScalingLimited"],
            "More workers are needed than maxReplicas allows.",
            "Raise `autoscaling.maxReplicas`.",
        ),
    )
    TOO_FEW_PARTITIONS = (
        "TooFewPartitions",
        _Facts(
            ["Ready", "ScalingLimited"],
            "More workers are needed than the topic has partitions: more would sit idle.",
            "Raise the partitions, by `queue.kafka.ensurePartitions` or yourself.",
        ),
    )
    SCALING_PAUSED = (
        "ScalingPaused",
        _Facts(
            ["Ready", "ScalingLimited"],
            "The annotation ml.kerberos.io/pause-scale-in or -out keeps the number.",
            "Remove the annotation.",
        ),
    )
    RATE_LIMITED = (
        "RateLimited",
        _Facts(["Ready", "ScalingLimited"], "`autoscaling.scaleOut` or `scaleIn` allows no more for now.", "Wait."),
    )
    LAG_UNKNOWN = (
        "LagUnknown",
        _Facts(
            ["Ready", "ScalingLimited"],
            "The queue can't be read: the number of workers stays, or is `autoscaling.fallback`'s.",
            "See QueueReachable.",
        ),
    )
    EVENTS_EXPIRE = (
        "EventsExpire",
        _Facts(
            ["EventsExpiring"],
            "The oldest recording has waited for most of the time that the topic keeps events.",
            "Add workers, or raise the topic's `retention.ms`.",
        ),
    )
    WITHIN_RETENTION = (
        "WithinRetention",
        _Facts(["EventsExpiring"], "No event is close to being deleted by the broker.", ""),
    )
    NOT_PAUSED = "NotPaused", _Facts(["Paused"], "The pipeline is reconciled.", "")
    PAUSED_BY_ANNOTATION = (
        "PausedByAnnotation",
        _Facts(
            ["Paused"], "The annotation ml.kerberos.io/paused is true: nothing is changed.", "Remove the annotation."
        ),
    )
    MONITOR_CREATED = "MonitorCreated", _Facts(["Monitored"], "The PodMonitor is there.", "")
    MONITOR_UNAVAILABLE = (
        "MonitorUnavailable",
        _Facts(
            ["Monitored"],
            "The cluster knows no PodMonitor.",
            "Install the Prometheus operator, or set `monitoring.podMonitor` to false.",
        ),
    )


class EventReason(StrEnum):
    """A reason that only Events have; Events also report the reasons of conditions."""

    meaning: str

    def __new__(cls, name: str, meaning: str) -> Self:
        """Make a member that is its own name."""
        member = str.__new__(cls, name)
        member._value_ = name
        member.meaning = meaning
        return member

    CREATED = "Created", "A child was created."
    UPDATED = "Updated", "A child was updated to match the spec, after an edit of the spec or of the child."
    SCALED = "Scaled", "The number of workers was changed, by `spec.replicas`."
    SCALED_OUT = "ScaledOut", "The autoscaler began to add workers; the message says why."
    SCALED_IN = "ScaledIn", "The autoscaler began to take workers away; the message says why."
    REPLICAS_IGNORED = "ReplicasIgnored", "`spec.replicas` was changed, which the mode Auto does not look at."
    PARTITIONS_RAISED = "PartitionsRaised", "`kafka.ensurePartitions` raised the topic's partitions."
    PARTITIONS_NOT_RAISED = "PartitionsNotRaised", "`kafka.ensurePartitions` could not be done; the message says why."
    CREDENTIALS_CHANGED = (
        "CredentialsChanged",
        "A value that the workers use changed in the Secret or ConfigMap that the message names: the workers "
        "are replaced one by one.",
    )
    REMOVED = "Removed", "A child that the spec no longer asks for was deleted."


BY_NAME = {each.value: each for each in Reason}
NAMES = frozenset(BY_NAME)


def reference() -> str:
    """docs/reasons.md: the table as Markdown."""
    lines = [
        "# Reasons",
        "",
        "Written by `make docs` from `operator/vaultml_operator/reasons.py`: every reason that a pipeline's conditions",
        "can have. `kubectl get vmlp` shows the one of the condition Ready; each change of it is an Event, too.",
        "The pipeline recovers automatically once the cause is gone.",
        "",
        "| reason | conditions | meaning | what to do |",
        "| --- | --- | --- | --- |",
        *(f"| `{each}` | {', '.join(each.conditions)} | {each.meaning} | {each.advice} |" for each in Reason),
        "",
        "Events about what the operator did:",
        "",
        "| reason | meaning |",
        "| --- | --- |",
        *(f"| `{each}` | {each.meaning} |" for each in EventReason),
    ]
    return "\n".join(lines) + "\n"
