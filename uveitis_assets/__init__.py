"""uveitis_assets: retinal-imaging data assets on Dagster."""
