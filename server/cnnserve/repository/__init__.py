"""What is on disk: model folders, manifests, class names, ONNX headers, and `cnnserve show`.

May import the modules on the ground floor.
"""
