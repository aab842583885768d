"""This run's numbers beside the paper's: Tables 1 to 3 and the text of section 5."""

from collections.abc import Collection
from math import log
from pathlib import Path

from stages.common.class_names import slug
from stages.common.classifier_inputs import describe_absent_classes, describe_real_tiles
from stages.common.csv_files import read_csv
from stages.evaluation.sites import describe_sites
from stages.reporting.context import RunContext
from stages.reporting.further_metrics import further_metrics_table, share_rows
from stages.reporting.rows import (
    Row,
    Table,
    format_number,
    make_row,
    order_extractors,
    with_interval,
)

# The paper's values as it prints them: Tables 1 to 3 and the text of section 5.
TABLE_1 = {
    "loss": "1.555",
    "average_accuracy": "0.495",
    "f1": "0.436",
    "jaccard": "0.280",
    "overall_accuracy": "0.436",
}
TABLE_2 = Path(__file__).parent / "paper_table_2.csv"
FID = "245.3629"
PAPER_N = 250  # images that its FID is of
SINKHORN = "0.2"
PERPLEXITY = "30.5"
LLM_LOSS = "3.3855"

# Metric key -> its name in the paper's Table 1.
SCORES = {
    "loss": "Test Loss",
    "average_accuracy": "Test Average Accuracy",
    "f1": "Test F1 Score",
    "jaccard": "Test Jaccard Index",
    "overall_accuracy": "Test Overall Accuracy",
}
# How each feature extractor resizes the images.
RESIZES = {
    "inception2048": "bilinear to 299 px",
    "scene": "bicubic to the size that the classifier was trained at",
    "efficientnet": "bicubic to 128 px",
    "dinov2": "bicubic to the size in its preprocessor_config.json",
    "clip": "bicubic to the size in its preprocessor_config.json",
}
# Whether numbers of a run on the embedded imagery compare with the paper's.
SMALL_MODELS = "no: small models, rendered scenes"


def build_tables(metrics: dict[str, dict], context: RunContext) -> list[Table]:
    """Build all tables. metrics: file name without `.json` -> content of metrics/*.json."""
    return [
        classifier_table(metrics["classify_lulc"], metrics["ceiling_lulc"], context),
        synthetic_set_table(context),
        *selection_tables(metrics["select"], context),
        generation_table(metrics["fid"], metrics["diffusion"], context),
        language_model_table(metrics["llm"], context),
        further_metrics_table(metrics, context),
    ]


# Table 1: the land-cover classifier ------------------------------------------------------------


def classifier_table(scores: dict, ceiling: dict, context: RunContext) -> Table:
    """Scores of the classifier that is trained on synthetic images only.

    Args:
        scores: metrics/classify_lulc.json.
        ceiling: metrics/ceiling_lulc.json, of the same network trained on real tiles.
        context: what identifies the run.
    """
    rows = [
        score_row(test, name, scores, ceiling, context)
        for test in ("synthetic_test", "real_test")
        for name in SCORES
    ]
    rows += share_rows("classify_lulc", "Test Overall Accuracy, real tiles", scores["real_test"])
    seeds = scores["seeds"]
    spread = f"and the variance of {seeds} training runs"
    if seeds == 1:
        spread = "but not that of the training: there was one run"
    note = (
        "Tested on held-out generated images, as in the paper, and on held-out real tiles. "
        "TorchGeo's F1 is micro-averaged and therefore equals the overall accuracy, in the paper "
        "too; the paper's 49.48 % is the average accuracy. "
        "Trained on real tiles: the same network, trained on "
        f"{describe_real_tiles(scores, ceiling)}. "
        "Majority class: the score of naming the most frequent class of the real tiles always. "
        f"The intervals include the sampling of the test set {spread}."
    )
    absent = ("classes_without_real", "classes_without_images")
    note += describe_absent_classes(*(context.classifiers["lulc"].get(key, []) for key in absent))
    return Table(
        "Table 1: downstream evaluation, a land-cover classifier trained on generated images",
        rows,
        note,
    )


