"""Config texts, shapes and secrets: every refusal with its path and line, nothing echoed."""

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from config_text import GOOD, SECRET, load_text, refused, resolve, with_

from turnout.config import load
from turnout.config.load import ConfigError, MapResolver, SecretResolver, from_wire, load_data

# -- texts --------------------------------------------------------------------------------------------------------


def test_a_good_config_loads_without_warnings_and_its_data_holds_references_only() -> None:
    loaded = load_text(GOOD)
    assert loaded.warnings == []
    assert loaded.data["providers"]["a"]["api_key"] == "env:A_KEY"
    assert loaded.secrets == {"env:APP_KEY": "value-of-env-APP_KEY", "env:A_KEY": "value-of-env-A_KEY"}
    assert loaded.config.providers["a"].api_key.reveal() == "value-of-env-A_KEY"
    assert "value-of" not in repr(loaded)


JSON_TEXT = """\
{
\t"auth": {"keys": [{"name": "app", "key": "env:APP_KEY"}]},
\t"providers": {"a": {"kind": "openai", "base_url": "https://a.example.com/v1", "api_key": "env:A_KEY"}},
\t"routes": [
\t\t{"name": "chat", "match": {"model": "fast \\ud83d\\ude80"},
\t\t "targets": [{"provider": "a"}],
\t\t "timeouts": {"ttft_ms": "15s"}}
\t]
}
"""

TOML_TEXT = """\
[[auth.keys]]
name = "app"
key = "env:APP_KEY"

[providers.a]
kind = "openai"
base_url = "https://a.example.com/v1"
api_key = "env:A_KEY"

[[routes]]
name = "other"
match.model = "other"
targets = [{provider = "a"}]

[[routes]]
name = "chat"
match.model = "fast"
targets = [{provider = "a"}]

[routes.timeouts]
ttft_ms = "15s"
"""


@pytest.mark.parametrize(
    ("text", "name", "line", "path"),
    [
        (GOOD + "    timeouts:\n      ttft_ms: 15s\n", "turnout.yaml", 19, "routes[0].timeouts.ttft_ms"),
        (JSON_TEXT, "turnout.json", 7, "routes[0].timeouts.ttft_ms"),
        (TOML_TEXT, "turnout.toml", 21, "routes[1].timeouts.ttft_ms"),
    ],
)
def test_each_format_says_the_line_of_a_wrong_value(text: str, name: str, line: int, path: str) -> None:
    assert refused(text, name)[0] == f"{name}:{line}: {path}: expected int or null, got str"


def test_json_text_is_read_by_json_rules() -> None:
    loaded = load_text(JSON_TEXT.replace('"15s"', "15000").replace("fast \\ud83d\\ude80", "f\\u0061st"), "x.json")
    assert loaded.config.routes[0].match.model == "fast"


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("x.yaml", "", "the file is empty"),
        ("x.yaml", "# only a comment\n", "the file is empty"),
        ("x.yaml", "- a\n- b\n", "x.yaml:1: expected a mapping"),
        ("x.yaml", "a: 1\n---\nb: 2\n", "x.yaml:2: "),
        ("x.yaml", "a: [1,\nb: }\n", "x.yaml:2: "),
        ("x.yaml", "a: 1\nb: \x07\n", "x.yaml:2: a character that YAML does not allow"),
        ("x.yaml", "a: 1\nb: !!python/object/apply:os.system [x]\n", "x.yaml:2: b: tags are not supported"),
        ("x.yaml", "a: !secret x\n", "x.yaml:1: a: tags are not supported"),
        ("x.yaml", "a:\n  b: 1\n  c: 2\n  b: 3\n", "x.yaml:4: a.b: this key stands here twice: first on line 2"),
        ("x.yaml", "? [a]\n: 1\n", "x.yaml:1: a key must be a plain word"),
        ("x.yaml", "a: &x\n  b: *x\n", "nested more than 32 deep"),
        ("x.yaml", "a: &x\n  <<: *x\n", "a mapping is merged into itself"),
        ("x.yaml", "a: " + "[" * 5000 + "]" * 5000, "x.yaml:1: nested more than 32 deep"),
        ("x.yaml", "a: '" + "x" * (1 << 20) + "'", "larger than 1 MiB"),
        ("x.yaml", 'a: "\\UFFFFFFFF"\n', "not valid YAML"),
        ("x.json", '{"a": 1,\n "a": 2}', "x.json:2: a: this key stands here twice"),
        ("x.json", '{"a": 1,\n "b": nope}', "x.json:2: not valid JSON"),
        ("x.json", '{"a": NaN}', "not valid JSON"),
        ("x.json", "[]", "x.json:1: expected an object"),
        ("x.json", '{"a":' + "[" * 100_000, "not valid JSON"),
        ("x.json", '{"a":' + "1" * 5000 + "}", "not valid JSON"),
        ("x.toml", "a = 1\na = 2\n", "x.toml:2: not valid TOML"),
        ("x.toml", "a = \n", "x.toml:1: not valid TOML"),
        ("x.toml", "a = " + "[" * 20_000, "not valid TOML"),
    ],
)
def test_a_text_that_cannot_be_read_is_refused(name: str, text: str, says: str) -> None:
    assert says in "\n".join(refused(text, name))


