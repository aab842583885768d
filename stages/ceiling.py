"""The ceiling of `classify`: the same network, trained on as many real tiles as there are generated ones.

    python -m stages.ceiling

One stage for both questions, LULC classes and scenes: starting up costs as much as training.
"""

from pathlib import Path

import numpy as np

from stages.common.artifacts import read_rows, write_json
from stages.common.torch_setup import make_deterministic
from stages.evaluation import labels
from stages.evaluation.scores import pooled
from stages.params import load
from stages.runtime.errors import exit_with_error
from stages.runtime.process import run_stage
from stages.runtime.progress import log


def main():
    p = load()
    make_deterministic(p.seed)
    from stages.evaluation.classification import read_labeled, train_and_test_all

    weights = Path("models/base/classifier/model.safetensors")
    weights = weights if weights.exists() else None
    seeds, asked, images = p.classifier.seeds, [], {}
    for key in labels.KEYS:
        names, of_scene = labels.of_imagery(key, p.classes)
        # As many images of each class as there are generated: by the params, or so many per test caption.
        if key == "lulc":
            wanted = {
                names.index(name): count * p.generate.images_per_prompt
                for name, count in p.prompt.per_class.items()
            }
        else:
            shown = [of_scene[row["scene"]] for row in read_rows("data/imagery/test", ["scene"])]
            wanted = {i: shown.count(i) * p.classifier.images_per_caption for i in set(shown)}
        source, _ = read_labeled(
            "data/imagery/train", "scene", of_scene, p.classifier.resolution, wanted, p.seed
        )
        real, _ = read_labeled("data/imagery/test", "scene", of_scene, p.classifier.resolution)
        if (classes := len(np.unique(source.labels))) < 2:
            exit_with_error(
                f"data/imagery/train: images of {classes} class(es); a classifier needs at least 2"
            )
        if len(source.labels) < sum(wanted.values()):
            log(
                f"ceiling: {key}: {len(source.labels)} real training tiles where {sum(wanted.values())} images are generated"
            )
        asked += [(source, real, names, p.classifier, p.seed + i, weights) for i in range(seeds)]
        images[key] = sum(wanted.values())

    outcomes = train_and_test_all(asked)
    for i, key in enumerate(labels.KEYS):
        of_key = outcomes[i * seeds : (i + 1) * seeds]
        write_json(
            f"metrics/ceiling_{key}.json",
            pooled(of_key, "real_test")
            | {"n_train": of_key[0].scores["train"]["n"], "n_wanted": images[key], "seeds": seeds},
        )


if __name__ == "__main__":
    run_stage(main, __doc__)
