"""The objects in memory behave as an API server's, as far as a reconcile can tell."""

import asyncio
from typing import Any

import pytest

from vaultml_operator.cluster import SCALER, ApiError
from vaultml_operator.local.documents import Documents
from vaultml_operator.local.store import Store
from vaultml_operator.manifests import PIPELINE

PIPE: dict[str, Any] = {"kind": "VaultMLPipeline", "metadata": {"name": "p", "namespace": "n"}, "spec": {"a": 1}}


def deployment(**spec: Any) -> dict[str, Any]:
    return {"kind": "Deployment", "metadata": {"name": "p", "namespace": "n", "labels": {PIPELINE: "p"}}, "spec": spec}


def test_the_number_survives_an_apply_that_does_not_name_it() -> None:
    async def run() -> None:
        store = Store()
        first = await store.apply(deployment(replicas=3, x=1), creating=True)
        await store.scale(first, 2)
        live = await store.get("Deployment", "n", "p")
        assert live is not None
        assert live["metadata"]["managedFields"][0]["manager"] == SCALER
        again = await store.apply(deployment(x=2))
        assert again["spec"] == {"x": 2, "replicas": 2}
        assert again["metadata"]["uid"] == first["metadata"]["uid"]
        assert again["metadata"]["generation"] == 3

    asyncio.run(run())


def test_a_number_for_what_has_changed_since_is_refused() -> None:
    async def run() -> None:
        store = Store()
        first = await store.apply(deployment(replicas=3), creating=True)
        await store.scale(first, 2)
        with pytest.raises(ApiError) as caught:
            await store.scale(first, 1)
        assert caught.value.status == 409
        with pytest.raises(ApiError):
            await store.apply(deployment(replicas=3), creating=True)

    asyncio.run(run())


def test_kinds_that_this_machine_has_not_are_unknown_as_in_a_cluster_without_them() -> None:
    async def run() -> None:
        monitor = {"kind": "PodMonitor", "metadata": {"name": "p", "namespace": "n"}}
        with pytest.raises(ApiError) as caught:
            await Store().apply(monitor, creating=True)
        assert caught.value.status == 404
        assert await Store().children("PodMonitor", "n", "p") == []

    asyncio.run(run())


def test_what_is_given_out_is_a_copy() -> None:
    async def run() -> None:
        store = Store()
        store.put(PIPE)
        found = await store.get("VaultMLPipeline", "n", "p")
        assert found is not None
        found["spec"]["a"] = 2
        again = await store.get("VaultMLPipeline", "n", "p")
        assert again is not None
        assert again["spec"]["a"] == 1

    asyncio.run(run())


def test_a_status_is_no_new_generation_and_the_same_again_is_no_change() -> None:
    async def run() -> None:
        store, heard = Store(), []
        store.listen(lambda kind, _manifest, gone: heard.append((kind, gone)))
        body = store.put(PIPE)
        await store.write_status(body, {"replicas": 1})
        await store.write_status(body, {"replicas": 1})
        assert heard == [("VaultMLPipeline", False)] * 2
        live = store.find("VaultMLPipeline", "n", "p")
        assert live is not None
        assert (live["metadata"]["generation"], live["status"]) == (1, {"replicas": 1})

    asyncio.run(run())


def test_what_is_owned_goes_with_its_owner_but_a_pod_takes_its_time() -> None:
    store = Store()
    owner = store.put(PIPE)
    owners = {"ownerReferences": [{"uid": owner["metadata"]["uid"]}]}
    for kind in ("Deployment", "Pod"):
        store.put({"kind": kind, "metadata": {"name": "p", "namespace": "n", **owners}, "spec": {}})
    store.remove(owner)
    assert [kind for kind in ("Deployment", "Pod") if store.listed(kind)] == ["Pod"]


def test_an_edited_file_changes_what_differs_and_removes_what_is_gone() -> None:
    store = Store()
    secret = {"kind": "Secret", "metadata": {"name": "s", "namespace": "n"}, "data": {"k": "dg=="}}
    first = Documents({("VaultMLPipeline", "n", "p"): PIPE, ("Secret", "n", "s"): secret})
    store.load(first, Documents({}))
    before = {name: dict(store.find(*name) or {})["metadata"] for name in first.objects}
    edited = Documents({("VaultMLPipeline", "n", "p"): {**PIPE, "spec": {"a": 2}}, ("Secret", "n", "s"): secret})
    store.load(edited, first)
    after = {name: dict(store.find(*name) or {})["metadata"] for name in first.objects}
    assert after["Secret", "n", "s"] == before["Secret", "n", "s"]
    assert after["VaultMLPipeline", "n", "p"]["generation"] == 2
    assert after["VaultMLPipeline", "n", "p"]["uid"] == before["VaultMLPipeline", "n", "p"]["uid"]
    store.load(Documents({("Secret", "n", "s"): secret}), edited)
    assert store.listed("VaultMLPipeline") == []


def test_the_same_event_again_is_counted() -> None:
    store = Store()
    for _ in range(3):
        store.tell("Normal", "n/p", "Scaled", "to 2")
    store.tell("Normal", "n/p", "Scaled", "to 3")
    assert [(event.note, event.count) for event in store.events] == [("to 2", 3), ("to 3", 1)]


def test_a_pod_is_annotated_only_while_it_is_the_same() -> None:
    async def run() -> None:
        store = Store()
        pod = store.put({"kind": "Pod", "metadata": {"name": "w", "namespace": "n"}, "spec": {}})
        await store.annotate_pod(pod, {"a": "1"})
        store.remove(store.listed("Pod")[0])
        await store.annotate_pod(pod, {"a": "2"})
        assert store.listed("Pod") == []

    asyncio.run(run())
