"""The transports, which serve the method table to clients: gRPC and HTTP.

May import `api` and the packages below it. A transport must not import another transport.
"""
