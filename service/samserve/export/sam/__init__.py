"""Segment Anything's networks, written for export; state dict keys are those of its checkpoints.

Source of the computations: Kirillov et al., "Segment Anything" (2023) and the original code of the
checkpoints, facebookresearch/segment-anything; modules are named after the components of the paper.
"""