def score_row(test: str, name: str, scores: dict, ceiling: dict, context: RunContext) -> Row:
    """One score on one test set. test: synthetic_test or real_test; name: a key of `SCORES`."""
    n = scores[test]["n"]
    chances = {
        "loss": -log(scores["chance"]),
        "average_accuracy": scores["chance"],
        "f1": scores["chance"],
        "overall_accuracy": scores["chance"],
    }
    references: dict[str, float | tuple[float, float] | None] = {"chance": chances.get(name)}
    if test == "real_test":
        images = "real tiles"
        if name in ("f1", "overall_accuracy"):
            references["majority class"] = scores["majority"]
        paper = ""
        comparable = "no: the paper tested on generated images only"
        references |= with_interval("trained on real tiles", ceiling, name)
    else:
        images = "generated images"
        paper = TABLE_1[name]
        comparable = f"in part: other images, {n} in the test set (the paper: about 39)"
        if context.is_embedded("imagery"):
            comparable = SMALL_MODELS
        elif others := describe_other_classes(context.class_counts.keys()):
            comparable = f"no: {others}"
    return make_row(
        f"classify_lulc.{test}.{name}",
        f"{SCORES[name]}, {images}",
        scores[test],
        comparable,
        paper,
        references,
    )


def describe_other_classes(used: Collection[str]) -> str:
    """Say how the classes of a run differ from the paper's; "" where they are the same."""
    papers = read_paper_table().keys()
    if set(used) == papers:
        return ""
    if set(used) < papers:
        return f"{len(used)} of the paper's {len(papers)} classes"
    return f"other classes ({len(used)})"


# Table 2: the synthetic data set ---------------------------------------------------------------


def synthetic_set_table(context: RunContext) -> Table:
    """Number of synthetic images by class, beside those of its prompts and real training tiles."""
    paper = read_paper_table()
    rows = []
    for name, counts in context.class_counts.items():
        references: dict[str, float | tuple[float, float]] = {
            "prompts": counts["prompts"],
            "real training tiles": counts["real"],
        }
        count = context.image_counts.get(name, 0)
        if count != counts["images"]:
            references["planned images"] = counts["images"]
        comparable = "yes: a count" if name in paper else ""
        printed = paper.get(name, "")
        key = f"synthetic.{slug(name)}"
        rows.append(Row(key, name, count, comparable, printed, references=references))
    is_papers = set(paper) == set(context.class_counts)
    rows.append(
        Row(
            "synthetic",
            "all",
            sum(context.image_counts.values()),
            "yes: a count" if is_papers else "",
            str(sum(map(int, paper.values()))) if is_papers else "",
        )
    )
    sampling = context.sampling
    note = (
        f"Ours: {sampling['resolution']} px, {sampling['scheduler'].upper()}, "
        f"{sampling['steps']} steps, guidance {sampling['guidance_scale']:g}. "
        "The paper: 512 px, PNDM, 50 steps."
    )
    if context.unused_classes:
        note += f" Left out, with 0 prompts: {', '.join(context.unused_classes)}."
    return Table("Table 2: images of the synthetic land-cover data set", rows, note)


def read_paper_table() -> dict[str, str]:
    """The paper's Table 2: class -> number of images, as it prints it."""
    return {row["class"]: row["images"] for row in read_csv(TABLE_2)}


def is_selected(selected: dict) -> bool:
    """Whether more images were drawn than wanted. selected: metrics/select.json."""
    return selected["drawn"] > selected["kept"] + selected["missing"]


def selection_tables(selected: dict, context: RunContext) -> list[Table]:
    """Which share of each class's drawn images fails, and why; [] where all are kept.

    Args:
        selected: metrics/select.json: counts over all classes, and `per_class` by slug.
        context: what identifies the run.
    """
    if not is_selected(selected):
        return []
    rows = []
    unjudged = []
    for name in context.class_counts:
        if counts := selected["per_class"].get(slug(name)):
            rows.append(selection_row(f"select.per_class.{slug(name)}", name, counts))
            if counts["unknown_scenes"]:
                unjudged.append(name)
    rows.append(selection_row("select", "all", selected))
    note = (
        "Share that fails: images drawn that show another scene or look like another one, without "
        "those that were drawn to choose from (left out for diversity). The scene classifier "
        "selected the synthetic set, so the set's class agreement, its near-copies in features of "
        "that classifier and what the classifier says of single images are left out. FID and the "
        "other distances are of the tuned model's images of test captions, which no selection "
        "touches. The accuracy on real tiles is that of a classifier trained on the selected set, "
        "not on all that the model draws."
    )
    if unjudged:
        note += (
            f" The scene classifier knows no scene of {', '.join(unjudged)}: that their images "
            "show their class was not checked."
        )
    return [Table("Selection of synthetic images: share that fails", rows, note)]