def test_an_alias_bomb_is_refused() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    assert "more than 100,000 values" in refused("\n".join(lines))[0]


def test_only_true_and_false_are_booleans_in_yaml() -> None:
    text = "a: [off, on, no, yes, y, n, 12:30:45, 2025-01-01, 007, 0x1F, 1_000, .inf, true, False, 1, 1.5, 1e3, ~, null, '1']"
    assert load.parse(text, "x.yaml").data["a"] == [
        *("off", "on", "no", "yes", "y", "n", "12:30:45", "2025-01-01", "007", "0x1F", "1_000", ".inf"),
        *(True, False, 1, 1.5, 1000.0, None, None, "1"),
    ]
    assert load_text(GOOD + "log: {requests: off}\n").config.log.requests == "off"


def test_yaml_aliases_and_merges_work_and_explicit_keys_win() -> None:
    text = "base: &b {x: 1, y: 2}\none: *b\ntwo: {<<: *b, y: 3}\nthree: {<<: [{x: 0}, *b]}\n"
    raw = load.parse(text, "x.yaml")
    assert raw.data["one"] == {"x": 1, "y": 2}
    assert raw.data["two"] == {"x": 1, "y": 3}
    assert raw.data["three"] == {"x": 0, "y": 2}
    assert raw.locate(("two", "x")) == (1, 11)  # where it was written


def test_a_byte_order_mark_is_skipped() -> None:
    assert load_text("\ufeff" + GOOD).config == load_text(GOOD).config


def test_a_message_is_always_one_line_of_visible_characters() -> None:
    (line,) = refused(GOOD + '"x\\nturnout.yaml:1: forged\\e[31m": 1\n')
    assert "\n" not in line
    assert "\x1b" not in line
    assert "unknown field" in line


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (float("nan"), "expected a finite number"),
        (float("inf"), "expected a finite number"),
        (2**64, "a whole number beyond 64 bits"),
        ("\ud800", "a lone surrogate"),
        ({1: 2}, "every key must be text"),
        (b"x", "not a plain value"),
    ],
)
def test_data_that_cannot_travel_is_refused(value: object, says: str) -> None:
    raw = load.parse(GOOD, "x.yaml")
    raw.data["routes"][0]["set"] = {"x": value}
    with pytest.raises(ConfigError, match=says) as caught:
        load_data(raw.data, resolver=resolve)
    assert caught.value.problems[0].path == "routes[0].set.x"


def test_a_date_in_toml_is_refused_with_its_line() -> None:
    assert refused("[routes]\nx = 2025-01-01\n", "x.toml")[0].startswith("x.toml:2: routes.x: dates and times")


# -- shapes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("port: 8080", "prot: 8080", "1: listen.prot: unknown field; did you mean `port`?"),
        ("port: 8080", "port: 70000", "1: listen.port: expected int <= 65535"),
        ("port: 8080", "port: '8080'", "1: listen.port: expected int, got str"),
        ("api_key:", "apikey:", "10: providers.a.apikey: unknown field; did you mean `api_key`?"),
        ("kind: openai", "kind: opanai", "8: providers.a.kind: expected one of openai, simulated"),
        ("    kind: openai\n", "", "7: providers.a.kind: required, but missing: expected one of openai, simulated"),
        ("    base_url: https://a.example.com/v1\n", "", "7: providers.a.base_url: required, but missing"),
        ("- name: app", "- name: 7", "4: auth.keys[0].name: expected str, got int"),
        ("model: fast", 'model: ""', "14: routes[0].match.model: expected str of length >= 1"),
        ("model: fast", "model: [fast]", "14: routes[0].match.model: expected str, got list"),
        ("  - name: chat", "  - nane: chat", "12: routes[0].nane: unknown field; did you mean `name`?"),
    ],
)
def test_a_wrong_field_is_refused_by_path_and_line(old: str, new: str, line: str) -> None:
    assert f"turnout.yaml:{line}" in refused(with_(old, new))


