"""ImageNet-12k for TFDS, from its public tar shards (timm/imagenet-12k-wds).

Where TensorFlow is installed, with the shards in DIR:

tfds build tools/imagenet12k --file_format=array_record --manual_dir=DIR
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds

from adaperceiver_jax.data.webdataset import WebDataset

NUM_CLASSES = 11_821


class Builder(tfds.core.GeneratorBasedBuilder):
    """Images of 11,821 classes of ImageNet-21k: those with 400 images or more."""

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    manual_dir: the shards imagenet12k-train-*.tar and imagenet12k-validation-*.tar of the hub's
    data set timm/imagenet-12k-wds.
    """

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(encoding_format="jpeg"),
                    "label": tfds.features.ClassLabel(num_classes=NUM_CLASSES),
                    "file_name": tfds.features.Text(),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        folder = dl_manager.manual_dir
        return {
            split: self._generate_examples(f"{folder}/imagenet12k-{split}-*.tar")
            for split in ("train", "validation")
        }

    def _generate_examples(self, pattern: str) -> Iterator[tuple[int, dict[str, Any]]]:
        shards = WebDataset(pattern)
        for i in range(len(shards)):
            sample = shards[i]
            name = sample["name"].rpartition(", ")[2]
            # The files as they are: TFDS takes encoded images as objects that can be read.
            image = io.BytesIO(sample["image"])
            yield i, {"image": image, "label": int(sample["label"]), "file_name": name}
