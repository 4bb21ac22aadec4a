"""The kinds of provider a config can name: one file and one line here each."""

from .openai import OpenAISpec
from .simulated import SimulatedSpec

PROVIDERS = (OpenAISpec, SimulatedSpec)
