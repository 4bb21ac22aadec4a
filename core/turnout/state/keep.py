"""Small files in `state.dir` that outlive the process: whole or not at all, and read with suspicion."""

import os
from pathlib import Path

from .seal import seal, unseal

MOST_BYTES = 16 * 1024 * 1024


def write(path: Path, value: bytes) -> None:
    """Raises OSError; what stood there stays then. Not synced: after a power cut it may be the old one or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".new")
    fresh.write_bytes(seal(path.name.encode(), value))
    fresh.replace(path)


def read(path: Path) -> bytes | None:
    """What `write` put there; None if there is nothing, or nothing of ours."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe in its place must not hold us up
        with open(fd, "rb") as file:
            sealed = file.read(MOST_BYTES + 1)
    except OSError:
        return None
    return unseal(path.name.encode(), sealed) if len(sealed) <= MOST_BYTES else None
