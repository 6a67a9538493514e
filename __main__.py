"""The command `alexnet-triton`: each sub-command is loaded when it is called."""

import sys
from collections.abc import Sequence
from importlib import import_module

# In the order of use: name -> (module, function that takes the words and returns the exit code, one line of help).
COMMANDS = {
    "train": ("training.train", "main", "train a network on Fashion-MNIST, CIFAR-10 or a folder of photographs"),
    "evaluate": ("training.evaluate", "main", "top-1 and top-5 of a checkpoint on a whole split"),
    "figures": ("training.figures", "main", "the 2012 paper's figures 3 and 4 from a checkpoint"),
    "claims": ("training.claims.command", "main", "the 2012 paper's claims, shown again on small networks"),
    "pictures": ("training.data", "pictures_main", "write images of a data set as files"),
    "imagenet-weights": ("training.torchvision_weights", "main", "published ImageNet weights to a checkpoint"),
    "imagenet": ("export.imagenet", "main", "a network with published ImageNet weights, published without training"),
    "export": ("export.pipeline", "main", "a checkpoint to a published version: every precision, verified"),
    "to-onnx": ("export.to_onnx", "main", "a checkpoint to ONNX"),
    "verify": ("export.verify", "main", "compare networks with a reference on a whole test set"),
    "build-engine": ("export.build_engine", "main", "ONNX to a TensorRT plan, on the GPU that serves it"),
    "publish": ("export.publish", "main", "a network to the next version of a model repository"),
    "rollback": ("export.publish", "rollback_main", "serve the version before"),
    "serve": ("serving.cli", "serve", "Triton in the foreground until Ctrl-C"),
    "status": ("serving.cli", "status", "which servers run, and whether they are healthy"),
    "stop": ("serving.cli", "stop", "end a server"),
    "classify": ("client.cli", "main", "classify images; also installed as alexnet-classify"),
    "bulk": ("bulk.command", "main", "classify millions of files on a Ray cluster, into Parquet"),
    "loadtest": ("loadtest", "main", "load on a server: run, sweep, compare, mlperf, report"),
    "bench": ("loadtest.bench.cli", "main", "this server beside its peers and the machine's bound"),
    "gpu-check": ("loadtest.bench.gpu_check", "main", "everything that waits for a GPU, measured on one"),
    "tune": ("loadtest.bench.cli", "tune_stage", "the settings that are fastest on this machine"),
}
EXTRAS = "train,export,serve,loadtest,bulk"
USAGE_LINE = "usage: alexnet-triton COMMAND [OPTION]...   alexnet-triton COMMAND --help"


def main(words: Sequence[str] | None = None) -> int:
    """Run a sub-command; returns its exit code. Ctrl-C is one line and 130 from the first moment on."""
    try:
        from alexnet_triton.common.command import leave_on_interrupt

        leave_on_interrupt()
    except KeyboardInterrupt:  # while that is imported
        sys.stderr.write("alexnet-triton: interrupted; nothing was done\n")
        return 130
    return _run(words)


def _run(words: Sequence[str] | None) -> int:
    from alexnet_triton.common.command import USAGE, complain

    name, *rest = list(sys.argv[1:] if words is None else words) or ["--help"]
    if name in ("-h", "--help"):
        return _help()
    if name == "--version":
        from importlib import metadata  # takes longer to import than all else here

        print(metadata.version("alexnet-triton"))
        return 0
    if name not in COMMANDS:
        complain("alexnet-triton", f"no command {name!r}; see alexnet-triton --help")
        return USAGE
    module, function, _ = COMMANDS[name]
    try:
        command = getattr(import_module(f"alexnet_triton.{module}"), function)
    except ModuleNotFoundError as error:
        return _explain_missing(name, error)
    return command(rest)


def _help() -> int:
    print(f"{USAGE_LINE}\n\nAlexNet from training to load test; the commands in the order of use:\n")
    width = max(map(len, COMMANDS))
    for name, (_, _, line) in COMMANDS.items():
        print(f"  {name:{width}}  {line}")
    return 0


def _explain_missing(name: str, error: ModuleNotFoundError) -> int:
    """A package of an extra that is not installed; anything else is a fault of this project's."""
    from alexnet_triton.common.command import USAGE, complain

    if not error.name or error.name.partition(".")[0] == "alexnet_triton":
        raise error
    complain(
        f"alexnet-triton {name}", f"needs {error.name}: pip install 'alexnet-triton[train,export,serve,loadtest,bulk]'"
    )
    return USAGE


if __name__ == "__main__":
    sys.exit(main())
