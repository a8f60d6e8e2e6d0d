"""Segment Anything's networks, written for export; key names are those of its checkpoints.

Source of the computations: Kirillov et al., "Segment Anything" (2023) and the checkpoints'
original code, facebookresearch/segment-anything; file names are the paper's boxes.
"""
