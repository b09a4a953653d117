"""The order of samples: by the seed alone, whoever loads them and wherever a run goes on."""

import logging

import jax
import numpy as np
import pytest

from adaperceiver_jax.data import pipeline
from adaperceiver_jax.data.augment import Preparation
from adaperceiver_jax.data.decode import BadImageError
from adaperceiver_jax.data.loading import Loading
from adaperceiver_jax.data.pipeline import TrainOrder, evaluation_batches, train_batches


class Numbers:
    """Sample i is the number i and an image that is nowhere its own mirror image."""

    def __init__(self, count):
        self.count, self.made = count, []

    def __len__(self):
        return self.count

    def __repr__(self):
        return f"Numbers({self.count})"

    def __getitem__(self, index):
        self.made.append(int(index))
        image = np.arange(12).reshape(2, 3, 2) + index
        return {"label": np.asarray(index), "image": image, "depth": np.zeros(3)}


FLIP = Preparation(size=(2, 3), inputs=("label", "image"), num_classes=None).train


def labels(batches) -> list[list[int]]:
    return [batch["label"].tolist() for batch in batches]


def flat(batches) -> list[int]:
    return [label for batch in labels(batches) for label in batch]


def test_every_epoch_holds_each_sample_once_and_in_another_order():
    order = TrainOrder(Numbers(50), seed=3)
    epochs = [[int(order[50 * e + i]["label"]) for i in range(50)] for e in range(4)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in [*epochs, range(50)]}) == 5
    other = [int(TrainOrder(Numbers(50), seed=4)[i]["label"]) for i in range(50)]
    assert other != epochs[0]