@pytest.mark.parametrize(
    ("extra", "line"),
    [
        ("    targets: []\n", "15: routes[0].targets: expected list of length >= 1"),
        (
            "    routing_policy: {kind: wighted}\n",
            "18: routes[0].routing_policy.kind: expected one of ordered, weighted",
        ),
        ("    routing_policy: {}\n", "18: routes[0].routing_policy.kind: required, but missing: expected one of"),
        ("    retries: {max: -1}\n", "18: routes[0].retries.max: expected int >= 0"),
        ("    retries: 3\n", "18: routes[0].retries: expected mapping, got int"),
        ("log: {requests: some}\n", "18: log.requests: expected one of all, errors, off"),
        ("nonsense: 1\n", "18: nonsense: unknown field; known here: providers, routes, listen"),
        ("state: {redis: 6379}\n", "18: state.redis: expected str or mapping or null, got int"),
        ("state: {redis: {url: 1}}\n", "18: state.redis.url: expected str, got int"),
        ("state: {redis: {connect_ms: 0}}\n", "18: state.redis.connect_ms: expected int >= 1"),
        ("state: {redis: {connect_ms: 0}}\n", "18: state.redis.url: required, but missing"),
        (f"state: {{redis: {{url: r, password: {SECRET}}}}}\n", "18: state.redis.password: "),
    ],
)
def test_a_wrong_section_is_refused_by_path_and_line(extra: str, line: str) -> None:
    text = GOOD.split("    targets:")[0] + extra if "targets" in extra else GOOD + extra
    assert any(said.startswith(f"turnout.yaml:{line}") for said in refused(text))


def test_all_problems_are_told_at_once_in_the_order_of_the_file() -> None:
    text = with_("port: 8080", "port: x").replace("kind: openai", "kind: opanai").replace("provider: a", "provider: 1")
    lines = [int(line.split(":")[1]) for line in refused(text + "log: {requests: 1}\n")]
    assert lines == [1, 8, 16, 18]


def test_all_cross_checks_are_told_at_once() -> None:
    text = with_("name: app", "name: a b").replace("https://a", "http://a").replace("provider: a", "provider: b")
    assert [line.split(": ")[1] for line in refused(text)] == [
        "auth.keys[0].name",
        "providers.a.base_url",
        "routes[0].targets[0].provider",
    ]


# -- secrets ------------------------------------------------------------------------------------------------------

SECRET_PLACES = [
    ("key: env:APP_KEY", "key: {}", "5: auth.keys[0].key"),
    ("api_key: env:A_KEY", "api_key: {}", "10: providers.a.api_key"),
    ("api_key: env:A_KEY", "accounts: [{{name: x, api_key: {}}}]", "10: providers.a.accounts[0].api_key"),
    ("routes:", "admin: {{key: {}}}\nroutes:", "11: admin.key"),
    ("routes:", "telemetry: {{alerts: {{webhook: {}}}}}\nroutes:", "11: telemetry.alerts.webhook"),
    ("routes:", "telemetry: {{traces: {{headers: {{x: {}}}}}}}\nroutes:", "11: telemetry.traces.headers.x"),
]


@pytest.mark.parametrize(("old", "new", "where"), SECRET_PLACES, ids=[place[2] for place in SECRET_PLACES])
@pytest.mark.parametrize("literal", [SECRET, f"env:{SECRET}", f"file:{SECRET}", f"ENV:{SECRET}", f"${{{SECRET}}}"])
def test_a_literal_secret_is_refused_and_not_repeated(old: str, new: str, where: str, literal: str) -> None:
    lines = refused(with_(old, new.format(f'"{literal}"')))
    assert lines == [f"turnout.yaml:{where}: secrets are given by reference only: env:NAME or file:/path"]


