"""cnnserve: serves verified ONNX image classifiers over gRPC and HTTP."""

__version__ = "0.1.0"
