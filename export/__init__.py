"""A checkpoint to ONNX and to a repository that Triton serves; every step verifies itself."""
