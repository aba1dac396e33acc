"""One container of a pod over all of its starts: image, environment, start, probes, end, back-off, start again."""

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from testbed.kubernetes.images import Image, find
from testbed.kubernetes.kubelet import runtime
from testbed.kubernetes.kubelet.client import Object
from testbed.kubernetes.kubelet.environment import environment
from testbed.kubernetes.kubelet.machine import Machine
from testbed.kubernetes.kubelet.prober import Prober
from testbed.kubernetes.kubelet.probes import run_inside
from testbed.kubernetes.kubelet.references import MissingReferenceError, References
from testbed.kubernetes.kubelet.runtime import Running
from testbed.kubernetes.kubelet.status import now, waiting
from testbed.kubernetes.kubelet.volumes import Volumes
from vaultml_common.text import expand

_RETRY_S = 0.5
_MESSAGE_LIMIT = 4096
_TAIL_LIMIT = 2048


class Container:
    """Runs in `run` until it is over for good or stopped; `changed` is called whenever its status changes."""

    def __init__(
        self, machine: Machine, pod: Callable[[], Object], spec: Object, volumes: Volumes, folder: Path,
        changed: Callable[[], None], *, init: bool, before: Object | None,
    ) -> None:  # fmt: skip
        """`pod` gives the pod as it is now, `folder` is the container's own; `before`: its last status."""
        self.name: str = spec["name"]
        self._machine = machine
        self._pod = pod
        self._spec = spec
        self._volumes = volumes
        self._folder = folder
        self._changed = changed
        policy = pod()["spec"].get("restartPolicy", "Always")
        self.sidecar = init and spec.get("restartPolicy") == "Always"
        self.init = init and not self.sidecar
        self._policy = "OnFailure" if self.init and policy == "Always" else "Always" if self.sidecar else policy
        self._state: Object = waiting(
            "PodInitializing" if not init and pod()["spec"].get("initContainers") else "ContainerCreating"
        )
        self._last: Object = {}
        self._restarts = 0
        self._started = False
        self._ready = False
        self._back_off = 0.0
        self._running: Running | None = None
        self._env: dict[str, str] = {}
        self._stopping = asyncio.Event()
        self._deadline = 0.0
        self._hurried = asyncio.Event()
        self._killing: asyncio.Task[None] | None = None
        self.up = asyncio.Event()
        (folder / "pid").unlink(missing_ok=True)  # of before the node was switched off
        if before is not None:
            self._resume(before)

    @property
    def status(self) -> Object:
        """As in a pod's containerStatuses."""
        done = self.init and self._state.get("terminated", {}).get("exitCode") == 0
        return {
            "name": self.name,
            "image": self._spec.get("image", ""),
            "imageID": self._spec.get("image", "")
            if self._running or self._last or "terminated" in self._state
            else "",
            "containerID": f"testbed://{self._pod()['metadata']['uid']}/{self.name}/{self._restarts}"
            if self.up.is_set()
            else "",
            "state": self._state,
            "lastState": self._last,
            "restartCount": self._restarts,
            "started": self._started,
            "ready": done if self.init else self._ready,
        }

    async def run(self) -> None:
        """Start the container, and again as its restart policy says, until it is over for good or stopped."""
        while not self._stopping.is_set():
            try:
                image = await self._image()
                if image is None:
                    return
                await self._once(await self._order(image))
            except MissingReferenceError as error:
                self._event("Warning", "Failed", f"Error: {error}")
                self._set(waiting("CreateContainerConfigError", str(error)))
                await self._pause(_RETRY_S)
                continue
            if self._stopping.is_set() or not self._again():
                return
            await self._wait_back_off()
            if not self._stopping.is_set():
                self._restarts += 1

    async def stop(self, grace: float) -> None:
        """End it: the preStop hook and SIGTERM, SIGKILL after `grace` seconds; returns when it has ended."""
        self._stopping.set()
        if self._running is not None:
            self._event("Normal", "Killing", f"Stopping container {self.name}")
            await self._end(self._running, grace)

    def hurry(self, grace: float) -> None:
        """While it is being ended: let it end within this time from now, if that is less than it had."""
        self._deadline = min(self._deadline, time.monotonic() + grace)
        self._hurried.set()

    async def _image(self) -> Image | None:
        reference = self._spec.get("image", "")
        pause = self._machine.first_back_off
        while (image := find(self._machine.images, reference)) is None and not self._stopping.is_set():
            trouble = (
                f'failed to pull and unpack image "{reference}": failed to resolve reference "{reference}": '
                "pull access denied, repository does not exist or may require authorization"
            )
            self._event("Normal", "Pulling", f'Pulling image "{reference}"')
            self._event("Warning", "Failed", f'Failed to pull image "{reference}": {trouble}')
            self._set(waiting("ErrImagePull", trouble))
            await self._pause(_RETRY_S)
            self._event("Normal", "BackOff", f'Back-off pulling image "{reference}"')
            self._set(waiting("ImagePullBackOff", f'Back-off pulling image "{reference}": ErrImagePull: {trouble}'))
            await self._pause(pause)
            pause = min(2 * pause, self._machine.longest_back_off)
        if image is not None:
            self._event("Normal", "Pulled", f'Container image "{reference}" already present on machine')
        return image

    async def _order(self, image: Image) -> dict[str, Any]:
        """What launch.py is to run."""
        pod, machine = self._pod(), self._machine
        references = References(machine.client, pod["metadata"]["namespace"])
        variables = await environment(pod, self._spec, references, machine.services, machine.allocatable)
        hostname = (pod["spec"].get("hostname") or pod["metadata"]["name"])[:63]
        self._env = {"HOME": "/root", **image.env, "HOSTNAME": hostname, **variables}
        command = self._spec.get("command") or list(image.entrypoint)
        args = self._spec.get("args") or ([] if self._spec.get("command") else list(image.command))
        message = self._folder / "termination-log"
        message.write_bytes(b"")
        message.chmod(0o666)  # it is the container's, whoever that runs as
        target = self._spec.get("terminationMessagePath", "/dev/termination-log")
        return {
            "argv": [expand(word, variables) for word in (*command, *args)],
            "env": self._env,
            "cwd": self._spec.get("workingDir") or image.working_folder,
            "hostname": hostname,
            "scratch": str(self._folder / "scratch"),
            "mounts": [
                *self._volumes.mounts(self._spec, variables),
                {"source": str(message), "target": target, "read_only": False},
            ],
            "shared": list(image.shared),
            "files": list(image.files),
            "root": image.root,
            "user": image.user,
            "read_only_root": self._spec.get("securityContext", {}).get("readOnlyRootFilesystem", False),
        }

    async def _once(self, spec: dict[str, Any]) -> None:
        """One start up to its end."""
        self._event("Normal", "Created", f"Container created: {self.name}")
        started = now()
        try:
            self._running = await runtime.start(spec, self._log(self._restarts))
        except runtime.StartError as error:
            self._event("Warning", "Failed", f"Error: {error}")
            self._terminated(128, error.reason, started, str(error))
            return
        (self._folder / "pid").write_text(str(self._running.pid))
        self._event("Normal", "Started", f"Container started: {self.name}")
        self._started = "startupProbe" not in self._spec
        self._ready = self._started and "readinessProbe" not in self._spec
        self.up.set()
        self._set({"running": {"startedAt": started}})
        address = self._pod()["status"]["podIP"]
        prober = Prober(self._spec, address, self._running, self._env, self)
        if self._stopping.is_set():  # while it was being started
            self._running.signal(signal.SIGKILL)
        code = await self._running.wait()
        prober.stop()
        (self._folder / "pid").unlink(missing_ok=True)
        self._terminated(code, "Completed" if code == 0 else "Error", started, self._message(code))

    def unhealthy(self, message: str) -> None:
        """A probe has failed once."""
        self._event("Warning", "Unhealthy", message)

    def has_started(self) -> None:
        """The startup probe has succeeded."""
        self._started = True
        self._ready = "readinessProbe" not in self._spec
        self._changed()

    def is_ready(self, ready: bool) -> None:
        """The readiness probe says so."""
        if ready is not self._ready:
            self._ready = ready
            self._changed()

    def has_failed(self, kind: str) -> None:
        """The startup or liveness probe has failed too often: end this start."""
        if self._running is None or self._stopping.is_set():
            return
        self._event("Normal", "Killing", f"Container {self.name} failed {kind} probe, will be restarted")
        pods = self._pod()["spec"].get("terminationGracePeriodSeconds", 30)
        grace = self._spec[f"{kind}Probe"].get("terminationGracePeriodSeconds", pods)
        self._killing = asyncio.create_task(self._end(self._running, grace))

    async def _end(self, running: Running, grace: float) -> None:
        self._deadline = time.monotonic() + grace
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._pre_stop(running), grace)
        if time.monotonic() >= self._deadline:
            self._deadline = time.monotonic() + 2  # what a kubelet gives after a hook that took all the time
        running.signal(signal.SIGTERM)
        ended = asyncio.ensure_future(running.wait())
        while not ended.done() and (left := self._deadline - time.monotonic()) > 0:
            self._hurried.clear()
            hurried = asyncio.ensure_future(self._hurried.wait())
            await asyncio.wait({ended, hurried}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            hurried.cancel()
        running.signal(signal.SIGKILL)
        await ended

    async def _pre_stop(self, running: Running) -> None:
        hook = self._spec.get("lifecycle", {}).get("preStop", {})
        if "sleep" in hook:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(running.wait(), hook["sleep"]["seconds"])
        elif "exec" in hook:
            code, output = await run_inside(hook["exec"]["command"], running.pid, self._env)
            if code != 0:
                self._event("Warning", "FailedPreStopHook", f"PreStopHook failed: {output}")

    def _again(self) -> bool:
        code = self._state["terminated"]["exitCode"]
        return self._policy == "Always" or (self._policy == "OnFailure" and code != 0)

    async def _wait_back_off(self) -> None:
        """The first time it is started again at once, then after a time that doubles."""
        ended = self._state
        longest = self._machine.longest_back_off
        ran = _seconds_between(ended["terminated"])
        if ran > 2 * longest:
            self._back_off = 0.0
        pause = self._back_off
        self._back_off = min(2 * pause or self._machine.first_back_off, longest)
        self._last = ended
        if pause:
            metadata = self._pod()["metadata"]
            who = f"{metadata['name']}_{metadata['namespace']}({metadata['uid']})"
            message = f"back-off {pause:g}s restarting failed container={self.name} pod={who}"
            self._event("Warning", "BackOff", f"Back-off restarting failed container {self.name} in pod {who}")
            self._set(waiting("CrashLoopBackOff", message))
            await self._pause(pause)

    def _terminated(self, code: int, reason: str, started: str, message: str) -> None:
        self._running = None
        self._ready = self._started = False
        end: Object = {"exitCode": code, "reason": reason, "startedAt": started, "finishedAt": now()}
        self._set({"terminated": end | ({"message": message} if message else {})})

    def _message(self, code: int) -> str:
        """What the container left as its termination message."""
        text = (self._folder / "termination-log").read_bytes()[:_MESSAGE_LIMIT]
        if not text and code != 0 and self._spec.get("terminationMessagePolicy") == "FallbackToLogsOnError":
            text = self._log(self._restarts).read_bytes()[-_TAIL_LIMIT:]
        return text.decode(errors="replace")

    def _log(self, start: int) -> Path:
        metadata = self._pod()["metadata"]
        folder: Path = self._machine.logs / metadata["namespace"] / f"{metadata['name']}_{metadata['uid']}" / self.name
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{start}.log"

    def _resume(self, before: Object) -> None:
        """The node was switched off while the container ran, as its status before says."""
        self._restarts = before.get("restartCount", 0)
        if "running" in before["state"]:
            end = {
                "exitCode": 255,
                "reason": "Unknown",
                "startedAt": before["state"]["running"]["startedAt"],
                "finishedAt": now(),
            }
            self._last = {"terminated": end}
            self._restarts += 1
        elif before.get("lastState"):
            self._last = before["lastState"]

    def _event(self, kind: str, reason: str, message: str) -> None:
        record = self._machine.recorder.normal if kind == "Normal" else self._machine.recorder.warning
        record(self._pod(), reason, message, self.name)

    def _set(self, state: Object) -> None:
        if state != self._state:
            self._state = state
            self._changed()

    async def _pause(self, seconds: float) -> None:
        """Wait, but no longer than until it is stopped."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)


def _seconds_between(end: Object) -> float:
    started, finished = (
        time.mktime(time.strptime(end[key], "%Y-%m-%dT%H:%M:%SZ")) for key in ("startedAt", "finishedAt")
    )
    return finished - started
