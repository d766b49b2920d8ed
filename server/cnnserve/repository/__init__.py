"""The files of a model repository: model folders, manifests, labels, ONNX headers; and `cnnserve show`.

May import `config`, `datatypes`, `errors`, `json_text` and `logs`, but no other package of `cnnserve`.
"""
