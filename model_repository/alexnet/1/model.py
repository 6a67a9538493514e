"""`alexnet` in Triton's Python backend: pixels to probabilities, with OpenVINO, or TensorRT on a GPU."""

import json
from pathlib import Path

import triton_python_backend_utils as pb_utils

from alexnet_triton.serving.engine import EngineConfig
from alexnet_triton.serving.plan_engine import load_engine


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        config = EngineConfig.from_model_config(json.loads(args["model_config"]))
        self._engine = load_engine(Path(__file__).parent, config, int(args["model_instance_device_id"]))
        self._engine.warm_up()
        version = args["model_version"]
        pb_utils.Logger.log_info(f"alexnet version {version}: {config.engine}, {self._engine.description}")

    def execute(self, requests: list) -> list:
        images = [pb_utils.get_input_tensor_by_name(request, "images").as_numpy() for request in requests]
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor("probabilities", rows)])
            for rows in self._engine.infer_requests(images)
        ]
