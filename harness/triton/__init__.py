"""A real tritonserver for machines without a GPU and without NVIDIA's ONNX Runtime backend."""
