"""Takes credentials out of text that somebody else worded: an exception, a provider's error message.

Not a guarantee but a net: our own code never puts a secret into a message. What is caught is what providers and HTTP
libraries are known to repeat: bearer tokens, keys by their prefix, key parameters of URLs, passwords in URLs, JWTs and
webhook paths.
"""

import re

# The end of a name that says its value is secret: `api_key`, `x-goog-api-key`, `access_token`, `X-Amz-Signature`.
_NAME = r"(?:key|token|secret|password|passwd|signature|sig|credential|authorization)"
_NAME_NEEDLES = ("key", "token", "secret", "passw", "sig", "credential", "authorization")

# (substrings of the lowered text without which the rule cannot match, pattern, replacement). A sentence without any of
# them costs 2 us instead of the 70 us of running every pattern.
_RULES: tuple[tuple[tuple[str, ...], re.Pattern[str], str], ...] = (
    # https://user:password@host
    (("@",), re.compile(r"(?<=://)[^/\s@\"'<>]+@"), "***@"),
    # Slack, Discord and Teams put the credential into the path
    (
        ("hooks.slack.com", "/api/webhooks", "webhook.office.com"),
        re.compile(
            r"(?i)(https?://[^/\s]*(?:hooks\.slack\.com|discord(?:app)?\.com/api/webhooks|webhook\.office\.com))/[^\s\"'<>]+"
        ),
        r"\1/***",
    ),
    # Authorization: Bearer x, Basic x; also without the header's name
    (("bearer", "basic"), re.compile(r"(?i)\b(bearer|basic)(?:[\s:]+|%20)[\w.~+/*=-]{6,}"), r"\1 ***"),
    # ?api_key=x and &token=x in URLs, however short
    (("?", "&"), re.compile(rf"(?i)([?&][\w-]*{_NAME}=)[^&\s\"'<>#]+"), r"\1***"),
    # api_key=x, "token": "x", x-api-key: x1; short values, and bare words behind a colon, are those of a sentence
    (
        _NAME_NEEDLES,
        re.compile(
            rf"(?i)({_NAME}(?:[\"']?\s*=\s*[\"']?|[\"']?:\s*[\"']|:\s*(?=\S*\d)))"
            r"(?!\*\*\*|bearer\b|basic\b|sk-\*)[^\s\"'&,;<>)}]{8,}"
        ),
        r"\1***",
    ),
    # keys by prefix: OpenAI, Anthropic, OpenRouter and others; also as the provider masks them (sk-ab***yz)
    (("sk-", "sk_", "pk-", "pk_", "rk-", "rk_"), re.compile(r"\b(sk|pk|rk)[-_][\w*-]{6,}(?:\.[\w*-]+)*"), r"\1-***"),
    # Groq, xAI, Hugging Face, Google, AWS, GitHub, Slack, Perplexity, Replicate
    (
        ("gsk_", "xai-", "hf_", "aiza", "akia", "asia", "ghp_", "xox", "pplx-", "r8_"),
        re.compile(r"\b(gsk_|xai-|hf_|AIza|AKIA|ASIA|ghp_|xox[abp]-|pplx-|r8_)[\w*-]{8,}"),
        r"\1***",
    ),
    # a JWT
    (("eyj",), re.compile(r"\beyJ[\w-]{8,}\.[\w-]+\.[\w-]*"), "***"),
)

MOST_CHARS = 500  # a message for people; what is longer is a body somebody pasted


def scrub(text: str, most: int = MOST_CHARS) -> str:
    """`text` without credentials, at most `most` characters of it. Empty text costs nothing."""
    if not text:
        return ""
    # cut first, but with room for what the rules take out, so that a cut never halves a key and hides it from them
    text = text[: most * 4]
    low = text.lower()
    for needles, pattern, put in _RULES:
        if any(needle in low for needle in needles):
            text = pattern.sub(put, text)
    return text if len(text) <= most else text[: most - 1] + "…"
