"""Makes .venv with a Python that the embedded Triton runs with, and installs this project into it, visibly.

    python3 install.py EXTRA...        # called by make; runs on any Python 3

uv installs, in a quarter of pip's time: the one on PATH, else one that pip puts into .venv. Where it cannot, pip does.
With a newer Python than 3.12, a python3.12, 3.11 or 3.10 on PATH serves instead, else one that uv brings.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from threading import Event, Thread

VENV = Path(".venv")
VERSIONS = ("3.12", "3.11", "3.10")  # that nvidia-pytriton has stubs for
UV = "uv==0.13.9"
# pip's settings that say where packages come from, by uv's names: a company's mirror serves both.
UV_NAMES = {
    "index-url": "UV_DEFAULT_INDEX", "extra-index-url": "UV_EXTRA_INDEX_URL", "find-links": "UV_FIND_LINKS",
    "no-index": "UV_NO_INDEX", "trusted-host": "UV_INSECURE_HOST",
    "cert": "SSL_CERT_FILE", "proxy": "ALL_PROXY", "timeout": "UV_HTTP_TIMEOUT", "default-timeout": "UV_HTTP_TIMEOUT",
}  # fmt: skip
# What is imported seldom, if at all: it is compiled when it is imported.
SELDOM = (
    r"/(tests?|testing|fontTools|imageio|libcst|mypyc?|nvidia/dali|numpy/(distutils|f2py)|onnxruntime/transformers|"
    r"pygments/lexers|ray/(dashboard|llm|rllib|serve|train|tune)|scipy|skimage|sympy/(parsing|physics|stats)|tifffile|"
    r"torch/_inductor)/"
)
# Files that are no Python of this version stay as they are. compileall's own pool (-j) takes twice as long.
COMPILE = """
find .venv/lib -name "*.py" -print0 |
xargs -0 -n 500 -P "$(getconf _NPROCESSORS_ONLN)" .venv/bin/python -m compileall -qq -x "$0"
"""
TICK_S = {True: 1.0, False: 10.0}  # between signs of life: on a terminal, elsewhere


def main(extras):
    """Exit status: 0 installed; 1 one line says what is missing."""
    if venv_version() not in VERSIONS:
        shutil.rmtree(VENV, ignore_errors=True)
        make_venv()
    packages = ["-c", "requirements.lock", "-e", f".[{','.join(extras)}]"]
    if not installed_by_uv(packages, extras):
        pip = [VENV / "bin/pip", "install", "--disable-pip-version-check", "--no-warn-script-location", "--no-compile"]
        code, output = run_visibly([*pip, *packages], extras)
        if code:
            sys.exit(f"make: pip failed: {last_line(output)}; its whole output is in {write_log(output)}")
    run_visibly(["sh", "-c", COMPILE, SELDOM], extras, "compiling")


def installed_by_uv(packages, extras):
    uv = shutil.which("uv") or own_uv()
    command = [uv, "pip", "install", "--no-progress", "--python", VENV / "bin/python", *packages]
    return bool(uv) and run_visibly(command, extras, environment=uv_environment())[0] == 0


def own_uv():
    """The uv of .venv, which pip puts there; None where it cannot."""
    uv = VENV / "bin/uv"
    if uv.exists():
        return uv
    pip = [VENV / "bin/pip", "install", "--disable-pip-version-check", "--quiet", UV]
    done = subprocess.run(pip, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return None if done.returncode else uv


def uv_environment():
    """uv looks where pip is configured to look, in all of the places as pip does; what is set for uv itself stays."""
    listed = subprocess.run([VENV / "bin/pip", "config", "list"], capture_output=True, text=True).stdout
    lines = (line.partition("=") for line in sorted(listed.splitlines(), key=of_environment))
    values = {name.rpartition(".")[2]: ast.literal_eval(value).split() for name, _, value in lines if value}
    known = {name: ("," if name == "find-links" else " ").join(value) for name, value in values.items()}
    places = {UV_NAMES[name]: value for name, value in known.items() if name in UV_NAMES}
    return {"UV_INDEX_STRATEGY": "unsafe-best-match", **places, **os.environ}


def of_environment(line):
    """pip's variables come first in its list, and before its files in what they decide."""
    return line.startswith(":env:")


def venv_version():
    """The Python of .venv, as 3.11; None where there is none that starts."""
    config = VENV / "pyvenv.cfg"
    text = config.read_text() if config.is_file() else ""
    found = re.search(r"^version(?:_info)? = (\d+\.\d+)", text, re.MULTILINE)
    return found.group(1) if found and (VENV / "bin/python").exists() and (VENV / "bin/pip").exists() else None


def make_venv():
    own = f"{sys.version_info[0]}.{sys.version_info[1]}"
    others = (shutil.which(f"python{each}") for each in VERSIONS)
    python = sys.executable if own in VERSIONS else next(filter(None, others), None)
    command = [python, "-m", "venv", str(VENV)] if python else None
    if command is None and shutil.which("uv"):
        command = ["uv", "venv", "--quiet", "--seed", "--python", VERSIONS[0], str(VENV)]
    if command is None:
        sys.exit(
            f"make: this is Python {own}, and the embedded Triton runs with 3.10 to 3.12: install uv "
            "(pip install uv), which brings one, or name one: make PYTHON=python3.12"
        )
    made = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if made.returncode:
        shutil.rmtree(VENV, ignore_errors=True)
        sys.exit(f"make: no .venv: {last_line(made.stdout.decode())}; on Debian: sudo apt-get install python3-venv")


def run_visibly(command, extras, doing=None, environment=None):
    """Run uv, pip or what is `doing` something else, with a line on stderr that moves: its exit status and output."""
    terminal, done, lines = sys.stderr.isatty(), Event(), []
    start = time.monotonic()

    def show():
        while not done.wait(TICK_S[terminal]):
            words = f"Installing {', '.join(extras)} into .venv: {doing or step(lines)}, "
            words += f"{time.monotonic() - start:.0f} s"
            print(f"\r{words}\033[K" if terminal else words, end="" if terminal else "\n", file=sys.stderr, flush=True)

    shown = Thread(target=show, daemon=True)
    shown.start()
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, env=environment, **output) as program:
        for line in program.stdout:
            lines.append(line)
    done.set()
    shown.join()
    if terminal:
        print("\r\033[K", end="", file=sys.stderr, flush=True)
    return program.returncode, "".join(lines)


def step(lines):
    """What uv or pip does, by its output so far."""
    resolved = next((line for line in lines if line.startswith("Resolved ")), "")
    packages = resolved.split()[1] if resolved else sum(line.startswith("Collecting ") for line in lines)
    installing = any(line.startswith(("Prepared ", "Installing collected")) for line in lines)
    return f"{packages} packages, {'installing' if installing else 'fetching'}"


def last_line(output):
    """The last line that says something, for choice one that says what was wrong."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    return (errors or lines or ["no output"])[-1]


def write_log(output):
    VENV.mkdir(exist_ok=True)
    log = VENV / "pip.log"
    log.write_text(output)
    return log


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit(130)
