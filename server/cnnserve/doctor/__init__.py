"""`cnnserve doctor`: checks a machine, its settings and a model repository, and says what to do.

It needs the base install only. Each check is on its own: whatever is missing or broken, the others still run.
"""
