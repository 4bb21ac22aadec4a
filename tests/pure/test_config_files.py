"""Config files, reloads, `--dev` without a file, and the schema for editors."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
from config_text import GOOD, load_text, resolve, with_

from turnout.config import load
from turnout.config.live import Live, Watch
from turnout.config.load import ConfigError, SecretResolver, load_data, load_file
from turnout.config.schema import json_schema


def test_a_file_that_cannot_be_read_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot be read: No such file or directory"):
        load_file(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe4\n")
    with pytest.raises(ConfigError, match="not UTF-8 text"):
        load_file(tmp_path / "latin.yaml")
    (tmp_path / "big.yaml").write_bytes(b"#" * (1 << 21))
    with pytest.raises(ConfigError, match="larger than 1 MiB"):
        load_file(tmp_path / "big.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_file("a\0b")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_file(tmp_path)


def test_load_file_names_the_file_and_uses_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "t.yaml"
    file.write_text(GOOD)
    monkeypatch.setenv("APP_KEY", "0123456789abcdef")
    monkeypatch.delenv("A_KEY", raising=False)
    with pytest.raises(ConfigError) as caught:
        load_file(file)
    assert str(caught.value) == f"{file}:10: providers.a.api_key: the environment variable A_KEY is not set"
    monkeypatch.setenv("A_KEY", "upstream")
    assert load_file(file).secrets == {"env:APP_KEY": "0123456789abcdef", "env:A_KEY": "upstream"}


# -- reloads ------------------------------------------------------------------------------------------------------


def test_a_reload_swaps_a_good_config_in() -> None:
    texts = [GOOD]
    live = Live(lambda: load_text(texts[-1]))
    texts.append(with_("model: fast", "model: quick").replace("port: 8080", "port: 8090"))
    swap = live.reload()
    assert swap.changed
    assert swap.version == live.version == 2
    assert not swap.why
    assert live.current.config.routes[0].match.model == "quick"
    assert [w.show("t") for w in swap.warnings] == ["t: listen.port: changed: holds from the next start on"]


def test_a_reload_of_the_same_config_changes_nothing() -> None:
    live = Live(lambda: load_text(GOOD))
    assert not live.reload().changed
    assert live.version == 1


def test_a_bad_config_leaves_the_old_one_in_place_and_says_why() -> None:
    texts = [GOOD]
    live = Live(lambda: load_text(texts[-1]))
    before = live.current
    texts.append(with_("provider: a", "provider: b"))
    swap = live.reload()
    assert not swap.changed
    assert live.version == swap.version == 1
    assert live.current is before
    assert swap.why.startswith("turnout.yaml:16: routes[0].targets[0].provider: no such provider")


def test_a_rotated_secret_is_a_change_though_the_file_is_the_same() -> None:
    suffix = [""]
    live = Live(lambda: load_text(GOOD, resolver=lambda ref: resolve(ref) + suffix[0]))
    suffix[0] = "-rotated"
    assert live.reload().changed
    assert live.version == 2
    assert live.current.secrets["env:A_KEY"].endswith("-rotated")


def test_the_watch_sees_the_config_its_secret_files_and_swapped_links(tmp_path: Path) -> None:
    old, new, link, key = (tmp_path / name for name in ("old", "new", "link.yaml", "key"))
    key.write_text("k1")
    for file in (old, new):
        file.write_text(GOOD.replace("env:A_KEY", f"file:{key}"))
    link.symlink_to(old)
    watch = Watch.over(link, load_file(link, resolver=resolve))
    assert not watch.has_changed()
    key.write_text("k2-longer")
    assert watch.has_changed()
    assert not watch.has_changed()
    link.unlink()
    assert watch.has_changed()
    link.symlink_to(new)
    assert watch.has_changed()
    assert not watch.has_changed()


# -- dev ----------------------------------------------------------------------------------------------------------


def test_dev_makes_a_config_from_the_keys_in_the_environment() -> None:
    env = {"OPENAI_API_KEY": "o-value", "GROQ_API_KEY": "g-value", "MISTRAL_API_KEY": ""}
    data = load.dev_config(env)
    assert "value" not in str(data)
    loaded = load_data(data, dev=True, resolver=SecretResolver(env))
    assert list(loaded.config.providers) == ["openai", "groq"]
    routes = {r.match.model: r.targets[0].provider for r in loaded.config.routes}
    assert routes["gpt-*"] == "openai"
    assert routes["llama-3*"] == "groq"
    assert routes["*"] == "openai"
    assert loaded.warnings == []


def test_dev_with_every_known_key_has_no_contradictions() -> None:
    class Every(dict[str, str]):
        def get(self, key: str, default: Any = None) -> Any:
            return "some-value"

    loaded = load_data(load.dev_config(Every()), dev=True, resolver=resolve)
    assert len(loaded.config.providers) == 8
    assert loaded.warnings == []


def test_dev_without_any_key_says_what_it_looks_for() -> None:
    with pytest.raises(ConfigError, match=r"OPENAI_API_KEY.*FIREWORKS_API_KEY"):
        load.dev_config({})


# -- schema -------------------------------------------------------------------------------------------------------


def test_the_json_schema_is_json_and_knows_secrets_and_limits() -> None:
    schema = json_schema()
    assert msgspec.json.decode(msgspec.json.encode(schema)) == schema
    defs = schema["$defs"]
    assert defs["KeySpec"]["properties"]["key"]["pattern"] == "^(env:[A-Za-z_][A-Za-z0-9_]*|file:/.*)$"
    assert defs["Listen"]["properties"]["port"] == {"type": "integer", "minimum": 0, "maximum": 65535, "default": 8080}
    assert defs["Listen"]["additionalProperties"] is False
    assert "whole" in defs["Config"]["description"]
