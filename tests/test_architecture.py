"""Architecture rules: permitted imports, and limits of size and nesting."""

from __future__ import annotations

import ast
import functools
import graphlib
import sys
from collections.abc import Iterator
from pathlib import Path

from grpc._cython import cygrpc
from samserve import errors
from samserve.calls.status import code_of

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "service" / "samserve"
MODULES = sorted(
    path for path in PACKAGE.rglob("*.py") if path.parent.name != "v1" and path.stat().st_size
)

# What each part of the package may import from other parts, as prefixes.  A part is a module of the
# root or a folder; a longer name is a stricter rule for a subpackage.  The order is the direction:
# a part imports only from parts above it, so there are no cycles between parts.
ALLOWED: dict[str, tuple[str, ...]] = {
    "errors": (),
    "types": (),
    "stages": (),
    "core": ("types",),
    "images": ("errors", "types"),
    "memory": ("errors", "types"),
    "models.families": ("core", "errors", "types"),
    "models": ("errors", "types"),
    "system": ("errors",),
    "settings": ("system",),
    "security": ("errors", "settings", "system"),
    "context": ("errors", "security.principal", "stages", "types.models"),
    "scheduling": ("context", "errors"),
    "telemetry": ("context", "errors", "settings", "stages", "system", "types"),
    "engines.base": ("context", "memory", "types"),
    "engines": (
        *("context", "errors", "memory", "models", "scheduling", "security.pem", "settings"),
        *("system", "telemetry.metrics", "types"),
    ),
    "cache.base": ("errors", "memory", "types"),
    "cache": (
        *("errors", "memory", "scheduling", "security.pem", "settings", "system"),
        *("telemetry.metrics", "types"),
    ),
    "segmentation": (
        *("context", "core", "engines.base", "errors", "images", "memory", "models.families"),
        *("scheduling", "security.principal", "stages", "cache.base", "system.startup_retry"),
        "types",
    ),
    "calls": ("context", "errors", "scheduling", "security", "settings", "stages", "telemetry"),
    "rpc": (
        *("calls", "context", "core", "engines.base", "errors", "models", "scheduling"),
        *("security", "segmentation", "settings", "stages", "system", "types"),
    ),
    "admin": ("engines.base", "errors", "rpc.server", "system"),
    "http": (
        *("calls", "errors", "models.digest", "rpc.codecs", "rpc.handler", "rpc.methods"),
        *("rpc.servicer", "rpc.status", "security.authenticator", "security.certificates"),
        *("security.sessions", "settings", "system"),
        *("telemetry.metrics.http", "types"),
    ),
    "app": (
        *("admin", "calls", "context", "engines", "http", "images", "models.selection", "rpc"),
        *("scheduling", "security", "segmentation", "settings", "cache", "system", "telemetry"),
    ),
    "client": ("core.run_lengths", "core.scanlines", "system.addresses", "types"),
    "cvat": ("client",),
    "datasets": ("core", "errors", "types"),
    "annotate": ("client", "core", "datasets", "errors", "images", "system", "types"),
    "bridge": (
        *("admin.http", "calls", "client", "context", "core.run_lengths", "core.scanlines"),
        *("datasets.label_studio", "errors", "http", "scheduling"),
        *("security.setup", "security.strict", "settings", "system", "telemetry.metrics.bridge"),
        "types",
    ),
    "export": ("core", "errors", "images", "models", "types"),
    "tuning": ("core", "datasets", "errors", "export", "images", "models", "types"),
    "cli": (
        *("annotate", "app", "bridge", "client", "datasets", "errors", "export", "images"),
        *("models", "security", "settings"),
        *("cache", "system", "telemetry", "tuning", "types"),
    ),
    "__main__": ("cli.main",),
}

