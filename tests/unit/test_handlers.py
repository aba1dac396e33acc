"""From an event to the pipelines that it is about."""

import asyncio
from collections.abc import Callable
from typing import Any

from vaultml_operator.credentials import Object
from vaultml_operator.handlers import Events, Source
from vaultml_operator.manifests import PIPELINE
from vaultml_operator.scaling import Key
from vaultml_operator.workqueue import Queue

P = Key("a", "p")


def run(test: Callable[[Events, list[Key]], Any]) -> None:
    async def inner() -> None:
        handled: list[Key] = []

        async def handle(key: Key) -> None:
            handled.append(key)

        queue: Queue[Key] = Queue(handle)
        events = Events(queue, lambda _namespace, changed: [P] if changed == Object("Secret", "s") else [])
        running = asyncio.create_task(queue.run())
        await test(events, handled)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(inner())


def source(events: Events, plural: str) -> Source:
    return next(each for each in events.sources() if each.plural == plural)


def body(generation: int = 1, **metadata: Any) -> dict[str, Any]:
    return {"metadata": {"namespace": "a", "name": "p", "uid": "u", "generation": generation, **metadata}}


async def settle(handled: list[Key], count: int) -> None:
    async with asyncio.timeout(5):
        while len(handled) < count:
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.35)  # longer than the echo of one change
    assert len(handled) == count


def test_each_kind_is_listed_where_the_api_server_serves_it() -> None:
    async def test(events: Events, _: list[Key]) -> None:
        paths = {each.plural: each.path("a") for each in events.sources()}
        assert paths["vaultmlpipelines"] == "/apis/ml.kerberos.io/v1alpha1/namespaces/a/vaultmlpipelines"
        assert paths["secrets"] == "/api/v1/namespaces/a/secrets"
        assert source(events, "pods").query == {"labelSelector": "app.kubernetes.io/managed-by=vaultml-operator"}
        assert "type!=helm.sh/release.v1" in source(events, "secrets").query["fieldSelector"]
        assert source(events, "configmaps").query == {}

    run(test)


def test_a_status_that_was_written_is_no_news_and_a_new_generation_is() -> None:
    async def test(events: Events, handled: list[Key]) -> None:
        pipelines = source(events, "vaultmlpipelines")
        pipelines.handle(None, body())
        await settle(handled, 1)
        pipelines.handle("MODIFIED", body(resourceVersion="9"))
        await settle(handled, 1)
        pipelines.handle("MODIFIED", body(2))
        await settle(handled, 2)
        pipelines.handle("DELETED", body(2))
        await settle(handled, 3)

    run(test)


def test_children_and_secrets_lead_to_their_pipeline() -> None:
    async def test(events: Events, handled: list[Key]) -> None:
        source(events, "pods").handle("MODIFIED", body(name="p-1", labels={PIPELINE: "p"}))
        await settle(handled, 1)
        source(events, "secrets").handle("MODIFIED", body(name="s"))
        await settle(handled, 2)
        source(events, "configmaps").handle("MODIFIED", body(name="s"))
        await settle(handled, 2)

    run(test)


def test_a_list_after_a_gap_reconciles_what_may_have_been_missed() -> None:
    async def test(events: Events, handled: list[Key]) -> None:
        pipelines = source(events, "vaultmlpipelines")
        events.listed(pipelines, "a", [body()])
        await settle(handled, 2)  # the event, and the list
        events.listed(pipelines, "a", [])  # deleted meanwhile
        await settle(handled, 3)
        events.listed(pipelines, "b", [])
        await settle(handled, 3)

    run(test)


def test_a_namespace_that_is_gone_is_forgotten_and_news_when_it_comes_back() -> None:
    async def test(events: Events, handled: list[Key]) -> None:
        pipelines = source(events, "vaultmlpipelines")
        pipelines.handle(None, body())
        await settle(handled, 1)
        assert events.forget("b") == []
        assert events.forget("a") == [P]
        pipelines.handle(None, body())
        await settle(handled, 2)

    run(test)
