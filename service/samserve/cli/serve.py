"""`samserve serve`."""

from __future__ import annotations

from typing import Annotated

import typer

from samserve.cli.options import Assignments, ConfigFile


def serve(
    host: Annotated[
        str | None, typer.Option(help="Address of the gRPC API; sets server.host.")
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="Port of the gRPC API; sets server.port.")
    ] = None,
    admin_port: Annotated[
        int | None, typer.Option(help="Port of health and metrics; sets server.admin_port.")
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
    from samserve.cli.ports import check_free
    from samserve.telemetry import logs, standard_error

    given = {"host": host, "port": port, "admin_port": admin_port}
    flags = {name: value for name, value in given.items() if value is not None}
    engine = {"models": ",".join(model), "default_model": model[0]} if model else {}
    settings = load_settings(config, assignments, {"server": flags, "engine": engine})
    if settings.log.format == "json":
        standard_error.redirect_as_json()
    logs.configure(settings.log)
    listeners = settings.server
    check_free(listeners.host, listeners.port)
    check_free(listeners.admin_host, listeners.admin_port)
    session.run(app.serve(settings))
