"""Puts the parts of a server together, without its ports. `transports.front` adds the ports; Ray's replicas have none.

This package imports nothing.
"""
