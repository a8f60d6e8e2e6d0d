"""`samserve serve`."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from samserve.cli.options import Assignments, ConfigFile

if TYPE_CHECKING:
    from samserve.settings import Settings


HttpPort = Annotated[
    int | None,
    typer.Option(
        help="Port of the HTTP listener (Connect, gRPC-Web, JSON), which this enables; sets "
        "http.port and http.enabled."
    ),
]
Web = Annotated[
    bool,
    typer.Option(
        "--web",
        help="Serve the web page on the HTTP listener, and print its address; sets http.enabled "
        "and http.web_page, and embedding_files.get_enabled unless it is set.",
    ),
]


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
    http_port: HttpPort = None,
    web: Web = False,
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

    sections: dict[str, dict[str, object]] = {
        "server": _given(host=host, port=port, admin_port=admin_port),
        "engine": {"models": ",".join(model), "default_model": model[0]} if model else {},
        "http": _given(
            port=http_port,
            enabled=True if web or http_port is not None else None,
            web_page=True if web else None,
        ),
    }
    # The page needs it to decode in the browser.
    defaults = {"embedding_files": {"get_enabled": True}} if web else {}
    settings = load_settings(config, assignments, sections, defaults)
    if settings.log.format == "json":
        standard_error.redirect_as_json()
    logs.configure(settings.log)
    _check_ports(settings)
    session.run(app.serve(settings, _show))


def _given(**values: object) -> dict[str, object]:
    """Return the values that are set."""
    return {name: value for name, value in values.items() if value is not None}


def _show(line: str) -> None:
    """Write a line to standard output; the log is on standard error."""
    from samserve.cli import terminal

    # The reader may be gone.
    with suppress(OSError):
        terminal.write_line(line)


def _check_ports(settings: Settings) -> None:
    """Exit with a text if the port of a listener is in use."""
    from samserve.cli.ports import check_free

    server, http = settings.server, settings.http
    check_free(server.host, server.port)
    check_free(server.admin_host, server.admin_port)
    if http.enabled:
        check_free(http.host, http.port)
