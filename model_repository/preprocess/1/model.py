"""`preprocess` in Triton's Python backend: image files to pixels, with `imaging`, or NVIDIA DALI on a GPU."""

import json
import os

import triton_python_backend_utils as pb_utils

from alexnet_triton.serving.pixels import make_decoder


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        size, parameters = int(config["output"][0]["dims"][0]), config["parameters"]
        os.nice(int(parameters["nice"]["string_value"]))
        name = parameters["decoder"]["string_value"]
        device_id = int(args["model_instance_device_id"]) if args["model_instance_kind"] == "GPU" else None
        decoder = make_decoder(name, size, int(config["max_batch_size"]), device_id)
        self._decode = decoder.decode
        if decoder.fault:
            pb_utils.Logger.log_warn(f"preprocess: {decoder.fault}")
        where = "the processor" if device_id is None or decoder.name == "imaging" else f"GPU {device_id}"
        pb_utils.Logger.log_info(f"preprocess: {decoder.name} on {where}, {size} pixels")

    def execute(self, requests: list) -> list:
        files = [pb_utils.get_input_tensor_by_name(request, "encoded").as_numpy() for request in requests]
        return [self._response(result) for result in self._decode(files)]

    def _response(self, result):
        if isinstance(result, str):  # the caller's fault: without the code it would be answered as a 500
            return pb_utils.InferenceResponse([], pb_utils.TritonError(result, pb_utils.TritonError.INVALID_ARG))
        return pb_utils.InferenceResponse([pb_utils.Tensor("images", result)])
