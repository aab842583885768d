"""A card for the Hugging Face hub, from what the run left behind: params.yaml, metrics/, SOURCE.json beside each input, the commit."""

import re
from pathlib import Path

import jinja2
import yaml
from huggingface_hub import DatasetCardData, ModelCardData

from stages.common.artifacts import read_json

INPUTS = {
    "imagery": "data/imagery",
    "papers": "data/papers",
    "diffusion model": "models/base/diffusion",
    "language model": "models/base/language",
    "prompt writer": "models/base/writer",
    "passage embedder": "models/base/embedder",
    "classifier's first weights": "models/base/classifier",
}
SYNTHETIC = (
    "The images are synthetic: no place on Earth looks like this, there is no location and no time, and no measurement can be "
    "taken from them. Labels are what was asked for, not what an expert saw. Rare scenes and fine textures are the first to go "
    "wrong; a bias of the training tiles (region, season, sensor) is a bias of what is drawn. "
)
PLACE = re.compile(r"path:\S*/")  # of a disk here: nobody's business
OURS = "embedded"  # an input that ships with the repository, under the repository's own license


def card(kind: dict, commit: str) -> str:
    """The README.md of a repository on the hub. `kind`: one of stages.publishing.folders.KINDS."""
    template = jinja2.Environment(
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True, trim_blocks=True
    ).from_string((Path(__file__).parent / "card.md").read_text(encoding="utf-8"))
    sources = {name: read_json(f"{INPUTS[name]}/SOURCE.json") for name in kind["inputs"]}
    params = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    shown = {section: params[section] for section in kind["params"]}
    make = DatasetCardData if kind["type"] == "dataset" else ModelCardData
    # "other" is the hub's word for "read the card".
    data = make(
        license="mit"
        if all(source["source"] in (OURS, "none") for source in sources.values())
        else "other",
        **kind["data"],
    )
    return template.render(
        data=data.to_yaml(),
        title=kind["title"],
        about=kind["about"],
        use=kind["use"],
        commit=commit,
        params=PLACE.sub(
            "path:.../",
            yaml.safe_dump(shown, sort_keys=False, allow_unicode=True, width=100).strip(),
        ),
        metrics=[row(*name.split(":", 1)) for name in kind["metrics"]],
        scale=read_json("metrics/context.json")["scale"],
        inputs=[
            {
                "name": name,
                "source": PLACE.sub("path:.../", source["source"]),
                "license": license(source),
            }
            for name, source in sources.items()
            if source["source"] != "none"
        ],
        limits=kind["limits"],
    )


def license(source: dict) -> str:
    return (
        "this repository's (MIT)"
        if source["source"] == OURS
        else source.get("license") or "not recorded"
    )


def row(file: str, key: str) -> dict:
    """A metric with its interval and what it is to be read against (`_floor`, `_base`, `_ceiling`), as metrics/<file>.json has them."""
    *path, name = key.split(".")
    found = read_json(f"metrics/{file}.json")
    whole = found
    for part in path:
        found = found[part]

    def number(value: float) -> str:
        return f"{value:.4g}"

    beside = [
        f"{end} {number(found[f'{name}_{end}'])}"
        for end in ("floor", "base")
        if f"{name}_{end}" in found
    ]
    if name == "overall_accuracy" and "chance" in whole:
        beside.append(f"chance {number(whole['chance'])}")
    interval = (
        f"{number(found[f'{name}_lo'])} to {number(found[f'{name}_hi'])}"
        if f"{name}_lo" in found
        else "-"
    )
    return {
        "name": f"{file} {key}",
        "value": number(found[name]),
        "interval": interval,
        "beside": ", ".join(beside) or "-",
    }
