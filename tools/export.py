"""Export artifacts in the forms that other tools read.

    python -m tools.export imagefolder train out/            or `synthetic` for the generated images
    python -m tools.export geotiff train out/                or `synthetic`
    python -m tools.export llm out/
    python -m tools.export hub <owner>                       with HF_TOKEN in the environment
    python -m tools.export hub <owner> --dry-run out/

imagefolder: a split of data/imagery as PNGs and metadata.jsonl {file_name, text, captions, scene},
for `load_dataset("imagefolder", ...)`, the diffusers training scripts and
`fetch_imagery.source: path:out`. `text` is the first of an image's captions. crs, bounds, gsd and
date are added where the tile has them. With `synthetic`, the PNGs of data/synthetic unchanged,
whose metadata say that they are synthetic and how each was drawn; `text` is the prompt, and
metadata.jsonl has the other columns.
geotiff: a split of data/imagery as 8-bit GeoTIFFs with the CRS, bounds and date of their source.
Each band's scale and offset undo the stretch: value = byte * scale + offset; pixel_values.json
states it. With `synthetic`, the images of data/synthetic: they have no georeference, and their tags
say the same as the PNGs'.
llm: the fine-tuned language model as one `transformers` folder, the adapter merged into its base.
hub: the synthetic data set and the models as repositories of <owner> on the Hugging Face hub, each
with a card about the run. --dry-run writes the folders, prints each file with its repository and
size, and uploads nothing.
"""

import json
import os
import re
import tempfile
from pathlib import Path

import numpy as np

from stages.common.artifacts import decode_image, stream_rows, write_atomically, write_json
from stages.common.class_names import slug
from stages.diffusion.marked_png import DESCRIPTION, SETTINGS
from stages.imagery.georeference import Georeference
from stages.imagery.rasters import rasterio_settings
from stages.params import load
from stages.publishing.folders import add_card_and_metrics, copy_output, hide_folders_in_model
from stages.publishing.pixel_values import Stretch, describe_pixel_values, read_stretch
from stages.publishing.repositories import REPOSITORIES
from stages.runtime.errors import exit_with_error
from stages.runtime.file_modes import follow_umask
from stages.runtime.pretrained import load_pretrained
from stages.runtime.process import interrupt_on_signals, make_parser, start_process
from stages.runtime.progress import log, progress_bar
from stages.text.writers import ADAPTER, LANGUAGE
from tools.commands import run_command

IMAGERY = Path("data/imagery")
SYNTHETIC = Path("data/synthetic")
MAX_NAME_BYTES = 200  # of a file name; file systems take up to 255


