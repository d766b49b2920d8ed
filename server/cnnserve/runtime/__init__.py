"""ONNX Runtime: sessions, instances, execution providers, and which provider runs which node.

May import `model_config` and the packages below it.
"""
