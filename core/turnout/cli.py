"""The `turnout` command."""

import argparse
import asyncio
import contextlib
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from . import __version__, native
from .config.load import ConfigError, Loaded, dev_config, load_data, load_file
from .config.problem import Problem

ENGINES = ("native", "granian")
DEFAULT_ENGINE = "native" if native.Engine is not None else "granian"
EXIT_USAGE = 2


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    try:
        return args.run(args)  # type: ignore[no-any-return]
    except ConfigError as wrong:
        print(wrong, file=sys.stderr)
        return EXIT_USAGE
    except BrokenPipeError:
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="turnout", description="One OpenAI-compatible endpoint in front of many model providers."
    )
    parser.add_argument("--version", action="version", version=f"turnout {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    serve = commands.add_parser("serve", help="run the gateway")
    serve.add_argument("--config", metavar="FILE", help="YAML, TOML or JSON, by its ending")
    serve.add_argument(
        "--engine",
        choices=ENGINES,
        default=DEFAULT_ENGINE,
        help="the server and upstream client (default: native where it is built, else granian)",
    )
    serve.add_argument(
        "--workers", type=int, metavar="N", help="worker processes (default: listen.workers of the config, 1)"
    )
    serve.add_argument("--host", metavar="H", help="over listen.host of the config")
    serve.add_argument(
        "--port", type=int, metavar="P", help="over listen.port of the config; 0 lets the system pick one"
    )
    serve.add_argument(
        "--dev",
        action="store_true",
        help="serve without keys, on a loopback address only; without --config: in front of the providers whose keys are set",
    )
    serve.set_defaults(run=_serve)

    demo = commands.add_parser("demo", help="the whole thing with simulated providers: no keys, no network")
    demo.add_argument(
        "--once", action="store_true", help="end after the tour; the exit code says whether all went well"
    )
    demo.add_argument("--engine", choices=ENGINES, default=DEFAULT_ENGINE)
    demo.set_defaults(run=_demo)

    check = commands.add_parser("check", help="check a config file without serving it")
    check.add_argument("file", metavar="FILE")
    check.add_argument("--dev", action="store_true", help="as `serve --dev` would take it")
    check.set_defaults(run=_check)

    explain = commands.add_parser("explain", help="say where a request would go, and why")
    explain.add_argument("file", metavar="FILE", nargs="?", help="a config: as it begins, without statistics")
    explain.add_argument(
        "--admin", metavar="URL", help="ask the running gateway; its admin key is read from TURNOUT_ADMIN_KEY"
    )
    explain.add_argument("--model", default="", help="what the client asks for")
    explain.add_argument("--route", default="", help="or the name of a route")
    explain.add_argument("--key", default="", metavar="NAME", help="the name of a key (default: the first)")
    explain.add_argument("--tags", default="")
    explain.add_argument("--session", default="")
    explain.add_argument("--bytes", type=int, default=200, help="of prompt")
    explain.add_argument("--plain", action="store_true", help="not a stream")
    explain.add_argument("--tools", action="store_true")
    explain.add_argument("--header", action="append", default=[], metavar="NAME=VALUE")
    explain.add_argument("--json", action="store_true")
    explain.add_argument("--dev", action="store_true", help="as `serve --dev` would take the file")
    explain.set_defaults(run=_explain)

    cache = commands.add_parser("cache", help="what a running gateway's cache holds, and letting go of it")
    cache.add_argument("--admin", metavar="URL", required=True, help="its admin key is read from TURNOUT_ADMIN_KEY")
    cache.add_argument("--purge", action="store_true", help="count what fits the options below (with none: everything)")
    cache.add_argument("--yes", action="store_true", help="... and let it go")
    cache.add_argument("--entry", default="", metavar="KEY", help="as x-turnout-cache-key says it, or its beginning")
    for name in ("tag", "model", "key", "route", "tenant"):
        cache.add_argument(f"--{name}", default="")
    cache.add_argument(
        "--semantic", action="store_true", help="what the semantic cache knows: rates, bars, near misses"
    )
    cache.add_argument(
        "--calibration",
        metavar="FILE",
        help="... a picture (PNG) of its scores on --route, and how often they were right",
    )
    cache.set_defaults(run=_cache)

    init = commands.add_parser("init", help="write a commented config to begin with")
    init.add_argument("file", metavar="FILE", nargs="?", default="turnout.yaml")
    init.set_defaults(run=_init)

    schema = commands.add_parser("schema", help="print the JSON Schema of the config, for editors")
    schema.set_defaults(run=_schema)
    return parser


def say(line: str) -> None:
    """One line for a person, on stderr: stdout belongs to the request log."""
    print(line, file=sys.stderr, flush=True)


def pick_engine(asked: str) -> str:
    """The engine to run: what was asked for, or granian where native is not built."""
    if asked == "native" and native.Engine is None:
        say(f"engine native is not available ({native.missing}); serving with granian")
        return "granian"
    return asked


# ---- serve


def _serve(args: argparse.Namespace) -> int:
    listen = {name: value for name in ("host", "port", "workers") if (value := getattr(args, name)) is not None}
    load: Callable[[], Loaded]
    if args.config:
        load = lambda: load_file(args.config, dev=args.dev, listen=listen)
    elif args.dev:
        load = lambda: load_data(dev_config(os.environ), dev=True, listen=listen, name="--dev")
    else:
        say("turnout serve needs --config FILE (make one with `turnout init`), or --dev to try it without")
        return EXIT_USAGE
    return asyncio.run(_run(load, pick_engine(args.engine), args.dev, args.config))


async def _run(load: Callable[[], Loaded], engine: str, dev: bool, path: str | None) -> int:
    from .ingress.supervisor import Supervisor, install_signals

    supervisor = Supervisor(load, engine=engine, dev=dev, say=say, path=path)
    _warn(supervisor.loaded.warnings, supervisor.loaded.name)
    install_signals(supervisor)
    try:
        await supervisor.start()
    except (OSError, RuntimeError) as wrong:
        say(f"cannot start: {wrong}")
        supervisor.stop()
        await supervisor.run()
        return 1
    _greet(supervisor, engine, dev)
    await supervisor.run()
    return 0


def _greet(supervisor: Any, engine: str, dev: bool) -> None:
    """What is running and where; never a secret."""
    config = supervisor.loaded.config
    kernels = f"twins: {native.missing}" if native.missing else "native kernels"
    host = f"[{config.listen.host}]" if ":" in config.listen.host else config.listen.host
    workers = len(supervisor.slots)
    say(f"turnout {__version__}, engine {engine}, {kernels}, {workers} worker{'s' if workers > 1 else ''}")
    scheme = "https" if config.listen.tls else "http"
    say(
        f"listening on {scheme}://{host}:{supervisor.port}, admin on http://{config.admin.host}:{supervisor.admin.port}"
    )
    for route in config.routes:
        targets = ", ".join(t.label for t in route.targets)
        kind = type(route.routing_policy).__struct_config__.tag
        say(f"  route {route.name}: {route.match.model} -> {kind}: {targets}")
    if dev and not config.auth.keys:
        say("  no keys: everyone who reaches this address may use it (--dev)")
    say(
        f"config {supervisor.loaded.name} version {supervisor.version} ({supervisor.loaded.digest}), state in {config.state.dir}"
    )


# ---- demo


class RunningGateway:
    """A gateway in a thread of this process, for the demo's tour."""

    def __init__(self, base_url: str, admin_url: str, simulators: Mapping[str, str]) -> None:
        self.base_url = base_url
        self.admin_url = admin_url
        self.simulators = simulators


@contextlib.contextmanager
def start_gateway(data: dict[str, Any], engine: str) -> Iterator[RunningGateway]:
    """Run a config until the context ends. Raises RuntimeError if it does not come up, ConfigError if it is bad."""
    from .ingress.supervisor import Supervisor

    supervisor = Supervisor(lambda: load_data(data), engine=engine, dev=False, say=say)
    up = threading.Event()
    failed: list[BaseException] = []
    loops: list[asyncio.AbstractEventLoop] = []

    async def run() -> None:
        loops.append(asyncio.get_running_loop())
        try:
            await supervisor.start()
        except BaseException as wrong:
            failed.append(wrong)
            supervisor.stop()
        up.set()
        await supervisor.run()

    thread = threading.Thread(target=lambda: asyncio.run(run()), name="supervisor")
    thread.start()
    up.wait()
    try:
        if failed:
            raise RuntimeError(f"the gateway did not start: {failed[0]}")
        config = supervisor.loaded.config
        assert supervisor.admin is not None
        yield RunningGateway(
            f"http://{config.listen.host}:{supervisor.port}",
            f"http://{config.admin.host}:{supervisor.admin.port}",
            supervisor.simulators,
        )
    finally:
        with contextlib.suppress(RuntimeError):
            loops[0].call_soon_threadsafe(supervisor.stop)
        thread.join()


def _demo(args: argparse.Namespace) -> int:
    from .demo import demo

    if native.missing:
        say(f"native kernels: not used ({native.missing}); running on the Python twins")
    return demo(args.once, pick_engine(args.engine), start_gateway)


# ---- small commands


def _check(args: argparse.Namespace) -> int:
    loaded = load_file(args.file, dev=args.dev)
    _warn(loaded.warnings, loaded.name)
    routes, providers = len(loaded.config.routes), len(loaded.config.providers)
    print(f"{args.file}: good ({routes} routes, {providers} providers, digest {loaded.digest})")
    return 0


def _warn(problems: Sequence[Problem], name: str) -> None:
    for problem in problems:
        say(f"warning: {problem.show(name)}")


def _cache(args: argparse.Namespace) -> int:
    from .explaining import ask_admin, fetch_admin, purge_gateway

    key = os.environ.get("TURNOUT_ADMIN_KEY", "")
    fields = {name: getattr(args, name) for name in ("entry", "tag", "model", "key", "route", "tenant")}
    looks = {name for name in ("entry",) if args.semantic} | {name for name in ("route", "tenant") if args.calibration}
    if not args.purge and (args.yes or any(value for name, value in fields.items() if name not in looks)):
        say("turnout cache: these options go with --purge")
        return EXIT_USAGE
    try:
        if args.calibration:
            path = f"/admin/cache/calibration?route={quote(args.route)}&tenant={quote(args.tenant)}"
            Path(args.calibration).write_bytes(fetch_admin(args.admin, path, key))
            print(f"wrote {args.calibration}")
            return 0
        if args.semantic:
            path = f"/admin/cache/semantic?entry={quote(args.entry)}"
            print(json.dumps(ask_admin(args.admin, path, key), indent=2))
            return 0
        if args.purge:
            found = purge_gateway(args.admin, {**fields, "dry": not args.yes}, key)
            verb = "would go; --yes lets them" if found["dry"] else "went"
            print(f"{found['entries']} entries ({found['bytes']} bytes) of {found['workers']} workers {verb}")
        else:
            print(json.dumps(ask_admin(args.admin, "/admin/cache", key), indent=2))
    except (OSError, ValueError) as wrong:
        say(f"turnout cache: {wrong}")
        return 1
    return 0


def _explain(args: argparse.Namespace) -> int:
    from .explaining import ask_file, ask_gateway, show

    fields = {name: getattr(args, name) for name in ("model", "route", "key", "tags", "session", "bytes", "tools")}
    fields["stream"] = not args.plain
    headers = dict(pair.split("=", 1) for pair in args.header if "=" in pair)
    if bool(args.file) == bool(args.admin) or not (args.model or args.route):
        say("turnout explain needs FILE or --admin URL, and --model or --route")
        return EXIT_USAGE
    try:
        if args.file:
            reports = [ask_file(load_file(args.file, dev=args.dev), fields, headers, args.dev)]
        else:
            reports = ask_gateway(args.admin, fields, headers, os.environ.get("TURNOUT_ADMIN_KEY", ""))
    except (OSError, ValueError) as wrong:
        say(f"cannot ask: {wrong}")
        return 1
    for report in reports:
        print(json.dumps(report, indent=2) if args.json else report.get("refused") or show(report))
    return 1 if any("refused" in report for report in reports) else 0


def _init(args: argparse.Namespace) -> int:
    from .config.template import TEMPLATE

    try:
        with Path(args.file).open("x", encoding="utf-8") as file:
            file.write(TEMPLATE)
    except FileExistsError:
        say(f"{args.file} exists already and is left as it is")
        return 1
    except OSError as wrong:
        say(f"{args.file} cannot be written: {wrong.strerror}")
        return 1
    print(
        f"wrote {args.file}; check it with `turnout check {args.file}`, run it with `turnout serve --config {args.file}`"
    )
    return 0


def _schema(args: argparse.Namespace) -> int:
    from .config.schema import json_schema

    print(json.dumps(json_schema(), indent=2))
    return 0
