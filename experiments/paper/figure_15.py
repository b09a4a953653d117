"""Figure 15 of the paper: principal components of patch features over the width.

python -m experiments.paper.figure_15 IMAGE... --checkpoint DIR --out figure_15.png
python -m experiments.paper.figure_15 --scenes 0 1 2 --checkpoint runs/features --csv widths.csv
python -m experiments.paper.figure_15 --from widths.csv

The whole network with each width (the trained ones) makes patch features of each image. Red, green
and blue are their first three principal components. These are found in the features of the whole
network, image by image, so that within a row equal colours mean equal features.
"""

from experiments.paper.pca import Figure, main

FIGURE = Figure(15, "width", "width {}", lambda config: (*config.widths, config.full_width))

if __name__ == "__main__":
    main(FIGURE, __doc__)
