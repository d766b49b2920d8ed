"""Imports an ONNX file that PyTorch did not make: a neural network of scikit-learn that reads digits.

Run this in the folder of the repository, with the extras `cpu`, `export` and `train`:

    python examples/import_onnx.py
    cnnserve import digits.onnx --labels digits.txt --repository models --mean 0 --std 0.0625
    cnnserve serve --repository models
    cnnserve classify digits/7 --model digits --top-k 1

The first command stands for the program that made your file. It writes `digits.onnx`, `digits.txt` with the labels, and
the folder `digits` with images that training did not use. The input of the network is ink, 0 to 16. The server computes
(pixel / 255 - mean) / std, so a mean of 0 and a std of 1 / 16 = 0.0625 turn pixels into ink.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

SIDE = 8
MOST_INK = 16


def main() -> None:
    """Trains the network, and writes it with its labels and the held-out images."""
    ink, digits = load_digits(return_X_y=True)
    training, held_out, training_digits, held_out_digits = train_test_split(ink, digits, test_size=0.2, random_state=0)
    network = MLPClassifier((64,), batch_size=64, learning_rate_init=0.01, tol=0.01, random_state=0)
    network.fit(training, training_digits)
    print(f"accuracy on {len(held_out)} held-out digits: {network.score(held_out, held_out_digits):.1%}")
    onnx.save(to_onnx(network), "digits.onnx")
    Path("digits.txt").write_text("".join(f"{label}\n" for label in network.classes_))
    for number, (image, digit) in enumerate(zip(held_out, held_out_digits, strict=True)):
        path = Path("digits", str(digit), f"{number:03}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.rint(image.reshape(SIDE, SIDE) * (255 / MOST_INK)).astype(np.uint8)).save(path)


def to_onnx(network: MLPClassifier) -> onnx.ModelProto:
    """Returns the network as ONNX: ink (batch, 1, 8, 8) to logits (batch, 10)."""
    nodes = [helper.make_node("Flatten", ["ink"], ["values0"])]
    tensors = []
    for layer, (weights, bias) in enumerate(zip(network.coefs_, network.intercepts_, strict=True)):
        last = layer == network.n_layers_ - 2
        tensors += [
            numpy_helper.from_array(weights.astype(np.float32), f"weights{layer}"),
            numpy_helper.from_array(bias.astype(np.float32), f"bias{layer}"),
        ]
        sums = "logits" if last else f"sums{layer}"
        nodes.append(helper.make_node("Gemm", [f"values{layer}", f"weights{layer}", f"bias{layer}"], [sums]))
        if not last:
            nodes.append(helper.make_node("Relu", [sums], [f"values{layer + 1}"]))
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("ink", TensorProto.FLOAT, ["batch", 1, SIDE, SIDE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(network.classes_)])],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return model


if __name__ == "__main__":
    main()
