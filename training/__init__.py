"""Reproducible training of ``sam_tiny``, the demonstration model that samserve ships.

The serving package never imports this one, which requires torch.
"""
