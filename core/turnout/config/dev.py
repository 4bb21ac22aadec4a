"""The config of `turnout serve --dev` without a file: made from the provider keys that the environment holds."""

from collections.abc import Mapping
from typing import Any

from .problem import ConfigError, Problem

# variable, provider, base_url, what its own models are called (globs over what a client asks for as `model`).
# All of them speak OpenAI's wire; the addresses are those of their own documentation.
_KNOWN: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (
    (
        "OPENAI_API_KEY",
        "openai",
        "https://api.openai.com/v1",
        ("gpt-*", "o1*", "o3*", "o4*", "chatgpt-*", "text-embedding-3-*"),
    ),
    (
        "MISTRAL_API_KEY",
        "mistral",
        "https://api.mistral.ai/v1",
        ("mistral-*", "ministral-*", "codestral-*", "magistral-*"),
    ),
    ("DEEPSEEK_API_KEY", "deepseek", "https://api.deepseek.com/v1", ("deepseek-*",)),
    ("XAI_API_KEY", "xai", "https://api.x.ai/v1", ("grok-*",)),
    ("GROQ_API_KEY", "groq", "https://api.groq.com/openai/v1", ("llama-3*",)),
    ("TOGETHER_API_KEY", "together", "https://api.together.xyz/v1", ("meta-llama/*",)),
    ("FIREWORKS_API_KEY", "fireworks", "https://api.fireworks.ai/inference/v1", ("accounts/fireworks/*",)),
    ("OPENROUTER_API_KEY", "openrouter", "https://openrouter.ai/api/v1", ("*/*",)),  # vendor/model
)


def dev_config(env: Mapping[str, str]) -> dict[str, Any]:
    """Plain config data: a provider for each key that is set, a route for each family of its models, `*` to the first.

    Holds references (`env:NAME`), never a value. No provider stands in for another: their models are not the same.
    Raises `ConfigError` when none of the variables is set.
    """
    present = [row for row in _KNOWN if env.get(row[0])]
    if not present:
        names = ", ".join(row[0] for row in _KNOWN)
        raise ConfigError([Problem("", f"no provider key found: set one of {names}, or give --config FILE")], "--dev")
    providers: dict[str, Any] = {}
    routes: list[dict[str, Any]] = []
    for variable, provider, base_url, globs in present:
        providers[provider] = {"kind": "openai", "base_url": base_url, "api_key": f"env:{variable}"}
        for glob in globs:
            routes.append(_route(f"{provider}-{_word(glob)}", glob, provider))
    routes.append(_route("any", "*", present[0][1]))
    return {"providers": providers, "routes": routes}


def _route(name: str, glob: str, provider: str) -> dict[str, Any]:
    return {"name": name, "match": {"model": glob}, "targets": [{"provider": provider}]}


def _word(glob: str) -> str:
    return glob.strip("*-/").replace("/", "-") or "all"
