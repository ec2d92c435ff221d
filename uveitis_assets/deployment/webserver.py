"""The deployment's web server as typed calls: its assets, launching a run, and states of runs.

What to run is decided in ``submission_plan``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from uveitis_assets.deployment.graphql_client import GraphqlClient, WebserverError

_WILL_RETRY_TAG = "dagster/will_retry"
_RETRY_RUN_TAG = "dagster/auto_retry_run_id"
# A deleted run has no status in Dagster.
DELETED = "DELETED"
_FINISHED = frozenset({"SUCCESS", "FAILURE", "CANCELED", DELETED})

_ASSETS = """
{ assetNodes {
    assetKey { path } isMaterializable isExecutable jobNames dependencyKeys { path } partitionKeys
    backfillPolicy { policyType maxPartitionsPerRun }
    partitionDefinition { name dimensionTypes { name } }
    repository { name location { name } } } }
"""
_DAEMONS = "{ instance { daemonHealth { allDaemonStatuses { daemonType required healthy } } } }"
_MATERIALIZED = """
query ($keys: [AssetKeyInput!], $partitions: [String!]) { assetNodes(assetKeys: $keys) {
    assetKey { path } latestMaterializationByPartition(partitions: $partitions) { partition timestamp } } }
"""
_LAUNCH = """
mutation ($params: ExecutionParams!) { launchRun(executionParams: $params) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on RunConfigValidationInvalid { errors { message } }
    ... on PipelineNotFoundError { message }
    ... on InvalidSubsetError { message }
    ... on UnauthorizedError { message }
    ... on PythonError { message } } }
"""
_RUNS = """
query ($ids: [String]) { runsOrError(filter: {runIds: $ids}) {
    __typename
    ... on Runs { results { runId status tags { key value } } }
    ... on PythonError { message } } }
"""
_EVENTS = """
query ($run: ID!, $after: String) { logsForRun(runId: $run, afterCursor: $after) {
    __typename
    ... on EventConnection { cursor hasMore events {
        __typename
        ... on ExecutionStepFailureEvent { stepKey error { message errorChain { error { message } } } }
        ... on RunFailureEvent { message error { message } }
        ... on RunCanceledEvent { message } } }
    ... on PythonError { message } } }
"""


@dataclass(frozen=True, slots=True)
class DeployedAsset:
    """One asset of the deployment; ``partitions`` is empty for an asset without partitions."""

    key: str
    jobs: tuple[str, ...]
    upstream: frozenset[str]
    is_partitioned: bool
    partitions: tuple[str, ...]
    partitions_name: str | None
    dimensions: tuple[str, ...]
    longest_range: int | None
    repository: str
    location: str

    @property
    def lane(self) -> str:
        return self.key.split("/")[0]


@dataclass(frozen=True, slots=True)
class RunState:
    """A run's status as Dagster names it, or ``DELETED``, and the run that retries it, if there is one."""

    run_id: str
    status: str
    will_retry: bool
    retried_by: str | None
    device: str | None

    @property
    def is_finished(self) -> bool:
        return self.status in _FINISHED


