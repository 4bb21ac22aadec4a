"""Properties: whatever stands in a config, it loads or is a `ConfigError`, and no secret is ever repeated."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
from config_text import GOOD, load_text, resolve, with_
from hypothesis import given, settings
from hypothesis import strategies as st

from turnout.config import load
from turnout.config.load import ConfigError, SecretResolver, from_wire, load_data

Place = tuple[str | int, ...]

ODD = ["", "*", "-", "env:", "file:/", "file:/dev/zero", "https://", "http://[", "\ud800", "\0", "🚂", "NaN", "1e999"]
naughty = st.one_of(st.text(max_size=40), st.sampled_from(ODD))
scalars = st.one_of(naughty, st.none(), st.booleans(), st.integers(), st.floats(), st.dates())
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(naughty, inner, max_size=3), max_leaves=6
)

FULL_TEXT = f"""{GOOD}\
    routing_policy: {{kind: weighted}}
    timeouts: {{ttft_ms: 1}}
    set: {{x: 1}}
admin: {{key: env:ADMIN}}
log: {{requests: all}}
state: {{dir: d}}
models: {{m: {{input_usd_per_mtok: 1}}}}
telemetry: {{traces: {{endpoint: 'http://127.0.0.1:4318', sample: 0.1, headers: {{x: env:T}}}}}}
"""
FULL: dict[str, Any] = load.parse(FULL_TEXT, "full.yaml").data


def places(data: Any, path: Place = ()) -> list[Place]:
    """Every place of the data, containers too."""
    steps = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [path] * bool(path) + [place for step, inner in steps for place in places(inner, (*path, step))]


PLACES = places(FULL)
SECRET_PLACES = [place for place in PLACES if place[-1] in ("key", "api_key") or place[-2:-1] == ("headers",)]


def put(place: Place, value: Any) -> dict[str, Any]:
    data = copy.deepcopy(FULL)
    at: Any = data
    for step in place[:-1]:
        at = at[step]
    at[place[-1]] = value
    return data


def loaded_or_refused(act: Callable[[], Any]) -> Any:
    """What `act` gives, or its `ConfigError`. Any other exception is a failed test."""
    try:
        return act()
    except ConfigError as wrong:
        return wrong


def test_the_full_config_of_these_tests_is_good() -> None:
    assert load_data(FULL, resolver=resolve).warnings == []
    assert len(SECRET_PLACES) == 4


@given(st.sampled_from(PLACES), values, st.booleans())
@settings(max_examples=600, deadline=None)
def test_any_value_anywhere_loads_or_is_refused_and_nothing_else(place: Place, value: Any, dev: bool) -> None:
    loaded = loaded_or_refused(lambda: load_data(put(place, value), dev=dev, resolver=resolve))
    if isinstance(loaded, ConfigError):
        lines = str(loaded).splitlines()
        assert len(lines) == len(loaded.problems) > 0
        assert all(line.isprintable() for line in lines)
    else:
        assert from_wire(loaded.data, loaded.secrets) == loaded.config


@given(st.text(max_size=200), st.sampled_from(["x.yaml", "x.toml", "x.json"]))
@settings(max_examples=600, deadline=None)
def test_any_text_is_read_or_refused_and_nothing_else(text: str, name: str) -> None:
    for tried in (text, "a: " + text, 'a = "' + text, '{"a": "' + text):
        raw = loaded_or_refused(lambda tried=tried: load.parse(tried, name))
        if isinstance(raw, ConfigError):
            assert all(line.isprintable() for line in str(raw).splitlines())
        else:
            assert isinstance(raw.data, dict)


@given(st.sampled_from(SECRET_PLACES), st.text(max_size=60), st.sampled_from(["", "env:", "file:", "ENV:", " env:"]))
@settings(max_examples=600, deadline=None)
def test_a_literal_in_a_secrets_place_is_never_repeated(place: Place, text: str, prefix: str) -> None:
    literal = f"{prefix}zq7!{text}"  # no reference: neither a variable's name nor an absolute path begins like this
    with pytest.raises(ConfigError) as caught:
        load_data(put(place, literal), resolver=SecretResolver({}))
    assert "zq7" not in str(caught.value)
    assert "zq7" not in repr(caught.value.problems)


@given(st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=126), max_size=40))
@settings(max_examples=400, deadline=None)
def test_a_literal_written_into_yaml_without_quotes_is_never_repeated(text: str) -> None:
    for start in ("", "*", "&", "!", "!!", "%", "@", "`", '"', "'", "|", "[", "{", "? ", "- ", "\\"):
        yaml = with_("env:A_KEY", f"{start}sk-zq7{text}zq7")
        loaded = loaded_or_refused(lambda yaml=yaml: load_text(yaml))
        assert "zq7" not in str(loaded) if isinstance(loaded, ConfigError) else loaded, start
