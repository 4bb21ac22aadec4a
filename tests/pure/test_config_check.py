"""Cross-checks of the config: each contradiction with its exact path and line."""

import itertools

import pytest
from config_text import GOOD, SECRET, load_text, refused, resolve, warned, with_
from hypothesis import given
from hypothesis import strategies as st

from turnout.config import load
from turnout.config.check import check, globs_meet
from turnout.config.hosts import is_loopback, is_private
from turnout.config.load import ConfigError, load_data
from turnout.config.problem import nowhere
from turnout.route.stage import matches

TWO_KEYS = "      key: env:APP_KEY\n    - {name: %s, key: %s}"
HTTP = "http is for loopback and private hosts only: use https"
CROSS: list[tuple[str, str, str]] = [
    ("provider: a", "provider: b", "16: routes[0].targets[0].provider: no such provider; configured: a"),
    ("routes:", '  "b c": {kind: simulated}\nroutes:', '11: providers["b c"]: not a name for a provider: use letters'),
    ("name: app", "name: -app", "4: auth.keys[0].name: not a name: use letters"),
    ("name: chat", "name: chät", "12: routes[0].name: not a name: use letters"),
    ("      key: env:APP_KEY", TWO_KEYS % ("app", "env:B"), "6: auth.keys[1].name: another key has this name already"),
    (
        "      key: env:APP_KEY",
        TWO_KEYS % ("b", "env:APP_KEY"),
        "6: auth.keys[1].key: has the same value as auth.keys[0].key",
    ),
    ("name: app", "name: app\n      team: a/b", "5: auth.keys[0].team: not a name"),
    ("name: app", "name: app\n      tags: ['a,b']", "5: auth.keys[0].tags[0]: expected printable ASCII without commas"),
    (
        "name: app",
        "name: app\n      models: ['']",
        "5: auth.keys[0].models[0]: expected a pattern of 1 to 200 characters",
    ),
    (
        "    api_key: env:A_KEY",
        "    api_key: env:A_KEY\n    accounts: [{name: x, api_key: env:B}]",
        "10: providers.a.api_key: give either api_key or accounts, not both",
    ),
    (
        "    api_key: env:A_KEY\n",
        "",
        "7: providers.a.api_key: required (or accounts), because base_url is not http on a loopback",
    ),
    (
        "    api_key: env:A_KEY",
        "    accounts:\n    - {name: x, api_key: env:B}\n    - {name: x, api_key: env:C}",
        "12: providers.a.accounts[1].name: another account has this name already",
    ),
    (
        "    api_key: env:A_KEY",
        "    accounts:\n    - {name: x y, api_key: env:B}",
        "11: providers.a.accounts[0].name: not a name",
    ),
    (
        "    api_key: env:A_KEY",
        "    accounts:\n    - {name: x, api_key: env:B, weight: 0}",
        "11: providers.a.accounts[0].weight: expected float > 0",
    ),
    (
        "    api_key: env:A_KEY",
        '    accounts:\n    - {name: x, api_key: env:B, organization: "a\\r\\nb"}',
        "11: providers.a.accounts[0].organization: expected printable ASCII",
    ),
    ("https://a.", "http://a.", f"9: providers.a.base_url: {HTTP}"),
    ("https://a.example.com", "http://8.8.8.8", f"9: providers.a.base_url: {HTTP}"),
    ("https://a.example.com", "http://169.254.169.254", f"9: providers.a.base_url: {HTTP}"),
    ("https://a.example.com", "http://0.0.0.0", f"9: providers.a.base_url: {HTTP}"),
    ("https://a.", "ftp://a.", "9: providers.a.base_url: expected a URL that begins with http:// or https://"),
    ("https://a.example.com/v1", "https:///v1", "9: providers.a.base_url: expected a URL with a host"),
    ("https://a.example.com/v1", "https://a.example.com:0/v1", "9: providers.a.base_url: expected a URL with a host"),
    ("https://a.example.com/v1", "https://a.example.com:99999/v1", "9: providers.a.base_url: not a URL"),
    ("https://a.example.com/v1", "'https://[::1/v1'", "9: providers.a.base_url: not a URL"),
    ("https://a.", f"https://u:{SECRET}@a.", "9: providers.a.base_url: a URL may hold no user or password"),
    ("/v1", "/v1?key=x", "9: providers.a.base_url: a URL here may hold no query and no fragment"),
    ("/v1", "/v1#x", "9: providers.a.base_url: a URL here may hold no query and no fragment"),
    ("/v1", "/v1/chat/completions", "9: providers.a.base_url: ends too late"),
    (
        "https://a.example.com/v1",
        '"https://a.exam\\nple.com/v1"',
        "9: providers.a.base_url: expected a URL of printable ASCII",
    ),
    *(
        (
            "    api_key",
            f"    headers: {{{name}: x}}\n    api_key",
            f"10: providers.a.headers.{name}: Turnout writes this",
        )
        for name in ("Host", "content-length", "Transfer-Encoding", "connection")
    ),
    (
        "    api_key",
        f"    headers: {{Authorization: Bearer {SECRET}}}\n    api_key",
        "10: providers.a.headers.Authorization: carries",
    ),
    ("    api_key", '    headers: {"a b": x}\n    api_key', '10: providers.a.headers["a b"]: not the name of a header'),
    (
        "    api_key",
        '    headers: {a: "x\\r\\ny: z"}\n    api_key',
        "10: providers.a.headers.a: expected printable ASCII",
    ),
    ("    api_key", "    headers: {X-A: x, x-a: y}\n    api_key", "10: providers.a.headers.x-a: stands here twice"),
    (
        "    api_key",
        "    ca_bundle: /nope/ca.pem\n    api_key",
        "10: providers.a.ca_bundle: cannot be read: No such file",
    ),
    ("    api_key", f"    ca_bundle: {__file__}\n    api_key", "10: providers.a.ca_bundle: not a PEM file"),
    ("    api_key", '    ca_bundle: "a\\0b"\n    api_key', "10: providers.a.ca_bundle: cannot be read: not a path"),
    ("    api_key", "    proxy: http://egress\n    api_key", "10: providers.a.proxy: expected http://host:port"),
    ("    api_key", "    proxy: https://egress:3128\n    api_key", "10: providers.a.proxy: expected http://host:port"),
    ("    api_key", "    proxy: http://egress:3128/x\n    api_key", "10: providers.a.proxy: expected http://host:port"),
    (
        "    api_key",
        f"    proxy: http://u:{SECRET}@egress:3128\n    api_key",
        "10: providers.a.proxy: a URL may hold no user",
    ),
    (
        "    api_key",
        "    max_idle_connections: -1\n    api_key",
        "10: providers.a.max_idle_connections: expected int >= 0",
    ),
    (
        "routes:",
        "admin: {host: 0.0.0.0}\nroutes:",
        "11: admin.key: required, because admin.host is not a loopback address",
    ),
    ("routes:", "admin: {key: env:APP_KEY}\nroutes:", "5: auth.keys[0].key: has the same value as admin.key"),
    ("routes:", "admin: {port: 8080}\nroutes:", "11: admin.port: the admin listener needs a port of its own"),
    ("127.0.0.1, port: 8080", "0.0.0.0, port: 8081", "admin.port: the admin listener needs a port of its own"),
    ("127.0.0.1", '""', "1: listen.host: expected a host name or an IP address"),
    ("routes:", "state: {dir: ''}\nroutes:", "11: state.dir: expected a directory"),
    ("    match:\n", "    set: {stream: true}\n    match:\n", "13: routes[0].set.stream: cannot be set"),
    ("    match:\n", "    set: {model: x}\n    match:\n", "13: routes[0].set.model: cannot be set"),
    ("    match:\n", "    set: {messages: []}\n    match:\n", "13: routes[0].set.messages: cannot be set"),
    ("model: fast", "model: fäst", "14: routes[0].match.model: expected printable ASCII"),
    ("model: gpt-4o-mini", "model: ''", "17: routes[0].targets[0].model: expected printable ASCII"),
    (
        "        model: gpt-4o-mini\n",
        "        weight: 0\n    routing_policy: {kind: weighted}\n",
        "15: routes[0].targets: all weights are 0: a weighted route needs one above 0",
    ),
    (
        "        model: gpt-4o-mini\n",
        "  - {name: chat, match: {model: x}, targets: [{provider: a}]}\n",
        "17: routes[1].name: another route has this name already",
    ),
    (
        "        model: gpt-4o-mini\n",
        "  - {name: x, match: {model: fast}, targets: [{provider: a}]}\n",
        "17: routes[1].match.model: routes[0] matches the same model",
    ),
    (
        "routes:",
        "telemetry: {traces: {endpoint: 'localhost:4318'}}\nroutes:",
        "11: telemetry.traces.endpoint: expected a URL",
    ),
    (
        "routes:",
        "telemetry: {traces: {sample: 5}}\nroutes:",
        "11: telemetry.traces.sample: expected a share between 0 and 1",
    ),
    (
        "routes:",
        "telemetry: {traces: {headers: {'a b': 'env:X'}}}\nroutes:",
        '11: telemetry.traces.headers["a b"]: not a header',
    ),
    (
        "routes:",
        "telemetry: {alerts: {webhook: 'env:X'}}\nroutes:",
        "11: telemetry.alerts.webhook: what this refers to is not",
    ),
    ("routes:", "telemetry: {alerts: {every_s: -1}}\nroutes:", "11: telemetry.alerts.every_s: expected float >= 0"),
    (
        "routes:",
        "models: {m: {input_usd_per_mtok: cheap}}\nroutes:",
        "11: models.m.input_usd_per_mtok: must be US dollars",
    ),
    (
        "routes:",
        "models: {m: {context_tokens: 0}}\nroutes:",
        "11: models.m.context_tokens: must be a positive number of tokens",
    ),
]


