"""Turns the bytes of an image file into one row of a model's input.

May import `process`, `repository`, `config`, `datatypes`, `errors`, `json_text` and `logs`.
"""
