"""Keeping a run's key from the process list.

Tritonserver takes it on its command line and nowhere else, and any user of the machine can read that. So it is
overwritten there once it has been read, as programs do that take passwords (proc(5), /proc/pid/mem and cmdline).
"""

from pathlib import Path

_ARG_START, _ARG_END = 48, 49  # fields of /proc/pid/stat, counted from 1, proc(5)


def hide_argument(pid: int, secret: str) -> bool:
    """Overwrite `secret` in the command line of a process below this one; whether the kernel allowed it."""
    process, wanted = Path(f"/proc/{pid}"), secret.encode()
    try:
        fields = (process / "stat").read_text().rpartition(")")[2].split()
        start, end = (int(fields[number - 3]) for number in (_ARG_START, _ARG_END))
        with (process / "mem").open("r+b", buffering=0) as memory:
            memory.seek(start)
            arguments = memory.read(end - start)
            memory.seek(start)
            memory.write(arguments.replace(wanted, b"*" * len(wanted)))
    except OSError:
        return False
    return True
