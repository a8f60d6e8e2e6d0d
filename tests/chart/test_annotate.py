"""The Job that annotates images: its arguments, credentials and traffic, and its shards as run."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from helm_python import HelmError
from samserve.app import running
from samserve.engines.fake import FakeEngine

from harness.pod.pod import Pod
from harness.pod.volumes import References
from tests import sample_images
from tests.annotate.killed_runs import agreement, command
from tests.chart.rendered import (
    Object,
    ci_values,
    component_of,
    container,
    find_object,
    notes,
    only,
    render,
)
from tests.conftest import settings_with
from tests.security.credentials import KeyFile

ALL = ci_values("annotate")
MOUNT = {
    "extraVolumes": [{"name": "images", "persistentVolumeClaim": {"claimName": "images"}}],
    "extraVolumeMounts": [{"name": "images", "mountPath": "/images"}],
}
LEAST = {"enabled": True, "source": "/images/in", "out": "/images/out", **MOUNT}
INDEX = "batch.kubernetes.io/job-completion-index"
GATEWAYS = "dns:///demo-samserve-headless.vision:50051"


def job(annotate: dict[str, Any] | None = None, **values: Any) -> Object:
    return only(render({**values, "annotate": {**LEAST, **(annotate or {})}}), "Job")


def environment(objects: list[Object]) -> dict[str, str]:
    return {
        each["name"]: each["value"]
        for each in container(objects, "annotate")["env"]
        if "value" in each
    }


def test_there_is_no_job_by_default() -> None:
    objects = render({"networkPolicy": {"enabled": True}})

    assert "annotate" not in {component_of(each) for each in objects}
    assert "annotate" not in notes()


def test_every_shard_has_the_arguments_and_its_index() -> None:
    found = job({"shards": 6, "parallelism": 3, "extraArgs": ["--points-per-side=8"]})["spec"]
    (own,) = found["template"]["spec"]["containers"]

    assert (found["completions"], found["parallelism"], found["completionMode"]) == (
        6,
        3,
        "Indexed",
    )
    assert own["command"] == ["samserve", "annotate"]
    assert own["args"] == [
        *("/images/in", "--out=/images/out", "--shard=$(JOB_COMPLETION_INDEX)/6"),
        *(f"--server={GATEWAYS}", "--points-per-side=8"),
    ]
    assert own["env"][0]["valueFrom"]["fieldRef"]["fieldPath"] == f"metadata.annotations['{INDEX}']"


def test_failures_that_repetition_cannot_fix_are_final() -> None:
    found = job()["spec"]

    rules = {
        rule["action"]: rule["onExitCodes"]["values"]
        for rule in found["podFailurePolicy"]["rules"]
        if "onExitCodes" in rule
    }
    # A usage error, and images that have failed; see the exit codes of the command.
    assert rules == {"FailJob": [2], "FailIndex": [3]}
    # The policy requires both.
    assert found["template"]["spec"]["restartPolicy"] == "Never"
    assert found["backoffLimitPerIndex"] == 6


def test_another_job_has_another_name_since_jobs_cannot_be_changed() -> None:
    def name(annotate: dict[str, Any], **values: Any) -> str:
        return str(job(annotate, **values)["metadata"]["name"])

    assert name({}) == name({}, replicas=1)
    assert name({}) == name({"parallelism": 2})  # which may change
    names = {name({}), name({"shards": 5}), name({"extraArgs": ["--tile=2048"]})}
    names.add(name({}, image={"tag": "2"}))
    assert len(names) == 4
    assert all(each.startswith("demo-samserve-annotate-") for each in names)


def test_credentials_are_those_that_the_gateways_require() -> None:
    secured, plain = environment(render(ALL)), environment(render({"annotate": LEAST}))
    mounted = {mount["mountPath"] for mount in container(render(ALL), "annotate")["volumeMounts"]}

    assert plain == {"SAMSERVE_CLIENT_PLAINTEXT": "true"}
    assert secured["SAMSERVE_CLIENT_TLS"] == "true"
    assert secured["SAMSERVE_CLIENT_SERVER_NAME"] == "gateway.example.com"
    files = {value for name, value in secured.items() if name.endswith("_FILE")}
    assert {str(Path(each).parent) for each in files} <= mounted
    assert len(files) == 4


def test_only_the_traffic_of_the_job_is_allowed() -> None:
    objects = render(ALL)
    own = find_object(objects, "NetworkPolicy", "demo-samserve-annotate")["spec"]
    gateway = find_object(objects, "NetworkPolicy", "demo-samserve")["spec"]

    assert own["ingress"] == []
    assert [port["port"] for rule in own["egress"] for port in rule["ports"]] == [
        53,
        53,
        50051,
        443,
    ]
    assert {"podSelector": own["podSelector"]} in gateway["ingress"][0]["from"]
    without = render({**ALL, "annotate": {"enabled": False}})
    gateway = find_object(without, "NetworkPolicy", "demo-samserve")["spec"]
    assert {"podSelector": own["podSelector"]} not in gateway["ingress"][0]["from"]


@pytest.mark.parametrize(
    ("annotate", "text"),
    [
        ({"source": ""}, r"annotate\.source: is required"),
        ({"out": ""}, r"annotate\.out: is required"),
        ({"out": "/elsewhere"}, r"annotate\.out: /elsewhere is in no volume"),
        ({"out": "/images-of-others"}, "is in no volume"),
        ({"shards": 0}, "shards"),
        ({"backoffLimitPerIndex": -1}, "backoffLimitPerIndex"),
    ],
)
def test_invalid_values_are_rejected(annotate: dict[str, Any], text: str) -> None:
    with pytest.raises(HelmError, match=text):
        job(annotate)


def test_credentials_that_are_missing_are_rejected() -> None:
    with pytest.raises(HelmError, match=r"annotate\.credential\.secret: is required"):
        job(auth={"apiKeys": {"secret": "keys"}})
    tls = {"secret": "tls", "clientCaSecret": "clients"}
    with pytest.raises(HelmError, match=r"annotate\.gateways\.clientSecret: is required"):
        job(tls=tls)


def test_buckets_need_no_volume() -> None:
    found = job({"source": "s3://photos", "out": "s3://data-set", "extraVolumeMounts": []})

    assert "s3://photos" in found["spec"]["template"]["spec"]["containers"][0]["args"]


@pytest.mark.slow
async def test_shards_write_the_records_of_one_process(tmp_path: Path) -> None:
    claim = tmp_path / "claim"
    for number in range(12):
        path = claim / "in" / f"sub {number % 3}" / f"image {number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(sample_images.png(50 + number, 60, seed=number))
    keys = KeyFile(tmp_path / "keys.toml")
    key = keys.add("acme", "embed", "predict", "automask")
    grid = "--points-per-side=3"
    found = job({"shards": 4, "extraArgs": [grid], "credential": {"secret": "key"}})
    settings = settings_with(auth={"api_keys_file": keys.path})
    async with running(settings, engine=FakeEngine()) as gateway:
        references = References(
            secrets={"key": {"token": key.encode()}},
            claims={"images": claim},
            services={GATEWAYS: gateway.address},
        )

        async def run(index: int) -> str:
            annotations = {INDEX: str(index)}
            spec = found["spec"]["template"]["spec"]
            async with Pod(spec, references, annotations=annotations) as pod:
                return await pod.wait_completed()

        # Two at a time, as with `parallelism: 2`.
        outputs = [await asyncio.gather(run(index), run(index + 1)) for index in (0, 2)]
        alone = await asyncio.create_subprocess_exec(
            *command(claim / "in", tmp_path / "expected", "--server", gateway.address, grid),
            env={"SAMSERVE_CLIENT_TOKEN": key},
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        assert await alone.wait() == 0

    compared = agreement(claim / "out", tmp_path / "expected")
    assert (compared.images, compared.other_selection) == (12, [])
    assert compared.equal_pixels >= 0.9999
    # Every image in one shard.
    texts = [text for pair in outputs for text in pair]
    counts = [int(text.split("images: ")[-1].split()[0]) for text in texts]
    assert sum(counts) == 12, texts
    assert not (claim / "out" / "annotations.json").exists()
