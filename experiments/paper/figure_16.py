"""Figure 16 of the paper: principal components of patch features over the latent tokens.

python -m experiments.paper.figure_16 IMAGE... --checkpoint DIR --out figure_16.png
python -m experiments.paper.figure_16 --scenes 0 1 2 --checkpoint runs/features --csv tokens.csv
python -m experiments.paper.figure_16 --from tokens.csv

The whole network with each token count (the trained ones, and twice and four times the maximum)
makes patch features of each image. Red, green and blue are their first three principal components.
These are found in the features of the whole network, image by image, so that within a row equal
colours mean equal features.
"""

from adaperceiver_jax.models.config import AdaPerceiverConfig
from experiments.paper.pca import Figure, main


def _tokens(config: AdaPerceiverConfig) -> tuple[int, ...]:
    most = config.max_latent_tokens
    return *config.token_granularities, most, 2 * most, 4 * most


FIGURE = Figure(16, "num_tokens", "{} tokens", _tokens)

if __name__ == "__main__":
    main(FIGURE, __doc__)