# Libraries that only these parts may import.
RESERVED = {
    "PIL": (
        *("images", "client", "core.geometry", "core.mask_formats", "cvat", "cli"),
        *("datasets.image_files", "annotate.tiles.orientation"),
    ),
    "cv2": ("core", "cli", "tuning"),
    "pycocotools": ("core",),
    "contourpy": ("core.polygons",),
    "shapely": ("core.polygons",),
    "grpc": ("rpc", "client", "bridge.gateways", "cvat", "cli.remote", "telemetry.tracing.otel"),
    "google": (
        *("rpc", "client", "export", "engines.triton.promotion", "models.repository"),
        "models.versions",
    ),
    "samserve.v1": ("rpc", "client"),
    "opentelemetry": ("telemetry.tracing.otel", "client.tracing"),
    "grpc_health": ("rpc",),
    "grpc_reflection": ("rpc",),
    "httptools": ("http.server",),
    "httpx2": ("bridge",),
    "httpcore2": ("bridge.fetching",),
    "cvat_sdk": ("cvat",),
    "jwt": ("security.tokens",),
    "cryptography": ("security.pem",),
    "torch": ("export", "tuning"),
    "transformers": ("export.families",),
    "peft": ("tuning.adapters",),
    "onnx": ("export", "tuning"),
    "onnxruntime": (
        *("engines.onnx", "engines.onnx_sessions", "export.parity", "export.tiny.shapes"),
        "cli.doctor",
    ),
    "safetensors": ("export.sources", "tuning"),
    "huggingface_hub": ("export.sources.hub",),
    "pooch": ("export.download",),
    "requests": ("export.download",),
    "urllib3": ("export.download",),
    "tritonclient": ("engines", "models.repository"),
    "typer": ("cli",),
    "prometheus_client": ("telemetry.metrics", "admin.http", "app", "bridge.app", "cli.cache"),
    "fsspec": ("annotate",),
    "rasterio": ("annotate.tiles.gdal",),
    "ray": ("annotate.ray",),
    "pillow_heif": ("client.conversion", "datasets.image_files"),
    "redis": ("cache.shared.redis.connection",),
    "xxhash": ("cache.shared.value_format",),
    "yaml": ("datasets.yolo.description",),
}

# The distribution `samserve-client` contains the parts `client`, `cvat` and `v1` and these modules;
# it depends on these libraries only.
CLIENT_PARTS = ("client", "cvat", "v1")
CLIENT_LEAVES = {
    *("", "core", "core.run_lengths", "core.scanlines", "system", "system.addresses", "types"),
    "types.models",
}
CLIENT_LIBRARIES = {"PIL", "google", "grpc", "numpy"}
# By library, the modules that need it.
OPTIONAL_OF_CLIENT = {
    "opentelemetry": ("client.tracing",),
    "cvat_sdk": ("cvat",),
    "pillow_heif": ("client.conversion",),
}

# Other packages of this repository: no module of theirs imports one that imports it.
OTHERS = ("training", "harness", "monitoring", "benchmarks", "fuzz", "chart")

MAX_LINES, MAX_FUNCTION_LINES, MAX_NESTING = 350, 50, 3


def name_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE).with_suffix("")
    parts = relative.parts[:-1] if relative.name == "__init__" else relative.parts
    return ".".join(parts)


def within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@functools.cache
def imports(path: Path) -> tuple[str, ...]:
    """Return every imported module, including imports inside functions."""
    found: list[str] = []
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            submodules = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [each if each in modules() else node.module for each in submodules]
    return tuple(found)


@functools.cache
def modules() -> dict[str, Path]:
    """Return the modules of all packages of this repository by name."""
    folders = [PACKAGE, *(ROOT / name for name in OTHERS)]
    return {
        ".".join(path.relative_to(folder.parent).with_suffix("").parts).removesuffix(".__init__"): (
            path
        )
        for folder in folders
        for path in folder.rglob("*.py")
    }


def rule_for(name: str) -> tuple[str, ...]:
    """Return the most specific rule."""
    return ALLOWED[max((prefix for prefix in ALLOWED if within(name, prefix)), key=len)]


def test_parts_import_only_from_permitted_parts() -> None:
    violations = [
        (name_of(path), module)
        for path in MODULES
        if name_of(path)
        for each in imports(path)
        if within(each, "samserve")
        and (module := each.removeprefix("samserve.")) not in ("samserve", "__version__")
        and not within(module, "v1")
        and part_of(module) != part_of(name_of(path))
        and not any(within(module, prefix) for prefix in rule_for(name_of(path)))
    ]

    assert len(MODULES) > 100
    assert violations == []


def test_client_needs_only_the_modules_and_libraries_of_its_distribution() -> None:
    files = {name_of(path): path for path in PACKAGE.rglob("*.py")}
    own = {name for name in files if part_of(name) in CLIENT_PARTS}
    needed, libraries = set(own), set()
    pending = list(own)
    while pending:
        name = pending.pop()
        for module in imports(files[name]):
            if within(module, "samserve"):
                found = set(packages_and_module(module)) - needed
                needed |= found
                pending += found
            else:
                libraries.add((name, part_of(module)))

    assert needed - own == CLIENT_LEAVES
    others = {
        library
        for name, library in libraries
        if library not in sys.stdlib_module_names
        and not any(within(name, each) for each in OPTIONAL_OF_CLIENT.get(library, ()))
    }
    assert others == CLIENT_LIBRARIES


