"""The resources of this process: CPUs, heaps, threads and memory for requests.

May import the modules directly in `cnnserve`, but no other subpackage.
"""
