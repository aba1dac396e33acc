"""The command `vaultml-operator`: what is said of an address that can't be used."""

import errno
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from typer.testing import CliRunner

from vaultml_operator import cli
from vaultml_operator.app import Operator


@pytest.fixture
def taken() -> Iterator[int]:
    """A port of 127.0.0.1 that somebody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def run(*arguments: str, env: dict[str, str] | None = None) -> tuple[int, str]:
    """Return the exit code and what is printed; nothing is read from a cluster."""
    given = {"HTTP_HOST": "", "HTTP_PORT": "", **(env or {})}
    result = CliRunner().invoke(cli.app, ["run", *arguments], env={k: v or None for k, v in given.items()})
    return result.exit_code, result.output


@pytest.fixture(autouse=True)
def never(monkeypatch: pytest.MonkeyPatch) -> None:
    async def ran(_operator: Operator) -> int:
        return 0

    monkeypatch.setattr(Operator, "run", ran)
    monkeypatch.setattr(cli, "_set_up_logging", lambda *_: None)
    monkeypatch.setattr("faulthandler.enable", lambda: None)


def refused(code: int, output: str) -> str:
    assert code == 1, output
    assert output.count("\n") == 1
    assert output.startswith("vaultml-operator: health and metrics can't be served on port ")
    return output


def test_a_port_that_is_taken(taken: int) -> None:
    said = refused(*run("--host", "127.0.0.1", "--port", str(taken)))
    assert f"port {taken} of 127.0.0.1: the port is in use: choose another with --port (HTTP_PORT)" in said
    assert said == refused(*run(env={"HTTP_HOST": "127.0.0.1", "HTTP_PORT": str(taken)}))
    assert f"port {taken} of ::: the port is in use" in refused(*run("--port", str(taken)))


def test_an_address_that_is_not_this_machines() -> None:
    # TEST-NET-1 and the documentation prefix: nobody has them.
    for host in ("192.0.2.1", "2001:db8::1", "[2001:db8::1]"):
        said = refused(*run("--host", host, "--port", "0"))
        assert "this machine has no such address: correct --host (HTTP_HOST)" in said


def test_a_host_that_is_none() -> None:
    said = refused(*run("--host", "no-such-host.invalid", "--port", "0"))
    assert "no-such-host.invalid is no address or known host name" in said


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM])
def test_a_port_that_needs_rights(code: int) -> None:
    said = cli._listening_error("::", 80, PermissionError(code, os.strerror(code)))
    assert said.endswith("the user may not use this port: choose one from 1024 with --port (HTTP_PORT)")


def test_another_error_is_passed_on() -> None:
    said = cli._listening_error("::", 80, OSError(errno.ENOBUFS, "No buffer space available"))
    assert said.endswith("No buffer space available: check --host (HTTP_HOST) and --port (HTTP_PORT)")


@pytest.mark.parametrize("port", ["-1", "65536", "http"])
def test_a_port_that_is_none_is_a_wrong_option(port: str) -> None:
    code, output = run("--port", port)
    assert code == 2
    assert "--port" in output


def test_an_address_that_can_be_used_is_free_again() -> None:
    for arguments in (("--port", "0"), ("--host", "[::]", "--port", "0"), ("--host", "localhost", "--port", "0")):
        assert run(*arguments) == (0, "")


def test_the_process_ends_without_a_traceback(taken: int) -> None:
    command = [sys.executable, "-m", "vaultml_operator", "run", "--host", "127.0.0.1", "--port", str(taken)]
    ended: Any = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert refused(ended.returncode, ended.stderr)
    assert ended.stdout == ""
