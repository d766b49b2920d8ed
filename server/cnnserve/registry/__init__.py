"""All models: their versions, how one version replaces another, who may change them, readiness, and measurements.

May import `model` and the packages below it.
"""
