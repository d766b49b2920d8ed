"""A model repository on a Ray cluster of two nodes: the real proxies, replicas and client."""

import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from ray_cluster import Local, local_cluster

import cnnserve_client as cc
from cnnserve.api.methods import INFERENCE
from cnnserve.wire import open_inference_pb2 as o

ROOT = Path(__file__).resolve().parents[2]
IMAGE = (ROOT / "model_repo/lenet5/1/golden-four.png").read_bytes()
ZERO = (ROOT / "model_repo/lenet5/1/golden-zero.png").read_bytes()


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three models, copies of one another."""
    root = tmp_path_factory.mktemp("models")
    for name in ("lenet5", "digits", "numbers"):
        shutil.copytree(ROOT / "model_repo/lenet5", root / name)
        for file in (root / name / "1" / "manifest.json", root / name / "config.pbtxt"):
            file.write_text(file.read_text().replace('"lenet5"', f'"{name}"', 1))
    return root


@pytest.fixture(scope="module")
def cluster() -> Iterator[Local]:
    """Two worker nodes of one CPU each."""
    with local_cluster((1, 1)) as local:
        yield local


@pytest.fixture(scope="module")
def single(cluster: Local, repository: Path) -> Local:
    """The cluster with one model, whose two replicas are the ingress."""
    cluster.deploy({"repository": str(repository), "models": {"lenet5": {"replicas": 2}}})
    return cluster


def test_replicas_are_spread_over_the_nodes_and_answer(single: Local) -> None:
    assert len(set(single.replicas("lenet5").values())) == 2
    with cc.Client(single.head_address) as client:
        result = client.classify([IMAGE, b"no image", ZERO], model="lenet5", top_k=2)
        assert [r.classes[0].label if r.classes else r.error.code for r in result.results] == [
            "4",
            "INVALID_ARGUMENT",
            "0",
        ]
        rows = client.infer({"image": np.zeros((3, 28, 28, 1), np.uint8)}, model="lenet5")
        assert next(iter(rows.outputs.values())).shape == (3, 10)
        assert client.is_healthy("lenet5")
        assert [model.name for model in client.list_models()] == ["lenet5"]


def test_a_stream_gives_each_image_its_result_in_order(single: Local) -> None:
    with cc.Client(single.head_address) as client:
        results = list(client.classify_many([IMAGE, ZERO] * 100, model="lenet5", top_k=1))
    assert [result.classes[0].label for result in results] == ["4", "0"] * 100


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda c: c.classify(IMAGE, model="nope"), cc.NotFoundError, "it has lenet5"),
        (lambda c: c.classify(IMAGE, model="lenet5", version="9"), cc.NotFoundError, "version"),
        (lambda c: c.classify([IMAGE] * 1000, model="lenet5"), cc.InvalidInputError, "at most"),
        (lambda c: c.load_model("lenet5"), cc.PermissionDeniedError, "clients may not load"),
        (lambda c: c.classify(IMAGE, model="lenet5", timeout_s=1e-9), cc.DeadlineExceededError, "no response"),
    ],
)
def test_errors_have_the_statuses_of_a_single_server(
    single: Local, call: Any, error: type[Exception], said: str
) -> None:
    with cc.Client(single.head_address, retries=0) as client, pytest.raises(error, match=said):
        call(client)


def test_a_new_version_takes_over_without_a_failed_call(single: Local, repository: Path) -> None:
    shutil.copytree(repository / "lenet5/1", repository / "lenet5/2")
    manifest = repository / "lenet5/2/manifest.json"
    manifest.write_text(manifest.read_text().replace('"version": 1', '"version": 2'))
    seen = []
    with cc.Client(single.head_address, retries=0) as client:
        single.deploy({"repository": str(repository), "models": {"lenet5": {"replicas": 2, "version": 2}}}, wait=False)
        while seen[-50:] != ["2"] * 50:
            seen.append(client.classify(IMAGE, model="lenet5").version)
            assert len(seen) < 100_000
    assert seen[0] == "1"


def test_an_ingress_before_several_models_and_shared_replicas(cluster: Local, repository: Path) -> None:
    shared = {"models": ["digits", "numbers"], "loaded": 1, "cpus": 0.5}
    cluster.deploy({"repository": str(repository), "models": {"lenet5": {"cpus": 0.5}}, "shared": shared})
    with cc.Client(cluster.head_address) as client:
        for model in ("lenet5", "digits", "numbers", "digits"):
            assert client.classify(IMAGE, model=model).results[0].classes[0].label == "4"
        assert sorted(model.name for model in client.list_models()) == ["digits", "lenet5", "numbers"]
        with pytest.raises(cc.NotFoundError, match="it has digits, lenet5, numbers"):
            client.classify(IMAGE, model="nope")
        assert len(list(client.classify_many([IMAGE] * 50, model="lenet5"))) == 50
    # The replica has room for one of the two at a time: none goes while it has a request.
    with cc.Client(cluster.head_address, retries=0) as client, ThreadPoolExecutor(4) as pool:
        turns = [pool.submit(client.classify, IMAGE, model=model) for model in ("digits", "numbers") * 20]
        assert {turn.result().results[0].classes[0].label for turn in turns} == {"4"}
    with grpc.insecure_channel(cluster.head_address) as channel:
        stream = channel.stream_stream(f"/{INFERENCE}/ModelStreamInfer")
        tensor = o.ModelInferRequest.InferInputTensor(name="image", datatype="UINT8", shape=[1, 28, 28, 1])
        pixels = bytes(28 * 28)
        requests = [
            o.ModelInferRequest(model_name=model, id=model, inputs=[tensor], raw_input_contents=[pixels])
            for model in ("lenet5", "digits", "nope")
        ]
        answers = stream(iter([request.SerializeToString() for request in requests]))
        found = [o.ModelStreamInferResponse.FromString(data) for data in answers]
    assert [answer.infer_response.id for answer in found] == ["lenet5", "digits", "nope"]
    assert [bool(answer.error_message) for answer in found] == [False, False, True]


def test_a_model_that_fails_its_self_test_is_never_served(cluster: Local, repository: Path) -> None:
    labels = repository / "lenet5/1/labels.txt"
    good = labels.read_text()
    labels.write_text(good.replace("4", "four"))
    try:
        options = {"version": 1, "max_constructor_retry_count": 1}
        cluster.deploy({"repository": str(repository), "models": {"lenet5": options}}, wait=False)
        said = ""
        ends = time.monotonic() + 100
        while "labels.txt" not in said:
            assert time.monotonic() < ends, said
            said = "".join(item.message for item in cluster.status().deployments.values())
            time.sleep(0.2)
        assert not cluster.replicas("lenet5")
    finally:
        labels.write_text(good)
