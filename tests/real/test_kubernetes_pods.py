"""The process node runs pods as a kubelet does, and says what is wrong with them in a kubelet's words."""

import json
import re
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from testbed.kubernetes import Cluster
from testbed.process import wait_for
from tests.real.namespace import Namespace, Object, condition, main, pod, waiting

SECRET = {
    "apiVersion": "v1",
    "kind": "Secret",
    "metadata": {"name": "keys"},
    "stringData": {"one": "1", "pass": "s3cr!@$=t"},
}
SETTINGS = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"}, "data": {"A": "a", "B": "$(A)"}}
DEAF = """
import signal, time
signal.signal(signal.SIGTERM, lambda *_: print("told", flush=True))
print("up", flush=True)
while True:
    time.sleep(1)
"""
SERVER = """
import http.server, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if os.path.exists("/tmp/good") else 503)
        self.end_headers()
http.server.HTTPServer((os.environ["POD_IP"], 8080), Handler).serve_forever()
"""


def from_field(name: str, path: str) -> dict[str, Any]:
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}


def from_secret(name: str, key: str, **options: Any) -> dict[str, Any]:
    return {"name": name, "valueFrom": {"secretKeyRef": {"name": "keys", "key": key, **options}}}


def test_a_pod_that_ignores_sigterm_is_killed_after_its_grace_period(namespace: Namespace) -> None:
    namespace.apply(pod("deaf", "python", "-c", DEAF, image="python:3", terminationGracePeriodSeconds=3))
    namespace.wait_log("deaf", "up")
    begun = time.monotonic()
    namespace.delete("deaf")
    namespace.wait_log("deaf", "told")
    assert time.monotonic() - begun < 1.5
    namespace.wait_gone("deaf")
    assert 3 <= time.monotonic() - begun < 5


def test_a_pod_that_is_deleted_by_force_has_one_second(cluster: Cluster, namespace: Namespace) -> None:
    namespace.apply(*(pod(name, "python", "-c", DEAF, image="python") for name in ("at-once", "after-all")))
    for name in ("at-once", "after-all"):
        namespace.wait_log(name, "up")
    namespace.delete("after-all")
    namespace.wait_log("after-all", "told")
    begun = time.monotonic()
    for name in ("at-once", "after-all"):
        namespace.delete(name, gracePeriodSeconds=0)
        namespace.wait_gone(name)
    wait_for(lambda: not list(cluster.folder.glob(f"nodes/*/pods/{namespace.name}_*")), 10, "the processes to end")
    assert 0.9 < time.monotonic() - begun < 4
    namespace.wait_log("at-once", "told")


def test_a_pod_that_heeds_sigterm_is_gone_at_once(namespace: Namespace) -> None:
    namespace.apply(pod("polite"))
    namespace.wait_ready("polite")
    begun = time.monotonic()
    namespace.delete("polite")
    namespace.wait_gone("polite")
    assert time.monotonic() - begun < 5


def test_the_main_process_is_process_1_and_leaves_nothing_behind(namespace: Namespace) -> None:
    namespace.apply(
        pod("parent", "sh", "-c", "sleep 987 & echo $$$$ on $(hostname); wait", terminationGracePeriodSeconds=1)
    )
    assert namespace.wait_log("parent", "on").split() == ["1", "on", "parent"]
    namespace.delete("parent")
    namespace.wait_gone("parent")
    assert not [one for one in psutil.process_iter(["cmdline"]) if one.info["cmdline"] == ["sleep", "987"]]


