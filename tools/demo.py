"""The live demo: images from your own prompt, or from one written for a class from the papers.

    python -m tools.demo

It serves this machine only. GRADIO_SERVER_NAME=0.0.0.0 opens it to the network; there is no
password. What it draws lies in a temporary folder, which is removed when it ends.

reads   sampling, prompt, seed, fetch_model, train_base; models/diffusion, models/index and the
        models of the prompt writer

Before fine-tuning it draws with the base model, the one in this repository where params name no
other, and says so. Prompts from papers need the stage `index_rag` and the models of the prompt
writer.

Sampler, retriever, writer and checks are those of the pipeline: the prompt, negative prompt, seed,
steps and guidance of an image in the report give that image again (to rounding). One request runs
at a time, the others see their position in the queue; a canceled one stops before its next
denoising step. Below the images is a link with their settings: the address `?prompt=a+lake&seed=7`
fills the fields, and can hold negative_prompt, steps, guidance and images, too.
"""

import os
from tempfile import TemporaryDirectory

from stages.params import load
from stages.runtime.process import interrupt_on_signals, make_parser, start_process


def main() -> None:
    parser = make_parser("tools.demo", __doc__)
    parser.parse_args()
    start_process()
    interrupt_on_signals()
    # Gradio's own choice is one folder for all users of a machine, /tmp/gradio.
    parent = os.environ.get("GRADIO_TEMP_DIR")
    if parent:
        os.makedirs(parent, exist_ok=True)
    with TemporaryDirectory(prefix="remote_diffusion_demo_", dir=parent) as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        # PyTorch makes this folder, too, though nothing is compiled.
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", f"{folder}/torchinductor")
        # Only now: OpenMP reads its settings when torch is imported.
        from tools.demo_models import DemoModels
        from tools.demo_page import LAUNCH, build_page

        build_page(DemoModels(load())).launch(**LAUNCH)


if __name__ == "__main__":
    main()
