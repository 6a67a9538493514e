"""`preprocess` in Triton's Python backend: image files to pixels, with `imaging`."""

import json
import os

import triton_python_backend_utils as pb_utils

from serving.pixels import decode_requests


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        self._size = int(config["output"][0]["dims"][0])
        os.nice(int(config["parameters"]["nice"]["string_value"]))

    def execute(self, requests: list) -> list:
        files = [pb_utils.get_input_tensor_by_name(request, "encoded").as_numpy() for request in requests]
        return [self._response(result) for result in decode_requests(files, self._size)]

    def _response(self, result):
        if isinstance(result, str):  # the caller's fault: without the code it would be answered as a 500
            return pb_utils.InferenceResponse([], pb_utils.TritonError(result, pb_utils.TritonError.INVALID_ARG))
        return pb_utils.InferenceResponse([pb_utils.Tensor("images", result)])
