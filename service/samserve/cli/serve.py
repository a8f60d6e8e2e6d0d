"""`samserve serve`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from samserve.cli.options import Assignments, ConfigFile

if TYPE_CHECKING:
    from samserve.settings import Settings


def serve(  # noqa: PLR0913, PLR0917 - each is an option of the command line
    host: Annotated[
        str | None, typer.Option(help="Address of the gRPC API; sets server.host.")
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="Port of the gRPC API; sets server.port.")
    ] = None,
    admin_port: Annotated[
        int | None, typer.Option(help="Port of health and metrics; sets server.admin_port.")
    ] = None,
    http_port: Annotated[
        int | None,
        typer.Option(
            help="Port of the HTTP listener (Connect, gRPC-Web, JSON), which this enables; sets "
            "http.port and http.enabled."
        ),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="Serve this model only; repeatable, the first is the default. Sets engine.models "
            "and engine.default_model.",
        ),
    ] = None,
    config: ConfigFile = None,
    assignments: Assignments = None,
) -> None:
    """Run the server until Ctrl-C or SIGTERM; calls in flight are completed first."""
    from samserve import app
    from samserve.cli import session
    from samserve.cli.configuration import load_settings
    from samserve.telemetry import logs, standard_error

    given = {"host": host, "port": port, "admin_port": admin_port}
    server = {name: value for name, value in given.items() if value is not None}
    engine = {"models": ",".join(model), "default_model": model[0]} if model else {}
    http = {} if http_port is None else {"port": http_port, "enabled": True}
    settings = load_settings(
        config, assignments, {"server": {**server}, "engine": {**engine}, "http": {**http}}
    )
    if settings.log.format == "json":
        standard_error.redirect_as_json()
    logs.configure(settings.log)
    _check_ports(settings)
    session.run(app.serve(settings))


def _check_ports(settings: Settings) -> None:
    """Exit with a text if the port of a listener is in use."""
    from samserve.cli.ports import check_free

    server, http = settings.server, settings.http
    check_free(server.host, server.port)
    check_free(server.admin_host, server.admin_port)
    if http.enabled:
        check_free(http.host, http.port)
