"""The shape of the code: who may import whom, and how large things may become."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

from grpc._cython import cygrpc
from samserve import errors
from samserve.rpc.status import code_of

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "service" / "samserve"
MODULES = sorted(
    path for path in PACKAGE.rglob("*.py") if path.parent.name != "v1" and path.stat().st_size
)

# What each part may import of the package itself, by prefix; parts not named here may import
# everything.  The order is the direction of the data: from the doors inwards.
ALLOWED = {
    "types": (),
    "errors": (),
    "core": ("types", "core"),
    "principal": ("errors",),
    "context": ("errors", "principal"),
    "gate": ("context",),
    "watched": ("errors", "file_permissions"),
    "file_permissions": (),
    "security.setup": ("addresses", "errors", "principal", "settings", "watched", "security"),
    "security": ("errors", "pem", "principal", "validation", "watched", "security"),
    "quotas": ("errors", "principal", "security.policy"),
    "flight": (),
    "workers": ("context", "gate"),
    "startup_retry": ("errors",),
    "addresses": (),
    "extras": (),
    "validation": (),
    "pem": (),
    "in_memory": (),
    "machine": (),
    "places": ("errors",),
    "prefetches": ("errors", "context", "gate", "places"),
    "settings": ("addresses", "settings"),
    "identity": ("types",),
    "card": ("types",),
    "imaging": ("types", "errors", "imaging"),
    "memory": ("types", "errors", "memory"),
    "metrics": ("types", "context", "stores.base", "watched", "metrics"),
    "tracing": ("context", "errors", "extras", "settings", "tracing"),
    "stores.opening": ("engines.base", "metrics", "settings", "stores", "watched"),
    "stores.cluster": (
        *("types", "errors", "addresses", "gate", "in_memory", "metrics", "pem", "settings"),
        *("stores.base", "stores.cluster", "watched"),
    ),
    "stores": ("types", "errors", "flight", "memory", "stores"),
    "engines.base": ("types", "context", "memory.base", "stores.base"),
    "engines": (
        *("types", "errors", "card", "context", "memory", "metrics", "settings", "stores.base"),
        *("file_permissions", "gate", "identity", "in_memory", "startup_retry", "pem", "engines"),
    ),
    "prompting": ("types", "errors", "core", "engines.base"),
    "warmup": (
        *("types", "errors", "context", "startup_retry", "principal"),
        *("engines.base", "stores.base"),
    ),
    "encoder": (
        *("types", "errors", "context", "core", "engines.base", "stores.base"),
        *("flight", "imaging", "prompting", "workers"),
    ),
    "embedder": (
        *("types", "errors", "context", "encoder", "engines.base", "stores.base"),
        *("identity", "imaging", "prefetches", "principal", "workers"),
    ),
    "predictor": ("types", "errors", "context", "core", "engines.base", "embedder", "prompting"),
    "automask": (
        *("types", "errors", "context", "core", "engines.base", "embedder", "prompting"),
        *("imaging", "automask"),
    ),
    "client": ("types", "addresses", "card", "core", "v1", "client"),
    "export.parity": ("types", "core", "export"),
    "export.upgrade": ("errors", "identity", "engines.repository", "export"),
    "export.pictures": ("types", "errors", "imaging", "export"),
    "export": ("errors", "types", "card", "identity", "export"),
}

# Libraries that only these parts may import.
RESERVED = {
    "PIL": ("imaging", "core.geometry", "cli"),
    "cv2": ("core", "cli"),
    "pycocotools": ("core",),
    "grpc": ("rpc", "client", "cli", "tracing.otel"),
    "opentelemetry": ("tracing.otel", "client.tracing"),
    "grpc_health": ("rpc", "client"),
    "grpc_reflection": ("rpc",),
    "grpc_status": ("rpc", "client"),
    "jwt": ("security.tokens",),
    "cryptography": ("pem", "engines.triton.credentials"),
    "torch": ("export",),
    "onnx": ("export",),
    "onnxruntime": ("engines.onnx", "export.parity", "cli.doctor"),
    "safetensors": ("export.sources",),
    "huggingface_hub": ("export.sources.hub",),
    "urllib3": ("export",),
    "tritonclient": ("engines",),
    "typer": ("cli",),
    "prometheus_client": (
        *("metrics", "rpc.admin", "app"),
        *("cli.cache_gateway", "cli.cache_nodes"),
    ),
    "redis": ("stores.cluster",),
    "xxhash": ("stores.cluster.values",),
}

MOST_LINES, MOST_FUNCTION_LINES, MOST_NESTING = 400, 60, 3


def name_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE).with_suffix("")
    parts = relative.parts[:-1] if relative.name == "__init__" else relative.parts
    return ".".join(parts)


def within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imports(path: Path) -> Iterator[str]:
    """Every imported module, also those imported inside functions."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            if node.module == "samserve":
                yield from (f"samserve.{alias.name}" for alias in node.names)


