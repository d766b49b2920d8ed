"""A load generator for gRPC and HTTP that uses a tenth of a gRPC library's CPU time.

It runs on the same machine as the server that it measures, so it must use little CPU time. Therefore it speaks HTTP/2
and HTTP/1.1 on bare sockets, and uses the standard library only.
"""
