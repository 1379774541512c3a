"""The stages: `run(config, folder)` in a job folder (CONTRIBUTING.md, "The job folder")."""
