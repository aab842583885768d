"""The stages of the pipeline: `dvc.yaml` runs them, one script each."""

import os

# libgomp's threads spin while they wait, by default for milliseconds: with anything else on the machine, each small parallel
# region then costs a scheduler slice (2 cores, one taken: 21 s a step). Some 20 microseconds bridge the gaps between the regions of
# a small model: 8 % off its step on quiet cores, 15 % more where one is taken, against not spinning. Read when torch loads.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