def selection_row(key: str, name: str, counts: dict) -> Row:
    """The share of a class's images that fails, and its counts. name: of the class."""
    references = {
        "drawn": "drawn",
        "kept": "kept",
        "rejected: another scene": "rejected_caption",
        "near-duplicate": "rejected_duplicate",
        "left out for diversity": "rejected_diversity",
        "missing": "missing",
    }
    return make_row(
        f"{key}.rejection_rate",
        name,
        counts,
        references={title: counts[count] for title, count in references.items()},
    )


# Table 3: the generated images -----------------------------------------------------------------


def generation_table(fid: dict, diffusion: dict, context: RunContext) -> Table:
    """FID and Sinkhorn divergence by extractor and protocol, and the training loss.

    Args:
        fid: metrics/fid.json, extractor -> protocol -> values.
        diffusion: metrics/diffusion.json.
        context: what identifies the run.
    """
    rows = []
    for extractor in order_extractors(fid):
        for protocol, values in sorted(fid[extractor].items()):
            if protocol == "separability":  # no distance; see further_metrics
                continue
            rows += distance_rows(extractor, protocol, values, context)
    rows.append(diffusion_loss_row(diffusion, context))
    note = (
        "Lower is better. "
        "Real vs. real: held-out real tiles against as many real training tiles, where there are "
        f"so many, {describe_floor(fid)}; 95 % PI: prediction interval, where 95 % of other "
        "samples of real tiles put that value. "
        "Base model: before fine-tuning. "
        "The FID falls as the number of images grows: compare equal numbers only. "
        f"Images are resized, antialiased, before the features: {describe_resizes(fid)}."
    )
    if any("fid_std" in values for by_protocol in fid.values() for values in by_protocol.values()):
        note += (
            " Standard deviation over draws: these draws share images; others would differ more."
        )
    by_sites = {describe_sites(by_protocol.get("standard", {})) for by_protocol in fid.values()}
    note += "".join(f" Sites: {described}." for described in sorted(by_sites) if described)
    if context.trained_judge:
        note += (
            " **In scene features, real vs. real is worse than a perfect generator would score**: "
            "the scene classifier was trained on these training tiles. Other features are not "
            "affected."
        )
    return Table("Table 3: metrics of the generated images", rows, note + padding_note(fid))


def describe_floor(fid: dict) -> str:
    """State which scenes the training tiles of real vs. real show."""
    protocols = [values for by_protocol in fid.values() for values in by_protocol.values()]
    others = max(values.get("n_floor_other_scene", 0) for values in protocols)
    if not others:
        return "of the same scenes"
    return f"of the same scenes but for {others}, of whose scenes there are too few"


def describe_resizes(fid: dict) -> str:
    """Such as "scene: bicubic to ...; efficientnet: bicubic to 128 px"."""
    return "; ".join(f"{name}: {RESIZES[name]}" for name in order_extractors(fid))


def distance_rows(extractor: str, protocol: str, values: dict, context: RunContext) -> list[Row]:
    """FID, its extrapolation and the Sinkhorn divergence of one extractor under one protocol."""
    key = f"fid.{extractor}.{protocol}"
    n = values["n"]
    described = f"all {n} test captions"
    if protocol.startswith("paper"):
        described = f"the paper's protocol (N = {n})"
    if protocol == "paper_padded":
        described += ", real tiles padded with black as in the released script"
    rows = [
        make_row(
            f"{key}.fid",
            f"FID, {extractor} features, {described}",
            values,
            fid_comparable(extractor, protocol, values, context),
            FID,
        )
    ]
    if "fid_infinity" in values:
        comparable = (
            SMALL_MODELS if context.is_embedded("imagery") else f"no: the paper's N is {PAPER_N}"
        )
        if values.get("infinity_singular"):
            comparable += "; N / 2 is not above the number of feature dimensions"
        rows.append(
            make_row(
                f"{key}.fid_infinity",
                f"FID extrapolated to infinitely many images, {extractor} features",
                values,
                comparable,
                FID,
            )
        )
    if "sinkhorn" in values:
        rows.append(
            make_row(
                f"{key}.sinkhorn",
                f"Sinkhorn divergence, {extractor} features",
                values,
                "no: the paper gives no protocol; its text calls 0.2 the training loss",
                SINKHORN,
            )
        )
    return rows


