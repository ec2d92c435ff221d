"""What the deployment keeps to itself, looked for after all its runs: secrets, rights, addresses."""

import json

import pytest

from uveitis_assets_tests.docker.stack import IMAGE, OWNER, POSTGRES_IMAGE, TRACKING_KEY, Stack
from uveitis_assets_tests.patience import patience

pytestmark = [pytest.mark.docker, pytest.mark.timeout(patience(1800))]


def test_no_secret_is_in_a_configuration_history_log_or_file(stack: Stack) -> None:
    secrets = [(stack.settings.secrets / "postgres_password").read_text(), TRACKING_KEY]
    containers = stack.containers()
    assert len(containers) >= 5
    places = {container.name: json.dumps(container.attrs).encode() + container.logs() for container in containers}
    for image in (stack.client.images.get(name) for name in (IMAGE, POSTGRES_IMAGE)):
        places[str(image)] = json.dumps([image.history(), image.attrs]).encode()
        assert b"secrets/ca.crt" not in json.dumps(image.attrs).encode()
    for folder in (stack.settings.data, stack.settings.state / "dagster"):
        places |= {str(file): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    events = stack.compose("exec", "-T", "postgres", "pg_dump", "--host", "/tmp", "--username", "dagster", "dagster")
    assert "event_logs" in events.stdout, events.stderr
    places["database"] = events.stdout.encode()
    assert [name for name, content in places.items() for secret in secrets if secret.encode() in content] == []


def test_runs_find_the_tracking_key_by_its_variable(stack: Stack) -> None:
    run = stack.run_containers()[0]
    assert "UVEITIS_WANDB_KEY_FILE=/run/secrets/uveitis_wandb_key" in run.attrs["Config"]["Env"]
    [mount] = [mount for mount in run.attrs["Mounts"] if mount["Destination"] == "/run/secrets/uveitis_wandb_key"]
    assert mount["Source"] == str(stack.settings.secrets / "uveitis_wandb_key")
    assert not mount["RW"]


def test_run_containers_have_no_rights_no_socket_and_cannot_write_raw_images(stack: Stack) -> None:
    containers = stack.run_containers()
    assert containers
    for container in containers:
        host = container.attrs["HostConfig"]
        mounts = {mount["Destination"]: mount for mount in container.attrs["Mounts"]}
        assert host["CapDrop"] == ["ALL"]
        assert host["SecurityOpt"] == ["no-new-privileges:true"]
        assert container.attrs["Config"]["User"] == "{}:{}".format(*OWNER)
        assert not mounts[str(stack.settings.raw)]["RW"]
        assert not any("docker.sock" in mount["Source"] for mount in mounts.values())


def test_the_web_server_answers_on_loopback_only(stack: Stack) -> None:
    bindings = [
        binding
        for container in stack.containers()
        for ports in (container.attrs["HostConfig"]["PortBindings"] or {}).values()
        for binding in ports
    ]
    assert [binding["HostIp"] for binding in bindings] == ["127.0.0.1"]
