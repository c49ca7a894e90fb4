"""launch/kubernetes.yaml: the fields it uses, and that they fit together and to main.py."""

import pathlib
import re

import jsonschema
import pytest
import yaml

from launch import sweep_points

pytestmark = pytest.mark.filterwarnings("ignore:the load_module")  # Of ml_collections.
ROOT = pathlib.Path(__file__).parents[2]
DOCUMENTS = {document["metadata"]["labels"]["accelerator"]: document
             for document in yaml.safe_load_all((ROOT / "launch/kubernetes.yaml").read_text())}


def closed(optional=(), **properties):
    """An object with these fields and no others."""
    return {"type": "object", "properties": properties, "additionalProperties": False,
            "required": [name for name in properties if name not in optional]}


def items(schema, count=1):
    return {"type": "array", "items": schema, "minItems": count}


TEXT, COUNT = {"type": "string", "minLength": 1}, {"type": "integer", "minimum": 1}
LABEL = {"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$"}
CONTAINER = closed(
    optional=("ports",), name=LABEL, image=TEXT, command=items(TEXT), args=items(TEXT),
    env=items({"oneOf": [
        closed(name=TEXT, value=TEXT),
        closed(name=TEXT, valueFrom=closed(fieldRef=closed(fieldPath=TEXT)))]}),
    ports=items(closed(containerPort=COUNT)),
    resources=closed(limits={"type": "object", "additionalProperties": COUNT}),
    volumeMounts=items(closed(name=LABEL, mountPath=TEXT)))
POD = closed(
    optional=("nodeSelector",), restartPolicy={"const": "Never"}, terminationGracePeriodSeconds=COUNT,
    nodeSelector={"type": "object", "additionalProperties": TEXT}, containers=items(CONTAINER),
    volumes=items(closed(name=LABEL, persistentVolumeClaim=closed(claimName=LABEL))))
JOB = closed(
    completionMode={"const": "Indexed"}, parallelism=COUNT, completions=COUNT, backoffLimit={"const": 0},
    podFailurePolicy=closed(rules=items(closed(
        optional=("onExitCodes", "onPodConditions"), action={"const": "FailJob"},
        onExitCodes=closed(containerName=LABEL, operator={"const": "In"}, values=items(COUNT)),
        onPodConditions=items(closed(type=TEXT))))),
    template=closed(spec=POD))
RULE = closed(
    optional=("onJobFailureMessagePatterns",),
    name={"type": "string", "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"},
    action={"enum": ["FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"]},
    onJobFailureReasons=items({"const": "PodFailurePolicy"}), onJobFailureMessagePatterns=items(TEXT))
JOB_SET = closed(
    apiVersion={"const": "jobset.x-k8s.io/v1alpha2"}, kind={"const": "JobSet"},
    metadata=closed(name=LABEL, labels=closed(accelerator=TEXT)),
    spec=closed(network=closed(enableDNSHostnames={"const": True}),
                failurePolicy=closed(maxRestarts=COUNT, rules=items(RULE)),
                replicatedJobs=items(closed(name=LABEL, replicas=COUNT, template=closed(spec=JOB)))))


def parts(document):
    [replicated] = document["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    [container] = job["template"]["spec"]["containers"]
    env = {variable["name"]: variable.get("value") or variable["valueFrom"]["fieldRef"]["fieldPath"]
           for variable in container["env"]}
    return replicated, job, container, env


def test_there_are_two():
    assert set(DOCUMENTS) == {"gpu", "tpu"}


@pytest.mark.parametrize("document", DOCUMENTS.values(), ids=DOCUMENTS)
def test_fields(document):
    jsonschema.validate(document, JOB_SET)
    _, job, container, _ = parts(document)
    pod = job["template"]["spec"]
    assert [mount["name"] for mount in container["volumeMounts"]] == [
        volume["name"] for volume in pod["volumes"]]
    assert pod["terminationGracePeriodSeconds"] >= 120  # A checkpoint is written in it.


@pytest.mark.parametrize("document", DOCUMENTS.values(), ids=DOCUMENTS)
def test_size_and_command(document):
    replicated, job, container, _ = parts(document)
    assert replicated["replicas"] == 1 and job["parallelism"] == job["completions"]
    assert container["command"] == ["python", "main.py"]
    config, workdir, *overrides = container["args"]
    assert config.startswith("--config=") and workdir.startswith("--workdir=")
    assert workdir.partition("=")[2].startswith(container["volumeMounts"][0]["mountPath"] + "/")
    [(_, devices)] = container["resources"]["limits"].items()
    [point] = sweep_points.points(config.partition("=")[2], "seed=0", "", 0, 0, overrides)
    assert point.config["emulation"]["num_devices"] == devices * job["completions"]


def test_processes_find_each_other():
    replicated, job, container, env = parts(DOCUMENTS["gpu"])
    assert set(env) == {"ASGD_COORDINATOR", "ASGD_NUM_PROCESSES", "ASGD_PROCESS_ID"}
    host, port = env["ASGD_COORDINATOR"].split(":")
    name = DOCUMENTS["gpu"]["metadata"]["name"]
    assert host == f"{name}-{replicated['name']}-0-0.{name}"  # JobSet's: job 0, pod 0, and its service.
    assert int(port) == container["ports"][0]["containerPort"]
    assert int(env["ASGD_NUM_PROCESSES"]) == job["completions"]
    assert env["ASGD_PROCESS_ID"] == "metadata.annotations['batch.kubernetes.io/job-completion-index']"


def test_tpu():
    _, job, container, env = parts(DOCUMENTS["tpu"])
    assert env == {"ASGD_DISTRIBUTED": "auto"}
    chips = container["resources"]["limits"]["google.com/tpu"]
    x, y = job["template"]["spec"]["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")
    assert int(x) * int(y) == chips * job["completions"]


@pytest.mark.parametrize("document", DOCUMENTS.values(), ids=DOCUMENTS)
@pytest.mark.parametrize("code, action", [
    (2, "FailJobSet"), (143, "RestartJobSetAndIgnoreMaxRestarts"), (1, None), (134, None)])
def test_what_happens_after_an_exit_code(document, code, action):
    """Follows Kubernetes' rules for the job, and then JobSet's; None is a restart that is counted."""
    _, job, container, _ = parts(document)
    policy = job["podFailurePolicy"]["rules"]
    failed_by = [index for index, rule in enumerate(policy)
                 if code in rule.get("onExitCodes", {}).get("values", [])]
    reason, message = "BackoffLimitExceeded", "Job has reached the specified backoff limit"
    if failed_by:
        assert policy[failed_by[0]]["onExitCodes"]["containerName"] == container["name"]
        reason = "PodFailurePolicy"
        message = (f"Container {container['name']} for pod default/asgd-workers-0-0-abcde failed with exit "
                   f"code {code} matching FailJob rule at index {failed_by[0]}")
    found = [rule["action"] for rule in document["spec"]["failurePolicy"]["rules"]
             if reason in rule["onJobFailureReasons"]
             and any(re.search(pattern, message)
                     for pattern in rule.get("onJobFailureMessagePatterns", [""]))]
    assert (found or [None])[0] == action
