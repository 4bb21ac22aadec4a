"""What a policy says of its choice: a line for each candidate that it looked at, in `turnout explain`'s words.

A policy that is given one writes it in the same pass in which it decides; so it cannot say one thing and do another.
"""

from typing import Any

Why = list[dict[str, Any]]
