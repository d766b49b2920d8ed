"""The method table and its handlers: protobuf messages in, protobuf messages out, no transport.

May import `registry` and the packages below it.
"""
