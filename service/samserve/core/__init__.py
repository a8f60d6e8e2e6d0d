"""Pure numerics of promptable segmentation: no I/O, no engine, no transport.

Sources are cited as ``segment-anything file:line`` of facebookresearch/segment-anything @ dca509f.
"""
