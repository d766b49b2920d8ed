import re
from pathlib import Path

import numpy as np
import pytest
import torch

from cnnserve.images.preprocessing import Preprocessor
from cnnserve.repository import manifest as manifests
from cnnserve.runtime.session import Session
from cnnserve_export import golden_choice, train
from cnnserve_export.digits import held_out_digits
from support import golden_rows

COMMITTED = Path(__file__).parents[2] / "model_repo" / "lenet5" / "1"


def test_a_short_training_reaches_98_percent_twice_alike() -> None:
    losses: list[float] = []
    first = train.train_lenet5(epochs=6, report=lambda _epoch, loss: losses.append(loss))
    assert first.accuracy >= 0.98
    assert len(losses) == 6
    assert losses[-1] < losses[0]
    second = train.train_lenet5(epochs=6)
    for key, value in first.network.state_dict().items():
        assert torch.equal(second.network.state_dict()[key], value), key
    assert not first.network.training


def test_training_leaves_torch_as_it_was() -> None:
    threads, state = torch.get_num_threads(), torch.random.get_rng_state()
    train.train_lenet5(epochs=1, seed=5)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.random.get_rng_state(), state)


def test_augmentation_keeps_shape_and_range() -> None:
    images, _ = train.rows(held_out_digits()[:20])
    varied = train._vary(images, torch.Generator().manual_seed(0))
    assert varied.shape == images.shape
    assert not torch.equal(varied, images)
    assert varied.min() >= images.min() - 1e-4
    assert varied.max() <= images.max() + 1e-4


def test_the_committed_model_reads_the_held_out_digits() -> None:
    manifest = manifests.read(COMMITTED)
    assert manifest is not None
    manifests.verify_files(manifest, COMMITTED)
    preprocessor = Preprocessor(manifest.preprocessing, manifest.input)
    digits = held_out_digits()
    rows = np.stack([preprocessor.encoded(png) for png, _ in digits])
    (probabilities,) = Session(COMMITTED / manifest.onnx.file).run(rows)
    right = np.mean(probabilities.argmax(axis=1) == [label for _, label in digits])
    assert right >= 0.98
    assert float(manifest.weights["held_out_accuracy"]) == pytest.approx(right, abs=1e-4)


def test_the_committed_model_repeats_its_golden_images() -> None:
    manifest = manifests.read(COMMITTED)
    assert manifest is not None
    assert list(manifest.golden.images) == list(golden_choice.digits())
    preprocessor = Preprocessor(manifest.preprocessing, manifest.input)
    rows = np.stack([preprocessor.encoded((COMMITTED / name).read_bytes()) for name in manifest.golden.images])
    (probabilities,) = Session(COMMITTED / "model.onnx").run(rows)
    np.testing.assert_allclose(probabilities, golden_rows(COMMITTED), atol=manifest.golden.tolerance)


def test_the_committed_files_name_no_machine() -> None:
    for path in COMMITTED.parent.rglob("*"):
        if path.is_file():
            assert not re.search(rb"/(home|root|tmp|work|usr)/", path.read_bytes()), path
