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
        description=f"{count_of(errors, 'error')}, {count_of(warnings, 'warning')}" if lines else None,
        metadata={
            **numbers,
            "n_errors": len(errors),
            "n_warnings": len(warnings),
            "findings": dg.MetadataValue.md("\n".join(f"- {line}" for line in shown) or "none"),
        },
    )


def count_of(findings: list[str], noun: str, plural: str = "") -> str:
    """``1 error``, ``2 errors``; ``plural`` for nouns that take no bare s."""
    return f"{len(findings)} {noun if len(findings) == 1 else plural or noun + 's'}"
