"""What this process may use: CPUs, heaps, threads and memory for requests.

May import the modules on the ground floor.
"""
