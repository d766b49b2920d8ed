"""cnnserve_export: publishes PyTorch and ONNX classifiers, fully checked, as versions in a model repository.

An export goes from a PyTorch network to a published version, an import from an existing ONNX file. The modules, in the
order in which an export meets them:

- `cli`, `flags`: the commands `cnnserve export`, `import`, `train-lenet`, `copy` and `upgrade`, and their flags
- `architectures`: one module for each paper, and the table of networks that can be exported by name
- `networks`, `user_code`: the user's own network, and errors of the user's code
- `preparation`: from the flags about images to a preprocessing
- `weights`, `hub`, `checkpoints`, `state_dicts`: trained weights, with the preprocessing and labels that they bring
- `behaviour`, `activation`: what runs of a network show, such as its number of classes
- `labels`, `golden`, `golden_choice`, `files`: label files, golden images, and files that a command names
- `pipeline`: one export; `importing`: one import
- `contract`: input, output and preprocessing of the served model
- `convert`: from the network to ONNX; `verify`: the parity of the ONNX file with PyTorch
- `foreign`, `external_data`, `surgery`: reading an ONNX file to import, and changing it so that it can be served
- `precision`, `quantize`, `calibration`, `agreement`, `images`: fp16 and int8 files, and their agreement with fp32
- `publish`, `staging`: a version becomes visible as a whole or not at all; `copying`: a version, published again
- `companions`, `proof`: what exports and imports share; `progress`: what users see meanwhile; `errors`: the error
- `train`, `digits`: LeNet-5 and the scanned digits on which it is trained
"""
