"""Making the models of a repository say with each answer which encoder it belongs to.

Models of earlier exports say the digest of the model, or nothing.  They get the output and the
parameter, and nothing else: masks stay the same to the last bit, and so do digests.
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
from samserve.export.staging import clear_up, staging
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
    says_digest,
)

_OUTPUT = f'{{ name: "{DIGEST_OUTPUT}" data_type: TYPE_INT32 dims: [ {DIGEST_WORDS} ] }}'
# As the export writes them; of other texts nothing but their end is known.
_OUTPUTS = re.compile(r"^output \[\n(?:  \{[^\n]*\},?\n)+", re.MULTILINE)
_DIGEST_LINE = re.compile(r'^parameters \{ key: "samserve\.digest" .*\}\n', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Upgraded:
    """What became of a model: ``before`` is the digest that its configuration named."""

    name: str
    digest: str
    before: str
    changed: bool


def upgrade(repository: Path, say: Callable[[str], None] = lambda text: None) -> list[Upgraded]:
    """Upgrade every model of a repository that needs it; *say* is given a line for each.

    The folders of a model are replaced together, or none is.  A model whose files are not those
    that its digest was made of gets the digest of what they are.  Raises `ExportError`.
    """
    try:
        clear_up(repository)
        configs = read_configs(repository)
        models = [graphs_of(encoder, configs) for encoder in encoders(configs)]
    except (EngineUnavailable, OSError) as error:
        raise ExportError(str(error)) from error
    if not models:
        raise ExportError(f"no model of samserve in {repository}")
    return [_upgrade(repository, graphs, say) for graphs in models]


def _upgrade(
    repository: Path, graphs: Mapping[str, ModelConfig], say: Callable[[str], None]
) -> Upgraded:
    name = parameter(graphs["encoder"], "model")
    before = parameter(graphs["decoder"], "digest")
    folders = {role: config.name for role, config in graphs.items()}
    with _reading(folders):
        whole = _is_whole(graphs, _paths(repository, folders))
    if whole:
        return Upgraded(name, before, before, changed=False)
    say(f"upgrading {name}")
    return Upgraded(name, _rewrite(repository, folders), before, changed=True)


def _is_whole(graphs: Mapping[str, ModelConfig], paths: Mapping[str, Path]) -> bool:
    """Tell whether the configurations and the graphs say what the files are."""
    if not all(says_digest(config) for config in graphs.values()):
        return False
    digests = graph_digests(paths)
    encoder = digests["encoder"]
    return (
        {parameter(config, "encoder_digest") for config in graphs.values()} == {encoder}
        and parameter(graphs["decoder"], "digest") == bundle_digest(digests)
        and all(is_stamped(path, encoder) for path in paths.values())
    )


def _rewrite(repository: Path, folders: Mapping[str, str]) -> str:
    """Replace the folders of a model, which are given by role; return the model's digest."""
    with staging(repository) as stage:
        for folder in folders.values():
            _copy(repository / folder, stage.folder / folder)
        paths = _paths(stage.folder, folders)
        with _reading(folders):
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
def _reading(folders: Mapping[str, str]) -> Iterator[None]:
    try:
        yield
    except (OSError, DecodeError) as error:
        # Its text may name the staging folder, which is gone by the time that it is read.
        why = error.strerror if isinstance(error, OSError) else error
        raise ExportError(f"{' or '.join(folders.values())} cannot be read: {why}") from error


def _paths(repository: Path, folders: Mapping[str, str]) -> dict[str, Path]:
    return {role: repository / each / MODEL_VERSION / MODEL_FILE for role, each in folders.items()}


def _copy(folder: Path, target: Path) -> None:
    """Copy a model's folder; files that stay as they are, gigabytes of weights, are linked."""

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
    """Add output and digests to a configuration; everything else stays as it is."""
    text = path.read_text(encoding="utf-8")
    if f'"{DIGEST_OUTPUT}"' not in text:
        found = _OUTPUTS.search(text)
        if found:
            outputs = f"{found[0].removesuffix(chr(10))},\n  {_OUTPUT}\n"
            text = text[: found.start()] + outputs + text[found.end() :]
        else:
            # Fields that repeat may be given in several places.
            text = f"{text.rstrip()}\noutput [\n  {_OUTPUT}\n]\n"
    text, count = _said("digest").subn(rf'\g<1>"{digest}"', text)
    if count != 1:
        raise ExportError(f"{path.parent.name}: the parameter samserve.digest is not found")
    text, count = _said("encoder_digest").subn(rf'\g<1>"{encoder_digest}"', text)
    if not count:
        line = parameter_text("samserve.encoder_digest", encoder_digest)
        text, count = _DIGEST_LINE.subn(rf"\g<0>{line}", text)
        text = text if count else f"{text.rstrip()}\n{line}"
    path.write_text(text, encoding="utf-8", newline="\n")


def _said(key: str) -> re.Pattern[str]:
    """Find the value of a parameter, however the configuration is laid out."""
    return re.compile(rf'("samserve\.{key}"\s*,?\s*value:?\s*\{{\s*string_value:\s*)"[^"]*"')
