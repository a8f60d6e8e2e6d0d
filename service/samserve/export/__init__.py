"""Making model repositories: checkpoints to ONNX files to the folders that Triton reads."""
