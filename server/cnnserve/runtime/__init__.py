"""ONNX Runtime: sessions, devices and what runs where. May import `model_config` and the packages below it."""
