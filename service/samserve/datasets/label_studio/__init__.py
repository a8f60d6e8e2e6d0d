"""Label Studio's tasks with predictions, and what annotators have made of them.

`samserve bridge` needs the regions only, so nothing is imported here.
"""
