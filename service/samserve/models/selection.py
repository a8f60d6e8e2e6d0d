"""The models that the in-process engine serves: of one repository, or of package and user."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from samserve.errors import EngineUnavailable
from samserve.models.repository import Bundle, default_first, discover, discover_each

DEFAULT_FILE = "default"
"""File in the user's folder with the name of the default model."""


@dataclass(frozen=True, slots=True)
class Selection:
    """The models to serve and the default one, empty for the first in alphabetical order.

    ``stored`` are the models of the user's folder; a failure to load one of them that is also
    ``optional`` must not prevent the others from being served.  ``problems`` are those that cannot
    be served, one line each.
    """

    bundles: tuple[Bundle[Path], ...]
    default: str = ""
    stored: frozenset[str] = frozenset()
    optional: frozenset[str] = frozenset()
    problems: tuple[str, ...] = ()


def of_repository(repository: Path, default_model: str = "", only: Sequence[str] = ()) -> Selection:
    """Select all models of a repository, or those named by *only*.

    Raises `EngineUnavailable` if one of them cannot be served or is missing.
    """
    bundles = _named(discover(repository), only)
    return Selection(bundles, default_first(_names(bundles), default_model)[0])


def of_user(
    packaged: Path, folder: Path | None, default_model: str = "", only: Sequence[str] = ()
) -> Selection:
    """Select the models of the package and those of the user's folder, or those named by *only*.

    The default is *default_model*, else the first of *only*, else that of `read_default`, else one
    of the package: a model of the user's folder becomes the default only if it is named.  A model
    of the package precedes one of the same name.  A model of the user's folder that is not named
    and cannot be served is one of the problems.  Raises `EngineUnavailable` for a named one, or if
    the default model is missing.
    """
    try:
        exists = folder is not None and folder.is_dir()
    except OSError as error:  # such as of a home directory of another user
        selected = of_repository(packaged, default_model or next(iter(only), ""), only)
        return replace(selected, problems=(f"{folder} cannot be read: {error.strerror}",))
    if folder is None or not exists:
        return of_repository(packaged, default_model or next(iter(only), ""), only)
    own = discover(packaged)
    default = default_model or next(iter(only), "") or read_default(folder)
    default = default or default_first(_names(own), "")[0]
    found, problems = discover_each(folder)
    texts = {name: f"{text}; {_cure(name, folder)}" for name, text in problems.items()}
    for bundle in found:
        if bundle.info.name in _names(own):
            texts[bundle.info.name] = _hidden(bundle.info.name, folder)
    for name in {default, *only} & (texts.keys() - set(_names(own))):
        raise EngineUnavailable(texts[name])
    bundles = _named((*own, *(each for each in found if each.info.name not in texts)), only)
    _check_default(default, bundles, folder)
    stored = frozenset(_names(found)) - frozenset(_names(own))
    wanted = [text for name, text in sorted(texts.items()) if not only or name in only]
    return Selection(bundles, default, stored, stored - {default, *only}, tuple(wanted))


def read_default(folder: Path) -> str:
    """Return the default model that the user has set, empty for none.

    Raises `EngineUnavailable` if the file cannot be read.
    """
    path = folder / DEFAULT_FILE
    try:
        return path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise EngineUnavailable(f"{path} cannot be read: {error}; delete it") from error


def write_default(folder: Path, name: str) -> None:
    """Set the user's default model; an empty *name* removes the setting.  Raises `OSError`."""
    path = folder / DEFAULT_FILE
    if name:
        temporary = folder.with_name(f".{folder.name}.{DEFAULT_FILE}")
        temporary.write_text(f"{name}\n", encoding="utf-8")
        temporary.replace(path)
    else:
        path.unlink(missing_ok=True)


def load_failure(name: str, path: Path, error: object) -> str:
    """Describe a model whose graph at *path*, in a repository, cannot be loaded."""
    return f"{error}; {_cure(name, path.parents[2])}"


def _names(bundles: Iterable[Bundle[Path]]) -> list[str]:
    return [bundle.info.name for bundle in bundles]


def _named(bundles: tuple[Bundle[Path], ...], only: Sequence[str]) -> tuple[Bundle[Path], ...]:
    names = _names(bundles)
    for name in only:
        if name not in names:
            raise EngineUnavailable(
                f"there is no model {name!r}; available: {', '.join(sorted(names))}"
            )
    return tuple(bundle for bundle in bundles if not only or bundle.info.name in only)


def _check_default(default: str, bundles: Iterable[Bundle[Path]], folder: Path) -> None:
    try:
        default_first(_names(bundles), default)
    except EngineUnavailable as error:
        if default != read_default(folder):
            raise
        raise EngineUnavailable(
            f"{error}; {folder / DEFAULT_FILE} names it: change that with "
            "`samserve models default NAME`, or remove it with `samserve models default --unset`"
        ) from error


def _cure(name: str, folder: Path) -> str:
    return f"it is in {folder}: pull or export it again, or delete {folder / name}_*"


def _hidden(name: str, folder: Path) -> str:
    return (
        f"model {name!r} in {folder} is not served, because the package has a model of that name: "
        "pull or export it again with another --name, and delete it"
    )
