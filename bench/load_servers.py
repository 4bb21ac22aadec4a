"""What is measured and against what: the mock, nginx (the limit), Turnout, and peers where they are installed."""

from __future__ import annotations

import grp
import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from load_proc import LoadError, Server, cores, free_port, raise_file_limit, serve

BENCH = Path(__file__).resolve().parent
ROOT = BENCH.parent
TOOLS = BENCH / "tools"
#: Where peers are looked for; see PEER_HINTS.
PEERS = Path(os.environ.get("TURNOUT_PEERS", BENCH / "peers"))
KEY = "bench-key-0123456789abcdef0123456789abcdef"

TURNOUT_YAML = """\
listen: {{host: 127.0.0.1, port: {port}}}
auth: {{keys: [{{name: bench, key: "env:TURNOUT_KEY"}}]}}
log: {{requests: "off"}}
admin: {{host: 127.0.0.1, port: {admin_port}}}
state: {{dir: {state}}}
providers: {{a: {{kind: openai, base_url: "http://127.0.0.1:{upstream}/v1", api_key: "env:A_KEY"}}}}
routes: [{{name: chat, match: {{model: "*"}}, targets: [{{provider: a}}]}}]
"""

LITELLM_YAML = """\
model_list:
  - {{model_name: m, litellm_params: {{model: openai/m, api_base: "http://127.0.0.1:{upstream}/v1", api_key: none}}}}
{streams}
general_settings: {{master_key: "{key}"}}
litellm_settings: {{num_retries: 0, telemetry: false}}
"""

PEER_HINTS = {
    "litellm": f"python3 -m venv {PEERS}/litellm && {PEERS}/litellm/bin/pip install 'litellm[proxy]'",
    "portkey": f"npm install --prefix {PEERS}/portkey @portkey-ai/gateway",
}


def build_tools() -> tuple[Path, Path]:
    """Builds mock and load generator when their source is newer; returns the two programs."""
    cargo = shutil.which("cargo") or shutil.which("cargo", path=str(Path.home() / ".cargo/bin"))
    release = TOOLS / "target/release"
    programs = release / "mock", release / "load"
    sources = [TOOLS / "Cargo.toml", TOOLS / "Cargo.lock", *TOOLS.glob("src/**/*.rs")]
    newest = max(path.stat().st_mtime for path in sources if path.exists())
    if all(path.exists() and path.stat().st_mtime >= newest for path in programs):
        return programs
    if cargo is None:
        raise LoadError("cargo is missing, the load tools cannot be built: install Rust (https://rustup.rs)")
    print("building bench/tools ...", file=sys.stderr)
    built = subprocess.run(
        [cargo, "build", "--release", "--quiet", "--jobs", "2", "--target-dir", str(TOOLS / "target")], cwd=TOOLS
    )
    if built.returncode != 0:
        raise LoadError(f"cargo build in {TOOLS} failed")
    for path in programs:
        path.touch()  # cargo leaves a program alone that has not changed; we go by its time
    return programs


def start_mock(program: Path, folder: Path) -> Server:
    """The upstream, on the core of the tools."""
    port = free_port()
    server = serve("mock", [str(program), "--port", str(port)], port, cores()[1], folder)
    server.wait_ready()
    return server


def start_nginx(upstream: int, folder: Path) -> Server:
    """nginx in front of the mock, from nginx.conf.in, in its own folder."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if program is None:
        raise LoadError("nginx is missing, the limit cannot be measured: apt-get install nginx-light (or nginx)")
    prefix = folder / "nginx"
    prefix.mkdir()
    port = free_port()
    values = {"DIR": str(prefix), "UPSTREAM": str(upstream), "PORT": str(port)}
    values["FILES"] = str(min(raise_file_limit(), 65536))
    me = pwd.getpwuid(os.getuid())
    # As root the worker would become `nobody`, which may not enter our folder.
    values["USER"] = f"user {me.pw_name} {grp.getgrgid(me.pw_gid).gr_name};" if me.pw_uid == 0 else ""
    text = (BENCH / "nginx.conf.in").read_text()
    for name, value in values.items():
        text = text.replace(f"@{name}@", value)
    conf = prefix / "nginx.conf"
    conf.write_text(text)
    argv = [program, "-p", str(prefix), "-c", str(conf), "-e", str(prefix / "error.log")]
    server = serve("nginx", argv, port, cores()[0], folder)
    return _ready(server)


def turnout_python() -> str:
    """The Python that has Turnout: the project's .venv, else the one that runs us."""
    venv = ROOT / ".venv/bin/python"
    return str(venv) if venv.exists() else sys.executable


