"""Makes .venv with a Python that the embedded Triton runs with, and installs this project into it, visibly.

    python3 install.py EXTRA...        # called by make; runs on any Python 3

With a newer Python than 3.12, a python3.12, 3.11 or 3.10 on PATH serves instead, else one that uv brings.
"""

import re
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

VENV = Path(".venv")
VERSIONS = ("3.12", "3.11", "3.10")  # that nvidia-pytriton has stubs for
# What is imported seldom, if at all: it is compiled when it is imported.
SELDOM = (
    r"/(tests?|testing|fontTools|imageio|libcst|mypyc?|nvidia/dali|numpy/(distutils|f2py)|onnxruntime/transformers|"
    r"pygments/lexers|ray/(dashboard|llm|rllib|serve|train|tune)|scipy|skimage|sympy/(parsing|physics|stats)|tifffile|"
    r"torch/_inductor)/"
)
# Files that are no Python of this version stay as they are, and those that are seldom imported.
COMPILE = [VENV / "bin/python", "-m", "compileall", "-qq", "-x", SELDOM]
TICK_S = {True: 1.0, False: 10.0}  # between signs of life: on a terminal, elsewhere


def main(extras):
    """Exit status: 0 installed; 1 one line says what is missing."""
    if venv_version() not in VERSIONS:
        shutil.rmtree(VENV, ignore_errors=True)
        make_venv()
    pip = [VENV / "bin/pip", "install", "--disable-pip-version-check", "--no-warn-script-location", "--no-compile"]
    with compiling_meanwhile():
        code, output = run_visibly([*pip, "-c", "requirements.lock", "-e", f".[{','.join(extras)}]"], extras)
    if code:
        sys.exit(f"make: pip failed: {last_line(output)}; its whole output is in {write_log(output)}")
    run_visibly([*COMPILE, "-j", "0", VENV / "lib"], extras, "compiling")


@contextmanager
def compiling_meanwhile():
    """Compile each package as soon as pip has unpacked it, on another core than pip's."""
    over, seen = Event(), set()

    def compile_new():
        while not over.wait(1):
            new = set(VENV.glob("lib/*/site-packages/*.dist-info/RECORD")) - seen  # pip writes it at the end
            seen.update(new)
            files = [str(record.parent.parent / name) for record in new for name in python_files(record)]
            if files:
                subprocess.run([*COMPILE, "-i", "-"], input="\n".join(files), text=True)

    thread = Thread(target=compile_new, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def python_files(record):
    """The names of a package's modules, as its RECORD lists them: name,hash,size."""
    names = (line.rpartition(",")[0].rpartition(",")[0].strip('"') for line in record.read_text().splitlines())
    return [name for name in names if name.endswith(".py")]


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


def run_visibly(command, extras, doing=None):
    """Run pip, or what is `doing` something else, with a line on stderr that moves; its exit status and its output."""
    terminal, done, lines = sys.stderr.isatty(), Event(), []
    start = time.monotonic()

    def show():
        while not done.wait(TICK_S[terminal]):
            packages = sum(line.startswith("Collecting ") for line in lines)
            step = "installing" if any(line.startswith("Installing collected") for line in lines) else "fetching"
            words = f"Installing {', '.join(extras)} into .venv: {doing or f'{packages} packages, {step}'}, "
            words += f"{time.monotonic() - start:.0f} s"
            print(f"\r{words}\033[K" if terminal else words, end="" if terminal else "\n", file=sys.stderr, flush=True)

    shown = Thread(target=show, daemon=True)
    shown.start()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as pip:
        for line in pip.stdout:
            lines.append(line)
    done.set()
    shown.join()
    if terminal:
        print("\r\033[K", end="", file=sys.stderr, flush=True)
    return pip.returncode, "".join(lines)


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
