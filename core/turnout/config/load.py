"""A config from file, dict or environment to checked Structs: text -> plain data -> `Config` -> cross-checks.

The supervisor loads (`load_file`, `load_data`) and hands `Loaded.data` and `Loaded.secrets` to its workers, which only
call `from_wire`: they read no file and no environment variable, so all of them always hold the same config. In `data`
secrets stay what they are in the file, references; the values travel apart and exist nowhere else.
"""

import hashlib
import os
import re
import stat
from collections.abc import Callable, Mapping
from pathlib import Path as File
from typing import TYPE_CHECKING, Any

import msgspec

from ..secret import Certificate, Pem, Secret
from .check import check
from .dev import dev_config
from .explain import explain, is_plain
from .model import Config
from .problem import ConfigError, Findings, Locate, Problem, nowhere

if TYPE_CHECKING:
    from .parse import Raw

__all__ = [
    "Config",
    "ConfigError",
    "Loaded",
    "MapResolver",
    "Problem",
    "SecretResolver",
    "check",
    "decode",
    "dev_config",
    "from_wire",
    "load_data",
    "load_file",
    "parse",
]

Resolve = Callable[[str], str]

MAX_FILE_BYTES = 1 << 20
MAX_SECRET_BYTES = 64 * 1024  # a service account's JSON takes 2.4 kB; a path to /dev/zero must end somewhere
BY_REFERENCE = "secrets are given by reference only: env:NAME or file:/path"
_PEM = (Certificate, Pem)  # these may have more than one line
_REFERENCE = re.compile(r"env:[A-Za-z_][A-Za-z0-9_]*|file:/[^\x00]*", re.DOTALL)
# What we dare to repeat in a message. `env:` in front of a pasted key is a common slip; keys have lower-case letters.
_SHOWN_NAME = re.compile(r"[A-Z][A-Z0-9_]{0,63}")


class Loaded(msgspec.Struct, frozen=True):
    """A config that may serve. `data` and `secrets` are all that a worker needs; `digest` names the data.

    The digest is 12 hex digits of SHA-256 over the data, in which secrets are references: it is safe to show, and a
    rotated secret does not change it (compare `secrets` for that).
    """

    config: Config
    data: dict[str, Any]
    secrets: dict[str, str]  # reference -> value
    warnings: list[Problem]
    digest: str
    name: str = "config"

    def __repr__(self) -> str:
        return f"Loaded({self.name!r}, digest={self.digest!r}, {len(self.secrets)} secrets)"


class SecretResolver:
    """Reads `env:NAME` and `file:/path`, and remembers in `values` what it read. Each reference is read once.

    Raises `ValueError` whose message names neither the value nor the file.
    """

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        self._environ = os.environ if environ is None else environ
        self.values: dict[str, str] = {}
        self._texts: dict[str, str] = {}

    def __call__(self, ref: str) -> str:
        if ref not in self.values:
            self.values[ref] = _usable(*self._read(ref))
        return self.values[ref]

    def text(self, ref: str) -> str:
        """The same for what may have more than one line."""
        if ref not in self._texts:
            text, what = self._read(ref)
            if not text.strip():
                raise ValueError(f"{what} is empty")
            self._texts[ref] = text
        return self._texts[ref]

    def _read(self, ref: str) -> tuple[str, str]:
        """The value, and what to call its place."""
        kind, _, rest = ref.partition(":")
        return self._env(rest) if kind == "env" else self._file(rest)

    def _env(self, name: str) -> tuple[str, str]:
        shown = f" {name}" if _SHOWN_NAME.fullmatch(name) else " named here"
        if name not in self._environ:
            raise ValueError(f"the environment variable{shown} is not set")
        return self._environ[name], f"the environment variable{shown}"

    def _file(self, path: str) -> tuple[str, str]:
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for its writer
                raise ValueError("the file named here is not a regular file")
            with open(path, "rb") as file:
                content = file.read(MAX_SECRET_BYTES + 1)
        except OSError as wrong:
            raise ValueError(f"the file named here cannot be read: {wrong.strerror or 'I/O error'}") from None
        if len(content) > MAX_SECRET_BYTES:
            raise ValueError(f"the file named here is larger than {MAX_SECRET_BYTES >> 10} KiB")
        try:
            text = content.decode()
        except UnicodeDecodeError:
            raise ValueError("the file named here is not text") from None
        return text, "the file named here"


def _usable(value: str, what: str) -> str:
    """The value without its last line end. It will stand in a header: a line end inside would forge another one."""
    value = value.removesuffix("\n").removesuffix("\r")
    if not value:
        raise ValueError(f"{what} is empty")
    if not (value.isascii() and value.isprintable()) or value != value.strip():
        raise ValueError(f"{what} holds characters that no key has: line ends, spaces around it, or non-ASCII")
    return value


