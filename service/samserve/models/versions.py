"""Versions of a model in its repository: which is in service, which came before, and a new one.

A version is a numbered folder of each graph that it replaced, ``<model>_decoder/2/model.onnx``, and
a complete configuration of that graph, ``<model>_decoder/configs/version-2.pbtxt``.  The version in
service is the one that ``<model>_decoder/config.pbtxt`` describes, which is a copy of one of these:
it also names the version of the encoder, and the version before it.  A crash at any point leaves
the version in service that was before, or the new one, complete.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import text_format

from samserve.errors import EngineUnavailable, PromotionRefused
from samserve.models.digest import (
    DATA_FILE,
    MODEL_FILE,
    TUNED_FILE,
    bundle_digest,
    graph_digests,
    stamped_digest,
)
from samserve.models.repository import (
    CONFIG_FILE,
    Bundle,
    ModelConfig,
    bundle_of,
    config_of_version,
    discover,
    encoders,
    in_service,
    parameter,
    read_config,
    version_of,
    with_files,
)
from samserve.types import ModelVersion

_ROLES = ("encoder", "decoder")
_PREFIX = "samserve."


@dataclass(frozen=True, slots=True)
class Version:
    """A version of a model that its repository holds.

    ``configs`` are by role and name the graphs, their versions and digests.  ``weight_bytes`` are
    those of the files of each graph.
    """

    model: str
    configs: Mapping[str, ModelConfig]
    weight_bytes: Mapping[str, int]

    @property
    def number(self) -> str:
        """The number of the version: that of its decoder."""
        return version_of(self.configs["decoder"])

    @property
    def digest(self) -> str:
        """The digest of the weights of all graphs."""
        return parameter(self.configs["decoder"], "digest")

    def replacing(self, now: Version) -> ModelVersion:
        """Describe this version for the engines that serve *now*."""
        return ModelVersion(
            model=self.model,
            number=self.number,
            digest=self.digest,
            configs=tuple(text_format.MessageToString(each) for each in self.configs.values()),
            new_bytes=sum(
                nbytes
                for role, nbytes in self.weight_bytes.items()
                if version_of(self.configs[role]) != version_of(now.configs[role])
            ),
            served_bytes=sum(now.weight_bytes.values()),
        )


def bundle_from(version: ModelVersion) -> tuple[Bundle[str], dict[str, ModelConfig]]:
    """Return the graphs of a version by name, and their configurations by role.

    Raises `PromotionRefused` if they are inconsistent or those of another version.
    """
    try:
        configs = [text_format.Parse(text, ModelConfig()) for text in version.configs]
        (encoder,) = encoders(configs)
        bundle = bundle_of(encoder, configs)
    except (text_format.ParseError, ValueError, EngineUnavailable) as error:
        raise PromotionRefused(f"the version cannot be served: {error}") from error
    if (bundle.info.name, bundle.info.digest) != (version.model, version.digest):
        raise PromotionRefused("the configurations are those of another version")
    return bundle, {parameter(config, "role"): config for config in configs}


def files_of(repository: Path, bundle: Bundle[str]) -> Bundle[Path]:
    """Return the files of a version in a repository.

    Raises `PromotionRefused` if they are missing or have other digests than the version.
    """
    try:
        found = with_files(bundle, repository)
        digests = graph_digests(found.graphs)
    except (EngineUnavailable, OSError) as error:
        raise PromotionRefused(
            f"this server reads its models from {repository}: {error}; install the version there"
        ) from error
    if bundle_digest(digests) != bundle.info.digest:
        raise PromotionRefused(
            f"the files in {repository} have the digest {bundle_digest(digests)[:12]}, the version "
            f"{bundle.info.digest[:12]}"
        )
    return found


def current(repository: Path, model: str) -> Version:
    """Return the version in service.  Raises `PromotionRefused` for an unknown model."""
    paths = {role: repository / f"{model}_{role}" / CONFIG_FILE for role in _ROLES}
    for path in paths.values():
        if not path.is_file():
            raise PromotionRefused(
                f"there is no model {model!r} in {repository}: {path} is missing"
            )
    configs = {role: in_service(read_config(path), repository) for role, path in paths.items()}
    return _with_sizes(repository, model, configs)


def previous(repository: Path, model: str) -> Version:
    """Return the version before the one in service.  Raises `PromotionRefused` if there is none."""
    now = current(repository, model)
    number = parameter(now.configs["decoder"], "previous_version")
    if not number:
        raise PromotionRefused(f"model {model!r} has no version before {now.number}")
    return _installed(repository, model, number)


def digest_of(source: Path) -> str:
    """Return the digest of the model in a repository with one model."""
    return _source(source).info.digest


def weight_bytes(path: Path) -> int:
    """Return the size of a graph's file and of its external weights; 0 if it is missing."""
    files = (path, path.with_name(DATA_FILE))
    return sum(file.stat().st_size for file in files if file.exists())


def install(repository: Path, model: str, source: Path) -> Version:
    """Copy the model in the repository *source* into *repository* as a new version of *model*.

    It is not in service yet: `commit` does that.  Raises `PromotionRefused` before anything
    changes: for files that are not those of their digests, a decoder of another encoder, another
    family, or the weights that are in service already.
    """
    now = current(repository, model)
    new = _source(source)
    _check(now, new, model)
    number = str(max(_numbers(repository, model)) + 1)
    replaced = [
        role for role in _ROLES if role == "decoder" or _encoder(new) != _encoder_of(now.configs)
    ]
    _pin(repository, now)
    configs = dict(now.configs)
    for role in replaced:
        folder = repository / f"{model}_{role}"
        _copy(new.graphs[role].parent, folder / number)
        configs[role] = _renamed(_source_config(source, new, role), folder.name, model, number)
    decoder = configs["decoder"]
    _set(decoder, "encoder_version", version_of(configs["encoder"]))
    _set(decoder, "previous_version", now.number)
    for role in replaced:
        _write(config_of_version(repository, f"{model}_{role}", number), configs[role])
    return _with_sizes(repository, model, configs)


