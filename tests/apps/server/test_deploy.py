"""The container and the Kubernetes manifest start the server that is here."""

from __future__ import annotations

import inspect
import json
import re
import shlex
from typing import Any

import yaml
from tests.test_docs import ROOT, check_command

from segue.apps.cli import serve
from segue.apps.server.app import create_app

DOCKERFILE = (ROOT / "deploy/Dockerfile").read_text(encoding="utf-8")
MANIFEST = (ROOT / "deploy/kubernetes.yaml").read_text(encoding="utf-8")
ROUTES = set(create_app({}).openapi()["paths"])
OPTIONS = {
    name: option.default for name, option in inspect.signature(serve.command).parameters.items()
}


def listed(instruction: str) -> list[str]:
    """Return the words of an instruction of the Dockerfile."""
    found = re.search(rf"^{instruction}.*?(\[.*\])$", DOCKERFILE, re.MULTILINE)
    assert found is not None
    words: list[str] = json.loads(found[1])
    return words


def test_the_image_starts_a_server_that_its_health_check_finds() -> None:
    check_command(shlex.join(listed("ENTRYPOINT") + listed("CMD")))
    assert f"EXPOSE {OPTIONS['port']}\n" in DOCKERFILE
    (url,) = re.findall(r"http://127\.0\.0\.1:(\d+)(/\w+)", listed("HEALTHCHECK")[-1])
    assert url[0] == str(OPTIONS["port"]) and url[1] in ROUTES


def test_the_manifest_fits_the_image_and_the_server() -> None:
    deployment, service = yaml.safe_load_all(MANIFEST)
    pod: dict[str, Any] = deployment["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    check_command(shlex.join(listed("ENTRYPOINT") + container["args"]))
    (port,) = container["ports"]
    assert port["containerPort"] == OPTIONS["port"]
    assert service["spec"]["ports"][0]["targetPort"] == port["name"]
    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    assert pod["metadata"]["annotations"]["prometheus.io/port"] == str(OPTIONS["port"])
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked = container[probe]["httpGet"]
        assert asked["path"] in ROUTES and asked["port"] == port["name"]
    user = pod["spec"]["securityContext"]["runAsUser"]
    assert f"USER {user}\n" in DOCKERFILE and f"--uid {user} " in DOCKERFILE
    (name,) = (one["name"] for one in container["env"])
    assert name in inspect.getsource(serve)
    # Requests in the pod have their time before Kubernetes kills it.
    pause = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    grace = int(container["args"][container["args"].index("--grace") + 1])
    assert pause + grace < pod["spec"]["terminationGracePeriodSeconds"]
    home = re.search(r"HOME=(\S+)", DOCKERFILE)
    mounts = {one["mountPath"] for one in container["volumeMounts"]}
    assert home is not None and mounts == {"/tmp", f"{home[1]}/.cache"}
