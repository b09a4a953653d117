"""A folder of images: in a folder a class, or beside their annotations or depth maps."""

from __future__ import annotations

from typing import SupportsIndex

import numpy as np

from adaperceiver_jax.data.sample import Sample, Split
from adaperceiver_jax.data.storage import Names, files_below, folders, is_folder, join, read

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff", ".gif")
MAP_FILES = {"segmentation": (".png",), "depth": (".png", ".npy", ".tif", ".tiff")}
MAP_FOLDERS = {"annotations": "segmentation", "depth": "depth"}
SPLITS = {
    "train": ("train", "training"),
    "validation": ("val", "validation", "valid", "test", "testing"),
}


def _files(folder: str, endings: tuple[str, ...] = IMAGES) -> list[str]:
    """The files of a kind in a folder and below it, from it on."""
    return [name for name in files_below(folder) if name.lower().endswith(endings)]


class ClassFolders:
    """ROOT/class/image.jpg: classes are the folders, numbered in the order of their names."""

    fields = ("image", "label")

    def __init__(self, root: str, classes: list[str] | None = None) -> None:
        """classes: of the training images, which others must be among."""
        self.root = root.rstrip("/")
        there = folders(root)
        if not there:
            raise ValueError(f"{root}: holds no folders; make one a class, with its images in it")
        self.classes = there if classes is None else classes
        new = sorted(set(there) - set(self.classes))
        if new:
            raise ValueError(
                f"{root}: has the class {new[0]!r}, which the training images do not have"
            )
        names, labels = [], []
        for name in there:
            found = _files(f"{root}/{name}")
            if not found:
                raise ValueError(
                    f"{root}/{name}: holds no images ({', '.join(IMAGES)}); a folder is a class: "
                    "take it away, or put its images in"
                )
            names += [f"{name}/{x}" for x in found]
            labels += [self.classes.index(name)] * len(found)
        self._names, self._labels = Names(names), np.array(labels, np.int32)

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        return f"ClassFolders({self.root!r}: {len(self)} images, {len(self.classes)} classes)"

    def __getitem__(self, index: SupportsIndex) -> Sample:
        """image: the file's bytes; label; name."""
        i = index.__index__()
        path = f"{self.root}/{self._names[i]}"
        return {"image": read(path), "label": self._labels[i], "name": path}


class Pairs:
    """images/X.jpg with annotations/X.png (class numbers) or depth/X.png or .npy."""

    def __init__(self, images: str, maps: dict[str, str]) -> None:
        """images: their folder; maps: that of each kind, by its name in a sample."""
        self.root = images.rstrip("/")
        self.fields = ("image", *maps)
        names = _files(images)
        if not names:
            raise ValueError(f"{images}: holds no images ({', '.join(IMAGES)})")
        self._names = Names(names)
        self._maps: dict[str, tuple[str, Names]] = {}
        stems = [name.rpartition(".")[0] for name in names]
        for what, folder in maps.items():
            found = {name.rpartition(".")[0]: name for name in _files(folder, MAP_FILES[what])}
            missing = [i for i, stem in enumerate(stems) if stem not in found]
            if missing:
                raise ValueError(
                    f"{images}/{names[missing[0]]}: has no {what} "
                    f"{folder}/{stems[missing[0]]}{MAP_FILES[what][0]}; "
                    f"{len(missing)} of {len(names)} images have none"
                )
            self._maps[what] = (folder, Names([found[stem] for stem in stems]))

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        return f"Pairs({self.root!r}: {len(self)} images with {', '.join(self._maps)})"

    def __getitem__(self, index: SupportsIndex) -> Sample:
        """image, segmentation and depth: the files' bytes; name."""
        i = index.__index__()
        path = f"{self.root}/{self._names[i]}"
        maps = {what: read(f"{folder}/{names[i]}") for what, (folder, names) in self._maps.items()}
        return {"image": read(path), "name": path, **maps}


def find_split(root: str, split: str, inside: str = "") -> str | None:
    """The folder of a split, under any of its usual names; None if there is none."""
    below = f"{root}/{inside}".rstrip("/")
    there = {name.lower(): name for name in (folders(below) if is_folder(below) else [])}
    name = next((there[name] for name in SPLITS[split] if name in there), None)
    return name and f"{below}/{name}"


def _maps_of(images: str) -> dict[str, str]:
    """The folders of maps beside one of images, by their kind.

    Beside PATH/images are PATH/annotations and PATH/depth, and beside PATH/images/training are
    PATH/annotations/training and so on, as ADE20K is published.
    """
    before, _, after = images.rpartition("/images")
    places = {what: f"{before}/{name}{after}" for name, what in MAP_FOLDERS.items()}
    return {what: place for what, place in places.items() if is_folder(place)}


def open_folder(path: str, folder: str, split: str) -> Split | None:
    """A split of a folder; None if the folder has no such split."""
    root = join(folder, path).rstrip("/")
    if not is_folder(root):
        raise ValueError(f"{root}: there is no such folder")
    train, place = (find_split(root, name) for name in ("train", split))
    parts = (root, train, find_split(root, "validation"))
    if any(is_folder(f"{x}/images") and _maps_of(f"{x}/images") for x in parts if x):
        images = find_split(root, split, "images") or (f"{place}/images" if place else None)
        if images is None and split == "train":
            images = f"{root}/images"
        if images is None:
            return None
        pairs = Pairs(images, _maps_of(images))
        return Split(pairs, pairs.fields)
    if train is None and (lone := find_split(root, "validation")):
        raise ValueError(
            f"{lone}: is there, but no folder of training images beside it ({root}/train)"
        )
    if split == "train":
        found = ClassFolders(train or root)
    elif train and place:
        found = ClassFolders(place, folders(train))
    else:
        return None
    return Split(found, found.fields, len(found.classes), classes=tuple(found.classes))
