"""Which probes run when: the startup probe alone at first, then readiness and liveness."""

import asyncio
from functools import partial
from typing import Protocol

from testbed.kubernetes.kubelet.client import Object
from testbed.kubernetes.kubelet.probes import probe
from testbed.kubernetes.kubelet.runtime import Running


class Listener(Protocol):
    """Is told what the probes find."""

    def unhealthy(self, message: str) -> None:
        """A probe has failed once."""

    def has_started(self) -> None:
        """The startup probe has succeeded."""

    def is_ready(self, ready: bool) -> None:
        """The readiness probe says so."""

    def has_failed(self, kind: str) -> None:
        """The `startup` or `liveness` probe has failed too often: the container is to be killed."""


class Prober:
    """The probes of one start of a container, from construction on until `stop`."""

    def __init__(self, spec: Object, address: str, running: Running, env: dict[str, str], listener: Listener) -> None:
        """Probe a container as its spec says, at its pod's address."""
        self._spec = spec
        self._address = address
        self._running = running
        self._env = env
        self._listener = listener
        self._ports = {port["name"]: port["containerPort"] for port in spec.get("ports", []) if "name" in port}
        self._tasks: list[asyncio.Task[None]] = []
        self._start(*(("startup",) if "startupProbe" in spec else ("readiness", "liveness")))

    def stop(self) -> None:
        """Probe no more."""
        for task in self._tasks:
            task.cancel()
        self._tasks.clear()

    def _start(self, *kinds: str) -> None:
        for kind in kinds:
            if f"{kind}Probe" in self._spec:
                self._tasks.append(asyncio.create_task(self._keep_probing(kind, self._spec[f"{kind}Probe"])))

    async def _keep_probing(self, kind: str, definition: Object) -> None:
        """Probe until something is decided for good."""
        await asyncio.sleep(definition.get("initialDelaySeconds", 0))
        once = partial(probe, definition, self._ports, self._address, self._running.pid, self._env)
        needed = {True: definition.get("successThreshold", 1), False: definition.get("failureThreshold", 3)}
        last, run = None, 0
        while True:
            output = await once()
            if self._running.ended:
                return
            good = output is None
            run = run + 1 if good is last else 1
            last = good
            if output is not None:
                self._listener.unhealthy(f"{kind.capitalize()} probe failed: {output}")
            if run >= needed[good] and self._decide(kind, good):
                return
            await asyncio.sleep(definition.get("periodSeconds", 10))

    def _decide(self, kind: str, good: bool) -> bool:
        """Tell what a probe has found; returns whether that was all there is to find."""
        if kind == "readiness":
            self._listener.is_ready(good)
        elif not good:
            self._listener.has_failed(kind)
            return True
        elif kind == "startup":
            self._listener.has_started()
            self._start("readiness", "liveness")
            return True
        return False
