"""The stages of the pipeline: `dvc.yaml` runs them, one script each."""
