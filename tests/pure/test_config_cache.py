"""`cache:` in a config: what is taken, and what is refused in which words."""

import pytest
from config_text import GOOD, load_text, refused


def cached(text: str) -> str:
    return GOOD + f"    cache: {text}\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{}", "routes[0].cache: asks for nothing: set `exact`, `semantic` or `single_flight`"),
        ("{sampled: share}", "routes[0].cache: asks for nothing"),
        ("{exact: {}}", "exact.ttl_s: required, but missing"),
        ("{exact: {ttl_s: 0}}", "exact.ttl_s: expected float > 0"),
        ("{exact: {ttl_s: -1}}", "exact.ttl_s: expected float > 0"),
        ("{exact: {ttl_s: 1e9}}", "exact.ttl_s: expected float <= 2592000"),
        ("{exact: {ttl_s: 5, jitter: 0.9}}", "exact.jitter: expected float <= 0.5"),
        ("{exact: {ttl_s: 5, ttl: 6}}", "exact.ttl: unknown field"),
        ("{exact: {ttl_s: 5}, sampled: always}", "cache.sampled: expected one of bypass, share"),
        ("{exact: {ttl_s: 5}, ignore: [messages]}", "cache.ignore[0]: expected one of"),
        ("{exact: {ttl_s: 5}, ignore: user}", "cache.ignore: expected"),
        ("{semantic: {max_false_hit_rate: 0}}", "semantic.max_false_hit_rate: expected float >= 0.0025"),
        ("{semantic: {max_false_hit_rate: 0.5}}", "semantic.max_false_hit_rate: expected float <= 0.2"),
        ("{semantic: {profile: loose}}", "semantic.profile: expected one of strict, faq"),
        ("{semantic: {threshold: 0.8}}", "semantic.threshold: unknown field"),
        ("{semantic: {share: everybody}}", "semantic.share: expected one of"),
        ("{semantic: {checks: {share: 2}}}", "semantic.checks.share: expected float <= 1"),
        ("{semantic: {embedding: on}}", "semantic.embedding: expected"),
        ("{semantic: {embedding: {provider: a}}}", "semantic.embedding.model: required, but missing"),
        ("{semantic: {embedding: {provider: zz, model: m}}}", "routes[0].cache.semantic.embedding.provider: no such provider; configured: a"),
        ("{semantic: {embedding: {provider: a, model: m, dimensions: 0}}}", "semantic.embedding.dimensions: expected int >= 1"),
        ("{semantic: {embedding: {provider: a, model: m, dimensions: 4097}}}", "semantic.embedding.dimensions: expected int <= 4096"),
        ("{semantic: {embedding: {provider: a, model: m, dimensions: many}}}", "semantic.embedding.dimensions: expected int"),
        ("{semantic: {embedding: {provider: a, model: m, timeout_ms: 0}}}", "semantic.embedding.timeout_ms: expected int >= 1"),
        ("{semantic: {embedding: {provider: a, model: m, timeout: 5}}}", "semantic.embedding.timeout: unknown field"),
        ("{semantic: {embedding: {provider: a, model: ''}}}", "semantic.embedding.model: expected printable ASCII"),
    ],
)
def test_what_is_refused(text: str, says: str) -> None:
    (line, *more) = refused(cached(text))
    assert says in line, (line, more)


def test_what_is_taken() -> None:
    cache = load_text(cached("{exact: {ttl_s: 300}}")).config.routes[0].cache
    assert cache is not None and cache.exact is not None
    assert (cache.shares, cache.exact.jitter, cache.exact.stale_s, cache.sampled, cache.ignore) == (True, 0.1, 0.0, "bypass", [])
    semantic = load_text(cached("{semantic: {}}")).config.routes[0].cache
    assert semantic is not None and semantic.kept is not None and semantic.semantic is not None
    assert (semantic.kept.ttl_s, semantic.semantic.profile, semantic.semantic.share, semantic.shares) == (3600.0, "strict", "tenant", True)
    for text, shares in (("{single_flight: true}", True), ("{exact: {ttl_s: 5}, single_flight: false}", False)):
        found = load_text(cached(text)).config.routes[0].cache
        assert found is not None and found.shares is shares
    assert load_text(GOOD).config.routes[0].cache is None
    assert load_text(GOOD + "cache: {max_mb: 2, tenant_share: 0.25}\n").config.cache.bounds == (2 << 20, 1 << 19)


@pytest.mark.parametrize("text", ["{max_mb: 0}", "{tenant_share: 0}", "{tenant_share: 1.5}", "{mb: 5}"])
def test_bounds_that_make_no_sense(text: str) -> None:
    assert "cache." in refused(GOOD + f"cache: {text}\n")[0]
