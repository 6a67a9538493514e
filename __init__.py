"""AlexNet from training to load test: PyTorch, ONNX, TensorRT, NVIDIA Triton. The command is `alexnet-triton`."""
