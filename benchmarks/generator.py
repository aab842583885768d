"""What the demo's generator loses, and where: autoencoder, base model, fine-tuning, guidance.

    python -m benchmarks.generator shipped           the base that ships
    python -m benchmarks.generator path/to/model     another one, a StableDiffusionPipeline folder

For each seed the demo's own stages fine-tune the base, in a folder of the resume cache. Each model
then draws as many images as there are test tiles: fresh rendered ones, of seeds that no run can
have. They are compared in the features of the shipped judge, and of a network that was trained on
photographs. Every number is relative to what as many other fresh tiles score. The run also makes
its labeled data set: land cover is the accuracy, on its real test tiles, of classifiers trained on
that set, and of classifiers trained on as many real tiles.

Prints Markdown and writes it to benchmarks/results/generator.md (--table), after every row. A
killed run, called again, goes on with the row it was at.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from scipy.special import stdtrit

from benchmarks.evaluation import extract
from benchmarks.workspace import REPOSITORY, make_inputs, run_module
from stages.common.artifacts import IMAGE, fingerprint, read_json, write_atomically, write_json
from stages.embedded.image_detail import mean_psnr, relative_detail
from stages.runtime.process import make_parser, start_process
from stages.runtime.progress import log
from stages.runtime.resume_cache import resume_folder

TABLE = REPOSITORY / "benchmarks/results/generator.md"
SHIPPED = REPOSITORY / "stages/embedded/models/diffusion"
JUDGE = REPOSITORY / "stages/embedded/models/scene"
# Seeds of runs are below 2**32; the shipped models were trained on tiles of other seeds above it.
TEST_SEED = 2**33
OTHER_SEED = 2**34  # of the tiles that play the generated ones in real vs. real
TILE_BATCH = 64  # images that the autoencoder reconstructs at a time
WORST = 0.75  # of the real tiles' agreement: a scene below it is counted
MODELS = {
    "base": "base",
    "tuned": "tuned",
    "unguided": "tuned, no guidance",
    "reconstructed": "autoencoder alone",
}
REAL = "real vs. real"
# The stages of the demo's run, with their arguments. No language model is asked.
STAGES = (
    *(("fetch_model", role) for role in ("vision", "writer", "embedder", "classifier")),
    *((stage,) for stage in ("encode", "finetune_sd", "fetch_papers", "scrape", "index_rag")),
    *((stage,) for stage in ("prompt", "balance", "generate", "select", "ceiling")),
    ("classify", "lulc"),
)
CLASSIFIERS = 10  # whose mean accuracy is taken
# Row of the table -> key of a measurement.
ROWS = {
    "FID, judge": "scene.fid",
    "recall, judge": "scene.recall",
    "precision, judge": "scene.precision",
    "coverage, judge": "scene.coverage",
    "FID, ImageNet": "efficientnet.fid",
    "recall, ImageNet": "efficientnet.recall",
    "caption agreement": "agreement",
    "caption agreement, worst scene": "worst_agreement",
    f"scenes below {WORST}": "weak_scenes",
    "land cover": "land_cover",
    "power, 2 to 4 cycles": "octave_2_4",
    "power, 4 to 8 cycles": "octave_4_8",
    "power, 8 to 16 cycles": "octave_8_16",
    "power, 16 to 32 cycles": "octave_16_32",
    "chroma": "chroma",
    "PSNR, dB": "psnr",
}
Values = dict[str, float]


class Tiles(NamedTuple):
    """Fresh tiles: uint8 [N, H, W, 3], the caption and the scene of each."""

    images: np.ndarray
    captions: list[str]
    scenes: list[str]


def main() -> None:
    parser = make_parser("benchmarks.generator", __doc__)
    parser.add_argument("base", help="`shipped`, or the folder of a base model")
    parser.add_argument("--n", type=int, default=2048, help="test tiles, and images of each model")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the runs")
    parser.add_argument("--table", type=Path, default=TABLE, help="file to write")
    options = parser.parse_args()
    start_process()
    base = SHIPPED if options.base == "shipped" else Path(options.base).resolve()
    code = [path for name in ("stages", "benchmarks") for path in (REPOSITORY / name).rglob("*.py")]
    inputs: list[str | Path] = [*sorted(code), REPOSITORY / "params/demo.yaml"]
    inputs += [base / part for part in ("vae", "text_encoder", "unet", "tokenizer", "scheduler")]
    with resume_folder("benchmark_generator", fingerprint({"n": options.n}, inputs)) as cache:
        for seed in options.seeds:
            for _ in measure_seed(base, options.n, seed, cache):
                table = "\n".join(format_table(options.base, options.n, options.seeds, cache))
                write_atomically(options.table, f"{table}\n".encode())
    print(table)


def measure_seed(base: Path, n: int, seed: int, cache: Path) -> Iterator[None]:
    """Measure what is missing of a seed's rows; yield after each.

    Args:
        base: folder of the model.
        n: test tiles.
        seed: of the demo's run.
        cache: gets a JSON file for each row, and the folder of the run.
    """
    missing = [name for name in ("real", *MODELS) if not row_file(cache, name, seed).exists()]
    if not missing:
        yield
        return
    run = cache / f"run_{seed}"
    prepare_run(run, base, seed)
    tiles = render(TEST_SEED + seed, n, seed)
    measure = make_measure(JUDGE, run / "models/base/vision", tiles)
    for name in missing:
        log(f"generator: seed {seed}: {name}")
        if name == "real":
            images = render(OTHER_SEED + seed, n, seed).images
            values = measure(images)
            values["land_cover"] = read_json(run / "metrics/ceiling_lulc.json")["overall_accuracy"]
        elif name == "reconstructed":
            images = reconstruct(run / "models/base/diffusion", tiles.images)
            values = measure(images)
            values["psnr"] = mean_psnr(tiles.images, images)
        else:
            values = measure(draw(run, name, tiles, seed))
        if name == "tuned":
            on_real = read_json(run / "metrics/classify_lulc.json")["real_test"]
            values["land_cover"] = on_real["overall_accuracy"]
        write_json(row_file(cache, name, seed), values)
        yield


def row_file(cache: Path, name: str, seed: int) -> Path:
    """Where the values of a row are kept."""
    return cache / f"{name}_{seed}.json"


def prepare_run(run: Path, base: Path, seed: int) -> None:
    """Run the demo's stages in a folder, unless they have run there."""
    finished = run / "finished.json"
    if finished.exists():
        return
    changes: dict[str, dict[str, Any]] = {
        "prompt": {"compare": []},
        "classifier": {"seeds": CLASSIFIERS},
    }
    if base != SHIPPED:
        changes |= {
            "fetch_model": {"diffusion": f"path:{base}"},
            "encode": {"base_domain": "none"},  # the embedded one is of the shipped base
        }
    make_inputs(run, changes, seed)
    if not (run / "stages").exists():
        (run / "stages").symlink_to(REPOSITORY / "stages")  # `prompt` reads a file of it
    for stage, *arguments in STAGES:
        log(f"generator: seed {seed}: {' '.join([stage, *arguments])}")
        run_module(run, f"stages.{stage}", *arguments)
    write_json(finished, {})


