"""What a caller may say about the cache: it can only raise the bar."""

import pytest

from turnout.cache.wish import ANY, Wish, wish_of
from turnout.errors import Fault

S = 1_000_000_000


@pytest.mark.parametrize(
    ("control", "own", "want"),
    [
        ("", "", ANY),
        ("no-cache", "", Wish(read=False, reason="no-cache")),
        ("No-Cache, no-store", "", Wish(read=False, write=False, reason="no-cache")),
        ("no-store", "", Wish(write=False)),
        ("max-age=60", "", Wish(max_age_ns=60 * S)),
        ("max-age=60, max-age=5", "", Wish(max_age_ns=5 * S)),
        ("max-age=0", "", Wish(read=False, reason="no-cache")),
        ('max-age="60"', "", Wish(max_age_ns=60 * S)),
        ("max-age=-1", "", ANY),
        ("max-age=99999999999999999999", "", ANY),
        ("max-stale=60, min-fresh=3, no-transform, x=y", "", ANY),
        ("only-if-cached", "", Wish(only=True)),
        ("", "off", Wish(read=False, write=False, reason="asked")),
        ("", "read", Wish(write=False)),
        ("", "refresh", Wish(read=False, reason="refresh")),
        ("max-age=60", "max-age=5", Wish(max_age_ns=5 * S)),
        ("max-age=5", "max-age=60", Wish(max_age_ns=5 * S)),
    ],
)
def test_what_is_said(control: str, own: str, want: Wish) -> None:
    headers = [(b"cache-control", control.encode())] * bool(control) + [(b"x-turnout-cache", own.encode())] * bool(own)
    assert wish_of([(b"accept", b"*/*"), *headers]) == want


@pytest.mark.parametrize("word", ["on", "write", "ttl=5", "max-age=x", "no-cache", "", "\xff", "off;x"])
def test_words_of_ours_that_mean_nothing_are_refused(word: str) -> None:
    with pytest.raises(Fault) as refused:
        wish_of([(b"x-turnout-cache", word.encode("latin-1"))])
    assert refused.value.kind == "bad_header"


def test_a_value_without_end_is_refused() -> None:
    with pytest.raises(Fault):
        wish_of([(b"cache-control", b"x," * 300)])
