"""Memory that tensors lie in: of this process alone, or shared with a model runtime."""
