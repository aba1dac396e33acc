"""The command `vaultml-operator`."""

import asyncio
import errno
import faulthandler
import logging
import os
import socket
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, TextIO

import structlog
import typer
import yaml

from vaultml_common.machine import cache_folder
from vaultml_operator import crd as definition
from vaultml_operator import install as installation
from vaultml_operator import reasons as catalogue

_VERSION = version("vaultml")
_IMAGE = f"vaultml/operator:{_VERSION}"
_WORKER_IMAGE = f"vaultml/worker:{_VERSION}"

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)
WorkerImage = Annotated[
    str, typer.Option(envvar="WORKER_IMAGE", help="Image of the workers where a pipeline names none.")
]


def main() -> None:
    """Run the command."""
    app()


@app.callback(invoke_without_command=True)
def root(show: Annotated[bool, typer.Option("--version", help="Print the version and end.")] = False) -> None:
    """Reconciles VaultMLPipeline resources into workers."""
    if show:
        typer.echo(f"vaultml-operator {_VERSION}")
        raise typer.Exit


@app.command()
def run(
    namespace: Annotated[
        list[str] | None, typer.Option(help="Watch this namespace only; repeatable. Default: the whole cluster.")
    ] = None,
    worker_image: WorkerImage = _WORKER_IMAGE,
    lease_namespace: Annotated[
        str | None, typer.Option(help="Namespace of the Lease. Default: the pod's own, else `default`.")
    ] = None,
    lease_name: Annotated[
        str, typer.Option(help="Name of the Lease: operators that share out namespaces need one each.")
    ] = "vaultml-operator",
    host: Annotated[
        str, typer.Option(envvar="HTTP_HOST", help="Address of health and metrics; :: means all, IPv4 and IPv6.")
    ] = "::",
    port: Annotated[
        int, typer.Option(min=0, max=65535, envvar="HTTP_PORT", help="Its port; 0 picks a free one.")
    ] = 8080,
    concurrency: Annotated[int, typer.Option(min=1, max=256, help="Pipelines in work at the same time.")] = 16,
    resync_seconds: Annotated[
        float, typer.Option(min=10, help="How often each pipeline is looked at without any event.")
    ] = 600,
    deadline_seconds: Annotated[
        float, typer.Option(min=1, help="How long one reconcile may take; at three times that, /healthz fails.")
    ] = 120,
    log_format: Annotated[
        Literal["console", "json"], typer.Option(envvar="LOG_FORMAT", help="Form of the log.")
    ] = "json",
    log_level: Annotated[
        Literal["DEBUG", "INFO", "WARNING", "ERROR"], typer.Option(envvar="LOG_LEVEL", help="Least level logged.")
    ] = "INFO",
) -> None:
    """Watch and reconcile, until SIGTERM."""
    # kopf and the API client are loaded by this command only.
    from vaultml_operator.app import Operator, Options

    # librdkafka is C: should it take the process down, the log says where.
    faulthandler.enable()
    _set_up_logging(log_format, log_level)
    options = Options(
        namespaces=tuple(dict.fromkeys(namespace or ())),
        image=worker_image,
        lease_namespace=lease_namespace,
        lease_name=lease_name,
        host=host,
        port=port,
        concurrency=concurrency,
        resync_seconds=resync_seconds,
        deadline_seconds=deadline_seconds,
    )
    try:
        sys.exit(asyncio.run(_run(Operator, options)))
    except _CannotListen as error:
        typer.echo(f"vaultml-operator: {error}", err=True)
        sys.exit(1)


async def _run(operator: Any, options: Any) -> int:
    await _check_address(options.host, options.port)
    status: int = await operator(options).run()
    return status


class _CannotListen(Exception):  # noqa: N818 - named for what it is about
    """Health and metrics can't be served at the address; the message says which option to change."""


async def _check_address(host: str, port: int) -> None:
    """Listen for a moment, as the operator will. Raises _CannotListen.

    An OSError of the running operator could be anything; here it is about the address.
    """
    try:
        server = await asyncio.get_running_loop().create_server(
            asyncio.Protocol, None if host == "::" else host.strip("[]"), port
        )
    except OSError as error:
        raise _CannotListen(_listening_error(host, port, error)) from None
    server.close()
    await server.wait_closed()


