"""`config.pbtxt` and what follows from it.

May import `images`, `batching`, `repository`, `process`, `wire` and the ground floor.
"""