def main() -> None:
    parser = make_parser("tools.export", __doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, files in (("imagefolder", "PNGs"), ("geotiff", "GeoTIFFs")):
        command = commands.add_parser(name, help=f"a split, or the generated images, as {files}")
        command.add_argument("split", choices=("train", "valid", "test", "synthetic"))
        command.add_argument("folder", type=Path, help="new or empty")
    command = commands.add_parser("llm", help="the language model with its adapter merged in")
    command.add_argument("folder", type=Path, help="new or empty")
    command = commands.add_parser("hub", help="the data set and the models on the hub")
    command.add_argument("owner", help="user or organization on the hub")
    command.add_argument("--dry-run", type=Path, metavar="FOLDER", help="write, don't upload")
    options = parser.parse_args()
    start_process()
    interrupt_on_signals()
    match options.command:
        case "imagefolder":
            export_imagefolder(options.split, options.folder)
        case "geotiff":
            export_geotiffs(options.split, options.folder)
        case "llm":
            export_language_model(options.folder)
        case "hub":
            if options.dry_run is None:
                publish(options.owner)
            else:
                write_repositories(options.dry_run, read_commit(must_be_clean=False))
                print_files(options.dry_run, options.owner)


def export_imagefolder(split: str, folder: Path) -> None:
    """Write a split of data/imagery, or data/synthetic, as an image folder.

    The target must be new or empty.
    """
    source = choose_source(split)
    make_empty(folder)
    lines = []
    taken: set[str] = set()
    rows = progress_bar(stream_rows(source), desc=split, unit="tile")
    for number, row in enumerate(rows):
        name = choose_file_name(row.get("filename") or name_synthetic(row, number), number, taken)
        (folder / name).write_bytes(row.pop("image")["bytes"])
        metadata = {"file_name": name}
        if split == "synthetic":
            metadata |= {"text": row.pop("prompt"), **row}
        else:
            metadata |= {"text": row["captions"][0], "captions": row["captions"]}
            metadata["scene"] = row["scene"]
            metadata |= {key: row[key] for key in Georeference._fields if row.get(key) is not None}
        lines.append(json.dumps(metadata, ensure_ascii=False) + "\n")
    write_atomically(folder / "metadata.jsonl", "".join(lines).encode())


def choose_source(split: str) -> Path:
    """Return the folder of a split, or of the generated images; exit where it is missing."""
    source = SYNTHETIC if split == "synthetic" else IMAGERY / split
    if not source.is_dir():
        stage = "select" if split == "synthetic" else "fetch_imagery"
        exit_with_error(
            f"export: {source} is missing; run `dvc repro {stage}` or `dvc pull {source}`"
        )
    return source


def name_synthetic(row: dict, number: int) -> str:
    """Name a generated image after its class."""
    return f"{slug(row['label'])}_{number:05d}"


def export_geotiffs(split: str, folder: Path) -> None:
    """Write a split of data/imagery, or data/synthetic, as GeoTIFFs. The target must be empty."""
    source = choose_source(split)
    make_empty(folder)
    stretch = None if split == "synthetic" else read_stretch()
    taken: set[str] = set()
    without_place = 0
    rows = progress_bar(stream_rows(source), desc=split, unit="tile")
    for number, row in enumerate(rows):
        if split == "synthetic":
            name = name_synthetic(row, number)
            tags = {"TIFFTAG_IMAGEDESCRIPTION": DESCRIPTION, "CLASS": row["label"]}
            tags |= {key.upper(): str(row[key]) for key in SETTINGS}
        else:
            name = row["filename"]
            tags = {"TIFFTAG_IMAGEDESCRIPTION": row["captions"][0], "SCENE": row["scene"]}
        if row.get("date"):
            tags["ACQUISITION_DATE"] = row["date"]
        file_name = choose_file_name(name, number, taken, ".tif")
        without_place += not row.get("bounds")
        write_geotiff(folder / file_name, row, tags, stretch)
    if stretch:
        write_json(folder / "pixel_values.json", describe_pixel_values())
    log(f"export: {len(taken)} GeoTIFFs, {without_place} of them without a georeference")


def write_geotiff(path: Path, row: dict, tags: dict[str, str], stretch: Stretch | None) -> None:
    """Write a tile as an 8-bit GeoTIFF.

    Args:
        path: of the new file.
        row: of the imagery schema; `crs` and `bounds` may be missing or None.
        tags: of the file.
        stretch: (low, high) of all bands or of each: the values that became black and white.
    """
    import rasterio
    from rasterio.transform import from_bounds

    pixels = np.asarray(decode_image(row["image"])).transpose(2, 0, 1)  # [3, H, W]
    place = {}
    if row.get("bounds"):
        transform = from_bounds(*row["bounds"], pixels.shape[2], pixels.shape[1])
        place = {"crs": row.get("crs"), "transform": transform}
    profile = {"driver": "GTiff", "dtype": "uint8", "count": 3, "photometric": "rgb"}
    profile |= {"height": pixels.shape[1], "width": pixels.shape[2], "compress": "deflate"}
    with rasterio_settings(), rasterio.open(path, "w", **profile, **place) as dataset:
        dataset.write(pixels)
        dataset.update_tags(**tags)
        if stretch:
            pairs = stretch if len(stretch) == 3 else stretch * 3
            dataset.scales = [(high - low) / 255 for low, high in pairs]
            dataset.offsets = [low for low, _ in pairs]


def choose_file_name(original: str, number: int, taken: set[str], suffix: str = ".png") -> str:
    """Choose a file's name after a tile's own: one that is not taken and stays in the folder.

    It is added to `taken`, without its case: on some disks A.png and a.png are one file.
    """
    stem = re.sub(r"\.(png|jpe?g|tiff?|jp2)$", "", original, flags=re.I)
    stem = re.sub(r"[^\w.-]", "_", stem).lstrip(".")
    stem = stem.encode()[:MAX_NAME_BYTES].decode(errors="ignore")
    name = f"{stem}{suffix}"
    while name.casefold() in taken or name == suffix:
        name = f"{stem}_{number:07d}{suffix}"
        number += 1
    taken.add(name.casefold())
    return name


def export_language_model(folder: Path) -> None:
    """Write the fine-tuned language model and its tokenizer. The target must be new or empty."""
    if not (ADAPTER / "adapter_config.json").exists():
        exit_with_error(
            f"export: no adapter in {ADAPTER}; run `dvc repro finetune_llm` or "
            f"`dvc pull {ADAPTER} {LANGUAGE}`"
        )
    make_empty(folder)
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # The base is loaded unquantized: merging into 4-bit weights would round the adapter away.
    base = load_pretrained(AutoModelForCausalLM, LANGUAGE)
    PeftModel.from_pretrained(base, ADAPTER).merge_and_unload().save_pretrained(folder)
    follow_umask(folder)
    AutoTokenizer.from_pretrained(LANGUAGE).save_pretrained(folder)


def publish(owner: str) -> None:
    """Upload the data set and the models to the hub."""
    commit = read_commit(must_be_clean=True)
    if not os.environ.get("HF_TOKEN"):
        exit_with_error(
            "export: set HF_TOKEN in the environment to a token with write permission (or look "
            "at the folders first: --dry-run <folder>)"
        )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_repositories(folder, commit)
        for name, repository in REPOSITORIES.items():
            url = upload(f"{owner}/{name}", repository.type, folder / name, commit)
            log(f"export: {url}")


def write_repositories(folder: Path, commit: str) -> None:
    """Write a folder per repository below `folder`, which must be new or empty."""
    make_empty(folder)
    classes = load().used_classes()
    for name, repository in REPOSITORIES.items():
        target = folder / name
        if name == "remote-llm":
            export_language_model(target)
        else:
            copy_output(repository, target, list(classes))
        hide_folders_in_model(target)
        add_card_and_metrics(repository, target, commit, classes)


def print_files(folder: Path, owner: str) -> None:
    """Print what would be published: repository, file and size in bytes, separated by tabs."""
    for name in REPOSITORIES:
        for file in sorted(path for path in (folder / name).rglob("*") if path.is_file()):
            path = file.relative_to(folder / name)
            print(f"{owner}/{name}", path, file.stat().st_size, sep="\t")


def read_commit(must_be_clean: bool) -> str:
    """Return the commit that the cards name; outputs must exist.

    Args:
        must_be_clean: whether it is an error if the run on disk is not the committed one, or not
            one of these params and this code; else the commit is marked so.
    """
    outputs = [repository.path for repository in REPOSITORIES.values()]
    for path in outputs:
        if not Path(path).exists():
            exit_with_error(f"export: {path} is missing; run `dvc repro` or `dvc pull {path}`")
    commit = run("git", "rev-parse", "HEAD").strip()
    notes = []
    if changed := list_changes(outputs):
        if must_be_clean:
            exit_with_error(
                f"export: {changed[0]} is not what the last commit has; commit your run (or "
                "`dvc checkout`): the cards name the commit"
            )
        notes.append("with uncommitted changes")
    if stages := list_changed_stages(must_be_clean):
        if must_be_clean:
            exit_with_error(
                f"export: {', '.join(stages)}: changed since the run in dvc.lock; run `dvc repro` "
                "and commit what it changes: the cards quote params.yaml"
            )
        notes.append("params or code changed since the run")
    return f"{commit} ({'; '.join(notes)})" if notes else commit


def list_changes(outputs: list[str]) -> list[str]:
    """Return the files of the run, and those of the outputs, that differ from the last commit."""
    tracked = ("params.yaml", "dvc.lock", "metrics", "stages")
    status = run("git", "status", "--porcelain", "--", *tracked)
    changed = [line[3:] for line in status.splitlines()]
    data = json.loads(run("dvc", "data", "status", "--json")).get("uncommitted", {})
    for state in ("added", "modified", "deleted"):
        for path in data.get(state, []):
            if path.rstrip("/") in outputs:
                changed.append(path.rstrip("/"))
    return changed


def list_changed_stages(must_be_known: bool) -> list[str]:
    """Return the stages whose params, code or inputs are not those of the run in dvc.lock.

    Where DVC can't tell, such as beside a running `dvc repro`: exits with an error, or logs it.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    from tools.check_lock import changed_stages

    try:
        with Repo() as repo:
            return changed_stages(repo)
    except DvcException as error:
        if must_be_known:
            exit_with_error(f"export: {error}")
        log(f"export: params and code not compared with those of the run: {error}")
        return []


def run(*command: str) -> str:
    """Run a command; return what it prints, or exit with the end of its error message."""
    finished = run_command(*command)
    if finished.returncode:
        exit_with_error(f"export: {' '.join(command[:2])}: {finished.stderr.strip()[-300:]}")
    return finished.stdout


def upload(repository: str, repository_type: str, folder: Path, commit: str) -> str:
    """Make a repository on the hub hold just this folder; return its URL."""
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    # An explicit token: without one, the token file of `hf auth login` would be used.
    api = HfApi(token=os.environ["HF_TOKEN"].strip())
    try:
        url = api.create_repo(repository, repo_type=repository_type, exist_ok=True)
        api.upload_folder(
            repo_id=repository,
            repo_type=repository_type,
            folder_path=folder,
            commit_message=f"Run of {commit}",
            delete_patterns="*",
        )
    except HFValidationError:
        exit_with_error(f"export: {repository} is no valid name of a repository on the hub")
    except (HfHubHTTPError, httpx2.HTTPError) as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        causes: dict[int | None, str] = {
            401: "HF_TOKEN is not valid",
            403: "HF_TOKEN has no write permission there",
        }
        cause = causes.get(status, str(error).partition("\n")[0])
        exit_with_error(
            f"export: {repository} was not uploaded: {cause}. Run it again: files that the hub "
            "has already are not sent twice"
        )
    return str(url)


def make_empty(folder: Path) -> None:
    """Make a folder; exit with an error where it exists and is not empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        exit_with_error(f"export: {folder} exists and is not an empty folder")
    folder.mkdir(parents=True, exist_ok=True)


if __name__ == "__main__":
    main()