def render(tile_seed: int, n: int, seed: int) -> Tiles:
    """Render n tiles as the demo's run does, from a seed of their own; draw a caption of each."""
    from stages.common.rng import rng
    from stages.embedded.scenes import render_tiles

    images, captions, scenes = [], [], []
    for tile in render_tiles(tile_seed, 0, n, 64, "domain"):
        images.append(tile["image"])
        number = rng(seed, "caption", tile["index"]).integers(len(tile["captions"]))
        captions.append(tile["captions"][number])
        scenes.append(tile["scene"])
    return Tiles(np.stack(images), captions, scenes)


def draw(run: Path, name: str, tiles: Tiles, seed: int) -> np.ndarray:
    """Images uint8 [N, H, W, 3] of the tiles' captions by a model of the run; see `MODELS`."""
    from stages.common.artifacts import decode_image, stream_rows
    from stages.diffusion.sampler import PROVENANCE, generate_shards
    from stages.params import load

    sampling = load(run / "params.yaml").sampling
    if name == "unguided":
        sampling = sampling.model_copy(update={"guidance_scale": 1.0})
    captions_file = run / "captions.json"
    write_json(captions_file, tiles.captions)
    rows = (
        {"prompt": caption, "negative_prompt": "", "item": ("generator", i)}
        for i, caption in enumerate(tiles.captions)
    )
    generate_shards(
        stage=f"benchmark_generator_{name}",
        out=run / "samples" / name,
        model=run / ("models/base/diffusion" if name == "base" else "models/diffusion"),
        rows=rows,
        total=len(tiles.captions),
        schema=pa.schema([("image", IMAGE), ("prompt", pa.string()), *PROVENANCE]),
        sampling=sampling,
        seed=seed,
        inputs=[captions_file],
    )
    images = stream_rows(run / "samples" / name, ["image"])
    return np.stack([np.asarray(decode_image(row["image"])) for row in images])


def reconstruct(model: Path, images: np.ndarray) -> np.ndarray:
    """What a model's autoencoder makes of images uint8 [N, H, W, 3]."""
    import torch

    from stages.diffusion import models
    from stages.diffusion.from_scratch import normalize_pixels

    vae = models.load(model, "vae")
    decoded = []
    with torch.no_grad():
        for begin in range(0, len(images), TILE_BATCH):
            x = normalize_pixels(images[begin : begin + TILE_BATCH]).to(vae.device)
            y = vae.decode(vae.encode(x).latent_dist.mean).sample.float().numpy()
            decoded.append(models.to_pixels(y))
    return np.concatenate(decoded)


