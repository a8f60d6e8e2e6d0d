"""The `Engine` that asks a Triton Inference Server."""