def test_readiness_is_what_the_probe_says(namespace: Namespace) -> None:
    probe = {"httpGet": {"path": "/", "port": "http"}, "periodSeconds": 1, "failureThreshold": 1}
    exec_probe = {"exec": {"command": ["cat", "/tmp/good"]}, "periodSeconds": 1, "failureThreshold": 1}
    container = {"ports": [{"name": "http", "containerPort": 8080}], "env": [from_field("POD_IP", "status.podIP")]}
    toggler = 'trap "exit 0" TERM; sleep 2; touch /tmp/good; sleep 2; rm /tmp/good; while :; do sleep 0.1; done'
    namespace.apply(
        pod("http", "python", "-c", SERVER, image="python", container=container | {"readinessProbe": probe}),
        pod("command", "sh", "-c", toggler, container={"readinessProbe": exec_probe}),
    )
    unready = namespace.wait(
        "http",
        lambda item: (
            condition(item, "Ready").get("reason") == "ContainersNotReady" and item["status"]["phase"] == "Running"
        ),
        "to be unready",
    )
    assert condition(unready, "Ready")["message"] == "containers with unready status: [main]"
    wait_for(
        lambda: (
            "Readiness probe failed: HTTP probe failed with statuscode: 503"
            in namespace.events("http").get("Unhealthy", [])
        ),
        10,
        "the event",
    )
    namespace.wait_ready("command")
    namespace.wait("command", lambda item: condition(item, "Ready")["status"] == "False", "to be unready again")


def test_a_container_that_fails_its_liveness_probe_is_restarted(namespace: Namespace) -> None:
    probe = {"exec": {"command": ["test", "-e", "/tmp/alive"]}, "periodSeconds": 1, "failureThreshold": 2}
    script = "touch /tmp/alive; sleep 2; rm /tmp/alive; while :; do sleep 0.1; done"
    namespace.apply(
        pod("sick", "sh", "-c", script, container={"livenessProbe": probe}, terminationGracePeriodSeconds=1)
    )
    restarted = namespace.wait(
        "sick", lambda item: main(item)["restartCount"] == 1 and "running" in main(item)["state"], "to be restarted"
    )
    assert main(restarted)["lastState"]["terminated"]["exitCode"] == 137
    assert "Container main failed liveness probe, will be restarted" in namespace.events("sick")["Killing"]


def test_a_startup_probe_holds_the_others_back(namespace: Namespace) -> None:
    never = {"exec": {"command": ["false"]}, "periodSeconds": 1, "failureThreshold": 1}
    slow = {"exec": {"command": ["test", "-e", "/tmp/up"]}, "periodSeconds": 1, "failureThreshold": 30}
    script = 'trap "exit 0" TERM; sleep 3; touch /tmp/up; while :; do sleep 0.1; done'
    namespace.apply(pod("slow", "sh", "-c", script, container={"startupProbe": slow, "livenessProbe": never}))
    namespace.wait("slow", lambda item: "running" in main(item)["state"], "to run")
    assert not main(namespace.get("pods/slow"))["started"]
    restarted = namespace.wait("slow", lambda item: main(item)["restartCount"], "to be restarted once it has started")
    end = main(restarted)["lastState"]["terminated"]
    assert int(end["finishedAt"][-3:-1]) != int(end["startedAt"][-3:-1])


def test_a_process_sees_the_pods_environment_and_its_address_alone(
    cluster: Cluster, namespace: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OF_THE_TEST", "1")
    env = [
        {"name": "LITERAL", "value": "x"},
        {"name": "EXPANDED", "value": "$(LITERAL)-$(pass)-$(UNKNOWN)-$$(LITERAL)"},
        from_secret("ONE", "one"),
        from_secret("ABSENT", "nope", optional=True),
        {"name": "A2", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "A"}}},
        from_field("NAME", "metadata.name"),
        from_field("NAMESPACE", "metadata.namespace"),
        from_field("LABEL", "metadata.labels['app']"),
        from_field("NODE", "spec.nodeName"),
        from_field("ACCOUNT", "spec.serviceAccountName"),
        from_field("IP", "status.podIP"),
        {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
    ]
    container = {
        "env": env,
        "envFrom": [{"secretRef": {"name": "keys"}}, {"configMapRef": {"name": "settings"}, "prefix": "S_"}],
        "resources": {"limits": {"cpu": "1500m"}},
    }
    namespace.apply(SECRET, SETTINGS, pod("env", "env", "-0", container=container, restartPolicy="Never"))
    item = namespace.wait("env", lambda item: item["status"]["phase"] == "Succeeded", "to succeed")
    seen = dict(line.split("=", 1) for line in namespace.log("env").split("\0") if line)
    host, port = cluster.api_url.removeprefix("https://").split(":")
    assert seen.pop("PATH")
    assert seen == {
        "LITERAL": "x",
        "EXPANDED": "x-s3cr!@$=t-$(UNKNOWN)-$(LITERAL)",
        "ONE": "1",
        "A2": "a",
        "NAME": "env",
        "NAMESPACE": namespace.name,
        "LABEL": "env",
        "NODE": item["spec"]["nodeName"],
        "ACCOUNT": "default",
        "IP": item["status"]["podIP"],
        "CPU": "2",
        "one": "1",
        "pass": "s3cr!@$=t",
        "S_A": "a",
        "S_B": "$(A)",
        "HOME": "/root",
        "HOSTNAME": "env",
        "HTTP_HOST": item["status"]["podIP"],  # the test bed's own: all pods share one network
        "KUBERNETES_SERVICE_HOST": host,
        "KUBERNETES_SERVICE_PORT": port,
        "KUBERNETES_SERVICE_PORT_HTTPS": port,
        "KUBERNETES_PORT": f"tcp://{host}:{port}",
    }
    assert item["status"]["podIP"].startswith("127.")


