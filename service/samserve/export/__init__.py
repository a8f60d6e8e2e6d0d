"""Export of checkpoints: from PyTorch weights to ONNX files in a Triton model repository."""
