#!/bin/sh
# Builds the TensorRT plan on the GPU that will serve it, compares its answers with ONNX Runtime's and its top-1 on the whole
# test set with that of FP32, and only then publishes it. Does nothing when the plan already fits this model, GPU and
# TensorRT. With PLAN_CACHE, a folder that machines with other GPUs may share, a plan that fits is taken from there, and a
# new one is left there.
#
#   docker/build_engine.sh [OPTION OF alexnet-triton build-engine]...
set -eu
artifacts=${ARTIFACTS:-artifacts}
onnx=$artifacts/onnx
repository=$artifacts/gpu/model_repository # apart from the processor's, whose versions have no plan
plan=$onnx/model.plan

refuse() {
    echo "build_engine: $*" >&2
    exit 1
}

[ -f "$onnx/model.fp16.onnx" ] || refuse "no $onnx/model.fp16.onnx: make it with docker/make_model.sh or \`make export\`"
"$(dirname "$0")/check_gpu.sh"
case ${CUDA_VISIBLE_DEVICES:-} in
[0-9]*) number=${CUDA_VISIBLE_DEVICES%%,*} ;;
*) number=0 ;;
esac
gpu=$(nvidia-smi -i "$number" --query-gpu=name,compute_cap --format=csv,noheader | head -n 1)
version=$(python3 -c 'import tensorrt; print(tensorrt.__version__)' 2>/dev/null) ||
    refuse "no TensorRT: run this in the tensorrt image of the server's tag, or by \`make gpu\`"
fits="TensorRT $version, $gpu, $(sha256sum <"$onnx/model.fp16.onnx") $*"

if [ -f "$plan.fits" ] && [ "$(cat "$plan.fits")" = "$fits" ] && [ -f "$repository/classify/config.pbtxt" ]; then
    echo "build_engine: $plan fits $gpu and TensorRT $version"
    exit
fi
rm -f "$plan.fits"
cached=
[ -z "${PLAN_CACHE:-}" ] || cached=$PLAN_CACHE/$(echo "$fits" | sha256sum | cut -c 1-32)
if [ -n "$cached" ] && [ -d "$cached" ]; then
    echo "build_engine: $cached has a plan for $gpu and TensorRT $version"
    cp "$cached/"model.plan* "$onnx/"
else
    [ ! -d "$artifacts/test" ] || set -- --images "$artifacts/test" "$@"
    alexnet-triton build-engine "$@" "$onnx/model.fp16.onnx" "$plan"
    [ ! -d "$artifacts/test" ] ||
        alexnet-triton verify "$plan" --against "$onnx/model.onnx" --images "$artifacts/test" --top1-loss 0.2 --json "$plan.verified.json"
    if [ -n "$cached" ]; then # whole or not at all; of two machines that build the same plan, the first leaves it
        new=$(mktemp -d "$PLAN_CACHE/.new.XXXXXX")
        cp "$plan"* "$new/"
        mv -T "$new" "$cached" 2>/dev/null || rm -rf "$new"
    fi
fi
set --
[ ! -d "$artifacts/pictures" ] || set -- --images "$artifacts/pictures"
alexnet-triton publish "$onnx/model.onnx" "$@" --repository "$repository"
echo "$fits" >"$plan.fits"
