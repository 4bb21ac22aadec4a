"""A good config as text, and ways to load texts near it: shared by the tests of the config room."""

from typing import Any

import pytest

from turnout.config import load
from turnout.config.load import ConfigError, Loaded, load_data

SECRET = "sk-live-51Hx9vQz7canary"  # stands where a literal is refused; must never be seen again

GOOD = """\
listen: {host: 127.0.0.1, port: 8080}
auth:
  keys:
    - name: app
      key: env:APP_KEY
providers:
  a:
    kind: openai
    base_url: https://a.example.com/v1
    api_key: env:A_KEY
routes:
  - name: chat
    match:
      model: fast
    targets:
      - provider: a
        model: gpt-4o-mini
"""


def resolve(ref: str) -> str:
    return f"value-of-{ref.replace(':', '-').replace('/', '-')}"


def load_text(text: str, name: str = "turnout.yaml", dev: bool = False, resolver: Any = resolve) -> Loaded:
    raw = load.parse(text, name)
    return load_data(raw.data, dev=dev, resolver=resolver, locate=raw.locate, name=name)


def refused(text: str, name: str = "turnout.yaml", dev: bool = False, resolver: Any = resolve) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_text(text, name, dev, resolver)
    return str(caught.value).splitlines()


def warned(text: str) -> list[str]:
    return [problem.show("turnout.yaml") for problem in load_text(text).warnings]


def with_(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new, 1)
