"""Pixels to probabilities."""

import sys
from pathlib import Path

import triton_python_backend_utils as pb

sys.path.append(str(Path(__file__).parents[3]))
from linear_network import probabilities


class TritonPythonModel:
    def execute(self, requests):
        return [respond(request) for request in requests]


def respond(request):
    images = pb.get_input_tensor_by_name(request, "images").as_numpy()
    return pb.InferenceResponse([pb.Tensor("probabilities", probabilities(images))])
