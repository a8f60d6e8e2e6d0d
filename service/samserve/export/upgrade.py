"""Having the models of a repository say with each answer which weights have made it.

Models that were exported before that was asked for get the output, and nothing else: their masks
stay the same to the last bit, and so do their digests.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.message import DecodeError

from samserve.errors import EngineUnavailable
from samserve.export.errors import ExportError
from samserve.export.staging import clear_up, staging
from samserve.export.stamp import is_stamped, remove_stamp, stamp
from samserve.export.triton_repository import CONFIG_FILE, MODEL_VERSION
from samserve.models.digest import DIGEST_OUTPUT, DIGEST_WORDS, MODEL_FILE, pair_digest
from samserve.models.repository import encoders, parameter, read_configs, says_digest

_OUTPUT = f'{{ name: "{DIGEST_OUTPUT}" data_type: TYPE_INT32 dims: [ {DIGEST_WORDS} ] }}'
# As the export writes them; of other texts nothing but their end is known.
_OUTPUTS = re.compile(r"^output \[\n(?:  \{[^\n]*\},?\n)+", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Upgraded:
    """What became of a model: ``before`` is the digest that its configuration named."""

    name: str
    digest: str
    before: str
    changed: bool


def upgrade(repository: Path, say: Callable[[str], None] = lambda text: None) -> list[Upgraded]:
    """Upgrade every pair of a repository that needs it; *say* is told which.

    Both folders of a pair are replaced together, or neither.  A pair whose files are not those
    that its digest was made of gets the digest of what they are.  Raises `ExportError`.
    """
    try:
        clear_up(repository)
        configs = read_configs(repository)
    except (EngineUnavailable, OSError) as error:
        raise ExportError(str(error)) from error
    names = [parameter(config, "model") for config in encoders(configs.values())]
    if not names:
        raise ExportError(f"no model of samserve in {repository}")
    done = []
    for name in names:
        roles = (f"{name}_encoder", f"{name}_decoder")
        missing = [role for role in roles if role not in configs]
        if missing:
            raise ExportError(f"{missing[0]} is missing in {repository}")
        digests = [parameter(configs[role], "digest") for role in roles]
        whole = all(says_digest(configs[role]) for role in roles) and digests[0] == digests[1]
        paths = [repository / role / MODEL_VERSION / MODEL_FILE for role in roles]
        if whole and _says(paths, digests[0]):
            done.append(Upgraded(name, digests[0], digests[0], changed=False))
            continue
        say(f"upgrading {name}")
        digest = _upgrade_pair(repository, roles)
        done.append(Upgraded(name, digest, digests[0], changed=True))
    return done


def _says(paths: list[Path], digest: str) -> bool:
    try:
        return pair_digest(*paths) == digest and all(is_stamped(path, digest) for path in paths)
    except (OSError, DecodeError) as error:
        raise ExportError(f"{paths[0].parents[2]} cannot be read: {error}") from error


def _upgrade_pair(repository: Path, roles: tuple[str, str]) -> str:
    with staging(repository) as stage:
        for role in roles:
            _copy(repository / role, stage.folder / role)
        paths = [stage.folder / role / MODEL_VERSION / MODEL_FILE for role in roles]
        try:
            for path in paths:
                remove_stamp(path)
            digest = pair_digest(*paths)
            for path in paths:
                stamp(path, digest)
        except (OSError, DecodeError) as error:
            # The error names the staging folder, which is gone by then.
            why = error.strerror if isinstance(error, OSError) else error
            raise ExportError(f"{roles[0]} or {roles[1]} cannot be read: {why}") from error
        for role in roles:
            _declare(stage.folder / role / CONFIG_FILE, digest)
        stage.publish(list(roles))
    return digest


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


def _declare(path: Path, digest: str) -> None:
    """Have a configuration name the output and the digest; everything else stays as it is."""
    text = path.read_text(encoding="utf-8")
    if f'"{DIGEST_OUTPUT}"' not in text:
        found = _OUTPUTS.search(text)
        if found:
            outputs = f"{found[0].removesuffix(chr(10))},\n  {_OUTPUT}\n"
            text = text[: found.start()] + outputs + text[found.end() :]
        else:
            # Fields that repeat may be given in several places.
            text = f"{text.rstrip()}\noutput [\n  {_OUTPUT}\n]\n"
    said = re.compile(r'("samserve\.digest"\s*,?\s*value:?\s*\{\s*string_value:\s*)"[^"]*"')
    text, count = said.subn(rf'\g<1>"{digest}"', text)
    if count != 1:
        raise ExportError(f"{path.parent.name}: the parameter samserve.digest is not found")
    path.write_text(text, encoding="utf-8", newline="\n")