def test_a_missing_secret_or_key_is_named_and_waited_for(namespace: Namespace) -> None:
    namespace.apply(pod("waits", container={"env": [from_secret("ONE", "two")]}))

    def says(message: str) -> None:
        item = namespace.wait(
            "waits", lambda item: main(item)["state"].get("waiting", {}).get("message") == message, f"to say {message}"
        )
        assert waiting(item) == "CreateContainerConfigError"

    says('secret "keys" not found')
    namespace.apply(SECRET)
    says(f"couldn't find key two in Secret {namespace.name}/keys")
    namespace.apply(SECRET | {"stringData": {"two": "2"}})
    namespace.wait_ready("waits")
    assert main(namespace.get("pods/waits"))["restartCount"] == 0


def test_an_image_that_is_not_there_is_backed_off_from(namespace: Namespace) -> None:
    namespace.apply(pod("nowhere", image="example.com/nowhere:1"))
    item = namespace.wait("nowhere", lambda item: waiting(item) == "ImagePullBackOff", "to be in ImagePullBackOff")
    assert main(item)["state"]["waiting"]["message"].startswith('Back-off pulling image "example.com/nowhere:1"')
    assert item["status"]["phase"] == "Pending"
    begun = time.monotonic()
    namespace.delete("nowhere")
    namespace.wait_gone("nowhere")
    assert time.monotonic() - begun < 5


def test_a_container_that_crashes_is_restarted_and_backed_off_from(namespace: Namespace) -> None:
    container = {"terminationMessagePolicy": "FallbackToLogsOnError"}
    namespace.apply(
        pod("crashes", "sh", "-c", "echo oops; exit 3", container=container),
        pod("no-command", "no-such-command"),
    )
    item = namespace.wait(
        "crashes", lambda item: waiting(item) == "CrashLoopBackOff" and main(item)["restartCount"] >= 2, "to back off"
    )
    uid = item["metadata"]["uid"]
    message = main(item)["state"]["waiting"]["message"]
    assert re.fullmatch(
        rf"back-off \ds restarting failed container=main pod=crashes_{namespace.name}\({uid}\)", message
    )
    end = main(item)["lastState"]["terminated"]
    assert (end["exitCode"], end["reason"], end["message"]) == (3, "Error", "oops\n")
    assert item["status"]["phase"] == "Running"
    assert namespace.log("crashes").count("oops") >= 3
    item = namespace.wait("no-command", lambda item: waiting(item) == "CrashLoopBackOff", "to back off")
    end = main(item)["lastState"]["terminated"]
    assert (end["exitCode"], end["reason"]) == (128, "StartError")
    assert end["message"].endswith('exec: "no-such-command": executable file not found in $PATH')


