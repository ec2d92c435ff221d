"""What an asset check reports: errors, warnings and numbers as one result with a readable listing."""

import dagster as dg

from uveitis_assets.messages import count_of
from uveitis_assets.orchestration.previews import format_listing


def check_result(errors: list[str], warnings: list[str], **numbers: float) -> dg.AssetCheckResult:
    """Failed with ERROR for errors, failed with WARN for warnings alone."""
    lines = [*(f"ERROR: {line}" for line in errors), *(f"WARN: {line}" for line in warnings)]
    return dg.AssetCheckResult(
        passed=not lines,
        severity=dg.AssetCheckSeverity.ERROR if errors or not warnings else dg.AssetCheckSeverity.WARN,
        description=f"{count_of(errors, 'error')}, {count_of(warnings, 'warning')}" if lines else None,
        metadata={
            **numbers,
            "n_errors": len(errors),
            "n_warnings": len(warnings),
            "findings": format_listing(lines),
        },
    )


def not_materialized(asset: dg.AssetKey, partition: str) -> dg.AssetCheckResult:
    """An error that says what to materialize."""
    return check_result([f"{asset.to_user_string()}[{partition}] has no artefacts; materialize it first"], [])
