"""Publishing a run on the Hugging Face hub, and `hub:` sources, against a local server."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest
import yaml
from conftest import REPOSITORY, shell, smoke_params, write_smoke_params
from hub_server import serve
from PIL import Image
from safetensors.numpy import load, save

from stages import fetch_model
from stages.common.artifacts import IMAGE, encode_png, read_json, write_shards
from stages.common.rounding import interval_decimals, reference_decimals
from stages.fetching import model_folder
from stages.params import read
from stages.publishing import card
from stages.publishing.repositories import REPOSITORIES

EMBEDDED = REPOSITORY / "stages/embedded/models"
TOKEN = "hf_SecretOfTheTest0123456789"
PRIVATE = "/home/some body/My Drive"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A clone of a finished run: the shipped models as outputs, a few images, metrics in git."""
    from transformers import AutoModelForCausalLM

    from stages.params import FinetuneLLM
    from stages.text import lora

    folder = tmp_path_factory.mktemp("run")
    write_smoke_params(folder)
    params = yaml.safe_load((folder / "params.yaml").read_text())
    shutil.copytree(
        REPOSITORY / "metrics",
        folder / "metrics",
        ignore=shutil.ignore_patterns("report", "review", "diffusion_grid"),
    )
    shutil.copytree(EMBEDDED / "diffusion", folder / "models/diffusion")
    shutil.copytree(EMBEDDED / "language", folder / "models/base/language")
    model = AutoModelForCausalLM.from_pretrained(EMBEDDED / "language")
    adapted = lora.add_lora(model, FinetuneLLM(**params["finetune_llm"]))
    adapted.save_pretrained(folder / "models/llm")
    (folder / "models/classifier/lulc").mkdir(parents=True)
    for name in ("config.json", "context.json", "model.safetensors"):
        (folder / "models/classifier/lulc" / name).write_text("{}")
    name_local_folders(folder)
    embedded = {"source": "embedded", "license": None}
    none = {"source": "none", "license": None}
    inputs = {
        "data/imagery": {"source": f"path:{PRIVATE}/tiles", "license": None},
        "data/papers": {"source": "hub:owner/papers@abc", "license": "cc-by-4.0"},
        "models/base/diffusion": embedded,
        "models/base/language": embedded,
        "models/base/embedder": embedded,
        "models/base/writer": none,
        "models/base/classifier": none,
    }
    for name, source in inputs.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "SOURCE.json").write_text(json.dumps(source))
    rows = []
    for i, label in enumerate(list(params["classes"]) * 2):
        png = encode_png(Image.new("RGB", (8, 8), (i, 90, 9)))
        image = {"bytes": png, "path": f"{i}.png"}
        rows.append({"image": image, "label": label, "prompt": f"a {label}"})
    schema = pa.schema([("image", IMAGE), ("label", pa.string()), ("prompt", pa.string())])
    write_shards(folder / "data/synthetic", rows, schema)
    (folder / ".gitignore").write_text("/data/imagery\n/data/papers\n/models\n")
    for command in (
        ["git", "init", "-q"],
        ["dvc", "init", "-q"],
        ["dvc", "add", "-q", "data/synthetic"],
        ["git", "add", "-A"],
        ["git", "-c", "user.name=test", "-c", "user.email=test@localhost", "commit", "-qm", "run"],
    ):
        assert shell(*command, cwd=folder).returncode == 0
    return folder


def name_local_folders(folder: Path) -> None:
    """Name folders and a host of this network wherever a run may, but in SOURCE.json."""
    for file, changes in (
        ("models/diffusion/vae/config.json", {"_name_or_path": f"{PRIVATE}/sd/vae"}),
        ("models/diffusion/unet/config.json", {"_name_or_path": "owner/model"}),
        ("models/classifier/lulc/context.json", {"weights": f"path:{PRIVATE}/moco/"}),
    ):
        content = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(content | changes))
    context = json.loads((folder / "metrics/context.json").read_text())
    context["scale"] = f"imagery: path:{PRIVATE}/tiles"
    context["sources"]["imagery"]["source"] = f"path:{PRIVATE}/tiles"
    context["measured_on"]["diffusion.base_domain_loss"]["base_domain"] = f"path:{PRIVATE}/photos"
    (folder / "metrics/context.json").write_text(json.dumps(context))
    params = yaml.safe_load((folder / "params.yaml").read_text())
    params["fetch_imagery"]["source"] = f"path:{PRIVATE}/tiles"
    params["train_scene"]["source"] = "scratch"
    params["encode"]["base_domain"] = f"path:{PRIVATE}/photos"
    params["prompt"] |= {
        "writer": "openai",
        "openai_base_url": "http://jane:secret@vllm.internal:8000/v1",
        "openai_model": f"{PRIVATE}/mistral",
    }
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


