"""One table of names: every alias leads to one modality, and unknown names are met with the nearest."""

from __future__ import annotations

import inspect
import re
from collections import Counter
from itertools import permutations

import pytest

from bmmae.errors import ModalityError
from bmmae.modalities import STANDARD, TABLE, canonical, find, in_table_order, subset_label, table_names, title


def test_every_alias_belongs_to_one_modality() -> None:
    aliases = Counter(re.sub(r"[-_\s]", "", alias) for modality in TABLE for alias in set(modality.aliases))
    owners = {alias: find(alias) for alias in aliases}
    for modality in TABLE:
        assert modality.name in modality.aliases
        assert {owners[re.sub(r"[-_\s]", "", alias)] for alias in modality.aliases} == {modality.name}


@pytest.mark.parametrize(
    ("text", "name"),
    [
        *(("T1", "t1"), ("t1n", "t1"), ("T1w", "t1"), ("t1c", "t1ce"), ("T1-Gd", "t1ce"), ("t1_post", "t1ce")),
        *(("t2w", "t2"), ("t2f", "flair"), ("FLA", "flair"), ("T2 FLAIR", "flair"), ("ADC", "adc"), ("t3", None)),
        *(("dark-fluid", "flair"), ("TIRM", "flair")),
    ],
)
def test_aliases_are_found_whatever_their_case_and_hyphens(text: str, name: str | None) -> None:
    assert find(text) == name


def test_names_sort_into_table_order_and_declared_ones_follow() -> None:
    assert {in_table_order(names) for names in permutations(STANDARD)} == {STANDARD}
    assert in_table_order(["pet", "adc", "asl", "t1"]) == ("t1", "adc", "pet", "asl")


def test_a_name_given_twice_is_refused() -> None:
    with pytest.raises(ModalityError, match="modality 't1' is declared twice"):
        in_table_order(["t1", "t1"])


def test_names_are_spelt_as_in_the_table_unless_two_would_be_one() -> None:
    assert table_names(["FLAIR", "T1-Gd", "pet"]) == ("flair", "t1ce", "pet")
    assert table_names(["t1", "mprage"]) == ("t1", "mprage")
    assert table_names(["t1", "t1"]) == ("t1", "t1")


def test_what_is_no_name_is_refused_as_such() -> None:
    with pytest.raises(ModalityError, match="a modality goes by its name, got 0: expected one of t1, t2"):
        inspect.unwrap(canonical)(0, ("t1", "t2"))
    with pytest.raises(ModalityError, match="expected a list of modality names, got the text 't1'"):
        in_table_order("t1")


@pytest.mark.parametrize("name", ["T1", "1t", "", "t1 ce"])
def test_names_that_are_no_column_names_are_refused(name: str) -> None:
    with pytest.raises(ModalityError, match="cannot be a modality name: expected lower-case letters"):
        in_table_order([name])


def test_an_unknown_name_is_met_with_the_nearest() -> None:
    with pytest.raises(ModalityError, match=r"unknown modality 'fliar': expected one of t1, .*Did you mean 'flair'\?"):
        canonical("fliar")


def test_only_the_known_names_are_accepted() -> None:
    assert canonical("T2w", ("t1", "t2")) == "t2"
    assert canonical("pet", ("t1", "pet")) == "pet"
    with pytest.raises(ModalityError, match="unknown modality 'flair': expected one of t1, t2"):
        canonical("flair", ("t1", "t2"))


def test_titles_and_labels_are_for_people() -> None:
    assert (title("t1ce"), title("pet")) == ("T1ce", "PET")
    assert subset_label(["flair", "t1"]) == "t1+flair"
