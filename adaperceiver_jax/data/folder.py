"""A folder of images: in a folder a class, or beside their annotations or depth maps."""

from __future__ import annotations

from typing import SupportsIndex

import numpy as np

from adaperceiver_jax.data.sample import Sample
from adaperceiver_jax.data.storage import Names, files_below, folders, is_folder, read

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff", ".gif")
MAP_FILES = {"segmentation": (".png",), "depth": (".png", ".npy", ".tif", ".tiff")}
MAP_FOLDERS = {"annotations": "segmentation", "depth": "depth"}
SPLITS = {
    "train": ("train", "training"),
    "validation": ("val", "validation", "valid", "test", "testing"),
}


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGES)


def find_split(root: str, split: str, inside: str = "") -> str | None:
    """The folder of a split, under any of its usual names; None if there is none."""
    below = f"{root}/{inside}".rstrip("/")
    there = {name.lower(): name for name in (folders(below) if is_folder(below) else [])}
    name = next((there[name] for name in SPLITS[split] if name in there), None)
    return name and f"{below}/{name}"


def is_paired(root: str) -> bool:
    """Whether a folder holds images and maps of them: `images/` with `annotations/` or `depth/`."""
    places = [root, *(place for split in SPLITS if (place := find_split(root, split)))]
    return any(
        is_folder(f"{place}/images") and is_folder(f"{place}/{name}")
        for place in places
        for name in MAP_FOLDERS
    )


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
            found = [f"{name}/{x}" for x in files_below(f"{root}/{name}") if _is_image(x)]
            if not found:
                raise ValueError(
                    f"{root}/{name}: holds no images ({', '.join(IMAGES)}); a folder is a class: "
                    "take it away, or put its images in"
                )
            names += found
            labels += [self.classes.index(name)] * len(found)
        self._names, self._labels = Names(names), np.array(labels, np.int32)

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        return f"ClassFolders({self.root!r}: {len(self)} images, {len(self.classes)} classes)"

    def __getitem__(self, index: SupportsIndex) -> Sample:
        """image: the file's bytes; label; name."""
        path = f"{self.root}/{self._names[index.__index__()]}"
        return {"image": read(path), "label": self._labels[index.__index__()], "name": path}


class Pairs:
    """images/X.jpg with annotations/X.png (class numbers) or depth/X.png or .npy."""

    def __init__(self, images: str, maps: dict[str, str]) -> None:
        """images: their folder; maps: that of each kind, by its name in a sample."""
        self.root = images.rstrip("/")
        self.fields = ("image", *maps)
        names = [name for name in files_below(images) if _is_image(name)]
        if not names:
            raise ValueError(f"{images}: holds no images ({', '.join(IMAGES)})")
        self._names = Names(names)
        self._maps: dict[str, tuple[str, Names]] = {}
        for what, folder in maps.items():
            found = {
                name.rpartition(".")[0]: name
                for name in (files_below(folder) if is_folder(folder) else [])
                if name.lower().endswith(MAP_FILES[what])
            }
            missing = [name for name in names if name.rpartition(".")[0] not in found]
            if missing:
                raise ValueError(
                    f"{images}/{missing[0]}: has no {what} "
                    f"{folder}/{missing[0].rpartition('.')[0]}{MAP_FILES[what][0]}; "
                    f"{len(missing)} of {len(names)} images have none"
                )
            self._maps[what] = (folder, Names([found[name.rpartition(".")[0]] for name in names]))

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


def open_folder(root: str, split: str) -> ClassFolders | Pairs | None:
    """A split of a folder; None if the folder has no such split."""
    if not is_folder(root):
        raise ValueError(f"{root}: there is no such folder")
    root = root.rstrip("/")
    if is_paired(root):
        # images/training, as ADE20K is published, or training/images
        images = find_split(root, split, "images")
        if images:
            inside = images.rpartition("/")[2]
            places = {f"{root}/{name}/{inside}": what for name, what in MAP_FOLDERS.items()}
        else:
            place = find_split(root, split)
            if place is None:
                return _whole(root) if split == "train" else None
            images = f"{place}/images"
            places = {f"{place}/{name}": what for name, what in MAP_FOLDERS.items()}
        return Pairs(images, {what: place for place, what in places.items() if is_folder(place)})
    train, place = (find_split(root, name) for name in ("train", split))
    if train is None and (lone := find_split(root, "validation")):
        raise ValueError(
            f"{lone}: is there, but no folder of training images beside it ({root}/train)"
        )
    if split == "train":
        return ClassFolders(train or root)
    return ClassFolders(place, folders(train)) if train and place else None


def _whole(root: str) -> Pairs:
    """Pairs that are not split: images/ with annotations/ or depth/ right in the folder."""
    places = {f"{root}/{name}": what for name, what in MAP_FOLDERS.items()}
    return Pairs(f"{root}/images", {what: x for x, what in places.items() if is_folder(x)})
