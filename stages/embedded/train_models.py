"""Train the tiny models that ship in `stages/embedded/models/`.

    python -m stages.embedded.train_models diffusion
    python -m stages.embedded.train_models language python3.11-doc_*.deb
    python -m stages.embedded.train_models scene

The pipeline runs with these models when nothing is downloaded.
"""

from pathlib import Path

from stages.runtime.process import make_parser, start_process

PARTS = ("vae", "decoder", "text_encoder", "unet")  # of the diffusion model
# How much of the diffusion model is trained: `stages.embedded.train_diffusion.Amounts`.
AMOUNTS = {
    "both_looks_tiles": "tiles that the VAE and the text encoder see",
    "vae_steps": "steps of the VAE",
    "decoder_tiles": "tiles that its decoder is trained further on",
    "decoder_steps": "further steps of its decoder",
    "text_steps": "steps of the text encoder",
    "unet_tiles": "tiles that the UNet sees",
    "unet_steps": "steps of the UNet",
    "unet_batch": "tiles per step of the UNet",
}


def main() -> None:
    parser = make_parser("stages.embedded.train_models", __doc__)
    models = parser.add_subparsers(dest="model", required=True)
    diffusion = models.add_parser("diffusion", help="VAE, text encoder and UNet")
    diffusion.add_argument(
        "--folder",
        type=Path,
        default=Path(__file__).parent / "models" / "diffusion",
        help="to write to",
    )
    diffusion.add_argument(
        "--parts",
        nargs="+",
        choices=PARTS,
        default=PARTS,
        help="train only these; the others stay as they are",
    )
    diffusion.add_argument(
        "--start", type=Path, help="folder of a finished model, whose UNet is trained further"
    )
    for name, meaning in AMOUNTS.items():
        diffusion.add_argument(f"--{name.replace('_', '-')}", type=int, help=meaning)
    language = models.add_parser("language", help="language model and tokenizer")
    language.add_argument("package", help="Debian's python3.11-doc_*.deb, the text to train on")
    models.add_parser("scene", help="scene classifier, the judge of the embedded scenes")
    options = parser.parse_args()
    if options.model == "diffusion" and options.start:
        if options.start.resolve() == options.folder.resolve():
            parser.error("--start: name a new --folder for the result")

    start_process()
    if options.model == "diffusion":
        from stages.embedded import train_diffusion

        given = {name: getattr(options, name) for name in AMOUNTS}
        amounts = {name: amount for name, amount in given.items() if amount is not None}
        train_diffusion.main(
            options.folder, options.parts, train_diffusion.Amounts(**amounts), options.start
        )
    elif options.model == "scene":
        from stages.embedded import train_scene_classifier

        train_scene_classifier.main()
    else:
        from stages.embedded import train_language

        train_language.main(options.package)


if __name__ == "__main__":
    main()
