"""Reads `config.pbtxt` and derives the settings of a model: shapes, batching, execution, preprocessing.

May import `images` and the packages below it.
"""
