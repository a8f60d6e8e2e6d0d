"""A pod of the Helm chart, run as processes of this machine as the kubelet would run it.

What cannot be had without a container runtime is not there: images, users, limits of memory.  What
stands in for images is in `images`, volumes are folders, ports are free ones.
"""
