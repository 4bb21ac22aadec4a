"""What is known of providers that take the beginning of an answer and go on with it, by host.

Whoever is not here is asked in words, which every chat model understands. The table is only where a target starts: one
that refuses is asked in words from then on (`Ability` in exchange.py), and a route's target may say otherwise.
"""

from urllib.parse import urlsplit

ASSISTANT_PREFIX = "assistant-prefix"
NONE = "none"

_HOSTS = {
    "api.mistral.ai": "",  # docs: "prefix": true on the last assistant message
    "codestral.mistral.ai": "",
    "api.deepseek.com": "/beta",  # docs, "Chat Prefix Completion (Beta)": on this path only
}


def known_prefill(base_url: str) -> str:
    """How the provider behind `base_url` takes an answer to go on with: a mode of wire/resume.py."""
    parts = urlsplit(base_url)
    path = _HOSTS.get((parts.hostname or "").lower())
    return ASSISTANT_PREFIX if path is not None and parts.path.startswith(path) else NONE
