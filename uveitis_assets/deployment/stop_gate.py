"""Former name of ``engine_proxy``, for a compose file that runs it."""

from uveitis_assets.deployment.engine_proxy import main

if __name__ == "__main__":
    main()