class MapResolver:
    """Looks references up among values that were resolved elsewhere: what a worker uses."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = values

    def __call__(self, ref: str) -> str:
        try:
            return self._values[ref]
        except KeyError:
            raise ValueError("this secret was not handed over") from None


def parse(text: str, name: str) -> "Raw":
    """Text -> plain data with positions, by the ending of `name` (.toml, .json, all others YAML). `ConfigError`."""
    from .parse import parse as read  # here, not above: workers must not load a YAML parser

    return read(text, name)


def decode(
    data: Any, resolve: Resolve, locate: Locate = nowhere, *, name: str = "config", text: Resolve | None = None
) -> Config:
    """Plain data -> `Config`, strictly. Raises `ConfigError` with every problem found, each at its own path.

    `resolve` gets well-formed references only and raises `ValueError` with a message for people. `text` does so where
    a value may have more than one line; without it `resolve` does.
    """

    def hook(type_: type, value: Any) -> Any:
        if type_ is object:  # the values of a route's `set`: any JSON (msgspec knows `Any`, but asks about `object`)
            return value
        if type_ is not Secret and type_ not in _PEM:
            raise NotImplementedError(type_)
        if not isinstance(value, str) or not _REFERENCE.fullmatch(value):
            if type_ is not Certificate or not isinstance(value, str) or not value:
                raise ValueError(BY_REFERENCE)
            value = f"file:{os.path.abspath(value)}"
        return type_(value, resolve(value) if type_ is Secret else (text or resolve)(value))

    try:
        return msgspec.convert(data, Config, dec_hook=hook)
    except msgspec.ValidationError as wrong:
        found = Findings(locate)
        explain(data, Config, hook, found)
        if not found.problems:  # cannot be; but a refusal must never look like a success
            found.error((), f"not a config ({type(wrong).__name__})")
        raise ConfigError(found.problems, name) from None


def load_file(
    path: str | os.PathLike[str],
    *,
    dev: bool = False,
    resolver: Resolve | None = None,
    listen: Mapping[str, Any] | None = None,
) -> Loaded:
    """Reads, decodes and checks a config file. Raises `ConfigError`, also when the file cannot be read.

    `dev`: without keys is allowed on a loopback address. `listen`: what the command line says over the file's `listen`
    (host, port, workers), so that the checks see what will really be opened.
    """
    raw = parse(_read(path), os.fspath(path))
    return _load(raw.data, dev, resolver, listen, raw.locate, raw.name)


def load_data(
    data: Mapping[str, Any],
    *,
    dev: bool = False,
    resolver: Resolve | None = None,
    listen: Mapping[str, Any] | None = None,
    locate: Locate = nowhere,
    name: str = "config",
) -> Loaded:
    """The same for data that is already there: the demo, `--dev` without a file, tests. `data` itself is not kept."""
    return _load(dict(data), dev, resolver, listen, locate, name)


def from_wire(data: Any, secrets: Mapping[str, str]) -> Config:
    """What a worker makes of `Loaded.data` and `Loaded.secrets`. They were checked; decoding checks the shapes again."""
    return decode(data, MapResolver(secrets))


def _load(
    data: dict[str, Any],
    dev: bool,
    resolver: Resolve | None,
    listen: Mapping[str, Any] | None,
    locate: Locate,
    name: str,
) -> Loaded:
    if listen and isinstance(data.get("listen", {}), dict):
        data = {**data, "listen": {**data.get("listen", {}), **listen}}
    found = Findings(locate)
    if not is_plain(data, found):
        raise ConfigError(found.problems, name)
    encoded = msgspec.json.encode(data, order="sorted")
    resolve = resolver or SecretResolver()
    secrets: dict[str, str] = {}

    def keep(ref: str) -> str:
        secrets[ref] = resolve(ref)
        return secrets[ref]

    def keep_text(ref: str) -> str:
        secrets[ref] = getattr(resolve, "text", resolve)(ref)
        return secrets[ref]

    config = decode(data, keep, locate, name=name, text=keep_text)
    problems = check(config, locate, dev=dev)
    if any(not problem.warning for problem in problems):
        raise ConfigError([problem for problem in problems if not problem.warning], name)
    digest = hashlib.sha256(encoded).hexdigest()[:12]
    return Loaded(config, msgspec.json.decode(encoded), secrets, problems, digest, name)


def _read(path: str | os.PathLike[str]) -> str:
    name = os.fspath(path)
    try:
        with File(path).open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            raise ConfigError([Problem("", f"larger than {MAX_FILE_BYTES >> 20} MiB")], name)
        return content.decode()
    except OSError as wrong:
        raise ConfigError([Problem("", f"cannot be read: {wrong.strerror or 'I/O error'}")], name) from None
    except ValueError:  # UnicodeDecodeError, or a NUL in the path
        raise ConfigError([Problem("", "cannot be read: not UTF-8 text")], name) from None