def start_turnout(upstream: int, folder: Path, engine: str | None = None, name: str = "turnout") -> Server:
    """Turnout in front of the mock: key check, one route, one provider, no request log. `engine` None: its default."""
    python = turnout_python()
    env = {"TURNOUT_KEY": KEY, "A_KEY": "sk-bench"}
    if subprocess.run([python, "-c", "import turnout"], capture_output=True, cwd=folder).returncode != 0:
        env["PYTHONPATH"] = str(ROOT / "core")  # not installed: from the source tree, if its requirements are there
        found = subprocess.run(
            [python, "-c", "import turnout"], capture_output=True, text=True, cwd=folder, env={**os.environ, **env}
        )
        if found.returncode != 0:
            why = found.stderr.strip().splitlines()[-1:] or ["?"]
            raise LoadError(f"Turnout is not installed for {python} ({why[0]}): {python} -m pip install {ROOT}")
    state = folder / f"{name}-state"
    state.mkdir()
    port, admin_port = free_port(), free_port()
    config = folder / f"{name}.yaml"
    config.write_text(TURNOUT_YAML.format(port=port, admin_port=admin_port, state=state, upstream=upstream))
    argv = [python, "-m", "turnout", "serve", "--config", str(config)]
    argv += ["--engine", engine] if engine else []
    server = serve(name, argv, port, cores()[0], folder, env)
    server.key = KEY
    return _ready(server)


def _find_litellm() -> str | None:
    local = PEERS / "litellm/bin/litellm"
    return str(local) if local.exists() else shutil.which("litellm")


def start_litellm(upstream: int, folder: Path) -> Server:
    """LiteLLM's proxy with a master key, one worker, no database; models named (a wildcard costs it double)."""
    program = _find_litellm()
    if program is None:
        raise LoadError(f"litellm is not installed: {PEER_HINTS['litellm']}")
    port = free_port()
    config = folder / "litellm.yaml"
    name = "m-c50-g20"
    streams = (
        f"  - {{model_name: {name}, litellm_params: "
        f'{{model: openai/{name}, api_base: "http://127.0.0.1:{upstream}/v1", api_key: none}}}}'
    )
    config.write_text(LITELLM_YAML.format(upstream=upstream, streams=streams, key=f"sk-{KEY}"))
    argv = [program, "--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    env = {"LITELLM_MODE": "PRODUCTION", "LITELLM_LOG": "ERROR", "LITELLM_TELEMETRY": "False"}
    env["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it asks the internet for prices when it starts
    server = serve("litellm", argv, port, cores()[0], folder, env)
    server.key = f"sk-{KEY}"
    return _ready(server, "/health/readiness", 120)


def start_portkey(upstream: int, folder: Path) -> Server:
    """Portkey's open gateway, headless; the provider is named by request headers."""
    script = PEERS / "portkey/node_modules/@portkey-ai/gateway/build/start-server.js"
    node = shutil.which("node")
    if node is None or not script.exists():
        raise LoadError(f"portkey is not installed (needs node): {PEER_HINTS['portkey']}")
    port = free_port()
    argv = [node, str(script), f"--port={port}", "--headless"]
    env = {"NODE_ENV": "production", "TRUSTED_CUSTOM_HOSTS": "localhost,127.0.0.1"}
    server = serve("portkey", argv, port, cores()[0], folder, env)
    server.headers = (f"x-portkey-custom-host: http://127.0.0.1:{upstream}/v1", "x-portkey-provider: openai")
    return _ready(server, "/", 60)


#: Peers that `run --peers` knows: upstream port and folder in, started server out.
PEER_STARTS: dict[str, Callable[[int, Path], Server]] = {"litellm": start_litellm, "portkey": start_portkey}


def _ready(server: Server, path: str = "/readyz", timeout_s: float = 30.0) -> Server:
    try:
        server.wait_ready(path, timeout_s)
    except BaseException:
        server.stop()
        raise
    return server
