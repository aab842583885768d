"""The stages of the pipeline: `dvc.yaml` runs them, one script each."""

import os

# libgomp's threads spin while they wait: with anything else on the machine, each small parallel region then costs a
# scheduler slice (measured on 2 cores beside one busy process: 21 s a step spinning, 0.26 s not). Read when torch loads.
os.environ.setdefault("GOMP_SPINCOUNT", "0")