def fid_comparable(extractor: str, protocol: str, values: dict, context: RunContext) -> str:
    """State whether an FID compares with the paper's."""
    n = values["n"]
    differences = []
    if extractor != "inception2048":
        differences.append(f"{extractor} features; the paper's are Inception-2048")
    if not context.is_on_rsicd:
        differences.append("other imagery than the paper's RSICD")
    if n != PAPER_N:
        differences.append(f"the paper's N is {PAPER_N}, ours {n}")
    if values.get("refused"):
        comparable = f"refused: {n} images, at least {values['n_needed']} needed"
    elif context.is_embedded("imagery"):
        comparable = SMALL_MODELS
    elif differences:
        comparable = f"no: {'; '.join(differences)}"
    elif protocol == "paper_padded":
        comparable = "in part: other captions, and the paper leaves settings unsaid"
    else:
        comparable = "in part: the paper padded its real tiles with black"
    if values.get("singular"):
        comparable += "; N is below the number of feature dimensions"
    return comparable


def padding_note(fid: dict) -> str:
    """State by how much the black padding of the released script moves the FID."""
    sentences = []
    for extractor in order_extractors(fid):
        protocols = fid[extractor]
        plain = protocols.get("paper", {})
        padded = protocols.get("paper_padded", {})
        if "fid" in plain and "fid" in padded:
            sentence = (
                f" Padding the real tiles with black alone moves the FID ({extractor} features) "
                f"from {format_number(plain['fid'])} to {format_number(padded['fid'])}"
            )
            if "fid_floor" in padded:
                floor = format_number(padded["fid_floor"])
                sentence += f"; real training tiles without padding score {floor} there"
            sentences.append(f"{sentence}.")
    return "".join(sentences)


def diffusion_loss_row(diffusion: dict, context: RunContext) -> Row:
    """The training loss, which the paper's text calls Sinkhorn."""
    comparable = "no: depends on the latents, the loss weighting and the prediction target"
    if context.is_embedded("imagery"):
        comparable = SMALL_MODELS
    references = {
        "validation": diffusion["validation_loss"],
        "validation of the base model": diffusion["validation_loss_base"],
    }
    return make_row(
        "diffusion.train_loss",
        "Diffusion training loss at the best step",
        diffusion,
        comparable,
        SINKHORN,
        references,
    )


# Section 5: the language model -----------------------------------------------------------------


def language_model_table(llm: dict, context: RunContext) -> Table:
    """Perplexity and training loss of the fine-tuned language model. llm: metrics/llm.json."""
    source = context.sources["language"]
    embedded = {"language": "a tiny language model", "papers": "field notes"}
    reasons = [reason for name, reason in embedded.items() if context.is_embedded(name)]
    if reasons:
        comparable = f"no: {', '.join(reasons)}"
    elif "phi-1_5" in source["source"]:
        comparable = "in part: the same model, other held-out papers"
    else:
        comparable = "no: another model and tokenizer; bits per character compare"
    rows = [
        make_row(
            "llm.perplexity",
            "Perplexity of the domain language model",
            llm,
            comparable,
            PERPLEXITY,
        ),
        make_row(
            "llm.train_loss",
            "Training loss of the domain language model "
            "(ours: mean of the last tenth of training; the paper: minimum)",
            llm,
            comparable,
            LLM_LOSS,
        ),
    ]
    if "bits_per_character" in llm:
        rows.append(make_row("llm.bits_per_character", "Bits per character", llm))
    return Table(
        "Section 5: the domain language model",
        rows,
        "Lower is better. Base model: before fine-tuning, on the same tokens.",
    )
