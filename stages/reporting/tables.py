"""The paper's tables beside ours, line by line, and what each number is (its identity, for metrics/context.json)."""

from dataclasses import dataclass
from math import log

from stages.reporting.rows import Row, Table, number

# The paper's values as it prints them: Tables 1-3 and the text of section 5.
TABLE_1 = {
    "loss": "1.555",
    "average_accuracy": "0.495",
    "f1": "0.436",
    "jaccard": "0.280",
    "overall_accuracy": "0.436",
}
TABLE_2 = {
    "Bare Land": "52",
    "Crop Land": "57",
    "Cultivated Vegetation": "54",
    "Natural Vegetation": "54",
    "Snow Ice": "58",
    "Water Body": "52",
    "Woody Vegetation": "61",
}
FID, SINKHORN, PERPLEXITY, LLM_LOSS = "245.3629", "0.2", "30.5", "3.3855"
SCORES = {
    "loss": "Test Loss",
    "average_accuracy": "Test Average Accuracy",
    "f1": "Test F1 Score",
    "jaccard": "Test Jaccard Index",
    "overall_accuracy": "Test Overall Accuracy",
}
BEYOND = {
    "kid_x1000": "KID x 1000",
    "cmmd": "CMMD",
    "precision": "Precision",
    "recall": "Recall",
    "density": "Density",
    "coverage": "Coverage",
}
SPACES = {"pixels": "pixels, flips and rotations included", "scene": "scene features"}
DEMO = "demo: numbers of small models on rendered scenes, not comparable with the paper's"
NO_DEMO = "no: small models, rendered scenes"


@dataclass(frozen=True)
class Facts:
    """What the tables need to know besides the numbers."""

    sources: dict[str, dict]  # role -> SOURCE.json; imagery, papers, diffusion, language, ...
    extractors: dict[str, dict]  # extractor -> {weights: digest, ...}
    classifiers: dict[str, dict]  # lulc, scenes -> what the classifier is
    sampling: dict  # scheduler, steps, guidance_scale, resolution, model
    labels: dict[str, int]  # generated images by LULC class
    look_alikes: dict[
        str, int
    ]  # near-duplicates of the imagery: groups, train_test, excluded_from_test, ...

    def embedded(self, role: str) -> bool:
        return self.sources[role]["source"] == "embedded"

    @property
    def imagery(self) -> str:
        """The digest of the tiles: numbers of other tiles are other numbers."""
        return self.sources["imagery"].get("images_sha256", "")[:16]

    @property
    def scale(self) -> str:
        return DEMO if self.embedded("imagery") else f"imagery: {self.sources['imagery']['source']}"


def tables(metrics: dict[str, dict], facts: Facts) -> list[Table]:
    return [
        table_1(metrics, facts),
        table_2(facts),
        table_3(metrics, facts),
        text(metrics, facts),
        more(metrics, facts),
    ]


def table_1(metrics: dict, facts: Facts) -> Table:
    """The classifier trained on generated images."""
    found, ceiling, rows = metrics["classify_lulc"], metrics["ceiling_lulc"], []
    chance = {
        "loss": log(1 / found["chance"]),
        "average_accuracy": found["chance"],
        "overall_accuracy": found["chance"],
    }
    for test, what in (("synthetic_test", "generated images"), ("real_test", "real tiles")):
        n = found[test]["n"]
        identity = {
            "protocol": f"tested on held-out {what}",
            "n": n,
            "n_train": found.get("n_train"),
            "seeds": found.get("seeds"),
            "imagery": facts.imagery,
            **facts.classifiers["lulc"],
        }
        for name, title in SCORES.items():
            beside = {"chance": chance[name]} if name in chance else {}
            if test == "real_test":
                comparable = "no: the paper tested on generated images only"
                beside |= {"ceiling": ceiling[name]} if name in ceiling else {}
            elif facts.embedded("imagery"):
                comparable = NO_DEMO
            else:
                comparable = f"in part: other images, {n} of them tested (the paper: about 39)"
            paper = TABLE_1[name] if test == "synthetic_test" else ""
            key = f"classify_lulc.{test}.{name}"
            rows.append(
                row(key, f"{title}, {what}", found[test], comparable, paper, beside, identity)
            )
    note = (
        "Tested on held-out generated images, as in the paper, and on held-out real tiles. TorchGeo's F1 is "
        "micro-averaged, hence equal to the overall accuracy, in the paper too; its 49.48 % is the average accuracy. "
        "Ceiling: the same network trained on as many real tiles. Intervals hold the size of the test set and the spread "
        f"over {found.get('seeds', 1)} classifier(s)."
    )
    if missing := facts.classifiers["lulc"].get("classes_without_real"):
        note += f" No real tile shows {', '.join(missing)}: the real test is of the other classes."
    return Table(
        "Table 1: downstream evaluation, a land-cover classifier trained on generated images",
        rows,
        note,
    )


