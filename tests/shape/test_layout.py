"""Where things lie: files that fit a sitting, lists that name every file, twins that match their stubs."""

import ast
import importlib
import inspect
import types
import typing
from pathlib import Path
from typing import Any

import pytest

from turnout import native
from turnout.route.policies import POLICIES
from turnout.upstream.providers import PROVIDERS

PROJECT = Path(__file__).resolve().parents[2]  # the checkout, also where the package is installed elsewhere
ROOT = PROJECT / "core" / "turnout"

MOST_LINES = 400


def sources() -> list[str]:
    found = [*(PROJECT / "core").rglob("*.py"), *(PROJECT / "native/src").rglob("*.rs")]
    return sorted(str(path.relative_to(PROJECT)) for path in found if "build" not in path.parts)


@pytest.mark.parametrize("name", sources())
def test_a_file_fits_a_sitting(name: str) -> None:
    lines = len((PROJECT / name).read_text().splitlines())
    assert lines <= MOST_LINES


def test_the_top_level_holds_these_names_and_no_more() -> None:
    allowed = {"pyproject.toml", "README.md", "core", "native", "bench", "tests", "profiles"}
    built = {"build", "dist"}  # ignored by git; an install from this folder makes them
    assert {path.name for path in PROJECT.iterdir() if not path.name.startswith(".")} <= allowed | built


def listed(folder: str, members: tuple[Any, ...]) -> None:
    package = f"turnout.{folder.replace('/', '.')}"
    on_disk = {path.stem for path in (ROOT / folder).glob("*.py")} - {"__init__"}
    assert {member.__module__ for member in members} == {f"{package}.{name}" for name in on_disk}
    # and one line in the package's own file imports each
    tree = ast.parse((ROOT / folder / "__init__.py").read_text())
    assert {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level == 1} == on_disk


def test_every_provider_is_in_its_list() -> None:
    listed("upstream/providers", PROVIDERS)


def test_every_policy_is_in_its_list() -> None:
    assert typing.get_origin(POLICIES) in (types.UnionType, typing.Union)
    listed("route/policies", typing.get_args(POLICIES))


@pytest.mark.parametrize("members", [PROVIDERS, typing.get_args(POLICIES)])
def test_every_kind_has_a_name_of_its_own(members: tuple[Any, ...]) -> None:
    configs = [member.__struct_config__ for member in members]
    assert all(c.tag_field == "kind" and c.frozen and c.forbid_unknown_fields for c in configs)
    assert len({c.tag for c in configs}) == len(configs)


# ---- native, its stub, its twin


Signatures = dict[str, dict[str, str]]


def signatures(source: str) -> Signatures:
    """Public class or function -> method ("" for a function itself) -> signature."""

    def shape(f: ast.FunctionDef) -> str:
        return f"({ast.unparse(f.args)}) -> {ast.unparse(f.returns) if f.returns else None}"

    found: Signatures = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            methods = [m for m in node.body if isinstance(m, ast.FunctionDef)]
            found[node.name] = {m.name: shape(m) for m in methods if m.name == "__init__" or not m.name.startswith("_")}
        elif isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            found[node.name] = {"": shape(node)}
    return found


# No kernels: the engine and its parts do I/O and have no twin; without them granian and the pure client serve.
ENGINE = {"Engine", "Head", "Trust", "Pool", "Call"}


def stub() -> Signatures:
    """The kernels of the stub."""
    return {name: shape for name, shape in signatures((ROOT / "_native.pyi").read_text()).items() if name not in ENGINE}


def twin() -> Signatures:
    return {name: shape for path in (ROOT / "twin").glob("*.py") for name, shape in signatures(path.read_text()).items()}


def twin_of(name: str) -> Any:
    modules = (importlib.import_module(f"turnout.twin.{path.stem}") for path in (ROOT / "twin").glob("*.py") if path.stem != "__init__")
    return next(getattr(module, name) for module in modules if hasattr(module, name))


def test_stub_and_twin_have_the_same_signatures() -> None:
    assert stub() == twin()
    assert stub()


def test_native_has_what_its_stub_says() -> None:
    try:
        from turnout import _native
    except ImportError:
        pytest.skip("the extension is not built")
    assert {name for name in dir(_native) if not name.startswith("_")} == set(stub()) | ENGINE
    for name, methods in signatures((ROOT / "_native.pyi").read_text()).items():
        kernel = getattr(_native, name)
        if inspect.isclass(kernel):
            assert {m for m in dir(kernel) if not m.startswith("_")} == methods.keys() - {"__init__"}
        else:
            assert callable(kernel)


def test_native_offers_every_kernel_of_the_stub() -> None:
    assert all(hasattr(native, name) for name in stub())


def test_a_kernel_and_its_twin_say_the_same_of_themselves() -> None:
    try:
        from turnout import _native
    except ImportError:
        pytest.skip("the extension is not built")
    for name in stub():
        assert inspect.getdoc(getattr(_native, name)) == inspect.getdoc(twin_of(name)), name
