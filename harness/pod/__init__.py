"""Runs a pod of the Helm chart as processes of this machine, in the way the kubelet would.

Images, users and memory limits need a container runtime and are not emulated. `images` replaces the
images, volumes are directories, and ports are free ones of this machine.
"""
