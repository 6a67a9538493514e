#!/bin/sh
# From photographs to a repository that serves on a processor, as `make export` does; what is there is kept.
set -eu
artifacts=${ARTIFACTS:-artifacts}
python=${PYTHON:-python3}

if [ -f "$artifacts/model_repository/classify/config.pbtxt" ]; then
    echo "make_model: $artifacts/model_repository is there"
    exit
fi
if [ ! -f "$artifacts/checkpoint.pt" ]; then
    "$python" -m training.train --budget "${BUDGET:-300}" ${DATA:+--data-dir "$DATA"} --output "$artifacts/checkpoint.pt"
fi
pictures() { # FOLDER OPTION...
    folder=$1
    shift
    [ -d "$folder" ] || "$python" -m training.pictures ${DATA:+--data-dir "$DATA"} "$@" --to "$folder"
}
pictures "$artifacts/pictures"
pictures "$artifacts/test" --count "${TEST_IMAGES:-10000}" --format png
pictures "$artifacts/calibration" --split train --count 1128 --format png
exec "$python" -m export all "$artifacts/checkpoint.pt" --test "$artifacts/test" --calibration "$artifacts/calibration" \
    --onnx "$artifacts/onnx" --repository "$artifacts/model_repository"
