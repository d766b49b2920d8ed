"""cnnserve beside plain ONNX Runtime, a server that runs no model, and the servers that a user may choose instead."""
