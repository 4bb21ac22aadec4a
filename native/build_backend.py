"""setuptools' build backend, and one promise on top: TURNOUT_REQUIRE_NATIVE=1 never yields a wheel without the engine."""

import os
import zipfile
from pathlib import Path

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403  (the other hooks as they are)


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    name = build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)
    if os.environ.get("TURNOUT_REQUIRE_NATIVE") == "1":
        inside = zipfile.ZipFile(Path(wheel_directory) / name).namelist()
        if not any(entry.startswith("turnout/_native.") and entry.endswith((".so", ".pyd")) for entry in inside):
            raise SystemExit("TURNOUT_REQUIRE_NATIVE=1, but the Rust extension was not built: is cargo on the PATH?")
    return name
