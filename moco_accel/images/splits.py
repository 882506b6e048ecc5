"""Tell from names of files and folders which split they belong to: train, validation, test."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Sequence
from functools import lru_cache

_SPLIT_WORDS = {
    "train": ("train", "training", "trainset"),
    "validation": ("validation", "valid", "val", "dev", "valset", "devset"),
    "test": ("test", "testing", "testset"),
    "eval": ("eval", "evaluation"),
}
_SPLIT_OF_WORD = {word: split for split, words in _SPLIT_WORDS.items() for word in words}
_HINT = re.compile("train|val|dev|test", re.I)  # in every such word; most names have none
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")


def is_split(name: str, split: str) -> bool:
    """Check whether two names are one split, e.g. val and validation."""
    return name == split.lower() or _SPLIT_OF_WORD.get(name, name) == _SPLIT_OF_WORD.get(split.lower(), split)


def is_split_word(word: str) -> bool:
    """Check whether a word in lower case means a split."""
    return word in _SPLIT_OF_WORD


@lru_cache(maxsize=1 << 16)
def split_of_folder(folder: str) -> str:
    """Return the first part of a folder's path that is a word for a split, in lower case; "" if there is none."""
    return next((part for part in folder.lower().split("/") if part in _SPLIT_OF_WORD), "")


def find_splits(names: Sequence[str]) -> list[str]:
    """Return the word for the split of each path, in lower case; "" for those without, and if there are not two splits.

    The word is a folder, or a part of the name of a folder or file if another name differs by such a word only:
    `my_train_data` beside `my_test_data`, but not `train_station` beside `test_track`.
    """
    keys = [re.sub(r"\d+", "#", name) if _HINT.search(name) else "" for name in names]
    parts_of = {key: _parts_with_words(key) for key in dict.fromkeys(keys)}
    splits_of: dict[str, set[str]] = {}
    for pattern, word, _ in itertools.chain.from_iterable(parts_of.values()):
        splits_of.setdefault(pattern, set()).add(_SPLIT_OF_WORD[word])
    telling = {pattern for pattern, splits in splits_of.items() if len(splits) > 1}
    word_of = {
        key: next((word for pattern, word, _ in parts if pattern in telling), "") for key, parts in parts_of.items()
    }
    return [word_of[key] for key in keys]


def folder_of_split(name: str) -> str:
    """Return the path of the topmost folder above a file whose name has a word for a split; "" if none has."""
    folders = name.split("/")[:-1]
    depth = next((depth for _, _, depth in _parts_with_words(name) if depth < len(folders)), -1)
    return "/".join(folders[: depth + 1])


def _parts_with_words(name: str) -> list[tuple[str, str, int]]:
    """Return of each part of a path with words of one split: the part without that word, the word, the depth."""
    *folders, file = name.split("/")
    parts = enumerate((*folders, os.path.splitext(file)[0]))  # noqa: PTH122 - a million times
    return [(*found, depth) for depth, part in parts if (found := _split_in(part))]


@lru_cache(maxsize=1 << 16)
def _split_in(part: str) -> tuple[str, str] | None:
    words = [match[0].lower() for match in _WORD.finditer(part) if match[0].lower() in _SPLIT_OF_WORD]
    if len({_SPLIT_OF_WORD[word] for word in words}) != 1:
        return None
    return _WORD.sub(lambda match: "{}" if match[0].lower() in words else match[0], part).lower(), words[0]