STREAMS = [
    ("stream: {instruction: go on}", "stream.instruction: must say {words} where the first words belong"),
    ("stream: {on_failure: retry}", "stream.on_failure: expected one of continue, restart, terminate"),
    ("stream: {tool_calls: maybe}", "stream.tool_calls: expected one of hold, pass"),
    ("stream: {max_cutovers: 11}", "stream.max_cutovers: expected"),
    ("stream: {restart_window: {tokens: 0}}", "stream.restart_window.tokens: expected"),
    ("stream: {restart: true}", "stream.restart: unknown field"),
    ("plain: stream", "plain: expected one of pass, assemble"),
    ("targets: [{provider: a, model: m, prefill: yes}]", "targets[0].prefill: expected one of auto, assistant-prefix, continue_final_message, none"),
]


@pytest.mark.parametrize("line, says", STREAMS)
def test_what_a_route_says_of_streams_is_checked(line: str, says: str) -> None:
    targets = "" if line.startswith("targets") else "\n    targets: [{provider: a, model: m}]"
    text = f"""providers:
  a: {{kind: openai, base_url: "http://127.0.0.1:1/v1"}}
auth: {{keys: [{{name: k, key: "env:K"}}]}}
routes:
  - name: r
    match: {{model: m}}
    {line}{targets}
"""
    lines = refused(text)
    assert len(lines) == 1, lines
    assert lines[0].startswith(f"turnout.yaml:7: routes[0].{says}"), lines


