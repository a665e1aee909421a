"""Splitting a validation set off."""

import random

import pytest

from detr.data.formats import split_off
from detr.errors import InputError


def images(*classes):
    """A dict for each set of classes, given as text of digits."""
    return [
        {"file_name": f"{i:03d}.jpg", "annotations": [{"category_id": int(label)} for label in labels]}
        for i, labels in enumerate(classes)
    ]


def labels(dicts):
    return {obj["category_id"] for x in dicts for obj in x["annotations"] if not obj.get("iscrowd")}


def test_the_parts_are_the_whole_and_as_large_as_asked():
    dicts = images(*["0"] * 50)
    train, val = split_off(dicts, fraction=0.3)
    assert (len(train), len(val)) == (35, 15)
    assert sorted([*train, *val], key=lambda x: x["file_name"]) == dicts


def test_the_order_does_not_matter_and_the_seed_does():
    dicts = images(*["01", "12", "2", "0", "3", "3"] * 5)
    shuffled = random.Random(1).sample(dicts, len(dicts))
    assert split_off(dicts) == split_off(shuffled)
    assert split_off(dicts, seed=1) != split_off(dicts)


@pytest.mark.parametrize("seed", range(10))
def test_a_rare_class_is_in_both_parts(seed):
    train, val = split_off(images(*["0"] * 98, "01", "01"), seed=seed)
    assert labels(train) == labels(val) == {0, 1}
    assert len(val) == 20


@pytest.mark.parametrize("seed", range(10))
def test_a_class_of_one_image_is_learned_and_not_measured(seed):
    train, val = split_off(images(*["0"] * 8, "1", "02"), seed=seed)
    assert labels(train) == {0, 1, 2}
    assert labels(val) == {0}


@pytest.mark.parametrize("seed", range(10))
def test_a_large_fraction_leaves_an_image_of_each_class(seed):
    train, val = split_off(images(*["0"] * 10, "1", "1", "1", "12", "2"), fraction=0.9, seed=seed)
    assert labels(train) == labels(val) == {0, 1, 2}
    assert len(train) <= 3


def test_many_classes_take_more_than_the_fraction_but_not_more_than_half():
    pairs = images(*"00112233")
    train, val = split_off(pairs, fraction=0.1)
    assert labels(train) == labels(val) == {0, 1, 2, 3}
    assert len(val) == 4


def test_crowds_are_no_objects_of_their_class():
    dicts = images(*"00000000", "1", "1")
    for x in dicts[-2:]:
        x["annotations"][0]["iscrowd"] = 1
    parts = {len(split_off(dicts, fraction=0.1, seed=seed)[1]) for seed in range(10)}
    assert parts == {1}


@pytest.mark.parametrize("classes", [("0", "1"), ("", ""), ("01", "01")])
def test_two_images_are_one_each(classes):
    assert [len(part) for part in split_off(images(*classes))] == [1, 1]


@pytest.mark.parametrize(
    ("number", "fraction", "message"), [(1, 0.2, "two or more"), (5, 0, "between 0 and 1"), (5, 1.0, "between 0 and 1")]
)
def test_what_cannot_be_split(number, fraction, message):
    with pytest.raises(InputError, match=message):
        split_off(images(*"0" * number), fraction=fraction)
