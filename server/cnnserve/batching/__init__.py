"""Computes many requests in one run: queue, policy, instances and statistics.

May import the modules directly in `cnnserve`, but no other subpackage.
"""
