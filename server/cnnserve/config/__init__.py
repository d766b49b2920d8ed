"""The server's settings: flags, environment variables, a file, and what people mistype in them.

May import `errors` and `json_text` only.
"""
