"""The files of a model repository: model folders, manifests, labels, ONNX headers; and `cnnserve show`.

May import the modules directly in `cnnserve`, but no other subpackage.
"""
