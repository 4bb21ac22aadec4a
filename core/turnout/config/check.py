"""Cross-checks: what a config whose every field is well-formed can still get wrong as a whole.

`check` reports everything it finds; nothing here raises. It touches the disk only to read `ca_bundle` files. No message
repeats a value that could hold a credential: a URL with a password in it, a header, a secret.
"""

import os
import re
import ssl
from collections.abc import Mapping, Sequence
from typing import Any

from .. import native
from ..admit.spec import KeySpec
from ..catalog import Catalog
from ..route.stage import matches
from ..secret import Secret
from ..state import spec as redis
from .hosts import is_loopback, is_private, url_fault, url_parts
from .model import Config, ListenTls
from .problem import Findings, Locate, Path, Problem
from .routing import check_embedding, check_targets, is_header_text

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # goes into headers, metric labels and file names as it is
NAME_SAYS = "use letters, digits, `.`, `_` and `-`, beginning with a letter or digit"
MAX_NAME = 200
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, 5.6.2

# Written by the upstream client itself; a second one from the config would break framing or reach another host.
_OURS = frozenset(("host", "content-length", "transfer-encoding", "connection", "keep-alive", "proxy-connection", "te"))
_OURS |= {"trailer", "upgrade", "expect"}
# Carry credentials: those are given by reference, in `api_key`.
_CREDENTIALS = frozenset(("authorization", "proxy-authorization", "cookie", "x-api-key", "api-key", "x-goog-api-key"))
_NOT_SET = frozenset(("model", "messages", "stream"))  # what a request is; `set` is for how it is answered
_ANY = frozenset(("0.0.0.0", "::"))  # every address of the machine, loopback too
_SHORT_KEY = 16  # characters: less can be guessed, at 4 bits each, within a botnet's reach


def check(config: Config, locate: Locate, *, dev: bool = False) -> list[Problem]:
    """All that is wrong with a decoded config, warnings included. `dev`: no keys is allowed on a loopback address."""
    found = Findings(locate)
    _check_listeners(config, found, dev)
    _check_keys(config, found)
    for name, spec in config.providers.items():
        _check_provider(("providers", name), name, spec, found)
    if not config.providers:
        found.error(("providers",), "no provider: a gateway needs at least one")
    _check_routes(config, found)
    _check_telemetry(config, found)
    _check_models(config, found)
    return found.problems


# -- front door ---------------------------------------------------------------------------------------------------


def _check_listeners(config: Config, found: Findings, dev: bool) -> None:
    listen, admin = config.listen, config.admin
    for path, host in ((("listen", "host"), listen.host), (("admin", "host"), admin.host)):
        if not re.fullmatch(r"[A-Za-z0-9.:_-]+", host):
            found.error(path, "expected a host name or an IP address to listen on")
    same_host = listen.host == admin.host or not _ANY.isdisjoint((listen.host, admin.host))
    if listen.port and listen.port == admin.port and same_host:
        found.error(("admin", "port"), "the admin listener needs a port of its own: this one is `listen.port`")
    if admin.key is None and not is_loopback(admin.host):
        found.error(("admin", "key"), "required, because admin.host is not a loopback address")
    if not config.auth.keys:
        if not dev:
            found.error(("auth", "keys"), "no key configured: set auth.keys, or use --dev on a loopback address")
        elif not is_loopback(listen.host):
            found.error(("listen", "host"), "no key configured: --dev without keys serves on a loopback address only")
    if listen.tls is not None:
        _check_tls(listen.tls, found)
    _check_state(config, found)


def _check_state(config: Config, found: Findings) -> None:
    if not config.state.dir or "\0" in config.state.dir:
        found.error(("state", "dir"), "expected a directory")
    spec = config.state.shared
    if spec is None:
        return
    short = isinstance(config.state.redis, str)
    if wrong := redis.fault(spec):
        field, said = wrong
        found.error(("state", "redis") if short else ("state", "redis", field), said)
        return
    if spec.ca_bundle is not None:
        _check_ca_bundle(("state", "redis", "ca_bundle"), spec.ca_bundle, found)
    place = redis.where(spec.url)
    if not place.tls and not all(is_loopback(host) for host, _ in place.nodes):
        path: Path = ("state", "redis") if short else ("state", "redis", "url")
        found.warn(path, "without TLS: what is shared, and a password, cross the network in the clear")