@pytest.fixture(scope="module")
def dry(run, tmp_path_factory, environment) -> Path:
    """The folders that `--dry-run` writes, without access to a hub."""
    out = tmp_path_factory.mktemp("dry") / "out"
    done = shell(
        sys.executable,
        "-m",
        "tools.export",
        "hub",
        "owner",
        "--dry-run",
        str(out),
        cwd=run,
        env={**environment, "HF_ENDPOINT": "http://127.0.0.1:9", "PYTHONPATH": str(REPOSITORY)},
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    files = {f"{repository.removeprefix('owner/')}/{name}" for repository, name, _ in lines}
    assert files == set(read_files(out)) and all(int(size) > 0 for _, _, size in lines)
    return out


@pytest.fixture
def hub():
    with serve(TOKEN) as server:
        yield server


@pytest.fixture
def client(hub, environment, tmp_path):
    """Runs `python -m <module>` as a user of the local hub, with a new hub cache."""
    env = {
        **environment,
        "HF_ENDPOINT": hub.url,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(tmp_path / "cache"),
        "HF_TOKEN": "",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
        "PYTHONPATH": str(REPOSITORY),
    }
    return lambda *words, cwd, **more: shell(
        sys.executable, "-m", *words, cwd=cwd, env={**env, **more}
    )


@pytest.fixture
def in_process(hub, tmp_path, monkeypatch):
    """Runs `fetch_model diffusion` here, as `client` does in a process of seconds of imports."""
    constants = {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
        "HF_HUB_CACHE": str(tmp_path / "cache/hub"),
        "HF_HUB_DISABLE_XET": True,
    }
    for name, value in constants.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    def fetch(folder: Path) -> None:
        monkeypatch.chdir(folder)
        fetch_model.main("diffusion")

    return fetch


def one_line(done: subprocess.CompletedProcess) -> str:
    assert done.returncode == 1 and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert done.stderr.startswith("error: ")
    return done.stderr


def read_files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


# Publishing


def test_the_dry_run_loads_and_equals_what_is_uploaded(run, dry, hub, client, tmp_path):
    from datasets import ClassLabel, load_dataset
    from diffusers import StableDiffusionPipeline

    data = load_dataset(
        str(dry / "lulc-synthetic"), split="train", cache_dir=str(tmp_path / "datasets")
    )
    classes = list(read(run / "params.yaml")["classes"])
    assert data.features["label"] == ClassLabel(names=classes) and len(data) == 14
    assert data[3]["label"] == 3 and data[3]["prompt"] == f"a {classes[3]}"
    assert data[3]["image"].size == (8, 8)
    pipeline = StableDiffusionPipeline.from_pretrained(dry / "remote-diffusion")
    assert pipeline.unet.num_parameters() > 0

    # With a token, the same bytes are uploaded, and a stale file of an earlier upload is deleted.
    stale = {"data/train-00000-of-00002.parquet": b"stale"}
    hub.repositories["datasets/owner/lulc-synthetic"] = stale
    done = client("tools.export", "hub", "owner", cwd=run, HF_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr
    assert set(hub.repositories) == {
        "datasets/owner/lulc-synthetic",
        "owner/remote-diffusion",
        "owner/remote-llm",
        "owner/lulc-classifier",
    }
    for name, files in hub.repositories.items():
        assert files == read_files(dry / name.rpartition("/")[2]), name
    assert not files_with_token(run) and not files_with_token(tmp_path)
    assert TOKEN not in done.stdout + done.stderr

    # The uploaded model is a source of the pipeline, pinned by its commit.
    sha = hub.commit("owner/remote-diffusion")
    folder = make_run_folder(tmp_path / "next", f"hub:owner/remote-diffusion@{sha}")
    done = client("stages.fetch_model", "diffusion", cwd=folder)
    assert done.returncode == 0, done.stderr
    fetched = folder / "models/base/diffusion"
    assert json.loads((fetched / "SOURCE.json").read_text())["commit"] == sha
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert (fetched / weights).read_bytes() == (run / "models/diffusion" / weights).read_bytes()


def files_with_token(folder: Path) -> list[Path]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [path for path in files if TOKEN.encode() in path.read_bytes()]


def test_the_card_of_the_data_set_names_commit_params_metrics_and_licenses(run, dry):
    from huggingface_hub import DatasetCard

    card = DatasetCard.load(dry / "lulc-synthetic/README.md")
    assert card.data.license == "other" and card.data.language == ["en"]
    assert card.data.task_categories == ["image-classification"]
    assert card.data.pretty_name == "Synthetic land use and land cover"
    assert re.findall("^## (.+)$", card.text, re.M) == [
        "Classes",
        "Intended use",
        "How it was made",
        "Metrics",
        "Licenses of the inputs",
        "Limitations",
        "Misuse",
    ]
    assert "trainedAlgorithmicMedia" in card.text
    commit = shell("git", "rev-parse", "HEAD", cwd=run).stdout.strip()
    assert f"`{commit}`" in card.text
    quoted = re.search("```yaml\n(.*?)```", card.text, re.S)[1]
    params = yaml.safe_load((run / "params.yaml").read_text())
    params["prompt"] |= {"openai_base_url": "...", "openai_model": ".../mistral"}
    assert yaml.safe_load(quoted) == {
        name: params[name] for name in ("seed", "classes", "prompt", "generate", "sampling")
    }
    rows = table_rows(card.text)
    # Of the images that are published; those of test captions are measured on the model's card.
    agreement = json.loads((run / "metrics/caption_agreement.json").read_text())
    assert not [name for name in rows if name.startswith("fid ")]
    data, value, *_ = rows["caption_agreement class_agreement"]
    assert data.startswith("these images") and float(value) == pytest.approx(
        agreement["class_agreement"], abs=0.01
    )
    assert "caption_agreement caption_agreement" not in rows
    assert rows["imagery"] == ["`path:.../tiles`", "not recorded"]
    assert rows["papers"] == ["`hub:owner/papers@abc`", "cc-by-4.0"]
    assert rows["prompt writer"] == ["`openai: .../mistral`", "not recorded"]
    rows = table_rows((dry / "remote-diffusion/README.md").read_text())
    fid = json.loads((run / "metrics/fid.json").read_text())["scene"]["standard"]
    decimals = interval_decimals(fid["fid_lo"], fid["fid_hi"])
    floor_interval = fid["fid_floor_lo"], fid["fid_floor_hi"]
    floor = reference_decimals(fid["fid_floor"], floor_interval, decimals)
    base = reference_decimals(fid["fid_base"], None, decimals)
    assert rows["fid scene.standard.fid"] == [
        "held-out real tiles",
        f"{fid['fid']:.{decimals}f}",
        f"{fid['fid_lo']:.{decimals}f} to {fid['fid_hi']:.{decimals}f}",
        f"floor {fid['fid_floor']:.{floor}f}, base {fid['fid_base']:.{base}f}",
        "lower",
    ]
    assert "classifier's first weights" not in table_rows(
        (dry / "lulc-classifier/README.md").read_text()
    )  # their source is none


@pytest.mark.parametrize(
    "value, published",
    [
        ("path:/home/jane doe/PhD 2024/tiles", "path:.../tiles"),
        ("path:/home/jane doe/tiles/", "path:.../tiles"),
        ("imagery: path:/home/jane doe/tiles", "imagery: path:.../tiles"),
        ("imagery: hub:owner/tiles", "imagery: hub:owner/tiles"),
        ("path:$RD_DATA/rsicd", "path:.../rsicd"),
        ("path:tiles", "path:tiles"),
        ("arxiv:lists/of mine/a.csv", "arxiv:.../a.csv"),
        ("/srv/private/{stem}.tif", ".../{stem}.tif"),
        ("C:\\Users\\jane\\masks", ".../masks"),
        ("hub:owner/papers@abc", "hub:owner/papers@abc"),
        ("http://localhost:8000/v1", "http://localhost:8000/v1"),
        ("a dry and/or sandy desert", "a dry and/or sandy desert"),
        (
            {"mask": {"file": "~/a b/c.tif"}, "n": [1, "/x/y"]},
            {"mask": {"file": ".../c.tif"}, "n": [1, ".../y"]},
        ),
    ],
)
def test_no_local_folder_is_published(value, published):
    assert card.hide_local_folders(value) == published


@pytest.mark.parametrize(
    "name, license, task, metrics",
    [
        ("remote-diffusion", "other", "text-to-image", {"fid", "kid_x1000", "loss", "recall"}),
        ("remote-llm", "other", "text-generation", {"perplexity", "bits_per_character"}),
        ("lulc-classifier", "other", "image-classification", {"accuracy"}),
    ],
)
def test_the_card_of_a_model_has_its_metrics_as_evaluation_results(
    run, dry, name, license, task, metrics
):
    from huggingface_hub import ModelCard

    card = ModelCard.load(dry / name / "README.md")
    assert card.data.license == license and card.data.pipeline_tag == task
    assert "remote-sensing" in card.data.tags and card.data.library_name
    assert metrics <= {result.metric_type for result in card.data.eval_results}
    # Another network's metric is no result of this model.
    assert not any(result.metric_name.startswith("ceiling") for result in card.data.eval_results)
    rows = table_rows(card.text)
    for result in card.data.eval_results:
        file, key = result.metric_name.split()
        value = json.loads((run / f"metrics/{file}.json").read_text())
        for part in key.split("."):
            value = value[part]
        assert result.metric_value == value and result.task_type == task
        data, text = rows[result.metric_name][:2]
        decimals = len(text.partition(".")[2])
        assert (data, text) == (result.dataset_name, f"{value:.{decimals}f}")


@pytest.mark.parametrize(
    "name, words",
    [
        ("lulc-synthetic", {"chance", "majority class", "expected", "ceiling"}),
        ("remote-diffusion", {"floor", "base", "chance", "expected"}),
        ("remote-llm", {"base"}),
        ("lulc-classifier", {"chance", "majority class", "ceiling"}),
    ],
)
def test_a_card_explains_the_reference_values_that_it_has(dry, name, words):
    text = (dry / name / "README.md").read_text().split("\n## Metrics\n")[1]
    explanation, table = text.split("\n## ")[0].split("| metric |")
    for word in ("floor", "base", "chance", "majority class", "expected", "ceiling"):
        is_explained = re.search(rf"\b{word}[:`]", explanation, re.I) is not None
        is_shown = re.search(rf"(\| {word}_|\b{word} \d)", table) is not None
        assert is_explained == is_shown == (word in words), word
    if "majority class" in words:
        rows = table_rows(text)
        real, ceiling, synthetic = (
            rows[f"{key}overall_accuracy"][3]
            for key in (
                "classify_lulc real_test.",
                "ceiling_lulc ",
                "classify_lulc synthetic_test.",
            )
        )
        assert "majority class" in real and "majority class" in ceiling
        assert synthetic.startswith("chance") and "majority" not in synthetic


def table_rows(text: str) -> dict[str, list[str]]:
    """The rows of all Markdown tables in a text: their first cell -> the others."""
    rows = {}
    for line in text.splitlines():
        if line.startswith("|"):
            first, *others = (cell.strip() for cell in line.strip("|").split("|"))
            rows[first] = others
    return rows


@pytest.mark.parametrize("writer, license", [("extractive", "mit"), ("openai", "other")])
def test_a_hosted_prompt_writer_is_an_input_without_a_known_license(
    run, monkeypatch, writer, license
):
    monkeypatch.chdir(run)
    prompt = read()["prompt"] | {"writer": writer}
    monkeypatch.setattr(card, "read", lambda: read() | {"prompt": prompt})
    inputs = ("language model", "prompt writer")
    repository = replace(REPOSITORIES["lulc-synthetic"], inputs=inputs)
    made = card.make_card(repository, "abc", {})
    assert made.data.license == license
    assert ("| prompt writer |" in made.text) == (writer == "openai")


def test_the_card_of_a_classifier_has_the_inputs_of_its_training_set(run, monkeypatch):
    """A license of theirs may apply to it, too; and it says whose weights and means it has."""
    monkeypatch.chdir(run)
    prompt = read()["prompt"] | {"writer": "openai"}
    monkeypatch.setattr(card, "read", lambda: read() | {"prompt": prompt})
    embedded = {"source": "embedded"}
    monkeypatch.setattr(
        card, "read_json", lambda path: embedded if "SOURCE" in path else read_json(path)
    )
    made = {name: card.make_card(REPOSITORIES[name], "abc", {}) for name in REPOSITORIES}
    assert made["lulc-synthetic"].data.license == made["lulc-classifier"].data.license == "other"
    assert made["remote-diffusion"].data.license == "mit"
    seeds = read_json("metrics/classify_lulc.json")["seeds"]
    assert ("first of" in made["lulc-classifier"].text) == (seeds > 1)
    assert "first of 3 classifiers; the accuracies are means" in card.describe_weights(3)
    assert "not another training" in card.describe_weights(1)
    assert not [name for name in made if "{" in made[name].text.split("## ")[0]]


def test_a_card_says_how_the_images_were_selected_and_which_classes_are_absent(run, monkeypatch):
    monkeypatch.chdir(run)
    kept = {"kept": 10, "unknown_scenes": 0}
    selected = {"drawn": 90, "kept": 20, "per_class": {}}
    selected["per_class"] = {"Lake": kept, "Parking": kept | {"unknown_scenes": 1}}
    tested = {"classes_without_real": ["Parking"], "classes_without_images": ["Snow_Ice"]}
    monkeypatch.setattr(
        card, "read_json", lambda path: tested if "classifier" in path else selected
    )
    classes = {"Lake": ["lake"], "Parking": [], "Snow_Ice": ["snow"]}
    for keep in ({"draw": 3}, None):
        monkeypatch.setattr(card, "read", lambda keep=keep: {"generate": {"keep": keep}})
        text = card.describe_classes(("classes",), classes)
        assert "No test tile shows Parking:" in text
        assert "No generated image is of Snow\\_Ice:" in text
        assert ("Of 90 synthetic images drawn, 20 are kept" in text) == bool(keep)
        assert ("differ most" in text and "no scene of Parking: " in text) == bool(keep)
    assert card.describe_classes(("seed",), classes) == ""
    rows = [(row["name"], row["images"]) for row in card.list_classes(classes)]
    assert rows == [("Lake", "10"), ("Parking", "10"), ("Snow\\_Ice", "0")]


def test_a_card_says_that_the_judge_knows_the_tiles_of_the_floor(dry):
    """In this run it was trained on them (train_scene.source: scratch)."""
    for name, said in (("remote-diffusion", True), ("lulc-classifier", False)):
        text = (dry / name / "README.md").read_text()
        assert ("the scene classifier was trained" in text) == said


def test_no_published_file_names_a_local_folder_or_host(dry):
    files = read_files(dry)
    for words in ("some body", "My Drive", "secret", "vllm.internal"):
        assert not [name for name, content in files.items() if words.encode() in content]
    for name, shown in (
        ("lulc-synthetic/README.md", "Scale of the run: imagery: path:.../tiles."),
        ("remote-diffusion/README.md", "base_domain: path:.../photos"),
        ("remote-llm/metrics_context.json", '"source": "path:.../tiles"'),
        ("remote-llm/metrics_context.json", '"base_domain": "path:.../photos"'),
        ("remote-diffusion/vae/config.json", '"_name_or_path": ".../vae"'),
        ("remote-diffusion/unet/config.json", '"_name_or_path": "owner/model"'),
        ("lulc-classifier/context.json", '"weights": "path:.../moco"'),
    ):
        assert shown in files[name].decode(), name


def test_faults_of_publishing_are_one_line(run, hub, client, tmp_path):
    def publish(folder: Path, token: str = TOKEN) -> str:
        return one_line(client("tools.export", "hub", "owner", cwd=folder, HF_TOKEN=token))

    assert "HF_TOKEN" in publish(run, token="")
    assert "data/synthetic" in publish(tmp_path)
    (run / "params.yaml").write_text((run / "params.yaml").read_text() + "\n")
    try:
        assert "params.yaml" in publish(run)
    finally:
        shell("git", "checkout", "-q", "params.yaml", cwd=run)
    (run / "data/synthetic/stray.parquet").touch()
    try:
        assert "data/synthetic" in publish(run)
    finally:
        (run / "data/synthetic/stray.parquet").unlink()
    assert not hub.repositories


def test_params_that_did_not_make_the_outputs_are_not_published(run, tmp_path, monkeypatch):
    """They are committed, as is the run, but no run with them."""
    from tools import export

    folder = shutil.copytree(run, tmp_path / "copy", symlinks=True)
    monkeypatch.chdir(folder)

    def commit() -> str:
        identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
        for command in (["add", "-A"], [*identity, "commit", "-qm", "change"]):
            assert shell("git", *command, cwd=folder).returncode == 0
        return shell("git", "rev-parse", "HEAD", cwd=folder).stdout.strip()

    stages = {"make": {"cmd": "echo > made.txt", "params": ["seed"], "outs": ["made.txt"]}}
    Path("dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    assert shell("dvc", "repro", "-q", cwd=folder).returncode == 0
    clean = commit()
    assert export.read_commit(must_be_clean=True) == clean

    params = yaml.safe_load(Path("params.yaml").read_text())
    Path("params.yaml").write_text(yaml.safe_dump(params | {"seed": 7}, sort_keys=False))
    changed = commit()
    with pytest.raises(SystemExit, match="^error: export: make: .*`dvc repro`"):
        export.read_commit(must_be_clean=True)
    marked = f"{changed} (params or code changed since the run)"
    assert export.read_commit(must_be_clean=False) == marked


@pytest.mark.parametrize("arguments", [["everything"], [], ["imagefolder", "all", "out"]])
def test_an_unknown_argument_is_a_usage_error(tmp_path, client, arguments):
    done = client("tools.export", *arguments, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("usage: python -m tools.export")
    assert not (tmp_path / "out").exists()


def test_a_wrong_token_and_an_unreachable_hub_are_errors(run, hub, monkeypatch):
    from tools import export

    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    for module in (
        "huggingface_hub.constants.ENDPOINT",
        "huggingface_hub.hf_api.constants.ENDPOINT",
    ):
        monkeypatch.setattr(module, hub.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(SystemExit, match="^error: export: owner/x .*HF_TOKEN"):
        export.upload("owner/x", "model", run / "metrics", "abc")
    assert hub.refused == ["/api/repos/create"]
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(SystemExit, match="^error: export: owner/x .*[Rr]efused"):
        export.upload("owner/x", "model", run / "metrics", "abc")


# Sources


def make_run_folder(folder: Path, source: str) -> Path:
    """Make a folder to run `fetch_model` in, with this source of the diffusion model."""
    folder.mkdir(exist_ok=True)
    params = yaml.safe_load(smoke_params())
    params["fetch_model"]["diffusion"] = source
    params["encode"]["base_domain"] = "none"
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    return folder


@pytest.fixture
def published(hub):
    """A diffusion model on the local hub."""
    hub.repositories["owner/model"] = read_files(EMBEDDED / "diffusion")
    return SimpleNamespace(
        files=hub.repositories["owner/model"], weights="unet/diffusion_pytorch_model.safetensors"
    )


def test_a_broken_download_resumes_where_it_broke_off(hub, client, published, tmp_path):
    # Larger than the blocks of 10 MiB that huggingface_hub writes: the first part is kept.
    tensors = load(published.files[published.weights])
    weights = save(tensors, {"padding": "x" * (48 * 2**20 - len(save(tensors)))})
    published.files[published.weights] = weights
    hub.breaks[published.weights] = 1
    folder = make_run_folder(tmp_path / "run", "hub:owner/model")
    done = client("stages.fetch_model", "diffusion", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert (folder / "models/base/diffusion" / published.weights).read_bytes() == weights
    ranges = [byte_range for file, byte_range in hub.downloads if file == published.weights]
    assert ranges == [None, f"bytes={20 * 2**20}-"]
    source = json.loads((folder / "models/base/diffusion/SOURCE.json").read_text())
    assert source["commit"] == hub.commit("owner/model") and source["license"] == "cc-by-4.0"


def test_after_a_failed_download_only_the_missing_files_are_fetched(
    hub, client, published, tmp_path
):
    hub.breaks[published.weights] = 1000
    folder = make_run_folder(tmp_path / "run", "hub:owner/model")
    done = client("stages.fetch_model", "diffusion", cwd=folder)
    # huggingface_hub warns of each retry; the error is the last line.
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    error = done.stderr.strip().splitlines()[-1]
    assert error.startswith("error: ") and "fetch_model.diffusion" in error
    assert not (folder / "models/base/diffusion").exists()
    hub.breaks.clear()
    files = {file for file, _ in hub.downloads}
    hub.downloads.clear()
    done = client("stages.fetch_model", "diffusion", cwd=folder)
    assert done.returncode == 0, done.stderr
    files_of_retry = {file for file, _ in hub.downloads}
    assert published.weights in files_of_retry and len(files_of_retry) < len(files)


def test_a_source_that_cannot_be_fetched_is_an_error(
    hub, client, in_process, published, tmp_path, monkeypatch, capfd
):
    def fetch(source: str) -> str:
        with pytest.raises(SystemExit, match="^error: ") as stop:
            in_process(make_run_folder(tmp_path / "run", source))
        assert not capfd.readouterr().err
        (line,) = str(stop.value).splitlines()
        return line

    assert "hub:owner/model@nosuch" in fetch("hub:owner/model@nosuch")
    assert "hub:owner/nothing" in fetch("hub:owner/nothing")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert "path:" in fetch("hub:owner/model")
    hub.gated.add("owner/model")
    assert "HF_TOKEN" in one_line(client("stages.fetch_model", "diffusion", cwd=tmp_path / "run"))
    hub.withheld["owner/model"] = "Enable access in your token settings."
    done = client("stages.fetch_model", "diffusion", cwd=tmp_path / "run", HF_TOKEN=TOKEN)
    reason = "hub:owner/model cannot be reached (Enable access in your token settings.)"
    assert done.returncode == 1 and reason in done.stderr.splitlines()[-1]
    hub.withheld.clear()
    done = client("stages.fetch_model", "diffusion", cwd=tmp_path / "run", HF_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr
    assert not files_with_token(tmp_path)


@pytest.mark.parametrize("cache_type, rounds, copies", [("copy", 1, 3), ("hardlink", 2, 1)])
def test_weights_from_the_hub_are_held_once_where_dvc_links(
    in_process, published, environment, tmp_path, cache_type, rounds, copies
):
    """With DVC's copies as well, no name of the hub's file is writable."""
    folder = make_run_folder(tmp_path / "run", "hub:owner/model")
    fetched = folder / "models/base/diffusion" / published.weights

    def dvc(*words: str) -> None:
        done = shell("dvc", *words, cwd=folder, env=environment)
        assert done.returncode == 0, done.stderr

    dvc("init", "-q", "--no-scm")
    dvc("config", "cache.type", cache_type)
    for _ in range(rounds):  # the second time over the outputs of the first
        in_process(folder)
        (blob,) = [
            file.resolve()
            for file in (tmp_path / "cache").rglob(f"snapshots/*/{published.weights}")
        ]
        assert fetched.samefile(blob) and fetched.stat().st_mode & 0o777 == 0o444
        dvc("add", "-q", "models/base/diffusion")
        assert fetched.read_bytes() == blob.read_bytes() == published.files[published.weights]
        files = [file for file in tmp_path.rglob("*") if file.is_file() and not file.is_symlink()]
        same_size = [file for file in files if file.stat().st_size == blob.stat().st_size]
        held = {file.stat().st_ino for file in same_size}
        assert len(same_size) >= 3 and len(held) == copies
        if fetched.stat().st_mode & 0o200:  # a user may write to it: it must be a copy
            assert not fetched.samefile(blob)
        assert blob.stat().st_mode & 0o222 == 0


def test_weights_are_copied_where_they_cannot_be_linked(tmp_path, monkeypatch):
    """As from the hub's cache on another disk, or of another user."""
    weights = tmp_path / "cache/model.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"weights")

    def refuse(*_):
        raise OSError("Invalid cross-device link")

    monkeypatch.setattr("os.link", refuse)
    model_folder.link_read_only(weights, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"weights"
    assert not weights.samefile(tmp_path / "copy") and weights.stat().st_mode & 0o200