def make_measure(judge: Path, vision: Path, tiles: Tiles) -> Callable[[np.ndarray], Values]:
    """The measurement of images, one for each test tile, against the test tiles.

    Args:
        judge: folder of the scene classifier.
        vision: folder of the network that was trained on photographs.
        tiles: the test tiles.
    """
    from stages.evaluation.extractors import load_extractor
    from stages.evaluation.frechet import fid
    from stages.evaluation.prdc import compute_prdc

    folders = {"scene": judge, "efficientnet": vision}
    extractors = {name: load_extractor(name, folder) for name, folder in folders.items()}
    judged: Any = extractors["scene"]
    names = judged.config["scenes"]
    real = {name: extract(extractor, tiles.images) for name, extractor in extractors.items()}

    def measure(images: np.ndarray) -> Values:
        values: Values = relative_detail(images, tiles.images)
        features = {name: extract(extractor, images) for name, extractor in extractors.items()}
        for name, outputs in features.items():
            pair = real[name]["features"], outputs["features"]
            values |= {f"{name}.fid": fid(*pair)}
            values |= {f"{name}.{key}": share for key, share in compute_prdc(*pair).items()}
        return values | agreement(features["scene"]["logits"], tiles.scenes, names)

    return measure


def agreement(logits: np.ndarray, wanted: list[str], scenes: list[str]) -> Values:
    """The share of images [N] in which the judge sees the wanted scene: of all, and by scene."""
    from stages.evaluation.caption_agreement import judge_scenes

    correct, known = judge_scenes(logits, wanted, scenes)
    values = {"agreement": float(correct.mean())}
    return values | {
        f"agreement.{s}": float(correct[known == s].mean()) for s in sorted(set(known))
    }


def relative(values: Values, real: Values) -> Values:
    """A row's values relative to real vs. real: FIDs as a difference, shares as a ratio.

    Detail, chroma and PSNR, which are relative to the test tiles already, stay.
    """
    result = dict(values)
    for key, value in values.items():
        if key.endswith(".fid"):
            result[key] = value - real[key]
        elif "." in key or key in ("agreement", "land_cover"):
            result[key] = value / real[key]
    return result


def add_worst(values: Values) -> Values:
    """The values, with the worst scene's agreement and the number of scenes below `WORST`."""
    by_scene = [value for key, value in values.items() if key.startswith("agreement.")]
    weak_scenes = sum(value < WORST for value in by_scene)
    return values | {"worst_agreement": min(by_scene), "weak_scenes": weak_scenes}


def format_table(base: str, n: int, seeds: list[int], cache: Path) -> Iterator[str]:
    """The lines of the results, of the rows that are measured so far."""
    columns: dict[str, list[Values]] = {}
    for seed in seeds:
        if not row_file(cache, "real", seed).exists():
            continue
        real = read_json(row_file(cache, "real", seed))
        columns.setdefault(REAL, []).append(add_worst(real))
        for name, title in MODELS.items():
            if row_file(cache, name, seed).exists():
                values = relative(read_json(row_file(cache, name, seed)), real)
                columns.setdefault(title, []).append(add_worst(values))
    yield "# What the demo's generator loses\n"
    yield f"`python -m benchmarks.generator {base} --n {n} --seeds {' '.join(map(str, seeds))}`"
    yield f"printed this table. {n:,} fresh test tiles for each seed, and as many images of their"
    yield f"captions. {REAL.capitalize()} is absolute. In the other columns FIDs are less real vs."
    yield "real's; precision, recall, coverage, agreement and land cover are divided by its values."
    yield "Power and chroma are divided by the test tiles'. Land cover: accuracy on real tiles of"
    yield f"{CLASSIFIERS} classifiers; the first column's were trained on real tiles."
    yield "Means over the seeds, with 95 % intervals.\n"
    yield f"| | {' | '.join(columns)} |"
    yield f"|---|{'---:|' * len(columns)}"
    for title, key in ROWS.items():
        cells = [format_cell([v[key] for v in column if key in v]) for column in columns.values()]
        yield f"| {title} | {' | '.join(cells)} |"


def format_cell(values: list[float]) -> str:
    """The mean of some seeds' values, with its 95 % interval where there are two or more."""
    if not values:
        return ""
    mean = f"{np.mean(values):.3g}"
    if len(values) == 1:
        return mean
    margin = stdtrit(len(values) - 1, 0.975) * np.std(values, ddof=1) / np.sqrt(len(values))
    return f"{mean} ± {margin:.2g}"


if __name__ == "__main__":
    main()
