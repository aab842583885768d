"""How much the results of the demo differ between runs that differ only in their seed.

    python -m benchmarks.seeds [1 2]

Runs the pipeline once for each seed, as the experiment `seed-<n>` (`dvc exp show` lists them), in a
temporary copy of the repository; a seed that ran with this commit isn't run again. The seed decides
all of a run: tiles, split, order of training, noise of the images. Prints Markdown, with the
committed run in the first column; benchmarks/results/seeds.md keeps it.
"""

import argparse
import json
from pathlib import Path

from stages.runtime.errors import exit_with_error
from stages.runtime.process import start_process
from stages.runtime.progress import log
from tools.commands import git, run_command

# Row of the table -> metrics file, dotted key.
METRICS = {
    "FID, features of the judge": ("fid", "scene.standard.fid"),
    "FID of the base": ("fid", "scene.standard.fid_base"),
    "FID, real vs. real": ("fid", "scene.standard.fid_floor"),
    "Precision": ("fid", "scene.standard.precision"),
    "Recall": ("fid", "scene.standard.recall"),
    "Recall of the base": ("fid", "scene.standard.recall_base"),
    "Recall, real vs. real": ("fid", "scene.standard.recall_floor"),
    "FID, features of ImageNet": ("fid", "efficientnet.standard.fid"),
    "FID of the base, ImageNet": ("fid", "efficientnet.standard.fid_base"),
    "FID, real vs. real, ImageNet": ("fid", "efficientnet.standard.fid_floor"),
    "Caption agreement": ("caption_agreement", "caption_agreement"),
    "Caption agreement of the base": ("caption_agreement", "caption_agreement_base"),
    "Caption agreement, real tiles": ("caption_agreement", "ceiling"),
    "Near-copies of training images": ("images", "pixels.tuned.memorized"),
    "Land-cover accuracy on real tiles": ("classify_lulc", "real_test.overall_accuracy"),
    "Land-cover accuracy, trained on real tiles": ("ceiling_lulc", "overall_accuracy"),
    "Perplexity": ("llm", "perplexity"),
    "Perplexity of the base": ("llm", "perplexity_base"),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.seeds",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("seeds", type=int, nargs="*", default=[1, 2])
    seeds = parser.parse_args().seeds
    start_process()
    columns = {"seed 0": read_metrics("HEAD")}
    for seed in seeds:
        columns[f"seed {seed}"] = read_metrics(run_seed(seed))
    print(f"| metric | {' | '.join(columns)} | range |")
    print(f"|---|{'---:|' * (len(columns) + 1)}")
    for name in METRICS:
        values = [column[name] for column in columns.values()]
        cells = [f"{value:.3g}" for value in values]
        print(f"| {name} | {' | '.join(cells)} | {min(values):.3g} to {max(values):.3g} |")


def run_seed(seed: int) -> str:
    """Run the experiment of a seed, unless it ran; return its git ref."""
    head = (git("rev-parse", "HEAD") or "").strip()
    ref = f"refs/exps/{head[:2]}/{head[2:]}/seed-{seed}"
    if git("rev-parse", "--verify", "--quiet", ref) is None:
        log(f"seeds: dvc exp run with seed {seed}")
        experiment = ("--temp", "--name", f"seed-{seed}", "--set-param", f"seed={seed}")
        finished = run_command("dvc", "exp", "run", *experiment)
        if finished.returncode:
            exit_with_error(f"seeds: seed {seed}: {finished.stderr.strip()[-500:]}")
    return ref


def read_metrics(ref: str) -> dict[str, float]:
    """Read the values of `METRICS` in a commit."""
    values = {}
    for name, (file, key) in METRICS.items():
        path = Path(f"metrics/{file}.json")
        content = json.loads(git("show", f"{ref}:./{path}") or "{}")
        for part in key.split("."):
            if part not in content:
                exit_with_error(f"seeds: {path} of {ref} has no {key}")
            content = content[part]
        values[name] = content
    return values


if __name__ == "__main__":
    main()
