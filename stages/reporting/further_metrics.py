"""Metrics that the paper lacks: caption agreement, KID, precision, near-copies, accuracy score."""

from stages.common.classifier_inputs import describe_real_tiles
from stages.evaluation.memorization import describe_near_copies
from stages.reporting.context import RunContext
from stages.reporting.rows import Row, Table, make_row, order_extractors, with_interval

DISTRIBUTION_METRICS = {
    "kid_x1000": "KID x 1000",
    "cmmd": "CMMD",
    "precision": "Precision",
    "recall": "Recall",
    "density": "Density",
    "coverage": "Coverage",
}
IMAGE_SETS = {"tuned": "images of the test captions", "synthetic": "synthetic set"}


def further_metrics_table(metrics: dict[str, dict], context: RunContext) -> Table:
    """Caption agreement, KID, precision, recall, near-copies, classification accuracy score."""
    rows = [
        *agreement_rows(metrics["caption_agreement"]),
        *distribution_rows(metrics["fid"]),
        *separability_rows(metrics["fid"]),
        *near_copy_rows(metrics["images"]),
        *scene_accuracy_rows(metrics["classify_scenes"], metrics["ceiling_scenes"], context),
    ]
    near_duplicates = context.near_duplicates
    real_tiles = describe_real_tiles(metrics["classify_scenes"], metrics["ceiling_scenes"])
    note = (
        "Real tiles: the same metric of held-out real tiles. Trained on real tiles: the same "
        f"network, trained on {real_tiles}. Real vs. real and base model: as above. "
        "The intervals include the sampling of images, not the diffusion model's training. "
        "Near-copies: generated images nearer to a training tile than 99 % of the held-out real "
        "tiles are (for the synthetic set: of tiles in its mix of classes); other real "
        f"tiles score the expected share on average. {unexpected_note(metrics['images'])}"
        f"{near_copies_note(metrics['images'])}"
        f"{artifacts_note(metrics['images']['compression_artifacts'])}"
        "Groups of near-duplicates in both the training and the test split: "
        f"{near_duplicates['train_test']}; test tiles excluded for that: "
        f"{near_duplicates['excluded_from_test']}."
    )
    return Table("Not in the paper", rows, note)


def agreement_rows(agreement: dict) -> list[Row]:
    """Whether generated images show what their text says. agreement: caption_agreement.json."""
    rows = [
        make_row(
            "caption_agreement.caption_agreement",
            "Caption agreement: generated images classified as the scene of their caption",
            agreement,
            references=with_interval("real tiles", agreement, "ceiling"),
        )
    ]
    if "class_agreement" in agreement:
        rows.append(
            make_row(
                "caption_agreement.class_agreement",
                "Class agreement: synthetic images classified as a scene of their class",
                agreement,
            )
        )
    if "clip_score" in agreement:
        references = {"real tiles": agreement["clip_score_real"]}
        if "clip_score_null" in agreement:
            references = {"other captions": agreement["clip_score_null"]} | references
        rows.append(
            make_row(
                "caption_agreement.clip_score",
                "CLIP score (100 x cosine of image and caption)",
                agreement,
                references=references,
            )
        )
    return rows


def distribution_rows(fid: dict) -> list[Row]:
    """KID, CMMD, precision, recall, density, coverage. fid: metrics/fid.json."""
    rows = []
    for extractor in order_extractors(fid):
        values = fid[extractor].get("standard", {})
        for name, title in DISTRIBUTION_METRICS.items():
            if name in values:
                rows.append(
                    make_row(
                        f"fid.{extractor}.standard.{name}",
                        f"{title}, {extractor} features",
                        values,
                    )
                )
    return rows


def separability_rows(fid: dict) -> list[Row]:
    """How well a classifier tells generated images from real tiles. fid: metrics/fid.json."""
    rows = []
    for extractor in order_extractors(fid):
        if "separability" in fid[extractor]:
            values = fid[extractor]["separability"]
            rows.append(
                make_row(
                    f"fid.{extractor}.separability.accuracy",
                    "Generated images told from real tiles by a classifier of "
                    f"{extractor} features",
                    values,
                    references={"chance": 0.5},
                )
            )
    return rows


