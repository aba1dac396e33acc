"""`python -m testbed`: Kubernetes with GPU nodes, Kafka, Vault and the operator on this machine, until Ctrl-C."""

import contextlib
import signal
from types import FrameType
from typing import Annotated, NoReturn

import typer

from testbed.playground import missing, playground


def main(
    nodes: Annotated[int, typer.Option(min=1, help="How many nodes with GPUs.")] = 2,
    gpus: Annotated[int, typer.Option(min=0, help="How many GPUs each of them has.")] = 2,
) -> None:
    """Kubernetes with GPU nodes, Kafka, Vault and the operator on this machine, until Ctrl-C."""
    if sentence := missing():
        typer.echo(sentence, err=True)
        raise typer.Exit(1)
    typer.echo("Starting; the first time, Kubernetes is built, which takes minutes …", err=True)
    for number in (signal.SIGINT, signal.SIGTERM):  # also where a shell started it with SIGINT ignored
        signal.signal(number, _as_ctrl_c)
    with contextlib.suppress(KeyboardInterrupt), playground(nodes, gpus) as started:
        typer.echo(str(started))
        with contextlib.suppress(KeyboardInterrupt):  # no failure, after which logs would be kept
            signal.pause()
        for number in (signal.SIGINT, signal.SIGTERM):  # a second one would leave things half taken down
            signal.signal(number, signal.SIG_IGN)
        typer.echo("Taking it down …", err=True)


def _as_ctrl_c(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001 - that is how handlers are called
    raise KeyboardInterrupt


if __name__ == "__main__":
    typer.run(main)
