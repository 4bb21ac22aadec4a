"""What all tests share: the engines, a gateway on real sockets, and the recorded traffic where it is there."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from support import lanes  # noqa: E402
from support.gateway import Gateway  # noqa: E402
from turnout import native  # noqa: E402

# Every flow, fault and surface test runs on each of these.
ENGINES = ("granian",) if native.Engine is None else ("granian", "native")
# Without its limit of 200 ms for an example, which a loaded machine does not keep.
hypothesis.settings.register_profile("turnout", hypothesis.settings.default, deadline=None)
hypothesis.settings.load_profile("turnout")
SHARED = HERE.parent.parent / "shared"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="run the long forms of the tests")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    lanes.open_lanes(config)


def pytest_configure(config: pytest.Config) -> None:
    lanes.configure(config)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--full"):
        for item in items:
            if item.get_closest_marker("full"):
                item.add_marker(pytest.mark.skip(reason="the long form: run with --full"))


@pytest.fixture(scope="session")
def full(request: pytest.FixtureRequest) -> bool:
    """Whether the long forms are wanted."""
    return bool(request.config.getoption("--full"))


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def serve(engine: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Gateway]]:
    """`serve(config, **options)` starts a gateway on real sockets; all are stopped at the end of the module."""
    running: list[Gateway] = []

    def start(config: dict[str, Any], **options: Any) -> Gateway:
        gateway = Gateway(config, engine=engine, folder=tmp_path_factory.mktemp("gateway"), **options)
        running.append(gateway)
        return gateway.start()

    yield start
    for gateway in running:
        gateway.stop()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of recordings and vectors beside the project."""
    if not (SHARED / "data").is_dir():
        pytest.skip("the folder of recorded traffic is not beside the project")
    return SHARED
