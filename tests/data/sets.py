"""A small data set of photographs, written in every format by the format's own writer."""

import dataclasses
import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("bird", "cat", "dog")
SPLITS = ("train", "validation")


@dataclasses.dataclass(frozen=True)
class Photo:
    """A JPEG, its class, its name."""

    data: bytes
    label: int
    name: str


def jpeg(seed, height=40, width=50):
    """A smooth picture of its own."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8))
    out = io.BytesIO()
    small.resize((width, height), Image.Resampling.BICUBIC).save(out, "JPEG", quality=90)
    return out.getvalue()


def photos(split, each=4):
    """Of each class some, in the order of classes and names, of different sizes."""
    start = {"train": 0, "validation": 1000}[split]
    count = each if split == "train" else each // 2
    return [
        Photo(jpeg(start + 10 * k + i, 40 + i, 50 + 3 * k), k, f"{CLASSES[k]}_{i}")
        for k in range(len(CLASSES))
        for i in range(count)
    ]


def as_folder(root: Path, some=photos, names=("train", "val")) -> str:
    """ROOT/train/class/name.jpg."""
    for split, name in zip(SPLITS, names, strict=True):
        for photo in some(split):
            path = root / name / CLASSES[photo.label] / f"{photo.name}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(photo.data)
    return f"folder:{root}"


def add(tar, name, data):
    """A file of a tar."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def halves(every: list[Photo]) -> tuple[list[Photo], list[Photo]]:
    """The photographs of two shards."""
    return every[: len(every) // 2], every[len(every) // 2 :]


def as_tars(root: Path, some=photos) -> tuple[str, str]:
    """ROOT/train-0.tar and so on, jpg + cls + json; the sources of both splits."""
    root.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        for i, half in enumerate(halves(some(split))):
            with tarfile.open(root / f"{split}-{i}.tar", "w") as tar:
                for photo in half:
                    add(tar, f"{photo.name}.jpg", photo.data)
                    add(tar, f"{photo.name}.cls", str(photo.label).encode())
                    add(tar, f"{photo.name}.json", b"{}")
    return tuple(f"wds:{root}/{split}-{{0..1}}.tar" for split in SPLITS)


def as_tfds(root: Path, some=photos, name="small_photos") -> str:
    """Written by a TFDS builder, as ArrayRecord."""
    import tensorflow_datasets as tfds

    def features():
        return {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(num_classes=len(CLASSES)),
            "file_name": tfds.features.Text(),
        }

    def example(photo):
        image = io.BytesIO(photo.data)
        return {"image": image, "label": photo.label, "file_name": f"{photo.name}.jpg"}

    write_tfds(root, name, features, {s: list(map(example, some(s))) for s in SPLITS})
    return f"tfds:{name}"


def write_tfds(root, name, features, examples):
    """A builder made for these examples writes them, in their order."""
    import tensorflow_datasets as tfds

    def info(self):
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features()), disable_shuffling=True
        )

    def generate(self, split):
        yield from enumerate(examples[split])

    def splits(self, _):
        return {split: generate(self, split) for split in examples}

    kind = type(
        "".join(part.title() for part in name.split("_")),
        (tfds.core.GeneratorBasedBuilder,),
        {
            "__module__": __name__,
            "VERSION": tfds.core.Version("1.0.0"),
            "name": name,
            "_info": info,
            "_split_generators": splits,
            "_generate_examples": generate,
        },
    )
    kind(data_dir=str(root), file_format="array_record").download_and_prepare()


def as_array_records(root: Path, some=photos) -> str:
    """Written by ArrayRecord's own writer, two files a split."""
    from array_record.python.array_record_module import ArrayRecordWriter

    from tools.prepare_data import example

    root.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        for i, half in enumerate(halves(some(split))):
            writer = ArrayRecordWriter(str(root / f"{split}-{i}.array_record"), "group_size:1")
            for photo in half:
                name = photo.name.encode()
                writer.write(example({"image": photo.data, "label": photo.label, "name": name}))
            writer.close()
    return f"array_record:{root}/train-*"


def png(array) -> bytes:
    """A map as a PNG."""
    out = io.BytesIO()
    Image.fromarray(array).save(out, "PNG")
    return out.getvalue()


def maps(seed, height, width):
    """Labels 0..150 as in ADE20K, uint8, and depth in millimetres, uint16, with holes."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 151, (4, 5), np.uint8).repeat(height // 4, 0).repeat(width // 5, 1)
    depth = rng.integers(0, 9000, (height, width)).astype(np.uint16)
    depth[depth < 2000] = 0
    return labels, depth
