"""Which headers pass, and which are ours. Allow-lists both ways: what is not named here goes no further."""

# Client headers that go upstream. None of them can choose a host or a credential.
TO_UPSTREAM = frozenset((b"openai-beta", b"idempotency-key"))

# Upstream headers that reach the client. Rate-limit headers of the provider's account, cookies and server names do not.
TO_CLIENT = frozenset((b"openai-processing-ms", b"openai-version", b"openai-model"))

# Ours, of a request (DESIGN section 5). None can choose a host or a credential.
OWN_HEADERS = frozenset(
    b"x-turnout-" + name for name in (b"route", b"session", b"tags", b"prompt-version", b"timeout-ms", b"metadata")
)

# The four ways in which SDKs present a key (OpenAI, Anthropic, Azure): one extractor for all, one verdict.
KEY_HEADERS = frozenset((b"authorization", b"x-api-key", b"api-key"))

_SAFE = frozenset(b"!#$%&'()*+,-./:;<=>?@[]^_`{|}~ abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")


def header_value(text: str) -> bytes:
    """A value that is safe in a header whatever it came from: printable ASCII, at most 200 bytes, the rest as `?`."""
    raw = text.encode("ascii", "replace")[:200]
    return raw if _SAFE.issuperset(raw) else bytes(c if c in _SAFE else 0x3F for c in raw)
