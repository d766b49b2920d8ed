"""cnnserve_export: PyTorch classifier -> verified ONNX -> a version in a model repository.

Parts, in the order an export meets them:

- `cli`: the commands `cnnserve export`, `cnnserve import` and `cnnserve train-lenet`; `flags`: what they may be told
- `architectures`: one paper per file, and the table of what can be exported by name
- `networks`, `user_code`: a person's own network; `preparation`: how its images are made its input
- `behaviour`, `activation`: what a network shows when it is run
- `checkpoints`, `labels`, `golden`: what comes in beside the network: weights, class names, the golden image
- `digits`, `train`: scanned digits and the LeNet-5 trained on them
- `pipeline`: one export from network to published version; `importing`: one import of a foreign ONNX file, which
  `foreign` and `external_data` read and `surgery` makes servable; `companions`, `proof`: what both share
- `contract`: what the served model takes and answers
- `convert`: nn.Module -> ONNX; `verify`: proof that the two agree; `publish`: all of it or nothing, on disk
- `progress`: what a person sees meanwhile; `errors`: what can go wrong
"""
