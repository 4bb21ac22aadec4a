"""The config as a JSON Schema, for editors: `# yaml-language-server: $schema=FILE` as the first line of a config."""

from typing import Any

import msgspec

from ..secret import Certificate, Pem, Secret
from .model import Config

SECRET_PATTERN = r"^(env:[A-Za-z_][A-Za-z0-9_]*|file:/.*)$"


def json_schema() -> dict[str, Any]:
    """A JSON Schema (2020-12) of a config file; a secret is text that refers to one. Descriptions are our docstrings."""
    schema = msgspec.json.schema(Config, schema_hook=_describe)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Turnout config", **schema}


def _describe(type_: type) -> dict[str, Any]:
    if type_ is Secret:
        return {
            "type": "string",
            "pattern": SECRET_PATTERN,
            "description": "A secret, by reference: env:NAME or file:/path.",
        }
    if type_ is Pem:
        return {
            "type": "string",
            "pattern": SECRET_PATTERN,
            "description": "A private key in PEM, by reference: env:NAME or file:/path.",
        }
    if type_ is Certificate:
        return {"type": "string", "description": "A certificate and its chain in PEM: a path, env:NAME or file:/path."}
    if type_ is object:  # any JSON value
        return {"description": "Any JSON value."}
    raise NotImplementedError(type_)
