"""The environment variables that one run may set by its tag."""

import json

import pytest

from uveitis_assets.launcher.overrides import parse_overrides
from uveitis_assets.launcher.refusal import LaunchRefusedError
from uveitis_assets.launcher.run_environment import RUN_VARIABLES, check_further_variables

# What a run must not choose: folders, key files, hosts, proxies, certificates, programs and modules to load.
ATTACKS = {
    "UVEITIS_WANDB_KEY_FILE": "/run/secrets/postgres_password",
    "WANDB_BASE_URL": "http://192.0.2.1:8080",
    "UVEITIS_RAW": "/etc",
    "UVEITIS_DATA": "/etc",
    "UVEITIS_PATIENT_KEY_FILE": "/run/secrets/postgres_password",
    "POSTGRES_PASSWORD_FILE": "/run/secrets/uveitis_wandb_key",
    "POSTGRES_PASSWORD": "x",
    "PGHOST": "192.0.2.1",
    "DAGSTER_HOME": "/data",
    "HTTPS_PROXY": "http://192.0.2.1",
    "https_proxy": "http://192.0.2.1",
    "ALL_PROXY": "socks5://192.0.2.1",
    "REQUESTS_CA_BUNDLE": "/data/ca.crt",
    "SSL_CERT_FILE": "/data/ca.crt",
    "WANDB_API_KEY": "x",
    "WANDB_DIR": "/data",
    "WANDB__EXECUTABLE": "/data/x",
    "TORCH_HOME": "/data",
    "HF_ENDPOINT": "http://192.0.2.1",
    "XDG_CACHE_HOME": "/data",
    "TMPDIR": "/data",
    "LD_PRELOAD": "/data/x.so",
    "GCONV_PATH": "/data",
    "PYTHONPATH": "/data",
    "PATH": "/data",
    "HOME": "/data",
    "BASH_ENV": "/data/x",
    "MPLBACKEND": "module://x",
    "OPENCV_OPENCL_RUNTIME": "/data/x.so",
    "TORCHINDUCTOR_CACHE_DIR": "/data",
    "NCCL_NET_PLUGIN": "x",
    "NCCL_DEBUG_FILE": "/data/x",
    "NVIDIA_VISIBLE_DEVICES": "all",
    "CUDA_VISIBLE_DEVICES": "0",
    "omp_num_threads": "4",
    "OMP_NUM_THREADS ": "4",
    "OMP_NUM_THREADS=4 A": "4",
    "": "4",
}
# One value of each that users set.
GIVEN = {
    "UVEITIS_WORKERS": "4",
    "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True,max_split_size_mb:512",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    "CUDA_LAUNCH_BLOCKING": "1",
    "NCCL_DEBUG": "INFO",
    "NCCL_IB_DISABLE": "1",
    "NCCL_P2P_DISABLE": "1",
    "TORCH_CPP_LOG_LEVEL": "WARNING",
    "WANDB_MODE": "offline",
    "WANDB_SILENT": "true",
} | dict.fromkeys((name for name in RUN_VARIABLES if name.endswith(("_THREADS", "_NUM", "_MAX"))), "16")


def _parse(environment: dict[str, str], **further: str) -> dict[str, object]:
    tags = {"docker/container_kwargs": json.dumps({"environment": environment})}
    return parse_overrides(tags, further)


@pytest.mark.parametrize("name", ATTACKS)
def test_a_variable_that_is_not_listed_is_refused_with_those_that_are(name: str):
    with pytest.raises(LaunchRefusedError, match=r"which a run may not; it may set .*OMP_NUM_THREADS.*UVEITIS_WORKERS"):
        _parse({"OMP_NUM_THREADS": "4", name: ATTACKS[name]})


def test_every_listed_variable_takes_what_users_set():
    assert set(GIVEN) == set(RUN_VARIABLES)
    assert _parse(GIVEN) == {"environment": GIVEN}


@pytest.mark.parametrize("name", RUN_VARIABLES)
@pytest.mark.parametrize(
    "value", ["/etc", "../x", "http://192.0.2.1", "192.0.2.1", "host.example", "", "4\n", "\u0664", "$(id)"]
)
def test_no_listed_variable_takes_a_path_a_host_or_a_command(name: str, value: str):
    with pytest.raises(LaunchRefusedError, match=f"sets {name} in environment to a value that does not match"):
        _parse({name: value})


def test_a_refused_value_is_not_repeated():
    with pytest.raises(LaunchRefusedError) as caught:
        _parse({"OMP_NUM_THREADS": "hunter2"})
    assert "hunter2" not in str(caught.value)


def test_the_operator_adds_a_variable_with_a_pattern_and_cannot_loosen_a_listed_one():
    check_further_variables({"WANDB_TAGS": "[a-z,]+"})
    assert _parse({"WANDB_TAGS": "night,uwf"}, WANDB_TAGS="[a-z,]+") == {"environment": {"WANDB_TAGS": "night,uwf"}}
    with pytest.raises(LaunchRefusedError, match=r"WANDB_TAGS in environment to a value that does not match \[a-z,\]"):
        _parse({"WANDB_TAGS": "a/b"}, WANDB_TAGS="[a-z,]+")
    with pytest.raises(LaunchRefusedError, match=r"it may set .*WANDB_TAGS"):
        _parse({"WANDB_NOTES": "a"}, WANDB_TAGS="[a-z,]+")


@pytest.mark.parametrize(
    "name",
    ["UVEITIS_RAW", "UVEITIS_WANDB_KEY_FILE", "WANDB_BASE_URL", "https_proxy", "LD_PRELOAD", "PGHOST", "TORCH_HOME"],
)
def test_the_operator_cannot_let_runs_choose_paths_hosts_or_keys_by_name(name: str):
    with pytest.raises(ValueError, match=f"run_variables: '{name}' is reserved: .* env_vars"):
        check_further_variables({name: "[0-9]+"})


@pytest.mark.parametrize(
    ("name", "pattern", "message"),
    [
        ("LEVEL", ".*", "'.*' accepts '/etc/passwd', and a run may choose no path and no host"),
        ("LEVEL", r"[a-z.]+", "accepts 'host.example'"),
        ("LEVEL", "(", "is not a regular expression"),
        ("A LEVEL", "[0-9]", "is not a name"),
        ("OMP_NUM_THREADS", "[0-9]+", "may be set by every run already"),
    ],
)
def test_a_line_of_the_operator_that_is_wrong_says_why(name: str, pattern: str, message: str):
    with pytest.raises(ValueError) as caught:
        check_further_variables({name: pattern})
    assert message in str(caught.value)
