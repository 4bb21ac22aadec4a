"""What we ship for people to start from must be what the config accepts, and must say what is true."""

import re
from pathlib import Path

import msgspec.inspect
import pytest

from turnout.config.load import ConfigError, from_wire, load_data, load_file, parse
from turnout.config.model import Config
from turnout.config.template import TEMPLATE

PROFILES = Path(__file__).resolve().parents[2] / "profiles"
YAML = sorted(PROFILES.glob("*.yaml"))
TEXTS = sorted(path for path in PROFILES.iterdir() if path.is_file())


def given(ref: str) -> str:
    """A value for every reference, each another one, long enough not to be warned about."""
    return "value-of-" + re.sub(r"\W", "-", ref)


@pytest.mark.parametrize("path", YAML, ids=lambda path: path.name)
def test_a_profile_is_accepted_and_travels_to_a_worker(path: Path) -> None:
    loaded = load_file(path, resolver=given)
    assert from_wire(loaded.data, loaded.secrets) == loaded.config


def test_only_the_private_http_host_of_the_profiles_is_warned_about() -> None:
    warned = {path.name: [w.path for w in load_file(path, resolver=given).warnings] for path in YAML}
    assert warned == {"minimal.yaml": [], "production.yaml": [], "several-accounts.yaml": ["providers.vllm.base_url"]}


def test_the_starter_config_is_accepted_without_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURNOUT_KEY", "0123456789abcdef0123456789abcdef")
    monkeypatch.setenv("OPENAI_API_KEY", "upstream-key")
    raw = parse(TEMPLATE, "turnout.yaml")
    assert load_data(raw.data, locate=raw.locate).warnings == []


def test_every_commented_knob_of_the_starter_config_exists_and_shows_its_default() -> None:
    """Takes the `#` off every commented line that is config: the result must decode, and mostly to the same config."""
    raw = parse(uncommented(TEMPLATE), "turnout.yaml")
    config = load_data(raw.data, resolver=given, locate=raw.locate).config
    plain = load_data(parse(TEMPLATE, "turnout.yaml").data, resolver=given).config
    for room in ("listen", "admin", "log", "telemetry", "state"):
        assert getattr(config, room) == getattr(plain, room), room
    assert config.routes[0].retries == plain.routes[0].retries
    assert (config.routes[0].stream, config.routes[0].plain) == (plain.routes[0].stream, plain.routes[0].plain)
    shown, unset = config.routes[0].timeouts, plain.routes[0].timeouts
    assert (shown.connect_ms, shown.idle_ms, shown.total_ms) == (unset.connect_ms, unset.idle_ms, unset.total_ms)
    assert "groq" in config.providers
    assert "my-llama" in config.models
    openai, plain_openai = config.providers["openai"], plain.providers["openai"]
    assert openai == plain_openai


def uncommented(text: str) -> str:
    lines = text.splitlines()
    knob = re.compile(r"(\s*)# ((?:  )*(?:- \{|[a-z_]+:(?: |$)|[a-z-]+: \{).*)\Z")
    return "\n".join(knob.sub(r"\1\2", line) for line in lines)


def test_the_production_profile_names_every_knob_of_the_config() -> None:
    text = (PROFILES / "production.yaml").read_text()
    named = set(re.findall(r"([a-z_]+):", text))
    assert knobs(Config) - named == set()


def knobs(struct: type) -> set[str]:
    found: set[str] = set()
    met: set[type] = set()

    def walk(type_: object) -> None:
        if isinstance(type_, msgspec.inspect.StructType):
            if type_.cls.__name__ in ("SimulatedSpec", "AccountSpec"):  # for the demo; for several-accounts.yaml
                return
            if type_.cls in met:  # a group of targets holds targets
                return
            met.add(type_.cls)
            for field in type_.fields:
                found.add(field.encode_name)
                walk(field.type)
        for inner in ("item_type", "value_type"):
            if hasattr(type_, inner):
                walk(getattr(type_, inner))
        for member in getattr(type_, "types", ()):
            walk(member)

    walk(msgspec.inspect.type_info(struct))
    return found


def test_the_service_hands_over_exactly_the_secrets_that_the_production_profile_names() -> None:
    unit = (PROFILES / "turnout.service").read_text()
    loaded = set(re.findall(r"^LoadCredential=([^:\n]+):", unit, re.MULTILINE))
    prefix = "file:/run/credentials/turnout.service/"
    refs = load_file(PROFILES / "production.yaml", resolver=given).secrets
    assert {ref.removeprefix(prefix) for ref in refs} == loaded
    assert all(ref.startswith(prefix) for ref in refs)


def settings(unit: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in unit.splitlines() if "=" in line and not line.startswith("#"))


def test_the_service_waits_longer_than_the_drain_and_reloads_by_hangup() -> None:
    unit = settings((PROFILES / "turnout.service").read_text())
    config = load_file(PROFILES / "production.yaml", resolver=given).config
    assert config.listen.drain_s < float(unit["TimeoutStopSec"]) <= config.listen.drain_s + 30
    assert unit["ExecReload"].endswith("kill -HUP $MAINPID")
    assert unit["KillSignal"] == "SIGTERM"
    assert config.state.dir == unit["WorkingDirectory"]  # the one place that the unit may write to


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("NoNewPrivileges", "yes"),
        ("ProtectSystem", "strict"),
        ("LimitNOFILE", "1048576"),
        ("LimitCORE", "0"),
        ("DynamicUser", "yes"),
        ("CapabilityBoundingSet", ""),
    ],
)
def test_the_service_is_hardened(setting: str, value: str) -> None:
    assert settings((PROFILES / "turnout.service").read_text())[setting] == value


def test_the_container_is_not_root_checks_readiness_and_serves_the_mounted_config() -> None:
    text = (PROFILES / "Containerfile").read_text()
    final = text[text.rindex("\nFROM ") :]
    assert re.search(r"^USER 10001:10001$", final, re.MULTILINE)
    assert "HEALTHCHECK" in final
    assert "/readyz" in final
    assert '["serve", "--config", "/etc/turnout/turnout.yaml", "--host", "0.0.0.0"]' in final
    assert "cargo" not in final
    assert "gcc" not in final


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_no_profile_names_a_registry(path: Path) -> None:
    text = path.read_text()
    assert not re.search(r"(docker|ghcr|quay|gcr|mcr|ecr|pypi|pythonhosted|crates)\.(io|com|org|dev)", text)
    for image in re.findall(r"^FROM (\S+)", text, re.MULTILINE):
        assert "/" not in image, "a bare name: the builder's own registry is used"


def test_a_profile_without_its_secrets_is_refused_by_line() -> None:
    def none(ref: str) -> str:
        raise ValueError("not set")

    with pytest.raises(ConfigError, match=r"minimal\.yaml:8: auth\.keys\[0\]\.key: not set"):
        load_file(PROFILES / "minimal.yaml", resolver=none)