def near_copy_rows(images: dict) -> list[Row]:
    """Share of near-copies of training images, by feature space. images: metrics/images.json."""
    rows = []
    for space in order_extractors(set(images) - {"compression_artifacts"}):
        described = f"{space} features"
        if space == "pixels":
            described = "pixels under all flips and rotations"
        for image_set, values in images[space].items():
            references = {}
            if "memorized_expected" in values:
                references["expected of other real tiles"] = values["memorized_expected"]
            rows.append(
                make_row(
                    f"images.{space}.{image_set}.memorized",
                    f"Near-copies of training images, {IMAGE_SETS[image_set]}, {described}",
                    values,
                    references=references,
                )
            )
    return rows


def unexpected_note(images: dict) -> str:
    """Say where the expected share of near-copies isn't known. images: metrics/images.json."""
    if "memorized_expected" in images["pixels"]["synthetic"]:
        return ""
    if "memorized_expected" not in images["pixels"]["tuned"]:
        return (
            "**That share isn't known**: the held-out tiles were cut from scenes, and other tiles "
            "of the training scenes may be nearer to the training tiles than they are. "
        )
    return (
        "**That share isn't known for the synthetic set**: too few held-out tiles show its classes "
        "in its mix, so it was compared with all of them. "
    )


def near_copies_note(images: dict) -> str:
    """Warn of sets with more near-copies than expected. images: metrics/images.json."""
    return "".join(
        f"**Warning, {IMAGE_SETS[name]}**: {described}. "
        for name, described in describe_near_copies(images).items()
    )


def scene_accuracy_rows(scenes: dict, ceiling: dict, context: RunContext) -> list[Row]:
    """Classification accuracy score (Ravuri & Vinyals 2019) of the fine-tuned model.

    Args:
        scenes: metrics/classify_scenes.json.
        ceiling: metrics/ceiling_scenes.json, of the same network trained on real tiles.
        context: what identifies the run.
    """
    values = scenes["real_test"]
    comparable = ""
    if context.is_on_rsicd:
        comparable = "in part: published: 0.326 to 0.903, at 256 px, 10 images per caption"
    references = {
        "chance": scenes["chance"],
        "majority class": scenes["majority"],
        **with_interval("trained on real tiles", ceiling, "overall_accuracy"),
    }
    accuracy = make_row(
        "classify_scenes.real_test.overall_accuracy",
        "Classification accuracy score: "
        "scene accuracy on real tiles, classifier trained on generated images",
        values,
        comparable,
        references=references,
    )
    return [accuracy, *share_rows("classify_scenes", "Classification accuracy score", values)]


def share_rows(file: str, title: str, values: dict) -> list[Row]:
    """An accuracy over that of the classifiers trained on real tiles; [] where either is 0.

    Args:
        file: name of the metrics file.
        title: of the accuracy.
        values: its `real_test`.
    """
    if "share_of_ceiling" not in values:
        return []
    metric = f"{title} / that of the classifier trained on real tiles"
    return [make_row(f"{file}.real_test.share_of_ceiling", metric, values)]


def artifacts_note(artifacts: dict) -> str:
    """Warn where compression, resizing or blur tells generated images from real ones.

    Args:
        artifacts: `compression_artifacts` of metrics/images.json, image set -> values.
    """
    measured = {
        "tuned": "every distance above includes",
        "synthetic": "its near-copies and the classifier trained on it include",
    }
    sentences = []
    for image_set, values in artifacts.items():
        if values["warned"]:
            detail = ""  # real tiles of one color have none
            if "detail_ratio" in values:
                detail = f"{values['detail_ratio']:.2f} times the finest detail of real tiles, "
            if values.get("class_mix") == 0:
                detail = f"(compared with test tiles of all classes) {detail}"
            sentences.append(
                "**Compression, resizing or blur differs between the "
                f"{IMAGE_SETS[image_set]} and the real tiles**: {detail}"
                f"blocking at 8 px {values['blocking']:.2f} (real: {values['blocking_real']:.2f}); "
                f"{measured[image_set]} that difference. "
            )
    return "".join(sentences)
