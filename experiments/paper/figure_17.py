"""Figure 17 of the paper: principal components of patch features over the depth.

python -m experiments.paper.figure_17 IMAGE... --checkpoint DIR --out figure_17.png
python -m experiments.paper.figure_17 --scenes 0 1 2 --checkpoint runs/features --csv depths.csv
python -m experiments.paper.figure_17 --from depths.csv

The whole network cut after each block makes patch features of each image, all from one pass. Red,
green and blue are their first three principal components. These are found in the features of the
whole network, image by image, so that within a row equal colours mean equal features.
"""

from experiments.paper.pca import Figure, main

FIGURE = Figure(17, "depth", "depth {}", lambda config: range(1, config.depth + 1))

if __name__ == "__main__":
    main(FIGURE, __doc__)
