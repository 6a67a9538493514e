#!/bin/sh
# From photographs to a repository that a processor serves, as `make export` makes it. What exists is kept.
#
#   docker/make_model.sh [--gpu]      --gpu: for a GPU to train on and to serve from, so that without one nothing is made
set -eu
[ "${1:-}" != --gpu ] || "$(dirname "$0")/check_gpu.sh"
artifacts=${ARTIFACTS:-artifacts}

if [ -f "$artifacts/model_repository/classify/config.pbtxt" ]; then
    echo "make_model: $artifacts/model_repository exists"
    exit
fi
[ -f "$artifacts/checkpoint.pt" ] ||
    alexnet-triton train --budget "${BUDGET:-300}" ${DATA:+--data-dir "$DATA"} --output "$artifacts/checkpoint.pt"
pictures() { # FOLDER OPTION...
    folder=$artifacts/$1
    shift
    [ -d "$folder" ] || alexnet-triton pictures ${DATA:+--data-dir "$DATA"} "$@" --to "$folder"
}
pictures pictures
pictures test --count "${TEST_IMAGES:-10000}" --format png
pictures calibration --split train --count 128 --format png
exec alexnet-triton export "$artifacts/checkpoint.pt" --test "$artifacts/test" --calibration "$artifacts/calibration" \
    --onnx "$artifacts/onnx" --repository "$artifacts/model_repository"
