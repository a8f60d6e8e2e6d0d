"""The data engine once round: annotate, correct, tune, promote, and the same questions again.

    python -m benchmarks.loop OUT [--turns 2] [--images 90] [--held-out 18] [--steps 650]

Everything is done with the commands of `samserve` and a running server.  Only the annotator is a
script: it knows the objects of the synthetic images, and clicks where a mask is wrong.
"""