def _listening_error(host: str, port: int, error: OSError) -> str:
    where = f"health and metrics can't be served on port {port} of {host}"
    match error.errno:
        case _ if isinstance(error, socket.gaierror):
            return (
                f"{where}: {host} is no address or known host name: correct --host (HTTP_HOST); :: means all addresses"
            )
        case errno.EADDRINUSE:
            return f"{where}: the port is in use: choose another with --port (HTTP_PORT), or stop what listens there"
        case errno.EACCES | errno.EPERM:
            return f"{where}: the user may not use this port: choose one from 1024 with --port (HTTP_PORT)"
        # Where no address is left to bind to, asyncio gives no number.
        case errno.EADDRNOTAVAIL | errno.EAFNOSUPPORT | None:
            return f"{where}: this machine has no such address: correct --host (HTTP_HOST); :: means all addresses"
        case _:
            return f"{where}: {error.strerror}: check --host (HTTP_HOST) and --port (HTTP_PORT)"


@app.command()
def local(
    file: Annotated[
        Path, typer.Option("--file", "-f", help="VaultMLPipelines, and the Secrets and ConfigMaps that they name.")
    ],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of 127.0.0.1 for the JSON; 0: a free one.")] = 8090,
    logs: Annotated[
        Path | None, typer.Option(help="Folder of the logs. Default: vaultml/logs in the user's state folder.")
    ] = None,
    log_level: Annotated[
        Literal["DEBUG", "INFO", "WARNING", "ERROR"], typer.Option(envvar="LOG_LEVEL", help="Least level logged.")
    ] = "INFO",
) -> None:
    """Run the pipelines of a file on this machine, without Kubernetes, until Ctrl-C; an edit of the file is applied."""
    try:
        from vaultml_operator.local import app as locally
    except ModuleNotFoundError as error:
        typer.echo(f"vaultml-operator: {error.name} is missing: pip install 'vaultml[local]'", err=True)
        sys.exit(1)

    cache = cache_folder()
    logs = logs or _folder("XDG_STATE_HOME", ".local/state") / "logs"
    options = locally.Options(file=file, port=port, logs=logs.absolute(), cache=cache.absolute())
    try:
        logs.mkdir(parents=True, exist_ok=True)
        with (logs / "operator.log").open("a") as log:
            _set_up_logging("console", log_level, log)
            sys.exit(locally.run(options))
    except (locally.BadFile, locally.CannotListen) as error:
        typer.echo(f"vaultml-operator: {error}", err=True)
    except OSError as error:
        typer.echo(f"vaultml-operator: {error.filename}: {error.strerror}: give a folder with --logs", err=True)
    sys.exit(1)


def _folder(variable: str, otherwise: str) -> Path:
    return Path(os.environ.get(variable) or Path.home() / otherwise) / "vaultml"


@app.command()
def explain(
    name: Annotated[str, typer.Argument(help="Name of the pipeline.")],
    namespace: Annotated[
        str | None, typer.Option("--namespace", "-n", help="Its namespace. Default: the kubeconfig's.")
    ] = None,
    what_if: Annotated[
        str, typer.Option(help="Suppose other numbers, e.g. lag=500,gpus=2: what would be decided.")
    ] = "",
) -> None:
    """Say why a pipeline has as many workers as it has: what was seen, what each rule did, the result."""
    from vaultml_operator import explain as explaining
    from vaultml_operator.api import InvalidResource
    from vaultml_operator.cluster import ApiError, ConfigException

    try:
        case = explaining.parse(what_if)
        body = asyncio.run(_pipeline(namespace, name))
        typer.echo(explaining.account(body, case, time.time()), nl=False)
    except (explaining.BadCase, ApiError, ConfigException, InvalidResource, LookupError) as error:
        typer.echo(f"vaultml-operator: {error}", err=True)
        sys.exit(1)


async def _pipeline(namespace: str | None, name: str) -> dict[str, Any]:
    from vaultml_operator import api
    from vaultml_operator.cluster import Cluster, connect, default_namespace

    client = await connect()
    try:
        where = namespace or default_namespace()
        body = await Cluster(client).get(api.KIND, where, name)
    finally:
        await client.close()  # type: ignore[no-untyped-call]
    if body is None:
        raise LookupError(f"there is no pipeline {name} in the namespace {where}: see kubectl get vmlp -A")
    return body


