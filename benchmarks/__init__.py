import os

# benchmarks.gpu needs few packages of requirements.txt, and so do the stages that it runs.
os.environ["REMOTE_DIFFUSION_ANY_PACKAGES"] = "1"