def remove(repository: Path, version: Version) -> None:
    """Delete the files of a version that `install` has returned and that was not committed."""
    for config in version.configs.values():
        if version_of(config) == version.number:
            config_of_version(repository, config.name, version.number).unlink(missing_ok=True)
            shutil.rmtree(repository / config.name / version.number, ignore_errors=True)


def commit(repository: Path, version: Version) -> None:
    """Put a version into service for every server that starts from now on.

    The decoder's configuration is renamed last: it decides.
    """
    for role in _ROLES:
        path = repository / version.configs[role].name / CONFIG_FILE
        if read_config(path) != version.configs[role]:
            _write(path, version.configs[role])


def _check(now: Version, new: Bundle[Path], model: str) -> None:
    digests = graph_digests(new.graphs)
    name = new.info.name
    if bundle_digest(digests) != new.info.digest or digests["encoder"] != new.info.encoder_digest:
        raise PromotionRefused(
            f"the files of {name!r} have the digest {bundle_digest(digests)[:12]}, their "
            f"configuration says {new.info.digest[:12]}: export it again, or correct it with "
            "`samserve models upgrade`"
        )
    for role, path in new.graphs.items():
        stamped = stamped_digest(path)
        if stamped != new.info.encoder_digest:
            raise PromotionRefused(
                f"{path}: this {role} belongs to the encoder {stamped[:12] or 'none'}, "
                f"its configuration says {new.info.encoder_digest[:12]}"
            )
    if new.info.digest == now.digest:
        raise PromotionRefused(f"model {model!r} has these weights already: {now.digest[:12]}")
    family = parameter(now.configs["encoder"], "family")
    if new.info.family != family:
        raise PromotionRefused(
            f"{name!r} is of the family {new.info.family!r}, model {model!r} of {family!r}: "
            "serve it under a name of its own"
        )


def _source(source: Path) -> Bundle[Path]:
    try:
        bundles = discover(source)
    except (EngineUnavailable, OSError) as error:
        raise PromotionRefused(f"{source} is not a repository with a model: {error}") from error
    if len(bundles) != 1:
        names = ", ".join(bundle.info.name for bundle in bundles)
        raise PromotionRefused(f"{source} has several models: {names}; copy one into a folder")
    return bundles[0]


def _source_config(source: Path, new: Bundle[Path], role: str) -> ModelConfig:
    config = read_config(source / f"{new.info.name}_{role}" / CONFIG_FILE)
    return in_service(config, source)


def _installed(repository: Path, model: str, number: str) -> Version:
    decoder = read_config(config_of_version(repository, f"{model}_decoder", number))
    encoder = config_of_version(
        repository, f"{model}_encoder", parameter(decoder, "encoder_version")
    )
    return _with_sizes(repository, model, {"encoder": read_config(encoder), "decoder": decoder})


def _with_sizes(repository: Path, model: str, configs: Mapping[str, ModelConfig]) -> Version:
    sizes = {}
    for role, config in configs.items():
        sizes[role] = weight_bytes(repository / config.name / version_of(config) / MODEL_FILE)
    return Version(model, configs, sizes)


def _encoder(bundle: Bundle[Path]) -> str:
    return bundle.info.encoder_digest


def _encoder_of(configs: Mapping[str, ModelConfig]) -> str:
    return parameter(configs["encoder"], "encoder_digest")


def _numbers(repository: Path, model: str) -> Iterator[int]:
    for role in _ROLES:
        for folder in (repository / f"{model}_{role}").iterdir():
            if folder.name.isdecimal():
                yield int(folder.name)


def _pin(repository: Path, now: Version) -> None:
    """Name the version in service in its configurations: by default Triton loads the latest one."""
    _set(now.configs["decoder"], "encoder_version", version_of(now.configs["encoder"]))
    for role in _ROLES:
        config = now.configs[role]
        _renamed(config, config.name, now.model, version_of(config))
        _write(config_of_version(repository, config.name, version_of(config)), config)
        _write(repository / config.name / CONFIG_FILE, config)


def _renamed(config: ModelConfig, graph: str, model: str, version: str) -> ModelConfig:
    config.name = graph
    _set(config, "model", model)
    _set(config, "version", version)
    config.version_policy.Clear()
    config.version_policy.specific.versions.append(int(version))
    return config


def _set(config: ModelConfig, key: str, value: str) -> None:
    config.parameters[f"{_PREFIX}{key}"].string_value = value


def _copy(source: Path, target: Path) -> None:
    """Copy the files of a graph; the folder appears complete."""
    partial = target.with_name(f".{target.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    for name in (MODEL_FILE, DATA_FILE, TUNED_FILE):
        if (source / name).exists():
            with (source / name).open("rb") as file, (partial / name).open("xb") as copied:
                shutil.copyfileobj(file, copied, 1 << 20)
                copied.flush()
                os.fsync(copied.fileno())
    partial.rename(target)
    _sync(target.parent)


def _write(path: Path, config: ModelConfig) -> None:
    """Replace a configuration by a rename, after its content has reached the disk."""
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    with temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text_format.MessageToString(config))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    _sync(path.parent)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
