"""Train the tiny base models that ship in `stages/embedded/models/`, so that the pipeline runs with no downloads.

python -m stages.embedded.train_models diffusion
python -m stages.embedded.train_models language <python3.11-doc_*.deb>
"""

import sys

if __name__ == "__main__":
    if sys.argv[1:2] == ["diffusion"]:
        from stages.embedded.train_diffusion import main
    elif sys.argv[1:2] == ["language"]:
        from stages.embedded.train_language import main
    else:
        sys.exit(__doc__.strip())
    main(*sys.argv[2:])
