"""cnnserve_export: PyTorch classifier -> verified ONNX -> a version in a model repository.

Parts, in the order an export meets them:

- `cli`: the commands `cnnserve export` and `cnnserve train-lenet`; `flags`: what they may be told
- `architectures`: one paper per file, and the table of what can be exported by name
- `checkpoints`, `labels`, `golden`: what comes in beside the network: weights, class names, the golden image
- `digits`, `train`: scanned digits and the LeNet-5 trained on them
- `pipeline`: one export from network to published version
- `contract`: what the served model takes and answers
- `convert`: nn.Module -> ONNX; `verify`: proof that the two agree; `publish`: all of it or nothing, on disk
- `progress`: what a person sees meanwhile; `errors`: what can go wrong
"""
