"""Programs of the distribution that tests run."""

import shutil

import pytest

PACKAGES = {"chromium-headless-shell": "chromium-headless-shell", "promtool": "prometheus", "prometheus": "prometheus"}


def program(name: str) -> str:
    """Where it is; without it the test is skipped, and says what to install."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"no {name}: apt install {PACKAGES[name]}")
    return path
