"""Former name of ``engine_proxy``, which a compose file may still run."""

from uveitis_assets.deployment.engine_proxy import main

if __name__ == "__main__":
    main()
