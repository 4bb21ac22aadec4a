"""Metrics that a test looks at: how often each last label was counted."""


class Counts:
    def __init__(self) -> None:
        self.seen: dict[str, int] = {}

    def count(self, family: str, labels: tuple[str, ...], by: float = 1) -> None:
        self.seen[labels[-1]] = self.seen.get(labels[-1], 0) + 1

    def time(self, family: str, labels: tuple[str, ...], seconds: float) -> None: ...
