"""The `Engine` that runs models on a Triton Inference Server."""
