"""`state.redis` in a config: what its URLs mean, and what is refused at which path."""

from typing import Any

import pytest
from config_text import GOOD, SECRET, load_text, refused, warned
from hypothesis import given
from hypothesis import strategies as st

from turnout.state.spec import CLUSTER, SENTINEL, SINGLE, Where, where

URLS: list[tuple[str, Where]] = [
    ("redis://127.0.0.1", Where(SINGLE, False, (("127.0.0.1", 6379),))),
    ("rediss://cache.internal:6380/3", Where(SINGLE, True, (("cache.internal", 6380),), 3)),
    ("redis://[::1]:7000/", Where(SINGLE, False, (("::1", 7000),))),
    ("redis+sentinel://a,b:26380,c/main", Where(SENTINEL, False, (("a", 26379), ("b", 26380), ("c", 26379)), 0, "main")),
    ("rediss+sentinel://a/main/2", Where(SENTINEL, True, (("a", 26379),), 2, "main")),
    ("redis+cluster://a:1,b:2", Where(CLUSTER, False, (("a", 1), ("b", 2)))),
    ("REDISS+CLUSTER://a", Where(CLUSTER, True, (("a", 6379),))),
]


@pytest.mark.parametrize(("url", "meant"), URLS, ids=[url for url, _ in URLS])
def test_a_url_says_where(url: str, meant: Where) -> None:
    assert where(url) == meant
    assert load_text(f"{GOOD}state:\n  redis: {url}\n").config.state.shared.url == url  # type: ignore[union-attr]


REFUSED: list[tuple[str, str]] = [
    ("http://a", "redis: expected redis://host:port/db"),
    ("'redis:'", "redis: expected redis://host:port/db"),
    ("redis://", "redis: expected redis://host:port/db"),
    ("redis://a:0", "redis: expected redis://host:port/db"),
    ("redis://a:65536", "redis: expected redis://host:port/db"),
    ("redis://a?db=1", "redis: expected redis://host:port/db"),
    ("redis+other://a", "redis: expected redis://host:port/db"),
    ("redis://a,b", "redis: one host only"),
    ("redis://a/main", "redis: the database behind the host must be a number"),
    ("redis+sentinel://a", "redis: the name of the sentinels' service is missing"),
    ("redis+sentinel://a/main/x", "redis: the database behind the host must be a number"),
    ("redis+cluster://a/1", "redis: a cluster has no databases"),
    (f"redis://user:{SECRET}@a", "redis: holds a user or password: give `username`, and `password` by reference"),
    ("{url: 'redis://a b'}", "redis.url: expected redis://host:port/db"),
    ("{url: 'redis://a', sentinel_username: x}", "redis.sentinel_username: only with redis+sentinel://"),
    ("{url: 'redis://a', sentinel_password: 'env:X'}", "redis.sentinel_password: only with redis+sentinel://"),
    ("{url: 'redis://a', username: x}", "redis.password: required with `username`"),
    ("{url: 'redis+sentinel://a/s', sentinel_username: x}", "redis.sentinel_password: required with"),
    ("{url: 'redis://a', ca_bundle: x.pem}", "redis.ca_bundle: only with rediss://"),
    ("{url: 'rediss://a', ca_bundle: /no/such.pem}", "redis.ca_bundle: cannot be read"),
    ("{url: 'redis://a', prefix: 'a{b}'}", "redis.prefix: expected letters, digits"),
    ("{url: 'redis://a', password: hunter2}", "redis.password: "),
    ("{url: 'redis://a', pasword: 'env:X'}", "redis.pasword: unknown field; did you mean `password`?"),
]


@pytest.mark.parametrize(("value", "said"), REFUSED)
def test_what_is_wrong_is_refused_at_its_path(value: str, said: str) -> None:
    lines = refused(f"{GOOD}state:\n  redis: {value}\n")
    assert any(line.startswith(f"turnout.yaml:19: state.{said}") for line in lines), lines
    assert SECRET not in "".join(lines)


def test_without_tls_only_loopback_is_not_warned_about() -> None:
    for url in ("redis://127.0.0.1", "rediss://cache.internal", "redis+cluster://127.0.0.1,127.0.0.2"):
        assert not warned(f"{GOOD}state:\n  redis: {url}\n")
    assert "state.redis: without TLS" in warned(f"{GOOD}state:\n  redis: redis+cluster://127.0.0.1,cache.internal\n")[0]


def test_a_password_goes_by_reference() -> None:
    redis: Any = load_text(f"{GOOD}state: {{redis: {{url: 'redis://a', username: u, password: 'env:R'}}}}\n").config.state.shared
    assert redis.password.reveal() == "value-of-env-R"


@given(st.text(min_size=20, max_size=60))
def test_any_text_is_a_place_or_refused_without_repeating_it(text: str) -> None:
    said = ""
    try:
        where("redis://" + text)
    except ValueError as wrong:
        said = str(wrong)
    assert text not in said
