"""What an asset check reports: errors, warnings and numbers as one result with a readable listing."""

import dagster as dg

_SHOWN = 300


def check_result(errors: list[str], warnings: list[str], **numbers: float) -> dg.AssetCheckResult:
    """Failed with ERROR for errors, failed with WARN for warnings alone."""
    lines = [*(f"ERROR: {line}" for line in errors), *(f"WARN: {line}" for line in warnings)]
    shown = [*lines[:_SHOWN], *([f"and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else [])]
    return dg.AssetCheckResult(
        passed=not lines,
        severity=dg.AssetCheckSeverity.ERROR if errors or not warnings else dg.AssetCheckSeverity.WARN,
        description=f"{_number(errors, 'error')}, {_number(warnings, 'warning')}" if lines else None,
        metadata={
            **numbers,
            "n_errors": len(errors),
            "n_warnings": len(warnings),
            "findings": dg.MetadataValue.md("\n".join(f"- {line}" for line in shown) or "none"),
        },
    )


def _number(findings: list[str], noun: str) -> str:
    return f"{len(findings)} {noun}{'' if len(findings) == 1 else 's'}"
