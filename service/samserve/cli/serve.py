"""`samserve serve`."""

from __future__ import annotations

from typing import Annotated

import typer

from samserve.cli.options import Assignments, ConfigFile


def serve(
    host: Annotated[str | None, typer.Option(help="Address of the API: server.host.")] = None,
    port: Annotated[int | None, typer.Option(help="Port of the API: server.port.")] = None,
    admin_port: Annotated[
        int | None, typer.Option(help="Port of health and metrics: server.admin_port.")
    ] = None,
    config: ConfigFile = None,
    assignments: Assignments = None,
) -> None:
    """Serve until Ctrl-C or SIGTERM; running calls are finished first."""
    from samserve import app
    from samserve.cli import session
    from samserve.cli.configuration import load_settings
    from samserve.cli.ports import check_free
    from samserve.telemetry import logs, standard_error

    given = {"host": host, "port": port, "admin_port": admin_port}
    flags = {name: value for name, value in given.items() if value is not None}
    settings = load_settings(config, assignments, {"server": flags})
    if settings.log.format == "json":
        standard_error.as_json()
    logs.configure(settings.log)
    listeners = settings.server
    check_free(listeners.host, listeners.port)
    check_free(listeners.admin_host, listeners.admin_port)
    session.run(app.serve(settings))
