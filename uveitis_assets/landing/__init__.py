"""From a landing folder to the manifest: layouts, ledger, registration, splits, quarantine."""