def rule_for(name: str) -> tuple[str, ...] | None:
    """The most specific rule."""
    matching = [prefix for prefix in ALLOWED if within(name, prefix)]
    return ALLOWED[max(matching, key=len)] if matching else None


def test_modules_import_only_inwards() -> None:
    wrong = [
        (name_of(path), module)
        for path in MODULES
        if (allowed := rule_for(name_of(path))) is not None
        for each in imports(path)
        if within(each, "samserve")
        and (module := each.removeprefix("samserve.")) not in ("samserve", "__version__")
        and not any(within(module, prefix) for prefix in allowed)
    ]

    assert len(MODULES) > 100
    assert wrong == []


def test_libraries_stay_in_the_parts_that_own_them() -> None:
    wrong = [
        (name_of(path), module)
        for path in MODULES
        for module in imports(path)
        for library, owners in RESERVED.items()
        if within(module, library) and not any(within(name_of(path), owner) for owner in owners)
    ]

    assert wrong == []


def test_modules_and_functions_stay_small_and_flat() -> None:
    long = [path.name for path in MODULES if len(path.read_text().splitlines()) > MOST_LINES]
    deep = []
    for path in MODULES:
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                name = f"{name_of(path)}.{node.name}"
                long += [name] if lines(node) > MOST_FUNCTION_LINES else []
                deep += [name] if nesting(node) > MOST_NESTING else []

    assert (long, deep) == ([], [])


def lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (node.end_lineno or 0) - node.lineno + 1


def nesting(node: ast.AST, depth: int = 0) -> int:
    """Depth of blocks inside a function; a nested function begins again."""
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


def test_the_only_catch_all_is_the_boundary() -> None:
    catchers = [
        name_of(path)
        for path in MODULES
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.ExceptHandler)
        and isinstance(node.type, ast.Name)
        and node.type.id in ("Exception", "BaseException")
        and not any(isinstance(inner, ast.Raise) for inner in ast.walk(node))
    ]

    # The flight hands every failure of its work on to its callers.
    assert sorted(catchers) == ["rpc.boundary"]


def test_every_error_has_a_status() -> None:
    def leaves(kind: type[errors.SamserveError]) -> Iterator[type[errors.SamserveError]]:
        below = kind.__subclasses__()
        yield from (leaf for sub in below for leaf in leaves(sub))
        if not below:
            yield kind

    from_table = {
        kind.__name__: code_of(kind.__new__(kind)).name for kind in leaves(errors.SamserveError)
    }

    internal = {name for name, code in from_table.items() if code == "INTERNAL"}
    assert internal == {kind.__name__ for kind in leaves(errors.EngineFailure)}
    assert len(from_table) >= 9


def test_options_of_grpc_are_known_to_it() -> None:
    """gRPC ignores an option that it does not know; its core has the names of all that it does."""
    core = Path(cygrpc.__file__).read_bytes()
    named = {
        node.value
        for path in MODULES
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Constant) and str(node.value).startswith("grpc.")
    }

    assert "grpc.max_receive_message_length" in named
    assert [name for name in sorted(named) if name.encode() + b"\0" not in core] == []
