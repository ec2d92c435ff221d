"""Partition keys of folds: ``fold0``, ``fold1``, ..."""


def fold_key(fold: int) -> str:
    """Partition key of a fold: ``fold0``."""
    return f"fold{fold}"


def fold_keys(n_folds: int) -> list[str]:
    """Partition keys of all folds, in order."""
    return [fold_key(fold) for fold in range(n_folds)]


def fold_number(partition: str) -> int:
    """Fold of a partition key: ``fold0`` -> 0."""
    return int(partition.removeprefix("fold"))
