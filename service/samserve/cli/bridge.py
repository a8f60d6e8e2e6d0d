"""`samserve bridge`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from samserve.cli.errors import CommandError
from samserve.cli.options import Assignments, existing_file
from samserve.system.extras import how_to_install

BridgeConfigFile = Annotated[
    Path | None,
    existing_file("Settings file (TOML). Or set SAMSERVE_BRIDGE_CONFIG.", "--config"),
]
Gateways = Annotated[
    str | None,
    typer.Option(
        "--gateways",
        metavar="HOST:PORT,...",
        help="Addresses of the gateways; sets gateways.targets.",
    ),
]


def bridge(
    host: Annotated[
        str | None, typer.Option(help="Address of the listener; sets listener.host.")
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="Port of the listener; sets listener.port.")
    ] = None,
    gateways: Gateways = None,
    config: BridgeConfigFile = None,
    assignments: Assignments = None,
) -> None:
    """Serve annotation tools over HTTP, in front of running servers, until Ctrl-C or SIGTERM.

    Label Studio, CVAT and X-AnyLabeling each have a page in docs/tools.md.
    """
    with bridge_extra():
        from samserve.bridge import app
        from samserve.bridge.settings import BridgeSettings
    from samserve.cli import session
    from samserve.cli.configuration import load_settings_of
    from samserve.cli.ports import check_free
    from samserve.telemetry import logs, standard_error

    listener: dict[str, object] = {"host": host, "port": port}
    sections: dict[str, dict[str, object]] = {
        "listener": {name: value for name, value in listener.items() if value is not None},
        "gateways": {} if gateways is None else {"targets": gateways},
    }
    settings = load_settings_of(BridgeSettings, config, assignments, sections)
    if settings.log.format == "json":
        standard_error.redirect_as_json()
    logs.configure(settings.log)
    check_free(settings.listener.host, settings.listener.port)
    check_free(settings.listener.admin_host, settings.listener.admin_port)
    session.run(app.serve(settings))


@contextmanager
def bridge_extra() -> Iterator[None]:
    """Translate a failed import of the bridge into what to install.  Raises `CommandError`."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise CommandError(
            f"this command requires {error.name or 'httpcore2'}, which is not installed: "
            f"{how_to_install('bridge')}"
        ) from error
