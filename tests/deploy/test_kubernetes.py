"""The manifests fit Kubernetes' schemas, agree with each other, and hold no secret."""

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

FOLDER = Path(__file__).parents[2] / "deploy" / "kubernetes"
FILES = sorted(FOLDER.glob("*.yaml"))
NAMESPACE = "rondo"
NOT_APPLIED = "Not applied to a cluster on the machine that it was written on"
RESOURCES = [(path.name, resource) for path in FILES for resource in yaml.safe_load_all(path.read_text())]


def pods(resource: dict[str, Any]) -> list[dict[str, Any]]:
    """The templates of the pods that a resource makes."""
    spec = resource.get("spec", {})
    if resource["kind"] == "RayCluster":
        return [spec["headGroupSpec"]["template"], *(group["template"] for group in spec["workerGroupSpecs"])]
    return [spec["template"]] if "template" in spec else []


PODS = [(name, pod) for name, resource in RESOURCES for pod in pods(resource)]


def find(kind: str, name: str) -> dict[str, Any]:
    (found,) = (one for _, one in RESOURCES if (one["kind"], one["metadata"]["name"]) == (kind, name))
    return found


def test_all_files_are_there() -> None:
    assert {path.stem for path in FILES} == {"namespace", "prefect-server", "prefect-worker", "ray", "machines"}
    assert all(NOT_APPLIED in path.read_text() for path in FILES)


@pytest.mark.parametrize(("name", "resource"), RESOURCES, ids=lambda value: value if isinstance(value, str) else "")
def test_a_resource_fits_its_schema(name: str, resource: dict[str, Any]) -> None:
    assert resource["metadata"].get("namespace", NAMESPACE) == NAMESPACE
    if resource["kind"] != "RayCluster":  # whose schema is its operator's
        kubernetes_validate.validate(resource, "1.33", strict=True)


def test_the_validator_finds_what_it_looks_for() -> None:
    wrong = {**find("Service", "rondo-head"), "spec": {"ports": [{"port": "29400"}]}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, "1.33", strict=True)


@pytest.mark.parametrize(("name", "pod"), PODS, ids=lambda value: value if isinstance(value, str) else "")
def test_a_pod_is_nobody_in_particular(name: str, pod: dict[str, Any]) -> None:
    """Pods of the Ray cluster too are checked as what they are: templates of a Deployment."""
    labels = pod["metadata"]["labels"]
    deployment = {
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "x"},
        "spec": {"selector": {"matchLabels": labels}, "template": pod},
    }  # fmt: skip
    kubernetes_validate.validate(deployment, "1.33", strict=True)
    spec = pod["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    for container in spec["containers"]:
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert "memory" in container["resources"]["limits"]
        given, wanted = (container["resources"][what].get("nvidia.com/gpu") for what in ("limits", "requests"))
        assert given == wanted
        for variable in container.get("env", ()):
            secret = any(word in variable["name"] for word in ("PASSWORD", "SECRET", "KEY", "TOKEN", "DATABASE"))
            assert not (secret and "value" in variable), f"{variable['name']} is written out in {name}"


def test_there_is_no_secret_in_them() -> None:
    assert "Secret" not in {resource["kind"] for _, resource in RESOURCES}


def test_the_ray_cluster_has_the_shape_of_one() -> None:
    cluster = find("RayCluster", "rondo-samplers")
    assert cluster["apiVersion"] == "ray.io/v1"
    spec = cluster["spec"]
    locked = (FOLDER.parent / "requirements-cpu.txt").read_text()
    assert f"\nray=={spec['rayVersion']}\n" in locked
    images = {container["image"] for pod in pods(cluster) for container in pod["spec"]["containers"]}
    machine = find("Deployment", "rondo-machines")["spec"]["template"]["spec"]["containers"][0]
    assert images == {machine["image"]}
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values()), "KubeRay takes no numbers"
    (group,) = spec["workerGroupSpecs"]
    assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    ports = {port["containerPort"] for port in spec["headGroupSpec"]["template"]["spec"]["containers"][0]["ports"]}
    assert {6379, 10001} <= ports


def test_ray_pods_are_asked_for_ports_that_they_have() -> None:
    """The operator's own probes would need wget, and the whole of Ray's dashboard."""
    spec = find("RayCluster", "rondo-samplers")["spec"]
    head, (group,) = spec["headGroupSpec"], spec["workerGroupSpecs"]
    known = {int(group["rayStartParams"]["node-manager-port"])}
    for template, ports in ((head["template"], {6379}), (group["template"], known)):
        (container,) = template["spec"]["containers"]
        assert {container[probe]["tcpSocket"]["port"] for probe in ("readinessProbe", "livenessProbe")} == ports


def test_the_server_writes_where_its_user_may() -> None:
    (container,) = find("Deployment", "prefect-server")["spec"]["template"]["spec"]["containers"]
    environment = {variable["name"]: variable.get("value") for variable in container["env"]}
    (mount,) = container["volumeMounts"]
    assert environment["HOME"] == mount["mountPath"]
    assert environment["PREFECT_UI_STATIC_DIRECTORY"].startswith(f"{mount['mountPath']}/")


def test_they_agree_with_each_other() -> None:
    accounts = {resource["metadata"]["name"] for _, resource in RESOURCES if resource["kind"] == "ServiceAccount"}
    used = {pod["spec"]["serviceAccountName"] for _, pod in PODS if "serviceAccountName" in pod["spec"]}
    assert used == accounts == {"rondo-worker", "rondo-run"}
    binding = find("RoleBinding", "rondo-worker")
    assert find(binding["roleRef"]["kind"], binding["roleRef"]["name"])
    assert [subject["name"] for subject in binding["subjects"]] == ["rondo-worker"]
    for name in ("prefect-server", "prefect-worker", "rondo-machines"):
        deployment = find("Deployment", name)
        wanted = deployment["spec"]["selector"]["matchLabels"]
        assert wanted.items() <= deployment["spec"]["template"]["metadata"]["labels"].items()
    server = find("Service", "prefect-server")
    api = f"http://prefect-server.{NAMESPACE}.svc:{server['spec']['ports'][0]['port']}/api"
    worker = find("Deployment", "prefect-worker")["spec"]["template"]["spec"]["containers"][0]
    assert {"name": "PREFECT_API_URL", "value": api} in worker["env"]
    head, machine = find("Service", "rondo-head"), find("Deployment", "rondo-machines")
    endpoint = f"rondo-head.{NAMESPACE}.svc:{head['spec']['ports'][0]['port']}"
    assert f"--rdzv-endpoint={endpoint}" in machine["spec"]["template"]["spec"]["containers"][0]["args"]


def test_the_worker_may_do_what_it_does_and_no_more() -> None:
    rules = {
        resource: set(rule["verbs"]) for rule in find("Role", "rondo-worker")["rules"] for resource in rule["resources"]
    }
    assert rules["jobs"] >= {"create", "get", "list", "watch", "delete"}
    assert rules["pods"] == {"get", "list", "watch"}
    assert "secrets" not in rules
    assert not any("*" in verbs for verbs in rules.values())