class Webserver:
    """Calls to one web server.

    Args:
        url: address of the UI, for example ``http://127.0.0.1:3000``.

    Raises:
        WebserverError: the address is not an HTTP address.
    """

    def __init__(self, url: str) -> None:
        self._client = GraphqlClient(url)
        self.url = self._client.url

    def assets(self) -> list[DeployedAsset]:
        """Assets that a run can materialize, sorted by key.

        Raises:
            WebserverError: the call failed, or no code location answers.
        """
        nodes = self._client.call(_ASSETS, {})["assetNodes"]
        assets = [_parse_asset(node) for node in nodes if node["isMaterializable"] and node["isExecutable"]]
        if not assets:
            raise WebserverError(
                f"{self.url}: found no asset; the code server is down or could not load the definitions. See "
                f"{self.url}/locations and the code server's log"
            )
        return sorted(assets, key=lambda asset: asset.key)

    def daemons(self) -> dict[str, bool]:
        """Whether each daemon that the deployment needs is alive, by its name."""
        statuses = self._client.call(_DAEMONS, {})["instance"]["daemonHealth"]["allDaemonStatuses"]
        return {status["daemonType"]: bool(status["healthy"]) for status in statuses if status["required"]}

    def materialized(self, asset: DeployedAsset) -> set[str]:
        """Partitions of the asset that were materialized at least once; ``{""}`` for one without partitions."""
        partitions = list(asset.partitions) if asset.is_partitioned else None
        answer = self._client.call(_MATERIALIZED, {"keys": [{"path": asset.key.split("/")}], "partitions": partitions})
        events = answer["assetNodes"][0]["latestMaterializationByPartition"]
        return {event["partition"] or "" for event in events if event is not None}

    def launch(self, asset: DeployedAsset, job: str, assets: Sequence[str], tags: Mapping[str, str]) -> str:
        """Queue a run of ``assets`` in ``job`` of the asset's code location; returns the run id.

        Raises:
            WebserverError: the run was refused.
        """
        selector = {
            "repositoryLocationName": asset.location,
            "repositoryName": asset.repository,
            "jobName": job,
            "assetSelection": [{"path": key.split("/")} for key in assets],
        }
        listed = [{"key": key, "value": value} for key, value in sorted(tags.items())]
        params = {"selector": selector, "runConfigData": {}, "executionMetadata": {"tags": listed}}
        answer = self._client.call(_LAUNCH, {"params": params})["launchRun"]
        if answer["__typename"] != "LaunchRunSuccess":
            messages = [error["message"] for error in answer.get("errors", [])] or [answer.get("message", "")]
            raise WebserverError(f"{', '.join(assets)}: {answer['__typename']}: {' '.join(messages).strip()}")
        return str(answer["run"]["runId"])

    def runs(self, run_ids: Sequence[str]) -> dict[str, RunState]:
        """States of the runs by id; those of runs that were deleted are ``DELETED``."""
        answer = self._client.call(_RUNS, {"ids": list(run_ids)})["runsOrError"]
        if answer["__typename"] != "Runs":
            raise self._client.failed(answer.get("message", answer["__typename"]))
        existing = {result["runId"]: _parse_run(result) for result in answer["results"]}
        return {run_id: existing.get(run_id, _deleted_run(run_id)) for run_id in run_ids}

    def failures(self, run_id: str) -> list[str]:
        """Why the run did not succeed: the messages of its failed steps, else of the run itself."""
        steps: list[str] = []
        of_run: list[str] = []
        after: str | None = None
        while True:
            page = self._client.call(_EVENTS, {"run": run_id, "after": after})["logsForRun"]
            if page["__typename"] == "RunNotFoundError":
                return ["The run was deleted, so its result is unknown. Submit the same again to have it made."]
            if page["__typename"] != "EventConnection":
                raise self._client.failed(page.get("message", page["__typename"]))
            for event in page["events"]:
                if event["__typename"] == "ExecutionStepFailureEvent":
                    steps.append(f"{event['stepKey']}: {_error_text(event['error'])}")
                elif event["__typename"] in {"RunFailureEvent", "RunCanceledEvent"}:
                    of_run.append(_error_text(event.get("error")) or event["message"])
            after = page["cursor"]
            if not page["hasMore"]:
                return steps or of_run


def _parse_asset(node: Mapping[str, Any]) -> DeployedAsset:
    policy = node["backfillPolicy"] or {"policyType": "MULTI_RUN", "maxPartitionsPerRun": 1}
    definition = node["partitionDefinition"]
    return DeployedAsset(
        key="/".join(node["assetKey"]["path"]),
        jobs=tuple(node["jobNames"]),
        upstream=frozenset("/".join(key["path"]) for key in node["dependencyKeys"]),
        is_partitioned=definition is not None,
        partitions=tuple(node["partitionKeys"]),
        partitions_name=definition["name"] if definition else None,
        dimensions=tuple(dimension["name"] for dimension in definition["dimensionTypes"]) if definition else (),
        longest_range=None if policy["policyType"] == "SINGLE_RUN" else policy["maxPartitionsPerRun"] or 1,
        repository=node["repository"]["name"],
        location=node["repository"]["location"]["name"],
    )


def _parse_run(result: Mapping[str, Any]) -> RunState:
    tags = {tag["key"]: tag["value"] for tag in result["tags"]}
    return RunState(
        run_id=result["runId"],
        status=result["status"],
        will_retry=tags.get(_WILL_RETRY_TAG) == "true",
        retried_by=tags.get(_RETRY_RUN_TAG),
        device=tags.get("uveitis/device"),
    )


def _deleted_run(run_id: str) -> RunState:
    return RunState(run_id=run_id, status=DELETED, will_retry=False, retried_by=None, device=None)


def _error_text(error: Mapping[str, Any] | None) -> str:
    """The innermost message: Dagster wraps what an asset raised in errors of its own."""
    if error is None:
        return ""
    chain = [link["error"]["message"] for link in error.get("errorChain") or []]
    return str([error["message"], *chain][-1]).strip()
