"""Comparison with torchvision's networks, metadata of weights and transforms, on real photographs."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import torchvision_parity
from cnnserve.repository import manifest as manifests
from cnnserve_export import hub, labels
from cnnserve_export.architectures import ARCHITECTURES
from torchvision_parity import NETWORKS, TOLERANCE, Answers


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Answers]:
    """torchvision's probabilities. The checkpoints are in a folder with the name of torch's cache."""
    folder = tmp_path_factory.mktemp("torch") / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    yield torchvision_parity.ask(folder)
    # The checkpoints have a gigabyte.
    shutil.rmtree(folder)


def test_the_table_is_torchvisions(answers: Answers) -> None:
    names = labels.IMAGENET_FILE.read_text(encoding="utf-8").splitlines()
    for network, editions in answers.metadata.items():
        ours = [published for published in hub.PUBLISHED if published.architecture == network]
        spec = ARCHITECTURES[network].preprocessing
        assert [(p.edition, p.url, [p.resize]) for p in ours] == [
            (e["edition"], e["url"], e["resize"]) for e in editions
        ]
        assert hub.find(network, "imagenet").edition == next(e["edition"] for e in editions if e["default"])
        for edition in editions:
            assert edition["categories"] == names
            assert (edition["crop"] * 2, edition["mean"], edition["std"]) == ([*spec.crop], [*spec.mean], [*spec.std])
            assert (edition["interpolation"], edition["antialias"]) == (
                spec.resize.interpolation,
                spec.resize.antialias,
            )


@pytest.mark.parametrize("network", NETWORKS)
def test_a_published_checkpoint_answers_what_torchvision_does(network: str, answers: Answers, tmp_path: Path) -> None:
    version = torchvision_parity.export_published(network, answers, tmp_path, max_batch_size=3)
    found = torchvision_parity.compare(version, answers.probabilities(network))
    assert found.served.tolist() == found.expected.tolist()
    assert found.difference < TOLERANCE
    manifest = manifests.read(version)
    assert manifest is not None
    assert manifest.parameters == answers.metadata[network][-1]["parameters"]
    assert (version / "labels.txt").read_text().splitlines() == answers.metadata[network][-1]["categories"]
    shutil.rmtree(tmp_path / network)
