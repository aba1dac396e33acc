"""`python -m benchmarks [NAME…] [--footage FILE] [--write]`, from the root of the repository; names are below."""

import shlex
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from benchmarks import autoscaling, cpu, engine, gpu, operator, sampling, simulator, worker
from benchmarks.measure import machine
from vaultml_worker.records import InvalidInput

RESULTS = Path(__file__).with_name("RESULTS.md")
_HEADING = "## "


class Name(StrEnum):
    """What can be measured."""

    ENGINE = "engine"
    CPU = "cpu"
    GPU = "gpu"
    SAMPLING = "sampling"
    OPERATOR = "operator"
    SIMULATOR = "simulator"
    AUTOSCALING = "autoscaling"
    WORKER = "worker"


_RUNS = {
    Name.ENGINE: engine.run,
    Name.CPU: cpu.run,
    Name.GPU: gpu.run,
    Name.SAMPLING: sampling.run,
    Name.OPERATOR: operator.run,
    Name.SIMULATOR: simulator.run,
    Name.AUTOSCALING: autoscaling.run,
    Name.WORKER: worker.run,
}


def main(
    names: Annotated[list[Name] | None, typer.Argument(help="what to measure; engine and sampling if left out")] = None,
    footage: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="a recording to measure with")
    ] = None,
    write: Annotated[bool, typer.Option("--write", help=f"put the tables into {RESULTS.name}")] = False,
) -> None:
    """Measure, and print Markdown tables (Darknet says on stderr which layers it loads)."""
    given = shlex.join(argument if not Path(argument).is_file() else Path(argument).name for argument in sys.argv[1:])
    where = f"`python -m benchmarks {given}`".replace(" `", "`") + f" on {machine()}."
    sections = _written() if write else {}
    for name in names or (Name.ENGINE, Name.SAMPLING):
        try:
            sections[name.value] = f"{where}\n\n{_RUNS[name](footage)}"
        except InvalidInput as error:
            typer.echo(f"benchmarks: {name}: {error}", err=True)
            raise typer.Exit(2) from None
        print(f"{_HEADING}{name}\n\n{sections[name.value]}\n", flush=True)
    if write:
        body = "".join(f"\n{_HEADING}{name}\n\n{sections[name]}\n" for name in sorted(sections))
        RESULTS.write_text(f"# What the benchmarks said\n{body}")


def _written() -> dict[str, str]:
    """The sections of the results as they are: measuring one leaves the other."""
    text = RESULTS.read_text() if RESULTS.is_file() else ""
    parts = [part.split("\n", 1) for part in f"\n{text}".split(f"\n{_HEADING}")[1:]]
    return {heading: body.strip() for heading, body in parts}


if __name__ == "__main__":
    typer.run(main)
