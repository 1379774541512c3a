"""The stages: `run(config, folder)` in a job folder (docs/job-folder.md)."""