def _check_tls(tls: ListenTls, found: Findings) -> None:
    """Whether certificate and key can be used, and belong together."""
    cert, key = (
        os.memfd_create("pem") for _ in range(2)
    )  # OpenSSL reads files only, and these may come from elsewhere
    try:
        for fd, pem in ((cert, tls.cert), (key, tls.key)):
            os.write(fd, pem.reveal().encode())
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
            f"/proc/self/fd/{cert}", f"/proc/self/fd/{key}", password=""
        )
        if native.Engine is not None:  # what serves is rustls: some old curves and short keys are OpenSSL's alone
            native.Engine.check_tls(tls.cert.reveal().encode(), tls.key.reveal().encode())
    except ssl.SSLError as wrong:
        if wrong.reason == "KEY_VALUES_MISMATCH":
            found.error(("listen", "tls", "key"), "is not the key of the certificate in listen.tls.cert")
        elif "-----BEGIN CERTIFICATE-----" not in tls.cert.reveal():
            found.error(("listen", "tls", "cert"), "not a certificate in PEM")
        elif "PRIVATE KEY-----" not in tls.key.reveal():
            found.error(("listen", "tls", "key"), "not a private key in PEM")
        else:
            found.error(("listen", "tls"), "certificate and key cannot be loaded: damaged, or the key has a password")
    except ValueError:
        found.error(("listen", "tls"), "certificate and key are of a kind that engine native cannot use")
    finally:
        os.close(cert)
        os.close(key)


def _check_keys(config: Config, found: Findings) -> None:
    keys = config.auth.keys
    _check_names([(("auth", "keys", i, "name"), key.name) for i, key in enumerate(keys)], "key", found)
    holders: dict[str, int] = {}
    for i, key in enumerate(keys):
        path: Path = ("auth", "keys", i)
        if key.team is not None:
            _check_name((*path, "team"), key.team, found)
        value = key.key.reveal()
        if (first := holders.setdefault(value, i)) != i:
            found.error((*path, "key"), f"has the same value as auth.keys[{first}].key: nobody could tell them apart")
        elif len(value) < _SHORT_KEY:
            found.warn((*path, "key"), f"shorter than {_SHORT_KEY} characters: easy to guess")
        if (admin := config.admin.key) is not None and admin.reveal() == value:
            found.error((*path, "key"), "has the same value as admin.key: a client could reach the admin listener")
        for j, tag in enumerate(key.tags):
            if not tag or "," in tag or not is_header_text(tag):
                found.error((*path, "tags", j), "expected printable ASCII without commas")
        _check_patterns((*path, "models"), key, config, found)


def _check_patterns(path: Path, key: KeySpec, config: Config, found: Findings) -> None:
    """A pattern that no request can meet is a typing error more often than not."""
    reachable = [route.match.model for route in config.routes]
    if key.direct:
        reachable += [f"{name}/*" for name in config.providers]
    for j, pattern in enumerate(key.models):
        if not pattern or len(pattern) > MAX_NAME:
            found.error((*path, j), f"expected a pattern of 1 to {MAX_NAME} characters")
        elif not any(globs_meet(pattern, model) for model in reachable):
            found.warn((*path, j), "matches no route: this key cannot use it")


def globs_meet(a: str, b: str) -> bool:
    """Whether some text matches both patterns (`*` = any run of characters). O(len(a) * len(b))."""
    # row[j]: can what is left of `a` meet b[j:]
    row = [False] * len(b) + [True]
    for j in range(len(b) - 1, -1, -1):
        row[j] = b[j] == "*" and row[j + 1]
    for i in range(len(a) - 1, -1, -1):
        below, row = row, [False] * (len(b) + 1)
        row[-1] = a[i] == "*" and below[-1]
        for j in range(len(b) - 1, -1, -1):
            if a[i] == "*" or b[j] == "*":
                row[j] = below[j] or row[j + 1]
            else:
                row[j] = a[i] == b[j] and below[j + 1]
    return row[0]


