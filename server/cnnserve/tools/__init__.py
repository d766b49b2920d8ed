"""Tools for people who judge a served model: evaluation, load tests and layouts.

They may import every room below, and alone in the server the client. Whoever only serves never imports them.
"""
