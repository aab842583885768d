"""A classifier trained on generated images alone, tested on real tiles.

python -m stages.classify lulc      LULC classes: trained on the synthetic data set
python -m stages.classify scenes    scenes: trained on the tuned model's images of the test captions (zero-shot accuracy)
"""

from pathlib import Path

import numpy as np

from stages.common.artifacts import read_json, write_json
from stages.common.torch_setup import make_deterministic
from stages.evaluation import labels
from stages.evaluation.plots import write_csv
from stages.evaluation.scores import pooled, share_of_ceiling
from stages.params import load
from stages.runtime.errors import exit_with_error
from stages.runtime.process import run_stage
from stages.runtime.progress import log

BASE = Path("models/base/classifier")


def main(key: str) -> None:
    p = load()
    make_deterministic(p.seed)
    from stages.evaluation.classification import read_labeled, train_and_test_all
    from stages.evaluation.networks import save

    # The question, its training images (generated), its test images (real).
    names, of_scene = labels.of_imagery(key, p.classes)
    folder, column = (
        ("data/synthetic", "label") if key == "lulc" else ("data/samples/tuned", "scene")
    )
    source, strange = read_labeled(
        folder, column, {name: i for i, name in enumerate(names)}, p.classifier.resolution
    )
    real, left_out = read_labeled("data/imagery/test", "scene", of_scene, p.classifier.resolution)
    if len(np.unique(source.labels)) < 2:
        exit_with_error(
            f"{folder}: images of {len(np.unique(source.labels))} class(es); a classifier needs at least 2"
        )
    if strange:
        log(f"classify: {folder}: left out, of no known class: {dict(strange)}")

    weights = BASE / "model.safetensors"
    weights = weights if weights.exists() else None
    outcomes = train_and_test_all(
        [
            (source, real, names, p.classifier, p.seed + i, weights)
            for i in range(p.classifier.seeds)
        ]
    )

    counts = np.bincount(real.labels, minlength=len(names))
    tests = {test: pooled(outcomes, test) for test in ("synthetic_test", "real_test")}
    tests["real_test"] |= share_of_ceiling(
        tests["real_test"], read_json(f"metrics/ceiling_{key}.json")
    )
    write_json(
        f"metrics/classify_{key}.json",
        tests
        | {
            "chance": 1 / len(names),
            "majority": float(counts.max() / counts.sum()),
            "classes": len(names),
            "scenes_without_real": sum(map(len, p.classes.values())) - len(of_scene)
            if key == "lulc"
            else 0,
            "classes_without_real": int((counts == 0).sum()),
            "n_train": outcomes[0].scores["train"]["n"],
            "seeds": len(outcomes),
        },
    )
    log(
        f"classify: {key}: {tests['real_test']['overall_accuracy']:.3f} of {len(real.labels)} real tiles right"
    )

    # The first classifier and where it errs.
    first = outcomes[0]
    target = Path("models/classifier", key)
    save(target, first.network, first.config)
    write_json(
        target / "context.json",
        {
            "weights": read_json(BASE / "SOURCE.json")["source"],
            "trained_on": folder,
            "tested_on": "data/imagery/test",
            "classes_without_real": [name for name, count in zip(names, counts) if count == 0],
            "scenes_of_no_class": dict(sorted(left_out.items())),
        },
    )
    predicted = first.predicted["real_test"]
    write_csv(
        f"metrics/plots/confusion_{key}.csv",
        [{"actual": names[a], "predicted": names[b]} for a, b in zip(real.labels, predicted)],
        ["actual", "predicted"],
    )
    write_csv(
        f"metrics/plots/accuracy_by_class_{key}.csv",
        [
            {
                "class": name,
                "accuracy": float((predicted[real.labels == i] == i).mean()),
                "n": int(counts[i]),
            }
            for i, name in enumerate(names)
            if counts[i]
        ],
        ["class", "accuracy", "n"],
    )


if __name__ == "__main__":
    run_stage(main, __doc__, key=labels.KEYS)
