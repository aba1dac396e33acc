"""Runs the pods of this machine: a place, files, a process, probes, restarts with growing pauses, an end."""

import asyncio
import os
import random
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import structlog

from vaultml_operator.autoscaler.gpus import Pool, admits, demand_of, requests
from vaultml_operator.local import launch, probes
from vaultml_operator.local.address import choose
from vaultml_operator.local.container import Container
from vaultml_operator.local.documents import SLOT
from vaultml_operator.local.launch import CannotStart
from vaultml_operator.local.logs import Logs
from vaultml_operator.local.machine import Devices
from vaultml_operator.local.running import Running
from vaultml_operator.local.store import Store, moment
from vaultml_operator.manifests import Manifest

_log = structlog.get_logger(__name__)

_GRACE_S = 30.0
_TIDY_S = 30.0


@dataclass(frozen=True)
class Backoff:
    """Seconds between restarts: none at first, then `first`, doubled up to `most`; anew after running for `reset`."""

    first: float = 10.0
    most: float = 300.0
    reset: float = 600.0


class Kubelet:
    """Runs pods that it is given until it is told to stop them; what becomes of them stands in the store."""

    def __init__(
        self,
        store: Store,
        devices: Devices,
        pool: Pool,
        logs: Logs,
        *,
        private: Path,
        cache: Path,
        backoff: Backoff | None = None,
    ) -> None:
        self._store = store
        self._devices = devices
        self._pool = pool
        self._logs = logs
        self._private = private
        self._cache = cache
        self._backoff = backoff or Backoff()
        self._pods: dict[str, Running] = {}
        self._freed = asyncio.Event()
        self._rng = random.Random()  # noqa: S311 - spreads addresses, guards nothing
        self._session: aiohttp.ClientSession | None = None

    @property
    def running(self) -> frozenset[str]:
        """Names of the pods that hold something: those that are going included."""
        return frozenset(pod.name for pod in self._pods.values())

    async def run(self) -> None:
        """Keep logs small until cancelled; then nothing is left."""
        try:
            while True:
                await asyncio.sleep(_TIDY_S)
                for pod in self._pods.values():
                    self._logs.keep_small(pod.name)
        finally:
            await self._end()

    async def _end(self) -> None:
        for pod in self._pods.values():
            if pod.container is not None:
                pod.container.kill()
            if pod.task is not None:
                pod.task.cancel()
        await asyncio.gather(*(pod.task for pod in self._pods.values() if pod.task), return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    def admit(self, pod: Manifest) -> None:
        """Run a pod that is in the store."""
        metadata = pod["metadata"]
        port = next((each["containerPort"] for each in launch.worker(pod).get("ports") or ()), 8080)
        address = choose(port, {each.address.host for each in self._pods.values()}, self._rng)
        mine = Running(metadata["namespace"], metadata["name"], metadata["uid"], address)
        self._pods[mine.uid] = mine
        mine.task = asyncio.create_task(self._live(mine), name=f"pod {mine.name}")

    def stop(self, pod: Manifest) -> None:
        """Have a pod end: it may finish what it has in work."""
        mine = self._pods.get(pod["metadata"]["uid"])
        if mine is None or mine.stopping.is_set():
            return
        mine.stopping.set()
        live = self._store.find("Pod", mine.namespace, mine.name)
        if live is not None:
            self._store.put({**live, "metadata": {**live["metadata"], "deletionTimestamp": moment()}})

    def resize(self, pod: Manifest) -> None:
        """A pod that runs asks for another share of the machine."""
        self._devices.resize(pod["metadata"]["uid"], requests(pod["spec"]).get(SLOT, 0))
        self._wake()

    def room_changed(self) -> None:
        """There is another number of slots: those that wait look again."""
        self._wake()

    async def stop_all(self) -> None:
        """Have all pods end, and return when they have."""
        for pod in self._store.listed("Pod"):
            self.stop(pod)
        await asyncio.gather(*(pod.task for pod in self._pods.values() if pod.task), return_exceptions=True)

    # --- a pod's life -----------------------------------------------------------------------------------------------

    async def _live(self, mine: Running) -> None:
        try:
            if await self._place(mine):
                while not mine.stopping.is_set():
                    await self._once(mine)
        except asyncio.CancelledError:
            raise
        except Exception:
            _log.exception("a pod failed in a way that was not foreseen", pod=mine.name)
            # Its successor would fail the same way, at once.
            await _first(mine.stopping, seconds=self._backoff.first)
        finally:
            self._pods.pop(mine.uid, None)
            self._devices.give_back(mine.uid)
            shutil.rmtree(self._private / mine.uid[:8], ignore_errors=True)
            live = self._store.find("Pod", mine.namespace, mine.name)
            if live is not None:
                self._store.remove(live)
            self._logs.forget(self.running)
            self._wake()

    async def _place(self, mine: Running) -> bool:
        """Wait for what the pod asks for; False: it was stopped before."""
        while not mine.stopping.is_set():
            self._freed.clear()
            pod = self._manifest(mine)
            spec, asked = pod["spec"], requests(pod["spec"])
            demand = demand_of(spec, key=(mine.namespace, mine.name), wanted=0, current=0)
            fits = demand is None or any(admits(node, demand) for node in self._pool.nodes.values())
            found = self._devices.take(mine.uid, asked) if fits else None
            if found is not None:
                mine.devices, mine.unplaced = found, ""
                node = next(iter(self._pool.nodes), "")
                self._store.put({**pod, "spec": {**spec, "nodeName": node}})
                self._tell(mine, waiting={"reason": "ContainerCreating"})
                return True
            lacking = ", ".join(f"{number} {name}" for name, number in asked.items())
            mine.unplaced = (
                f"this machine has not {lacking} free"
                if fits
                else "this machine lacks a label that nodeSelector or affinity asks for"
            )
            self._tell(mine)
            await _first(self._freed, mine.stopping)
        return False

    async def _once(self, mine: Running) -> None:
        """Run the container once, and pause if it ended by itself."""
        began = time.monotonic()
        try:
            ended = await self._run(mine)
        except (CannotStart, OSError) as error:
            self._tell(mine, waiting={"reason": "CreateContainerConfigError", "message": str(error)})
            await _first(mine.stopping, seconds=self._backoff.first)
            return
        if mine.stopping.is_set():
            return
        if time.monotonic() - began >= self._backoff.reset:
            mine.pause = 0.0
        pause = mine.pause
        mine.pause = min(self._backoff.most, pause * 2 if pause else self._backoff.first)
        mine.restarts += 1
        mine.last = {"terminated": ended}
        _log.info("worker ended", pod=mine.name, code=ended["exitCode"], restart_in=pause)
        if pause:
            note = f"back-off {pause:g}s restarting failed container"
            self._tell(mine, waiting={"reason": "CrashLoopBackOff", "message": note})
            await _first(mine.stopping, seconds=pause)

    async def _run(self, mine: Running) -> dict[str, Any]:
        """Start the container and see it through to its end, by itself, for a failed probe, or because it must go."""
        pod = self._manifest(mine)
        template = launch.worker(pod)
        place = launch.prepare(
            pod,
            lambda kind, name: self._store.find(kind, mine.namespace, name),
            private=self._private / mine.uid[:8],
            cache=self._cache,
            devices=mine.devices,
        )
        since, began = self._logs.size(mine.name), moment()
        log = self._logs.open(mine.name)
        try:
            mine.container = await Container.start(
                place, {"HTTP_HOST": mine.address.host, "HTTP_PORT": str(mine.address.port)}, log
            )
        finally:
            os.close(log)
        mine.started = mine.ready = False
        self._tell(mine, running={"startedAt": began})
        ending = asyncio.create_task(mine.container.wait())
        looking = asyncio.create_task(self._look_after(mine, template))
        stopping = asyncio.create_task(mine.stopping.wait())
        reason = ""
        try:
            await asyncio.wait({ending, looking, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not ending.done():
                reason = looking.result() if looking.done() else ""
                if reason:
                    _log.warning("worker is ended", pod=mine.name, why=reason)
                grace = float(pod["spec"].get("terminationGracePeriodSeconds", _GRACE_S))
                await mine.container.stop(grace)
            code = await ending
        finally:
            # Not only when it has ended: a cancelled kubelet leaves nothing behind.
            mine.container.kill()
            for task in (looking, stopping):
                task.cancel()
            await asyncio.gather(looking, stopping, return_exceptions=True)
            mine.started = mine.ready = False
        words = self._logs.last_words(mine.name, since)
        return {
            "exitCode": code,
            "reason": "Completed" if code == 0 else "Error",
            "message": f"{reason}: {words}" if reason else words,
            "startedAt": began,
            "finishedAt": moment(),
        }

    async def _look_after(self, mine: Running, template: Mapping[str, Any]) -> str:
        """Follow the probes; returns, with why, when the container must be ended."""
        if self._session is None:
            self._session = aiohttp.ClientSession(trust_env=False)
        session = self._session

        async def look(probe: probes.Probe) -> bool:
            return await probes.passes(probe, session, mine.address)

        if not await probes.until_passed(template.get("startupProbe"), look):
            return "the startup probe failed"
        mine.started = True

        def told(ready: bool) -> None:
            mine.ready = ready
            self._tell(mine)

        readiness = asyncio.create_task(probes.follow(template.get("readinessProbe"), look, told))
        try:
            await probes.until_failed(template.get("livenessProbe"), look)
        finally:
            readiness.cancel()
            await asyncio.gather(readiness, return_exceptions=True)
        return "the liveness probe failed"

    # --- what is told of it -----------------------------------------------------------------------------------------

    def _manifest(self, mine: Running) -> Manifest:
        live = self._store.find("Pod", mine.namespace, mine.name)
        if live is None:
            raise RuntimeError(f"the pod {mine.name} is not in the store")
        return live

    def _tell(self, mine: Running, **state: dict[str, Any]) -> None:
        """Write the pod's status; `state` is the container's: waiting or running, as it was where it is left out."""
        mine.state = dict(state) or mine.state
        pod = self._manifest(mine)
        self._store.put({**pod, "status": mine.status(launch.worker(pod).get("image", ""))})

    def _wake(self) -> None:
        self._freed.set()


async def _first(*events: asyncio.Event, seconds: float | None = None) -> None:
    """Return when one of the events is set, or after so many seconds."""
    tasks = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
