"""Upgrading the models of a repository to output the digest of their encoder.

Models of earlier exports output the digest of the model, or none.  The upgrade adds only the output
and the parameter: masks stay bit-identical, and digests stay the same.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.message import DecodeError

from samserve.errors import EngineUnavailable
from samserve.export.config_text import parameter_text
from samserve.export.errors import ExportError
from samserve.export.staging import remove_stale, staging
from samserve.export.stamp import is_stamped, remove_stamp, stamp
from samserve.export.triton_repository import CONFIG_FILE, MODEL_VERSION
from samserve.models.digest import (
    DIGEST_OUTPUT,
    DIGEST_WORDS,
    MODEL_FILE,
    bundle_digest,
    graph_digests,
)
from samserve.models.repository import (
    ModelConfig,
    encoders,
    graphs_of,
    parameter,
    read_configs,
    reports_digest,
)

_OUTPUT = f'{{ name: "{DIGEST_OUTPUT}" data_type: TYPE_INT32 dims: [ {DIGEST_WORDS} ] }}'
# The layout that the export writes; to any other layout, fields are appended at the end.
_OUTPUTS = re.compile(r"^output \[\n(?:  \{[^\n]*\},?\n)+", re.MULTILINE)
_DIGEST_LINE = re.compile(r'^parameters \{ key: "samserve\.digest" .*\}\n', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Upgraded:
    """The result for one model: ``before`` is the previous digest in its configuration."""

    name: str
    digest: str
    before: str
    changed: bool


def upgrade(repository: Path, report: Callable[[str], None] = lambda text: None) -> list[Upgraded]:
    """Upgrade every model of a repository that needs it; *report* is called with a line for each.

    The folders of a model are replaced together or not at all.  A model whose files do not match
    its digest gets a new digest.  Raises `ExportError`.
    """
    try:
        remove_stale(repository)
        configs = read_configs(repository)
        models = [graphs_of(encoder, configs) for encoder in encoders(configs)]
    except (EngineUnavailable, OSError) as error:
        raise ExportError(str(error)) from error
    if not models:
        raise ExportError(f"no model of samserve in {repository}")
    return [_upgrade(repository, graphs, report) for graphs in models]


def _upgrade(
    repository: Path, graphs: Mapping[str, ModelConfig], report: Callable[[str], None]
) -> Upgraded:
    name = parameter(graphs["encoder"], "model")
    before = parameter(graphs["decoder"], "digest")
    folders = {role: config.name for role, config in graphs.items()}
    with _read_errors(folders):
        current = _is_current(graphs, _paths(repository, folders))
    if current:
        return Upgraded(name, before, before, changed=False)
    report(f"upgrading {name}")
    return Upgraded(name, _rewrite(repository, folders), before, changed=True)


def _is_current(graphs: Mapping[str, ModelConfig], paths: Mapping[str, Path]) -> bool:
    """Return whether configurations and graphs contain the digests of the files."""
    if not all(reports_digest(config) for config in graphs.values()):
        return False
    digests = graph_digests(paths)
    encoder = digests["encoder"]
    return (
        {parameter(config, "encoder_digest") for config in graphs.values()} == {encoder}
        and parameter(graphs["decoder"], "digest") == bundle_digest(digests)
        and all(is_stamped(path, encoder) for path in paths.values())
    )


def _rewrite(repository: Path, folders: Mapping[str, str]) -> str:
    """Replace the folders of a model, given by role, and return the model's digest."""
    with staging(repository) as stage:
        for folder in folders.values():
            _copy(repository / folder, stage.folder / folder)
        paths = _paths(stage.folder, folders)
        with _read_errors(folders):
            for path in paths.values():
                remove_stamp(path)
            digests = graph_digests(paths)
            for path in paths.values():
                stamp(path, digests["encoder"])
        digest = bundle_digest(digests)
        for folder in folders.values():
            _declare(stage.folder / folder / CONFIG_FILE, digest, digests["encoder"])
        stage.publish(list(folders.values()))
    return digest


@contextmanager
def _read_errors(folders: Mapping[str, str]) -> Iterator[None]:
    """Translate errors of reading the files of a model."""
    try:
        yield
    except (OSError, DecodeError) as error:
        # Its text may name the staging folder, which is removed before the user reads it.
        reason = error.strerror if isinstance(error, OSError) else error
        raise ExportError(f"{' or '.join(folders.values())} cannot be read: {reason}") from error


def _paths(repository: Path, folders: Mapping[str, str]) -> dict[str, Path]:
    return {role: repository / each / MODEL_VERSION / MODEL_FILE for role, each in folders.items()}


def _copy(folder: Path, target: Path) -> None:
    """Copy a model's folder; unchanged files, such as gigabytes of weights, are hard-linked."""

    def copy(source: str, copied: str) -> None:
        if Path(source).name in (MODEL_FILE, CONFIG_FILE):
            shutil.copy2(source, copied)
            return
        try:
            os.link(source, copied)
        except OSError:
            shutil.copy2(source, copied)

    try:
        shutil.copytree(folder, target, copy_function=copy)
    except (OSError, shutil.Error) as error:
        raise ExportError(f"{folder} cannot be copied: {error}") from error


def _declare(path: Path, digest: str, encoder_digest: str) -> None:
    """Add output and digests to a configuration; everything else stays unchanged."""
    text = path.read_text(encoding="utf-8")
    if f'"{DIGEST_OUTPUT}"' not in text:
        found = _OUTPUTS.search(text)
        if found:
            outputs = f"{found[0].removesuffix(chr(10))},\n  {_OUTPUT}\n"
            text = text[: found.start()] + outputs + text[found.end() :]
        else:
            # Repeated fields may be given in several places.
            text = f"{text.rstrip()}\noutput [\n  {_OUTPUT}\n]\n"
    text, count = _parameter_pattern("digest").subn(rf'\g<1>"{digest}"', text)
    if count != 1:
        raise ExportError(f"{path.parent.name}: the parameter samserve.digest is missing")
    text, count = _parameter_pattern("encoder_digest").subn(rf'\g<1>"{encoder_digest}"', text)
    if not count:
        line = parameter_text("samserve.encoder_digest", encoder_digest)
        text, count = _DIGEST_LINE.subn(rf"\g<0>{line}", text)
        text = text if count else f"{text.rstrip()}\n{line}"
    path.write_text(text, encoding="utf-8", newline="\n")


def _parameter_pattern(key: str) -> re.Pattern[str]:
    """Return a pattern for the value of a parameter, in any layout of the configuration."""
    return re.compile(rf'("samserve\.{key}"\s*,?\s*value:?\s*\{{\s*string_value:\s*)"[^"]*"')
