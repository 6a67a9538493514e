"""python -m serving."""

import signal

from alexnet_triton.serving.cli import main  # noqa: E402

# Ctrl-C before main() simply ends the program: a KeyboardInterrupt that comes up in a callback of the import system
# is printed and forgotten, and the server would start all the same.
signal.signal(signal.SIGINT, signal.SIG_DFL)


if __name__ == "__main__":
    raise SystemExit(main())