def table_2(facts: Facts) -> Table:
    counts = [
        Row(f"synthetic.{label}", label, facts.labels.get(label, 0), "yes: a count", paper)
        for label, paper in TABLE_2.items()
    ]
    total = Row("synthetic", "all", sum(facts.labels.values()), "yes: a count", "388")
    s = facts.sampling
    ours = f"Ours: {s['resolution']} px, {s['scheduler'].upper()}, {s['steps']} steps, guidance {s['guidance_scale']:g}."
    return Table(
        "Table 2: images of the synthetic land-cover data set",
        [*counts, total],
        f"{ours} The paper: 512 px, PNDM, 50 steps.",
    )


def table_3(metrics: dict, facts: Facts) -> Table:
    """FID by each extractor and protocol; Sinkhorn divergence; the training loss that the paper calls by that name."""
    rows = []
    for extractor in sorted(metrics["fid"], key=lambda name: (name != "inception2048", name)):
        for protocol, found in sorted(metrics["fid"][extractor].items()):
            n, as_paper = found["n"], protocol.startswith("paper")
            what = f"the paper's protocol (N = {n})" if as_paper else f"all {n} test captions"
            what += ", real tiles in the released script's black frame" * (
                protocol == "paper_padded"
            )
            if found.get("refused"):
                comparable = f"refused: {n} images, {found['n_needed']} needed"
            elif facts.embedded("imagery"):
                comparable = NO_DEMO
            elif extractor != "inception2048":
                comparable = f"no: {extractor} features; the paper's are Inception-2048"
            elif protocol == "paper_padded":
                comparable = "in part: other captions, and what the paper left unsaid"
            elif as_paper:
                comparable = "in part: the paper padded its real tiles with black"
            else:
                comparable = f"no: the paper's N is 250, ours {n}"
            if found.get("singular"):
                comparable += "; N is below the features' dimensions"
            identity = {
                "protocol": protocol,
                "n": n,
                "draws": found.get("draws"),
                **judged_by(extractor, facts),
            }
            key = f"fid.{extractor}.{protocol}"
            rows.append(
                row(
                    f"{key}.fid",
                    f"FID, {extractor} features, {what}",
                    found,
                    comparable,
                    FID,
                    marks(found, "fid"),
                    identity,
                )
            )
            if "fid_infinity" in found:
                why = NO_DEMO if facts.embedded("imagery") else "no: the paper's N is 250"
                why += "; its smallest sets are below the features' dimensions" * found.get(
                    "infinity_singular", 0
                )
                rows.append(
                    row(
                        f"{key}.fid_infinity",
                        f"FID at infinitely many images, {extractor} features",
                        found,
                        why,
                        FID,
                        marks(found, "fid_infinity"),
                        identity,
                    )
                )
            if "sinkhorn" in found:
                rows.append(
                    row(
                        f"{key}.sinkhorn",
                        f"Sinkhorn divergence of {extractor} features",
                        found,
                        "no: the paper gives no protocol; its text calls 0.2 the training loss",
                        SINKHORN,
                        marks(found, "sinkhorn"),
                        identity,
                    )
                )
    found = metrics["diffusion"]
    comparable = (
        NO_DEMO
        if facts.embedded("imagery")
        else "no: depends on latents, weighting and what is predicted"
    )
    rows.append(
        row(
            "diffusion.train_loss",
            "Diffusion training loss at the best step",
            found,
            comparable,
            SINKHORN,
            {
                "validation": found["validation_loss"],
                "the base's validation": found["validation_loss_base"],
            },
            {
                "protocol": "mean since the checkpoint before the best",
                "best_step": found["best_step"],
                "start": facts.sources["diffusion"]["source"],
            },
        )
    )
    note = (
        "Lower is better. Floor: real test tiles against as many real training tiles; other floors: where 95 % of other tiles put "
        "it. Base: the model before fine-tuning. FID of a few hundred images measures their number as much as the model."
    )
    return Table("Table 3: metrics of the generated images", rows, note + padding(metrics["fid"]))