def test_pods_that_may_end_do_so(namespace: Namespace) -> None:
    inits = [
        {
            "name": name,
            "image": "busybox",
            "command": ["sh", "-c", f"echo {name} >> /scratch/steps"],
            "volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}],
        }
        for name in ("first", "second")
    ]
    shared: Object = {"volumes": [{"name": "scratch", "emptyDir": {}}], "restartPolicy": "Never"}
    read = {"volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}]}
    namespace.apply(
        pod("done", "cat", "/scratch/steps", container=read, initContainers=inits, **shared),
        pod("failed", "sh", "-c", "exit 4", restartPolicy="Never"),
        pod(
            "not-begun",
            initContainers=[{"name": "init", "image": "busybox", "command": ["false"]}],
            restartPolicy="Never",
        ),
    )
    done = namespace.wait("done", lambda item: item["status"]["phase"] == "Succeeded", "to succeed")
    assert namespace.cluster.log(namespace.name, "done", "main") == "first\nsecond\n"
    assert condition(done, "Ready")["reason"] == "PodCompleted"
    failed = namespace.wait("failed", lambda item: item["status"]["phase"] == "Failed", "to fail")
    assert main(failed)["state"]["terminated"]["exitCode"] == 4
    namespace.wait("not-begun", lambda item: item["status"]["phase"] == "Failed", "to fail")
    assert namespace.cluster.kubectl("logs", "-n", namespace.name, "done", "-c", "main") == "first\nsecond\n"


def test_a_sidecar_runs_beside_the_rest_and_ends_after_it(namespace: Namespace) -> None:
    script = 'trap "echo side ends; exit 0" TERM; echo side up; while :; do sleep 0.1; done'
    sidecar = {"name": "side", "image": "busybox", "command": ["sh", "-c", script], "restartPolicy": "Always"}
    namespace.apply(pod("main", "sh", "-c", "sleep 0.5; echo main", initContainers=[sidecar], restartPolicy="Never"))
    namespace.wait("main", lambda item: item["status"]["phase"] == "Succeeded", "to succeed")
    namespace.wait_log("main", "side ends")
    assert namespace.cluster.log(namespace.name, "main", "side") == "side up\nside ends\n"


def test_a_hook_runs_before_sigterm_and_the_machines_folders_are_its_own(namespace: Namespace, tmp_path: Path) -> None:
    script = 'trap "echo told >> /host/steps; exit 0" TERM; while :; do sleep 0.1; done'
    hook = {"preStop": {"exec": {"command": ["sh", "-c", "echo hook >> /host/steps"]}}}
    container = {"lifecycle": hook, "volumeMounts": [{"name": "host", "mountPath": "/host"}]}
    volumes = [{"name": "host", "hostPath": {"path": str(tmp_path), "type": "Directory"}}]
    namespace.apply(pod("hooked", "sh", "-c", script, container=container, volumes=volumes))
    namespace.wait_ready("hooked")
    namespace.delete("hooked")
    namespace.wait_gone("hooked")
    assert (tmp_path / "steps").read_text() == "hook\ntold\n"


def test_files_are_where_the_pod_says_and_the_token_is_good(cluster: Cluster, namespace: Namespace) -> None:
    script = """
import json, os, ssl, stat, urllib.request
base = "/var/run/secrets/kubernetes.io/serviceaccount"
read = lambda path: open(path).read()
url = f"https://{os.environ['KUBERNETES_SERVICE_HOST']}:{os.environ['KUBERNETES_SERVICE_PORT']}"
asked = urllib.request.Request(f"{url}/apis/authentication.k8s.io/v1/selfsubjectreviews", method="POST",
    data=json.dumps({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}).encode(),
    headers={"Authorization": "Bearer " + read(base + "/token"), "Content-Type": "application/json"})
answer = json.load(urllib.request.urlopen(asked, context=ssl.create_default_context(cafile=base + "/ca.crt")))
print(json.dumps({
    "who": answer["status"]["userInfo"]["username"],
    "namespace": read(base + "/namespace"),
    "secret": read("/opt/deep/in/here/one"),
    "mode": oct(stat.S_IMODE(os.stat("/opt/deep/in/here/one").st_mode)),
    "item": read("/etc/settings/renamed"),
    "label": read("/etc/podinfo/labels"),
    "file": read("/etc/alone.txt"),
}), flush=True)
"""
    volumes = [
        {"name": "keys", "secret": {"secretName": "keys", "defaultMode": 0o440}},
        {"name": "settings", "configMap": {"name": "settings", "items": [{"key": "A", "path": "renamed"}]}},
        {"name": "info", "downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
    ]
    mounts = [
        {"name": "keys", "mountPath": "/opt/deep/in/here"},
        {"name": "settings", "mountPath": "/etc/settings"},
        {"name": "info", "mountPath": "/etc/podinfo"},
        {"name": "keys", "mountPath": "/etc/alone.txt", "subPath": "one"},
    ]
    namespace.apply(
        SECRET,
        SETTINGS,
        pod(
            "files",
            "python",
            "-c",
            script,
            image="python",
            volumes=volumes,
            container={"volumeMounts": mounts},
            restartPolicy="Never",
        ),
    )
    namespace.wait("files", lambda item: item["status"]["phase"] == "Succeeded", "to succeed")
    assert json.loads(namespace.log("files")) == {
        "who": f"system:serviceaccount:{namespace.name}:default",
        "namespace": namespace.name,
        "secret": "1",
        "mode": "0o440",
        "item": "a",
        "label": 'app="files"',
        "file": "1",
    }


def test_a_volume_that_is_not_there_is_named_and_waited_for(namespace: Namespace) -> None:
    volumes = [{"name": "keys", "secret": {"secretName": "keys"}}]
    namespace.apply(pod("waits", volumes=volumes, container={"volumeMounts": [{"name": "keys", "mountPath": "/keys"}]}))
    wait_for(
        lambda: (
            'MountVolume.SetUp failed for volume "keys" : secret "keys" not found'
            in namespace.events("waits").get("FailedMount", [])
        ),
        10,
        "the event",
    )
    assert waiting(namespace.get("pods/waits")) == "ContainerCreating"
    namespace.apply(SECRET)
    namespace.wait_ready("waits")


def test_what_a_container_writes_stays_its_own(namespace: Namespace) -> None:
    script = "echo x > /root-file && echo y > /tmp/tmp-file && cat /root-file /tmp/tmp-file"
    locked = {
        "securityContext": {"readOnlyRootFilesystem": True},
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    }
    namespace.apply(
        pod("writes", "sh", "-c", script, restartPolicy="Never"),
        pod("looks", "sh", "-c", "ls /root-file /tmp/tmp-file; echo z > /tmp/z && cat /tmp/z; echo q > /q",
            container=locked, volumes=[{"name": "tmp", "emptyDir": {}}], restartPolicy="Never"),
    )  # fmt: skip
    namespace.wait("writes", lambda item: item["status"]["phase"] == "Succeeded", "to succeed")
    assert namespace.log("writes") == "x\ny\n"
    namespace.wait("looks", lambda item: item["status"]["phase"] == "Failed", "to fail")
    seen = namespace.log("looks")
    assert seen.count("No such file") == 2
    assert "z\n" in seen
    assert "/q: Read-only file system" in seen


def test_a_claims_content_survives_its_pod(namespace: Namespace) -> None:
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "store"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
    }
    used: Object = {
        "volumes": [{"name": "store", "persistentVolumeClaim": {"claimName": "store"}}],
        "restartPolicy": "Never",
    }
    mount = {"volumeMounts": [{"name": "store", "mountPath": "/var/lib/store"}]}
    namespace.apply(claim, pod("writes", "sh", "-c", "echo kept > /var/lib/store/file", container=mount, **used))
    namespace.wait("writes", lambda item: item["status"]["phase"] == "Succeeded", "to succeed")
    namespace.delete("writes")
    namespace.wait_gone("writes")
    namespace.apply(pod("reads", "cat", "/var/lib/store/file", container=mount, **used))
    namespace.wait("reads", lambda item: item["status"]["phase"] == "Succeeded", "to succeed")
    assert namespace.log("reads") == "kept\n"
