"""The test bed's control plane is a real one, and its faults are real faults."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import requests

from testbed.kubernetes import ApiError, Cluster, KubectlError, available, binaries
from testbed.process import wait_for
from tests.real.namespace import Namespace, main, pod

ROOT = Path(__file__).parents[2]


def test_pods_and_nodes_survive_an_api_server_that_is_away(cluster: Cluster, namespace: Namespace) -> None:
    namespace.apply(pod("stays"), pod("crashes", "sh", "-c", "sleep 1; exit 5", restartPolicy="Never"))
    before = namespace.wait_ready("stays")
    cluster.stop_api_server()
    try:
        with pytest.raises(requests.ConnectionError):
            cluster.get("/readyz")
        wait_for(lambda: not node_pids(cluster, namespace, "crashes"), 10, "the pod to end while nobody can be told")
    finally:
        cluster.start_api_server()
    namespace.wait("crashes", lambda item: item["status"]["phase"] == "Failed", "to be reported")
    after = namespace.wait_ready("stays")
    assert main(after)["restartCount"] == 0
    assert after["status"]["podIP"] == before["status"]["podIP"]
    namespace.apply(pod("new"))
    namespace.wait_ready("new")


def node_pids(cluster: Cluster, namespace: Namespace, name: str) -> list[Path]:
    return list(cluster.folder.glob(f"nodes/*/pods/{namespace.name}_{name}_*/containers/*/pid"))


def test_a_compaction_makes_old_watches_expire(cluster: Cluster, namespace: Namespace) -> None:
    old = namespace.get("pods")["metadata"]["resourceVersion"]
    namespace.apply(pod("before"))
    namespace.wait_ready("before")
    cluster.compact()
    event = namespace.get(f"pods?watch=1&timeoutSeconds=5&resourceVersion={old}")
    assert (event["type"], event["object"]["code"], event["object"]["reason"]) == ("ERROR", 410, "Expired")
    namespace.apply(pod("after"))
    namespace.wait_ready("after")
    # A restart may take longer than the time in which a node has to be heard of.
    namespace.wait_ready("before")


def test_a_service_account_may_do_what_its_role_says(cluster: Cluster, namespace: Namespace) -> None:
    cluster.kubectl("create", "-n", namespace.name, "serviceaccount", "reader")
    kubeconfig = str(cluster.kubeconfig_for(namespace.name, "reader"))
    with pytest.raises(KubectlError, match='cannot list resource "pods"'):
        cluster.kubectl("--kubeconfig", kubeconfig, "get", "pods")
    cluster.kubectl(
        "create",
        "-n",
        namespace.name,
        "rolebinding",
        "r",
        "--clusterrole=view",
        f"--serviceaccount={namespace.name}:reader",
    )
    cluster.kubectl("--kubeconfig", kubeconfig, "get", "pods")
    with pytest.raises(KubectlError, match='cannot list resource "pods"'):
        cluster.kubectl("--kubeconfig", kubeconfig, "get", "pods", "-A")


def test_a_refusal_carries_the_servers_words(cluster: Cluster) -> None:
    with pytest.raises(ApiError, match='namespaces "nowhere" not found') as refused:
        cluster.get("/api/v1/namespaces/nowhere")
    assert (refused.value.status, refused.value.reason) == (404, "NotFound")


def test_a_kubeconfig_can_lead_elsewhere(cluster: Cluster) -> None:
    path = cluster.write_kubeconfig("elsewhere", cluster.credentials.admin, server="https://127.0.0.1:1")
    with pytest.raises(KubectlError, match=r"127\.0\.0\.1:1\b"):
        cluster.kubectl("--kubeconfig", str(path), "get", "pods")


def test_a_killed_program_leaves_neither_pods_nor_servers(cluster: Cluster, tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(
        """
import time
from testbed.kubernetes import Cluster
from testbed.process import wait_for
from tests.real.namespace import Namespace, pod
with Cluster() as cluster:
    node = cluster.node("a")
    Namespace(cluster, "default").apply(pod("p", "sh", "-c", "sleep 654 & sleep 654"))
    wait_for(lambda: node.pids("default", "p"), 30, "the pod")
    print(cluster.folder, flush=True)
    time.sleep(600)
"""
    )
    program = subprocess.Popen(
        [sys.executable, script],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert program.stdout is not None
    folder = Path(program.stdout.readline().strip())
    program.stdout.close()
    try:
        assert len(using(folder)) >= 6, "etcd, three servers, a node and its guard"
        assert sleeping()
    finally:
        program.send_signal(signal.SIGKILL)
        program.wait()
    wait_for(lambda: not sleeping() and not using(folder) and not folder.exists(), 10, "all of it to be gone")


def sleeping() -> list[psutil.Process]:
    return [one for one in psutil.process_iter(["cmdline"]) if one.info["cmdline"] == ["sleep", "654"]]


def using(folder: Path) -> list[psutil.Process]:
    return [one for one in psutil.process_iter(["cmdline"]) if str(folder) in " ".join(one.info["cmdline"] or [])]


def test_starting_takes_seconds() -> None:
    begun = time.monotonic()
    with Cluster() as another:
        assert another.kubectl("get", "--raw", "/readyz") == "ok"
        assert time.monotonic() - begun < 15


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path))
    assert "etcd, kubectl" in str(available())
    for name in ("etcd", "kubectl", "kube-apiserver", "kube-controller-manager", "kube-scheduler"):
        (tmp_path / name).touch()
    assert available() is None
    assert binaries() == tmp_path
    monkeypatch.delenv("KUBEBUILDER_ASSETS")
    monkeypatch.setenv("VAULTML_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    assert "needs go" in str(available())
