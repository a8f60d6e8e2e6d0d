"""Memory for tensors: private to this process, or shared with an inference server."""