def test_the_order_does_not_depend_on_the_batch_size_nor_on_the_number_of_processes():
    order = TrainOrder(Numbers(30), seed=1)
    want = [int(order[i]["label"]) for i in range(72)]
    for size in (1, 3, 8, 24):
        assert flat(train_batches(order, size, 0, 72 // size)) == want
    whole = np.array(labels(train_batches(order, 12, 0, 5)))
    together = np.full_like(whole, -1)
    for index in range(4):
        places = range(index, 12, 4)
        together[:, index::4] = labels(train_batches(order, 12, 0, 5, places=places))
    np.testing.assert_array_equal(together, whole)


def test_a_process_makes_the_places_of_its_devices_also_where_they_are_no_neighbours():
    class Torus:
        def addressable_devices_indices_map(self, shape):
            assert shape == (12,)
            return {"one": (slice(6, 9),), "two": (slice(0, 3),)}

    assert pipeline.own_places(Torus(), 12) == [0, 1, 2, 6, 7, 8]


def test_places_are_needed_where_processes_share_a_batch(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    order = TrainOrder(Numbers(30), seed=1)
    for make in (lambda: train_batches(order, 12, 0, 5), lambda: evaluation_batches(Numbers(3), 2)):
        with pytest.raises(ValueError, match="2 processes share a batch: say which `places`"):
            make()


@pytest.mark.parametrize("loading", [Loading(threads=3), Loading(workers=2, prefetch=1)])
def test_going_on_from_a_step_gives_the_same_batches_flips_included_whoever_loads(loading):
    order = TrainOrder(Numbers(11), 5, FLIP)
    assert list(train_batches(order, 4, 6, 6)) == []
    batches = train_batches(order, 4, 1, 6, loading)
    tail, whole = list(batches), list(train_batches(order, 4, 0, 6))
    batches.close()
    for ours, want in zip(tail, whole[1:], strict=True):
        for name in want:
            assert type(ours[name]) is np.ndarray  # not one in a worker's memory
            np.testing.assert_array_equal(ours[name], want[name])


def test_flips_mirror_left_to_right_half_of_the_time_and_anew_every_epoch():
    source = Numbers(100)
    order = TrainOrder(source, 0, FLIP)
    flipped = np.zeros((2, 100), bool)
    by_place = np.zeros((2, 100), bool)
    for n in range(200):
        sample = order[n]
        image = source[int(sample["label"])]["image"]
        mirrored = (sample["image"] == image[:, ::-1]).all()
        assert mirrored or (sample["image"] == image).all()
        flipped[n // 100, sample["label"]] = by_place[n // 100, n % 100] = mirrored
    assert (flipped.sum(axis=1) > 35).all()
    assert (flipped.sum(axis=1) < 65).all()
    assert (flipped[0] != flipped[1]).any()
    assert (by_place[0] != by_place[1]).any()


@pytest.mark.parametrize(("count", "size"), [(1, 4), (7, 4), (8, 4)])
@pytest.mark.parametrize("processes", [1, 2])
def test_evaluation_counts_each_sample_once(count, size, processes):
    seen = []
    for index in range(processes):
        own = range(index, size, processes)
        batches = list(evaluation_batches(Numbers(count), size, places=own))
        assert len(batches) == -(-count // size)  # as many on every process
        for batch in batches:
            assert batch["label"].shape == batch["weight"].shape == (size // processes,)
            assert batch["weight"].dtype == np.float32
            seen += batch["label"][batch["weight"] == 1].tolist()
    assert sorted(seen) == list(range(count))


def test_a_cached_source_makes_a_sample_once_and_hands_out_copies():
    source = Numbers(3)
    cached = pipeline.Cached(source, ("label",))
    cached[1]["more"] = 1
    assert cached[1] == {"label": 1}
    assert source.made == [1]


def test_batches_arrive_on_the_devices_in_order_and_the_loader_is_closed():
    class Loader:
        closed = False

        def __iter__(self):
            return iter({"x": np.full((2, 3), i, np.float32)} for i in range(5))

        def close(self):
            self.closed = True

    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    whole, part = Loader(), Loader()
    arrived = [float(batch["x"][0, 0]) for batch in pipeline.to_devices(whole, sharding)]
    assert arrived == [0, 1, 2, 3, 4]
    batches = pipeline.to_devices(part, sharding)
    next(batches)
    batches.close()
    assert whole.closed
    assert part.closed


# Images that do not decode.


class Damaged(Numbers):
    """Those in `bad` do not decode; number 7 is gone."""

    def __init__(self, count, bad):
        super().__init__(count)
        self.bad = bad

    def __getitem__(self, index):
        if int(index) in self.bad and index == 7:
            raise FileNotFoundError(2, "No such file or directory", "photos/7.jpg")
        if int(index) in self.bad:
            raise BadImageError(f"number {index}: cannot be decoded")
        return super().__getitem__(index)


def test_another_image_takes_the_place_of_one_that_is_bad(caplog):
    good, bad = TrainOrder(Numbers(20), 3), TrainOrder(Damaged(20, {4, 7}), 3, tolerant=True)
    for number in range(60):
        want, sample = int(good[number]["label"]), bad[number]
        if want in (4, 7):
            assert sample["bad"] >= 1
            assert int(sample["label"]) not in (4, 7)
        else:
            assert (int(sample["label"]), int(sample["bad"])) == (want, 0)
    assert "number 4: cannot be decoded; another image takes its place" in caplog.text
    assert "photos/7.jpg'; another image takes its place" in caplog.text
    assert sum(int(bad[n]["bad"]) for n in range(20)) >= 2
    taken = {int(bad[n]["label"]) for n in range(60) if int(good[n]["label"]) in (4, 7)}
    assert len(taken) > 2  # each place draws its own
    again = TrainOrder(Damaged(20, {4, 7}), 3, tolerant=True)
    assert [int(again[n]["label"]) for n in range(60)] == [int(bad[n]["label"]) for n in range(60)]


def test_a_bad_image_is_an_error_where_none_may_be_or_all_are_or_there_is_none(caplog):
    with pytest.raises(ValueError, match=r"Numbers.0.: holds no images"):
        TrainOrder(Numbers(0), seed=0)
    with pytest.raises(BadImageError, match=r"number \d: cannot be decoded"):
        TrainOrder(Damaged(3, {0, 1, 2}), 0)[0]
    with pytest.raises(BadImageError, match="number 2: cannot be decoded; evaluation leaves no"):
        list(evaluation_batches(Damaged(3, {2}), 2))
    with (
        caplog.at_level(logging.CRITICAL),
        pytest.raises(BadImageError, match="100 images one after another cannot be read"),
    ):
        TrainOrder(Damaged(5, set(range(5))), 0, tolerant=True)[0]


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_errors_come_from_the_loaders_as_they_are(workers):
    batches = train_batches(TrainOrder(Damaged(8, {3}), 0), 2, 0, 40, Loading(workers=workers))
    with pytest.raises(BadImageError, match="number 3: cannot be decoded"):
        list(batches)
    batches.close()
