"""Say how many images of each prompt the synthetic data set has.

    python -m stages.balance

reads   generate.images_per_prompt, generate.balance, classes; data/prompts.parquet, the scenes of
        data/imagery/train
writes  data/images_per_prompt.csv            row (the prompt's number), images
        metrics/plots/images_per_class.csv    class, prompts, images, real (training tiles)
"""

from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq

from stages.common.artifacts import read_rows
from stages.common.class_balance import share_among_classes, share_among_prompts
from stages.common.csv_files import write_csv
from stages.params import load
from stages.runtime.errors import exit_with_error
from stages.runtime.process import run_stage
from stages.runtime.progress import log

PROMPTS = Path("data/prompts.parquet")
TRAIN = "data/imagery/train"


def main() -> None:
    params = load()
    generate = params.generate
    rows = pq.read_table(PROMPTS, columns=["row", "label"]).to_pylist()
    prompts = Counter(row["label"] for row in rows)
    tiles = Counter(row["scene"] for row in read_rows(TRAIN, ["scene"]))
    real = {name: sum(tiles[scene] for scene in scenes) for name, scenes in params.classes.items()}
    try:
        images = share_among_classes(generate.balance, prompts, generate.images_per_prompt, real)
    except ValueError as error:
        exit_with_error(f"generate.balance: {error}")
    check_images(images, real)

    shares = {name: iter(share_among_prompts(n, prompts[name])) for name, n in images.items()}
    per_prompt = [{"row": row["row"], "images": next(shares[row["label"]])} for row in rows]
    write_csv("data/images_per_prompt.csv", per_prompt, ["row", "images"])
    per_class = [
        {
            "class": name,
            "prompts": prompts[name],
            "images": images.get(name, 0),
            "real": real[name],
        }
        for name in params.classes
    ]
    write_csv("metrics/plots/images_per_class.csv", per_class, list(per_class[0]))


def check_images(images: dict[str, int], real: dict[str, int]) -> None:
    """Log the classes without images; exit with an error where fewer than two have any."""
    without = [name for name, count in images.items() if not count]
    if without:
        named = ", ".join(f"{name} ({real[name]} real training tiles)" for name in without)
        log(f"balance: generate.balance: no images of {named}")
    if len(images) - len(without) < 2:
        exit_with_error(
            f"generate.balance: images of {len(images) - len(without)} class(es); a classifier "
            "needs at least 2"
        )


if __name__ == "__main__":
    run_stage(main, __doc__)
