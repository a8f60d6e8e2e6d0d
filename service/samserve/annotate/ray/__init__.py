"""The pipeline on an existing Ray cluster, as Ray Data; needs the extra ``samserve[ray]``.

The process of the command lists the images and counts the outcomes.  Workers, which are actors of
the cluster, annotate blocks of images and write the records themselves.
"""