def padding(found: dict) -> str:
    """By how much the released script's black frame moves FID."""
    moved = [
        f" The black frame around the real tiles alone moves FID ({extractor} features) from "
        f"{number(protocols['paper']['fid'])} to {number(protocols['paper_padded']['fid'])}; real training tiles without "
        f"one score {number(protocols['paper_padded']['fid_floor'])} there."
        for extractor, protocols in sorted(found.items())
        if all("fid" in protocols.get(protocol, {}) for protocol in ("paper", "paper_padded"))
    ]
    return "".join(moved)


def text(metrics: dict, facts: Facts) -> Table:
    """The language model, of which the paper tells in section 5."""
    found, model = metrics["llm"], facts.sources["language"]["source"]
    if facts.embedded("language") or facts.embedded("papers"):
        comparable = "no: a tiny language model, field notes"
    elif "phi-1_5" in model:
        comparable = "in part: the same model, other held-out papers"
    else:
        comparable = "no: another model and tokenizer; bits per character compare"
    identity = {
        "protocol": "every token of whole held-out papers",
        "n": found.get("n"),
        "tokens": found.get("tokens"),
        "start": model,
        "weights": weights(facts.sources["language"]),
        "papers": facts.sources["papers"]["source"],
    }
    rows = [
        row(
            "llm.perplexity",
            "Perplexity of the domain language model",
            found,
            comparable,
            PERPLEXITY,
            {"base": found["perplexity_base"]},
            identity,
        ),
        row(
            "llm.train_loss",
            "Its training loss (ours: the last tenth; the paper: the least)",
            found,
            comparable,
            LLM_LOSS,
            {},
            identity,
        ),
    ]
    if "bits_per_character" in found:
        rows.append(
            row(
                "llm.bits_per_character",
                "Bits per character",
                found,
                "",
                "",
                marks(found, "bits_per_character"),
                identity,
            )
        )
    return Table(
        "Section 5: the domain language model",
        rows,
        "Base: the model before fine-tuning, on the same tokens.",
    )


def more(metrics: dict, facts: Facts) -> Table:
    """What the paper doesn't measure."""
    seen, scenes, rows = metrics["caption_agreement"], metrics["classify_scenes"], []
    judge = {
        "protocol": "scene of the caption, by a classifier of real tiles",
        **judged_by("scene", facts),
    }
    rows.append(
        row(
            "caption_agreement.caption_agreement",
            "Generated images that show their caption's scene",
            seen,
            "",
            "",
            marks(seen, "caption_agreement") | {"ceiling": seen["ceiling"]},
            judge | {"n": seen.get("n")},
        )
    )
    if "class_agreement" in seen:
        rows.append(
            row(
                "caption_agreement.class_agreement",
                "Synthetic images that show their land-cover class",
                seen,
                "",
                "",
                {},
                judge | {"n": seen.get("class_agreement_n")},
            )
        )
    if "clip_score" in seen:
        rows.append(
            row(
                "caption_agreement.clip_score",
                "CLIP score (100 x cosine of image and caption)",
                seen,
                "",
                "",
                marks(seen, "clip_score")
                | {
                    "other captions": seen["clip_score_null"],
                    "real tiles": seen["clip_score_real"],
                },
                {"protocol": "first caption drawn", "n": seen.get("n"), **judged_by("clip", facts)},
            )
        )
    for extractor, protocols in sorted(metrics["fid"].items()):
        found = protocols.get("standard", {})
        for name, title in BEYOND.items():
            if name in found:
                identity = {"protocol": "standard", "n": found["n"], **judged_by(extractor, facts)}
                rows.append(
                    row(
                        f"fid.{extractor}.standard.{name}",
                        f"{title}, {extractor} features",
                        found,
                        "",
                        "",
                        marks(found, name),
                        identity,
                    )
                )
    for space in sorted(set(metrics["images"]) - {"mismatch"}):
        for which, what in (("tuned", "test captions"), ("synthetic", "synthetic set")):
            found, identity = metrics["images"][space][which], judged_by(space, facts)
            rows.append(
                row(
                    f"images.{space}.{which}.memorized",
                    f"Images nearer to a training tile than 99 % of real test tiles are, {what}, "
                    f"{SPACES.get(space, f'{space} features')}",
                    found,
                    "",
                    "",
                    {"expected": 0.01},
                    identity | {"n": found["n"]},
                )
            )
    real = scenes["real_test"]
    published = (
        ""
        if facts.embedded("imagery")
        else "published on RSICD: 0.326 to 0.903, at 256 px, 10 images per caption"
    )
    rows.append(
        row(
            "classify_scenes.real_test.overall_accuracy",
            "Scene accuracy on real tiles of a classifier trained on generated ones",
            real,
            published,
            "",
            {"chance": scenes["chance"], "ceiling": metrics["ceiling_scenes"]["overall_accuracy"]},
            {
                "protocol": "classification accuracy score: trained on images of the test captions",
                "n": real["n"],
                "n_train": scenes.get("n_train"),
                "seeds": scenes.get("seeds"),
                "imagery": facts.imagery,
                **facts.classifiers["scenes"],
            },
        )
    )
    if "share_of_ceiling" in real:
        rows.append(
            row(
                "classify_scenes.real_test.share_of_ceiling",
                "The same as a share of its ceiling",
                real,
                "",
                "",
                {},
                {
                    "protocol": "accuracy / accuracy of the same network trained on as many real tiles",
                    "n": real["n"],
                    "imagery": facts.imagery,
                    **facts.classifiers["scenes"],
                },
            )
        )
    note = "Ceiling: the same of real tiles. Floor and base as above."
    for which, found in metrics["images"]["mismatch"].items():
        if found["warned"]:
            note += (
                f" **The images of {which} are compressed, resized or blurred otherwise than the real tiles**: "
                f"{found['detail_ratio']:.2f} times their finest detail, steps at 8 px blocks {found['blocking']:.2f} "
                f"(real: {found['blocking_real']:.2f}); every distance above measures that as well."
            )
    alike = facts.look_alikes
    note += (
        f" Groups of look-alike tiles in both training and test: {alike.get('train_test', 0)}; test tiles left out for it: "
        f"{alike.get('excluded_from_test', 0)}."
    )
    return Table("Not in the paper", rows, note)


