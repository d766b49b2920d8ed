"""The method table and its handlers: protobuf in, protobuf out, no transport.

May import `registry` and the rooms below it.
"""
