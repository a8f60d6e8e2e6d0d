"""The routes of all tools, by method and path."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from samserve.bridge.tool import REST, Route, Tool


@dataclass(frozen=True, slots=True)
class Found:
    """A route and its tool; ``rest`` is the part of the path that `REST` stands for."""

    tool: Tool
    route: Route
    rest: str = ""


class Routing:
    """Finds routes: exact paths first, then the longest folder."""

    def __init__(self, tools: Iterable[Tool]) -> None:
        """Collect the routes.  Raises ``ValueError`` if two tools have the same."""
        self._exact: dict[str, dict[str, Found]] = {}
        self._folders: dict[str, dict[str, Found]] = {}
        self._names: dict[str, list[str]] = {}
        for tool in tools:
            for route in tool.routes():
                self._add(tool, route)

    @property
    def folders(self) -> str:
        """The first parts of all paths, for people."""
        paths = (*self._exact, *self._folders)
        return ", ".join(sorted({"/" + path.split("/")[1] for path in paths}))

    def names(self) -> Iterator[tuple[str, list[str]]]:
        """Yield each tool's name, and the names of its routes."""
        yield from self._names.items()

    def find(self, method: str, path: str) -> Found | str:
        """Return the route, or else the methods of this path, separated by commas."""
        found, rest = self._exact.get(path), ""
        if found is None:
            folder = max((each for each in self._folders if path.startswith(each)), default="")
            found, rest = self._folders.get(folder, {}), path[len(folder) :]
        match = found.get(method)
        if match is None:
            return ", ".join(sorted(found))
        return Found(match.tool, match.route, rest)

    def _add(self, tool: Tool, route: Route) -> None:
        is_folder = route.path.endswith("/" + REST)
        path = route.path.removesuffix(REST) if is_folder else route.path
        by_method = (self._folders if is_folder else self._exact).setdefault(path, {})
        if route.method in by_method:
            raise ValueError(f"{route.method} {route.path} is a route of two tools")
        by_method[route.method] = Found(tool, route)
        self._names.setdefault(tool.name, []).append(route.name)