@app.command()
def crd() -> None:
    """Print the CustomResourceDefinition."""
    typer.echo(_yaml([definition.definition()]), nl=False)


@app.command()
def install(
    namespace: Annotated[
        list[str] | None, typer.Option(help="Watch this namespace only, with rights in it only; repeatable.")
    ] = None,
    image: Annotated[str, typer.Option(help="Image of the operator.")] = _IMAGE,
    worker_image: WorkerImage = _WORKER_IMAGE,
    replicas: Annotated[int, typer.Option(min=1, max=9, help="Replicas; one leads, the others stand by.")] = 2,
    user_ids: Annotated[
        bool, typer.Option(help="Set the pods' user and group ids; OpenShift assigns its own: --no-user-ids.")
    ] = True,
    image_pull_secret: Annotated[
        list[str] | None, typer.Option(help="Secret to pull the operator's image with; repeatable.")
    ] = None,
    request: Annotated[
        list[str] | None, typer.Option(help="Resource request, as in cpu=100m or memory=256Mi; repeatable.")
    ] = None,
    limit: Annotated[list[str] | None, typer.Option(help="Resource limit, as in memory=1Gi; repeatable.")] = None,
    toleration: Annotated[
        list[str] | None, typer.Option(help="Taint to tolerate, as in key=value:NoSchedule or key; repeatable.")
    ] = None,
    priority_class: Annotated[str | None, typer.Option(help="PriorityClass of the pods.")] = None,
    network_policy: Annotated[
        bool, typer.Option("--network-policy", help="Add a NetworkPolicy: only health and metrics can be reached.")
    ] = False,
) -> None:
    """Print all that runs the operator in a cluster: CRD, namespace, RBAC, Deployment, Service, PodDisruptionBudget."""
    try:
        pods = installation.PodOptions(
            user_ids=user_ids,
            pull_secrets=image_pull_secret or (),
            priority_class=priority_class,
            requests=_amounts("--request", request or ()),
            limits=_amounts("--limit", limit or ()),
            tolerations=toleration or (),
        )
        printed = installation.manifests(
            image, worker_image, namespace or (), replicas, pods=pods, network_policy=network_policy
        )
    except installation.BadOption as error:
        typer.echo(f"vaultml-operator: {error}", err=True)
        sys.exit(2)
    typer.echo(_yaml(printed), nl=False)


def _amounts(option: str, given: Sequence[str]) -> dict[str, str]:
    found = {}
    for each in given:
        name, _, amount = each.partition("=")
        if name not in ("cpu", "memory", "ephemeral-storage") or not amount:
            raise installation.BadOption(f"{option} {each}: write cpu=100m, memory=256Mi or ephemeral-storage=1Gi")
        found[name] = amount
    return found


@app.command()
def kustomizeconfig() -> None:
    """Print kustomize's configuration for the Secrets and ConfigMaps that a pipeline refers to."""
    typer.echo(_yaml([installation.kustomize_config()]), nl=False)


@app.command()
def reasons() -> None:
    """Print the catalogue of reasons, docs/reasons.md."""
    typer.echo(catalogue.reference(), nl=False)


class _Dumper(yaml.SafeDumper):
    """Without anchors, which kubectl would understand and people would not."""

    def ignore_aliases(self, _data: Any) -> bool:
        return True


def _yaml(documents: list[dict[str, Any]]) -> str:
    head = "# Written by `make docs`; the models are in operator/vaultml_operator/.\n"
    return head + "---\n".join(
        yaml.dump(each, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True) for each in documents
    )


def _set_up_logging(form: str, level: str, out: TextIO | None = None) -> None:
    """Have structlog write our log and, through it, for what kopf and the client log."""
    shared: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    last: list[Any] = (
        [structlog.processors.dict_tracebacks, structlog.processors.JSONRenderer()]
        if form == "json"
        else [structlog.dev.ConsoleRenderer(colors=False)]
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(out or sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("vaultml_operator").setLevel(level)
    # kopf logs whole objects at DEBUG, Secrets among them: never below WARNING.
    logging.getLogger("kopf").setLevel(logging.WARNING)
