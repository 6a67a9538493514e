"""Encoded images to probabilities; a file that is no image fails its own request alone."""

import sys
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb

sys.path.append(str(Path(__file__).parents[3]))
from alexnet_triton.imaging import ImageError, decode
from linear_network import probabilities


class TritonPythonModel:
    def execute(self, requests):
        return [respond(request) for request in requests]


def respond(request):
    encoded = pb.get_input_tensor_by_name(request, "encoded").as_numpy().ravel()
    try:
        images = np.stack([decode(each, 227) for each in encoded])
    except ImageError as error:
        return pb.InferenceResponse(error=pb.TritonError(str(error), pb.TritonError.INVALID_ARG))
    return pb.InferenceResponse([pb.Tensor("probabilities", probabilities(images))])
