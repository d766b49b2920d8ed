"""What carries the method table to clients: gRPC and HTTP.

May import `api` and the rooms below it; a transport imports no other transport.
"""
