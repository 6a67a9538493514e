"""`preprocess` in Triton's Python backend: image files to pixels, with `imaging`."""

import json

import triton_python_backend_utils as pb_utils

from serving.pixels import decode_requests


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        output = json.loads(args["model_config"])["output"][0]
        self._size = int(output["dims"][0])

    def execute(self, requests: list) -> list:
        files = [pb_utils.get_input_tensor_by_name(request, "encoded").as_numpy() for request in requests]
        return [self._response(result) for result in decode_requests(files, self._size)]

    def _response(self, result):
        if isinstance(result, str):  # the caller's fault: without the code it would be answered as a 500
            return pb_utils.InferenceResponse([], pb_utils.TritonError(result, pb_utils.TritonError.INVALID_ARG))
        return pb_utils.InferenceResponse([pb_utils.Tensor("images", result)])