def _check_names(named: Sequence[tuple[Path, str]], what: str, found: Findings) -> None:
    seen: set[str] = set()
    for path, name in named:
        _check_name(path, name, found)
        if name in seen:
            found.error(path, f"another {what} has this name already")
        seen.add(name)


def _check_name(path: Path, name: str, found: Findings) -> None:
    if not NAME.fullmatch(name) or len(name) > MAX_NAME:
        found.error(path, f"not a name: {NAME_SAYS}")


# -- providers ----------------------------------------------------------------------------------------------------


def _check_provider(path: Path, name: str, spec: Any, found: Findings) -> None:
    """Checks the fields that providers have in common, where this kind has them (a simulated one has none)."""
    if not NAME.fullmatch(name) or len(name) > MAX_NAME:
        found.error(path, f"not a name for a provider: {NAME_SAYS}")
    fields = {field: getattr(spec, field) for field in spec.__struct_fields__}
    host = ""
    if (base_url := fields.get("base_url")) is not None:
        host = _check_base_url((*path, "base_url"), base_url, found)
    if "api_key" in fields and "accounts" in fields:
        local = (
            (is_loopback(host) or is_private(host)) and base_url is not None and base_url.lower().startswith("http:")
        )
        _check_credentials(path, fields["api_key"], fields["accounts"], local, found)
    _check_headers((*path, "headers"), fields.get("headers") or {}, found)
    if (ca_bundle := fields.get("ca_bundle")) is not None:
        _check_ca_bundle((*path, "ca_bundle"), ca_bundle, found)
    if (proxy := fields.get("proxy")) is not None:
        _check_proxy((*path, "proxy"), proxy, found)
    idle = fields.get("max_idle_connections")
    if idle is not None and idle < 0:
        found.error((*path, "max_idle_connections"), "expected int >= 0")


def _check_base_url(path: Path, url: str, found: Findings) -> str:
    """Returns the host, or an empty text if the URL is no good."""
    if fault := url_fault(url):
        found.error(path, fault)
        return ""
    scheme, host, _, url_path = url_parts(url)
    if url_path.rstrip("/").endswith(("/chat/completions", "/completions", "/embeddings")):
        found.error(path, "ends too late: leave out what comes after the version, e.g. https://api.openai.com/v1")
    if scheme == "http" and not is_loopback(host):
        if is_private(host):
            found.warn(path, "http to a private host: prompts and the provider's key cross the network in the clear")
        else:
            found.error(path, "http is for loopback and private hosts only: use https")
    return host


def _check_credentials(
    path: Path, api_key: Secret | None, accounts: Sequence[Any], local: bool, found: Findings
) -> None:
    if api_key is not None and accounts:
        found.error((*path, "api_key"), "give either api_key or accounts, not both")
    if api_key is None and not accounts and not local:
        found.error(
            (*path, "api_key"), "required (or accounts), because base_url is not http on a loopback or private host"
        )
    _check_names(
        [((*path, "accounts", i, "name"), account.name) for i, account in enumerate(accounts)], "account", found
    )
    for i, account in enumerate(accounts):
        if not account.weight > 0:  # the draw among accounts divides by it
            found.error((*path, "accounts", i, "weight"), "expected float > 0: leave an account out to stop using it")
        for field in ("organization", "project"):
            value = getattr(account, field, None)
            if value is not None and not (value and is_header_text(value)):
                found.error((*path, "accounts", i, field), "expected printable ASCII: it is sent as a header")


def _check_headers(path: Path, headers: Mapping[str, Any], found: Findings) -> None:
    seen: set[str] = set()
    for name, value in headers.items():
        here, lower = (*path, name), name.lower()
        if not _TOKEN.fullmatch(name):
            found.error(here, "not the name of a header")
        elif lower in _OURS:
            found.error(here, "Turnout writes this header itself")
        elif lower in _CREDENTIALS:
            found.error(here, "carries a credential: give it by reference, as api_key")
        elif value.startswith(("env:", "file:/")):
            found.error(here, "is sent as it stands: references are read in api_key only")
        elif lower in seen:
            found.error(here, "stands here twice, in different letters")
        seen.add(lower)
        if isinstance(value, str) and not is_header_text(value):
            found.error(here, "expected printable ASCII")