def packages_and_module(name: str) -> list[str]:
    """Return a module of samserve and the packages that contain it, as `name_of` writes them."""
    parts = name.split(".")[1:]
    return [".".join(parts[:count]) for count in range(len(parts) + 1)]


def test_rules_name_every_part_in_order_of_dependency() -> None:
    parts = list(dict.fromkeys(part_of(name) for name in ALLOWED))
    violations = [
        (name, prefix)
        for name, prefixes in ALLOWED.items()
        for prefix in prefixes
        if parts.index(part_of(prefix)) >= parts.index(part_of(name))
    ]

    assert {part_of(name_of(path)) for path in MODULES if name_of(path)} == set(parts)
    assert violations == []


def test_modules_have_no_import_cycles() -> None:
    imported = {name: {*imports(path)} & {*modules()} - {name} for name, path in modules().items()}

    assert len(imported) > 200
    assert all(any(within(name, package) for name in imported) for package in OTHERS)
    graphlib.TopologicalSorter(imported).prepare()


def part_of(name: str) -> str:
    return name.partition(".")[0]


def test_libraries_are_imported_only_by_their_owners() -> None:
    violations = [
        (name_of(path), module)
        for path in MODULES
        for module in imports(path)
        for library, owners in RESERVED.items()
        if within(module, library) and not any(within(name_of(path), owner) for owner in owners)
    ]

    assert violations == []


def test_redis_client_is_imported_only_by_its_owners() -> None:
    client = "cache.shared.redis"
    users = {
        name_of(path)
        for path in MODULES
        if any(within(each, f"samserve.{client}") for each in imports(path))
    }

    assert {each for each in users if not within(each, client)} == {
        *("cli.cache.stats", "cache.factory", "cache.shared.diagnosis"),
    }


def test_modules_and_functions_are_within_size_and_nesting_limits() -> None:
    long = [path.name for path in MODULES if len(path.read_text().splitlines()) > MAX_LINES]
    deep = []
    for path in MODULES:
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                name = f"{name_of(path)}.{node.name}"
                long += [name] if lines(node) > MAX_FUNCTION_LINES else []
                deep += [name] if nesting(node) > MAX_NESTING else []

    assert (long, deep) == ([], [])


def lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (node.end_lineno or 0) - node.lineno + 1


def nesting(node: ast.AST, depth: int = 0) -> int:
    """Return the depth of blocks inside a function; a nested function starts at 0."""
    blocks = ast.For | ast.AsyncFor | ast.While | ast.If | ast.With | ast.AsyncWith | ast.Try
    deepest = depth
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        deeper = isinstance(child, blocks) and not _is_elif(node, child)
        deepest = max(deepest, nesting(child, depth + deeper))
    return deepest


def _is_elif(parent: ast.AST, child: ast.AST) -> bool:
    return isinstance(parent, ast.If) and isinstance(child, ast.If) and parent.orelse == [child]


def test_only_calls_and_background_tasks_catch_all_exceptions() -> None:
    catchers = [
        name_of(path)
        for path in MODULES
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.ExceptHandler)
        and isinstance(node.type, ast.Name)
        and node.type.id in ("Exception", "BaseException")
        and not any(isinstance(inner, ast.Raise) for inner in ast.walk(node))
    ]

    assert sorted(catchers) == ["bridge.pipeline", "calls.pipeline", "system.background"]


def test_every_error_has_a_status() -> None:
    def leaves(kind: type[errors.SamserveError]) -> Iterator[type[errors.SamserveError]]:
        subclasses = kind.__subclasses__()
        yield from (leaf for sub in subclasses for leaf in leaves(sub))
        if not subclasses:
            yield kind

    from_table = {
        kind.__name__: code_of(kind.__new__(kind)).name for kind in leaves(errors.SamserveError)
    }

    internal = {name for name, code in from_table.items() if code == "INTERNAL"}
    assert internal == {kind.__name__ for kind in leaves(errors.EngineFailure)}
    assert len(from_table) >= 9


def test_grpc_options_are_supported() -> None:
    """gRPC ignores unknown options; its core library contains the names of all known ones."""
    core = Path(cygrpc.__file__).read_bytes()
    named = {
        node.value
        for path in MODULES
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Constant) and str(node.value).startswith("grpc.")
    }

    assert "grpc.max_receive_message_length" in named
    assert [name for name in sorted(named) if name.encode() + b"\0" not in core] == []
