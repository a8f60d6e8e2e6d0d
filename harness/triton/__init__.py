"""The real tritonserver on a machine without a GPU, and without NVIDIA's ONNX Runtime backend."""
