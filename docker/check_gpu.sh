#!/bin/sh
# Whether this machine, or this container, has a GPU whose driver runs CUDA 13. Says why not in one line; prints nothing else.
#
# CUDA 13 needs a driver of branch R580 or later (NVIDIA, CUDA Toolkit 13 release notes) and a GPU of compute capability 7.5
# (Triton's release notes, 26.09). NVIDIA's images have libraries that lift some older drivers to it, which only NVIDIA's own
# entrypoint links, as root. common/provenance.py has the same rule for what runs in Python.
set -eu
oldest=580

refuse() {
    echo "check_gpu: $*" >&2
    exit 1
}

command -v nvidia-smi >/dev/null || refuse "no nvidia-smi: install NVIDIA's driver, R$oldest or newer, or serve on the processor"
case ${CUDA_VISIBLE_DEVICES:-} in # numbers choose; nvidia-smi does not know all that it may name besides
"" | *[!0-9,]*) ;;
*) set -- -i "$CUDA_VISIBLE_DEVICES" ;;
esac
gpus=$(nvidia-smi "$@" --query-gpu=driver_version,compute_cap,name --format=csv,noheader 2>/dev/null) || refuse "nvidia-smi fails: run it to see why"
printf '%s\n' "$gpus" | {
    IFS=', ' read -r driver capability name || :
    case $driver.$capability in
    [0-9]*.[0-9]*.[0-9]*) ;;
    *) refuse "no GPU: nvidia-smi lists none; start the container with one, or serve on the processor" ;;
    esac
    [ "${driver%%.*}" -ge "$oldest" ] ||
        refuse "NVIDIA driver $driver is too old for CUDA 13: install R$oldest or newer, or serve on the processor"
    [ "${capability%.*}${capability#*.}" -ge 75 ] ||
        refuse "$name has compute capability $capability, and CUDA 13 needs 7.5: serve on the processor"
}