@pytest.mark.parametrize("value", ["7", "true", "[env:A]", f"{{{SECRET}: 1}}"])
def test_a_secret_that_is_no_text_is_refused_and_not_repeated(value: str) -> None:
    (line,) = refused(with_("api_key: env:A_KEY", f"api_key: {value}"))
    assert "by reference only" in line
    assert SECRET not in line


@pytest.mark.parametrize(
    "value", [f"*{SECRET}", f"!{SECRET} x", f"!{SECRET}!x y", f"&{SECRET}", f'"\\{SECRET}"', f"%{SECRET}", f"@{SECRET}"]
)
def test_yaml_errors_do_not_repeat_what_they_stumbled_over(value: str) -> None:
    text = "\n".join(refused(with_("env:A_KEY", value)))
    assert SECRET not in text
    assert SECRET[1:] not in text


def resolver_says(ref: str, environ: dict[str, str] | None = None) -> str:
    (line,) = refused(
        with_("env:A_KEY", ref), resolver=lambda r: "x" * 20 if r == "env:APP_KEY" else SecretResolver(environ or {})(r)
    )
    prefix = "turnout.yaml:10: providers.a.api_key: "
    assert line.startswith(prefix)
    return line.removeprefix(prefix)


def test_a_secret_that_cannot_be_read_is_refused_with_its_place(tmp_path: Path) -> None:
    assert resolver_says("env:NOPE_KEY") == "the environment variable NOPE_KEY is not set"
    assert resolver_says("env:NOPE_KEY", {"NOPE_KEY": ""}) == "the environment variable NOPE_KEY is empty"
    assert resolver_says("env:ghp_pasted123") == "the environment variable named here is not set"
    assert resolver_says(f"file:{tmp_path}/none") == "the file named here cannot be read: No such file or directory"
    assert resolver_says(f"file:{tmp_path}") == "the file named here is not a regular file"
    (tmp_path / "empty").write_text("\n")
    assert resolver_says(f"file:{tmp_path}/empty") == "the file named here is empty"
    (tmp_path / "big").write_bytes(b"x" * 70_000)
    assert resolver_says(f"file:{tmp_path}/big") == "the file named here is larger than 64 KiB"
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    assert resolver_says(f"file:{tmp_path}/binary") == "the file named here is not text"
    os.mkfifo(tmp_path / "pipe")
    assert resolver_says(f"file:{tmp_path}/pipe") == "the file named here is not a regular file"


@pytest.mark.parametrize("value", ["a\nb", "a\r\nx-evil: 1", " a", "a ", "a\tb", "käse", "a\0b"])
def test_a_secret_that_would_break_a_header_is_refused_and_not_repeated(value: str) -> None:
    said = resolver_says("env:BAD_KEY", {"BAD_KEY": value})
    assert (
        said
        == "the environment variable BAD_KEY holds characters that no key has: line ends, spaces around it, or non-ASCII"
    )


def test_the_resolver_reads_once_strips_the_last_line_end_and_remembers(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_bytes(b"file-value\r\n")
    resolver = SecretResolver({"A_KEY": "env-value"})
    assert resolver("env:A_KEY") == "env-value"
    assert resolver(f"file:{file}") == "file-value"
    file.unlink()
    assert resolver(f"file:{file}") == "file-value"
    assert resolver.values == {"env:A_KEY": "env-value", f"file:{file}": "file-value"}


def test_a_worker_gets_the_same_config_from_the_wire_and_needs_no_yaml() -> None:
    loaded = load_text(GOOD)
    assert from_wire(msgspec.json.decode(msgspec.json.encode(loaded.data)), loaded.secrets) == loaded.config
    with pytest.raises(ConfigError, match="was not handed over"):
        from_wire(loaded.data, {})
    with pytest.raises(ValueError, match="was not handed over"):
        MapResolver({})("env:X")
    code = "import sys, turnout.config.load; sys.exit('yaml' in sys.modules or 'tomllib' in sys.modules)"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        ).returncode
        == 0
    )


def test_the_digest_names_the_data_and_not_the_secrets() -> None:
    digest = load_text(GOOD).digest
    assert len(digest) == 12
    assert int(digest, 16) >= 0
    assert load_text("# a comment\n" + GOOD).digest == digest
    assert load_text(GOOD, resolver=lambda ref: "rotated-" + resolve(ref)).digest == digest
    assert load_text(with_("8080", "8082")).digest != digest
