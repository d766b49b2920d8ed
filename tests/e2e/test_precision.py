"""LeNet-5, trained on the digits and published in every precision, with the real server and the real client."""

import io
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cnnserve.repository.manifest import golden_bytes
from cnnserve_client import Client
from cnnserve_export import digits, pipeline, precision, train
from cnnserve_export.architectures import ARCHITECTURES
from cnnserve_export.progress import Progress
from support import RunningServer, golden_rows, rewrite_manifest, serving

pytestmark = pytest.mark.usefixtures("one_cpu")

PRECISIONS = ("fp32", "fp16", "int8")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One network as `fp32`, `fp16` and `int8`, and as `altered`: int8 with other golden probabilities."""
    root = tmp_path_factory.mktemp("precision")
    digits.write_folder(digits.training_digits()[:200], root / "training")
    digits.write_folder(digits.held_out_digits(), root / "held-out")
    trained = train.train_lenet5(epochs=6)
    architecture = ARCHITECTURES["lenet5"]
    for wanted in PRECISIONS:
        job = pipeline.Export(
            network=trained.network,
            architecture=architecture.name,
            class_count=10,
            preprocessing=architecture.preprocessing,
            weights=trained.origin,
            golden_images=architecture.golden(),
            repository=root / "models",
            name=wanted,
            labels=train.LABELS,
            lowering=precision.request(
                wanted,
                root / "training" if wanted == "int8" else None,
                None if wanted == "fp32" else root / "held-out",
                None,
            ),
        )
        pipeline.run(job, Progress(io.StringIO()))
    altered = root / "models" / "altered" / "1"
    shutil.copytree(root / "models" / "int8" / "1", altered)
    rows = golden_rows(altered).copy()
    # A processor that saturates would have such differences: more than rounding.
    first, second = rows[0].argsort()[-2:]
    rows[0, [first, second]] += [0.1, -0.1]
    (altered / "golden.bin").write_bytes(golden_bytes(rows))
    rewrite_manifest(altered)
    return root / "models"


@pytest.fixture(scope="module")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with serving(tmp_path_factory.mktemp("log") / "server.log", repository) as server:
        yield server


def test_every_precision_is_served_and_says_what_it_is(server: RunningServer) -> None:
    with Client(server.address) as client:
        models = {model.name: model.versions[0] for model in client.list_models()}
    for name in PRECISIONS:
        assert (models[name].state, models[name].precision) == ("READY", name)
        assert models[name].verified
    assert models["altered"].state == "UNAVAILABLE"
    assert "the golden image golden.png alone gives class" in models["altered"].reason


def test_less_precision_costs_at_most_half_a_point_on_the_held_out_digits(server: RunningServer) -> None:
    held_out = digits.held_out_digits()
    right = {}
    with Client(server.address) as client:
        for name in PRECISIONS:
            answers = [client.classify([png for png, _ in held_out[i : i + 30]], model=name) for i in range(0, 360, 30)]
            labels = [result.top.label for answer in answers for result in answer.results]
            right[name] = np.mean([label == str(value) for label, (_, value) in zip(labels, held_out, strict=True)])
    assert right["fp32"] >= 0.98
    assert right["fp32"] - right["fp16"] <= 0.005
    assert right["fp32"] - right["int8"] <= 0.005


def test_int8_in_a_batch_is_int8_alone(server: RunningServer) -> None:
    images = [png for png, _ in digits.held_out_digits()[:32]]
    with Client(server.address) as client:
        together = client.classify(images, model="int8", top_k=10).results
        alone = [client.classify(image, model="int8", top_k=10).results[0] for image in images]
    assert [result.classes for result in alone] == [result.classes for result in together]