def _check_ca_bundle(path: Path, file: str, found: Findings) -> None:
    try:
        ssl.create_default_context(cafile=file)
    except ssl.SSLError:
        found.error(path, "not a PEM file of certificates")
    except (OSError, ValueError) as wrong:
        found.error(path, f"cannot be read: {getattr(wrong, 'strerror', None) or 'not a path'}")


def _check_proxy(path: Path, url: str, found: Findings) -> None:
    fault = url_fault(url)
    if not fault:
        scheme, _, port, url_path = url_parts(url)
        if scheme != "http" or port is None or url_path not in ("", "/"):
            fault = "expected http://host:port"
    if fault:
        found.error(path, fault)


# -- routes -------------------------------------------------------------------------------------------------------


def _check_routes(config: Config, found: Findings) -> None:
    routes = config.routes
    _check_names([(("routes", i, "name"), route.name) for i, route in enumerate(routes)], "route", found)
    models: dict[str, int] = {}
    for i, route in enumerate(routes):
        path: Path = ("routes", i)
        if (first := models.setdefault(route.match.model, i)) != i:
            found.error((*path, "match", "model"), f"routes[{first}] matches the same model: one would never be used")
        if not is_header_text(route.match.model):
            found.error((*path, "match", "model"), "expected printable ASCII: it is sent back in a header")
        for before, other in enumerate(routes[:i]):
            model = route.match.model  # exact names are looked up first; patterns are tried in the order of the file
            if "*" in model and model != other.match.model and matches(other.match.model, model):
                found.warn(
                    (*path, "match", "model"), f"never used: routes[{before}] before it takes all that it matches"
                )
                break
        check_targets(path, route, config, found)
        if "{words}" not in route.stream.instruction:
            found.error((*path, "stream", "instruction"), "must say {words} where the first words belong")
        if route.cache is not None and route.cache.kept is None and not route.cache.shares:
            found.error(
                (*path, "cache"), "asks for nothing: set `exact`, `semantic` or `single_flight`, or leave it out"
            )
        if route.cache is not None and route.cache.semantic is not None:
            check_embedding((*path, "cache", "semantic", "embedding"), route.cache.semantic.embedding, config, found)
        for field in sorted(_NOT_SET & route.set.keys()):
            found.error(
                (*path, "set", field), "cannot be set: a route changes how a request is answered, not what it asks"
            )
    check_embedding(("cache", "embedding"), config.cache.embedding, config, found)
    if not routes:
        found.error(("routes",), "no route: nothing could be asked for")


# -- the rest -----------------------------------------------------------------------------------------------------


def _check_telemetry(config: Config, found: Findings) -> None:
    traces, alerts = config.telemetry.traces, config.telemetry.alerts
    path: Path = ("telemetry", "traces")
    if traces.endpoint is not None and (fault := url_fault(traces.endpoint)):
        found.error((*path, "endpoint"), fault)
    if not 0 <= traces.sample <= 1:
        found.error((*path, "sample"), "expected a share between 0 and 1")
    for name in traces.headers:
        if not _TOKEN.fullmatch(name) or name.lower() in _OURS:
            found.error((*path, "headers", name), "not a header that may be set here")
    path = ("telemetry", "alerts")
    if alerts.webhook is not None and url_fault(alerts.webhook.reveal(), query=True):
        found.error((*path, "webhook"), "what this refers to is not an http(s) URL")
    if not alerts.every_s >= 0:
        found.error((*path, "every_s"), "expected float >= 0")


def _check_models(config: Config, found: Findings) -> None:
    catalog = Catalog.builtin()
    for name, override in config.models.items():
        try:
            catalog.with_overrides({name: override})
        except ValueError as wrong:  # "model 'x': FIELD must be ..., got VALUE": the path says the rest
            said = re.search(r": (\w+) (must [^,]*(?:, from [^,]*)?)", str(wrong))
            found.error(("models", name, said[1]) if said else ("models", name), said[2] if said else "not usable")