def judged_by(extractor: str, facts: Facts) -> dict:
    """Whose features, of whose images."""
    return {
        "extractor": extractor,
        "imagery": facts.imagery,
        **facts.extractors.get(extractor, {}),
        "generated_px": facts.sampling["resolution"],
        "generator": facts.sampling["model"],
    }


def marks(found: dict, name: str) -> dict[str, float | tuple[float, float]]:
    """The floor, where it would be with other real tiles, and the base of a number, where they were measured."""
    marked = {
        "floor": found.get(f"{name}_floor"),
        "other floors": ends(found, f"{name}_floor"),
        "base": found.get(f"{name}_base"),
    }
    return {mark: value for mark, value in marked.items() if value is not None}


def ends(found: dict, name: str) -> tuple[float, float] | None:
    return (found[f"{name}_lo"], found[f"{name}_hi"]) if f"{name}_lo" in found else None


def weights(source: dict, below: str = "") -> dict[str, str]:
    """Weight file -> SHA-256 (16 digits) of a SOURCE.json."""
    files = source.get("files", {})
    return {
        name: files[name][:16]
        for name in files
        if name.endswith(".safetensors") and name.startswith(below)
    }


def row(
    key: str, metric: str, found: dict, comparable: str, paper: str, beside: dict, identity: dict
) -> Row:
    """A row of the number that `key` ends in, with the interval (`_lo`, `_hi`) or standard deviation (`_std`) beside it."""
    name = key.rpartition(".")[2]
    interval = ends(found, name)
    return Row(
        key,
        metric,
        found.get(name),
        comparable,
        paper,
        interval,
        None if interval else found.get(f"{name}_std"),
        beside,
        {key: value for key, value in identity.items() if value is not None},
    )


def context(found: list[Table], facts: Facts) -> dict:
    """metrics/context.json: the words behind the numbers."""
    numbers = {
        line.key: {
            "metric": line.metric,
            **({"paper": float(line.paper)} if line.paper else {}),
            **({"comparable": line.comparable} if line.comparable else {}),
            **line.identity,
        }
        for table in found
        for line in table.rows
    }
    return {
        "scale": facts.scale,
        "sources": facts.sources,
        "sampling": facts.sampling,
        "numbers": numbers,
    }