@pytest.mark.parametrize(("old", "new", "says"), CROSS, ids=[f"{case[2][:60]}-{i}" for i, case in enumerate(CROSS)])
def test_a_contradiction_is_refused_by_path_and_line(old: str, new: str, says: str) -> None:
    lines = refused(with_(old, new))
    prefix = "turnout.yaml:" if says[0].isdigit() else "turnout.yaml: "
    assert len(lines) == 1, lines
    assert lines[0].startswith(prefix + says)
    assert SECRET not in lines[0]


def test_a_gateway_without_providers_or_routes_is_refused() -> None:
    text = "auth: {keys: [{name: app, key: env:APP_KEY}]}\nproviders: {}\nroutes: []\n"
    assert refused(text) == [
        "turnout.yaml:2: providers: no provider: a gateway needs at least one",
        "turnout.yaml:3: routes: no route: nothing could be asked for",
    ]


NO_KEYS = GOOD.replace("    - name: app\n      key: env:APP_KEY\n", "").replace("  keys:", "  keys: []")


def test_no_key_is_refused_unless_dev_on_a_loopback_address() -> None:
    says = "auth.keys: no key configured: set auth.keys, or use --dev on a loopback address"
    assert refused(NO_KEYS) == [f"turnout.yaml:3: {says}"]
    assert refused(NO_KEYS.replace("auth:\n  keys: []\n", "")) == [f"turnout.yaml: {says}"]
    assert load_text(NO_KEYS, dev=True).config.auth.keys == []
    (line,) = refused(NO_KEYS.replace("127.0.0.1", "0.0.0.0"), dev=True)
    assert (
        line == "turnout.yaml:1: listen.host: no key configured: --dev without keys serves on a loopback address only"
    )


