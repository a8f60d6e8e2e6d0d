"""samserve: a model server for promptable segmentation."""

__version__ = "0.1.0"
