"""Providers that speak OpenAI's wire: OpenAI itself, Azure's v1 endpoint, vLLM, Groq, Mistral, OpenRouter and others.

The client's body goes through with only `model` (and what the route sets) changed.
"""

from typing import ClassVar

import msgspec

from ...secret import Secret


class AccountSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One credential of a provider. Each has a breaker and cool-downs of its own."""

    name: str
    api_key: Secret
    organization: str | None = None
    project: str | None = None
    weight: float = 1.0


class OpenAISpec(msgspec.Struct, tag_field="kind", tag="openai", frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`base_url` ends where `/chat/completions` begins, e.g. `https://api.openai.com/v1`."""

    embeds: ClassVar[bool] = True  # has an endpoint for embeddings

    base_url: str
    api_key: Secret | None = None
    accounts: list[AccountSpec] = []
    headers: dict[str, str] = {}  # sent with every request, e.g. HTTP-Referer for OpenRouter
    include_usage: bool = True  # ask streams for usage; off for servers that refuse `stream_options`
    ca_bundle: str | None = None  # PEM file; the system's store if not set
    proxy: str | None = None  # http://host:port of an egress proxy; never read from the environment
    max_idle_connections: int = 1024