def test_the_command_lines_host_is_what_is_checked() -> None:
    raw = load.parse(NO_KEYS, "x.yaml")
    with pytest.raises(ConfigError, match="serves on a loopback address only"):
        load_data(raw.data, dev=True, resolver=resolve, listen={"host": "0.0.0.0"})
    loaded = load_data(raw.data, dev=True, resolver=resolve, listen={"port": 9})
    assert loaded.config.listen.port == loaded.data["listen"]["port"] == 9
    assert raw.data["listen"]["port"] == 8080


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (
            "https://a.example.com",
            "http://vllm.internal:8000",
            "9: providers.a.base_url: http to a private host: prompts and the provider's key cross the network in the clear",
        ),
        ("https://a.example.com", "http://10.0.0.7", "9: providers.a.base_url: http to a private host"),
        ("https://a.example.com", "http://vllm:8000", "9: providers.a.base_url: http to a private host"),
        ("name: app", "name: app\n      models: [fsat]", "5: auth.keys[0].models[0]: matches no route"),
        ("name: app", "name: app\n      models: ['a/*']", "5: auth.keys[0].models[0]: matches no route"),
        (
            "model: fast",
            "model: '*'\n    targets: [{provider: a}]\n  - name: late\n    match:\n      model: gpt-*",
            "18: routes[1].match.model: never used",
        ),
    ],
)
def test_a_doubtful_config_is_accepted_with_a_warning(old: str, new: str, says: str) -> None:
    (line,) = warned(with_(old, new))
    assert line.startswith(f"turnout.yaml:{says}")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("https://a.example.com", "http://127.0.0.1:9001"),
        ("https://a.example.com", "http://localhost:9001"),
        ("https://a.example.com", "http://[::1]:9001"),
        ("    base_url: https://a.example.com/v1\n    api_key: env:A_KEY\n", "    base_url: http://127.0.0.1:1/v1\n"),
        ("name: app", "name: app\n      models: ['f*']"),
        ("name: app", "name: app\n      direct: true\n      models: ['a/gpt-*', fast]"),
        ("    api_key", "    proxy: http://egress.internal:3128\n    api_key"),
        ("        model: gpt-4o-mini\n", "        weight: 0\n"),  # weights are for weighted routes
    ],
)
def test_what_is_usual_is_accepted_without_a_warning(old: str, new: str) -> None:
    assert warned(with_(old, new)) == []


def test_a_short_client_key_is_warned_about() -> None:
    loaded = load_text(GOOD, resolver=lambda ref: f"{ref[-5:]}")
    assert [w.show("x") for w in loaded.warnings] == [
        "x:5: auth.keys[0].key: shorter than 16 characters: easy to guess"
    ]


def test_a_certificate_bundle_that_parses_is_accepted() -> None:
    import certifi

    assert warned(with_("    api_key", f"    ca_bundle: {certifi.where()}\n    api_key")) == []


def test_check_reports_errors_and_warnings_and_raises_nothing() -> None:
    raw = load.parse(with_("https://a.example.com", "http://10.0.0.7").replace("provider: a", "provider: b"), "x.yaml")
    problems = check(load.decode(raw.data, resolve), nowhere)
    assert [(p.path, p.warning, p.line) for p in problems] == [
        ("providers.a.base_url", True, None),
        ("routes[0].targets[0].provider", False, None),
    ]


# -- hosts and patterns -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST.", "x.localhost", "127.0.0.1", "127.9.9.9", "::1", "[::1]"])
def test_a_loopback_host_is_known(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host", ["", "0.0.0.0", "::", "localhost.example.com", "127.0.0.1.example.com", "10.0.0.1", "127.1"]
)
def test_no_other_host_is_taken_for_loopback(host: str) -> None:
    assert not is_loopback(host)


PRIVATE = ["10.1.2.3", "192.168.0.1", "172.16.0.1", "fd00::1", "vllm", "x.internal", "a.b.svc.cluster.local"]
PUBLIC = ["example.com", "8.8.8.8", "169.254.169.254", "0.0.0.0", "internal.example.com", "2606:4700::1", "224.0.0.1"]


@pytest.mark.parametrize(("host", "private"), [*((h, True) for h in PRIVATE), *((h, False) for h in PUBLIC)])
def test_a_private_host_is_told_from_a_public_one(host: str, private: bool) -> None:
    assert is_private(host) is private


@given(st.text(alphabet="ab*", max_size=5), st.text(alphabet="ab*", max_size=5))
def test_two_patterns_meet_if_and_only_if_some_text_matches_both(a: str, b: str) -> None:
    # a text that both match exists only if one exists with no more letters than both patterns have
    texts = ("".join(letters) for n in range(len(a) + len(b) + 1) for letters in itertools.product("ab", repeat=n))
    assert globs_meet(a, b) is any(matches(a, text) and matches(b, text) for text in texts)
