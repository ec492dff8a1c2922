"""Each series is what its words and its physics agree on; a contradiction is reported, never decided."""

from pathlib import Path

import pytest

from bmmae.data.raw.dicom_files import Acquisition, Identity, Series
from bmmae.data.raw.recognition import Verdict, recognise
from bmmae.modalities import STANDARD

T1, T1CE, T2, FLAIR = STANDARD
T1_SE = {"tr": 500.0, "te": 10.0, "scanning": ("SE",)}
MPRAGE = {"tr": 2000.0, "te": 3.0, "ti": 900.0, "scanning": ("GR", "IR")}
T2_SE = {"tr": 5000.0, "te": 100.0, "scanning": ("SE",)}
DARK = {"tr": 9000.0, "te": 120.0, "ti": 2500.0, "scanning": ("SE", "IR")}


def verdict(
    *description: str, slices: int = 24, kind: str = "MR", wanted: tuple[str, ...] = STANDARD, **made: object
) -> Verdict:
    acquisition = Acquisition(kind=kind, description=description, **made)  # type: ignore[arg-type]
    return recognise(Series("1.2", Identity("p"), 1, acquisition, (Path("a"),), slices), wanted)


@pytest.mark.parametrize(
    ("description", "made", "modality"),
    [
        ("AX T1", T1_SE, T1),
        ("AX T1 POST GAD", T1_SE, T1CE),
        ("t1_mprage_sag_p2_iso", MPRAGE, T1),
        ("t1_mprage_sag_KM", MPRAGE, T1CE),
        ("Sag BRAVO +C", MPRAGE, T1CE),
        ("AX T1 w/o contrast", T1_SE, T1),
        ("AX T1 pre", T1_SE, T1),
        ("AX T1 post-op", T1_SE, T1),
        ("AX T1 POSTCONTRAST", T1_SE, T1CE),
        ("AX T1 POSTGAD", T1_SE, T1CE),
        ("t1_se_tra_postgd", T1_SE, T1CE),
        ("AX T1 POSTCON", T1_SE, T1CE),
        ("T1 mit Kontrastmittel", T1_SE, T1CE),
        ("T1 ohne Kontrastmittel", T1_SE, T1),
        ("T1 ohne KM", T1_SE, T1),
        ("AX T1 no gad", T1_SE, T1),
        ("AX T1W WO contrast", T1_SE, T1),
        ("AX T1 PRE / BRAIN W/WO CONTRAST", T1_SE, T1),
        ("AX T1 POST / BRAIN W/WO CONTRAST", T1_SE, T1CE),
        ("AX T1 C", {**T1_SE, "contrast": "Gadavist"}, T1CE),
        ("t1_mpr_ns_sag_p2_iso", {**MPRAGE, "image_type": ("ORIGINAL", "PRIMARY", "M", "ND")}, T1),
        ("Ax T1 FLAIR", {"tr": 2500.0, "te": 9.0, "ti": 900.0}, T1),
        ("Ax T2 FLAIR FS", DARK, FLAIR),
        ("t2_tirm_tra_dark-fluid", DARK, FLAIR),
        ("T2W_TSE", T2_SE, T2),
        ("FLAIR", {}, FLAIR),
        ("axial", DARK, FLAIR),
        ("AX T1", {**T1_SE, "contrast": "Gadavist"}, T1CE),
        ("Ax T2 FLAIR", {**DARK, "contrast": "Gadavist"}, FLAIR),
    ],
)
def test_agreeing_witnesses_are_believed(description: str, made: dict[str, object], modality: str) -> None:
    found = verdict(description, **made)
    assert (found.status, found.modality) == ("taken", modality), found


@pytest.mark.parametrize(
    ("description", "made", "reason"),
    [
        ("AX T2", T1_SE, "named t2, but TR 500 TE 10 is t1"),
        ("axial", T1_SE, "nothing says whether before or after contrast"),
        ("AX T1 pre", {**T1_SE, "contrast": "Gadavist"}, "the header names an agent"),
        ("AX T1 W/WO CONTRAST", T1_SE, "both with and without contrast"),
        ("AX T1 with and without contrast", T1_SE, "both with and without contrast"),
        ("AX T1 W/O AND W/ CONTRAST", {**T1_SE, "contrast": "Gadavist"}, "both with and without contrast"),
        ("AX T1 C", T1_SE, "nothing says whether before or after contrast"),
        ("series 5", {}, "names and header say no sequence"),
        ("Ax T1 FLAIR", {}, "its name says two"),
        ("AX PD", {"tr": 3000.0, "te": 15.0}, "fits none of t1, t1ce, t2, flair"),
    ],
)
def test_what_is_open_stays_open(description: str, made: dict[str, object], reason: str) -> None:
    found = verdict(description, **made)
    assert found.status == "ambiguous"
    assert reason in found.reason


@pytest.mark.parametrize(
    ("description", "made", "reason"),
    [
        ("3-plane loc", {}, "localiser"),
        ("AX T1", {**T1_SE, "slices": 3}, "only 3 slices"),
        ("AX T1", {**T1_SE, "image_type": ("ORIGINAL", "PRIMARY", "LOCALIZER")}, "localiser"),
        ("AX T1", {**T1_SE, "image_type": ("DERIVED", "SECONDARY")}, "derived from other images"),
        ("T1 MPR cor", {**T1_SE}, "projection or reformat"),
        ("T1 MPR cor", {**T1_SE, "image_type": ("DERIVED", "PRIMARY")}, "projection or reformat"),
        ("AX T1", {**T1_SE, "image_type": ("ORIGINAL", "PRIMARY", "MPR")}, "projection or reformat"),
        ("ep2d_diff_ADC", {}, "diffusion"),
        ("ax T2*", T2_SE, "susceptibility"),
        ("t2_gre_tra", {}, "susceptibility"),
        ("T2 sag c-spine", T2_SE, "another part of the body"),
        ("T2 sag", {**T2_SE, "body_part": "knee"}, "another part of the body (knee)"),
        ("CT head", {"kind": "CT"}, "not MR but CT"),
        ("perf DSC", {}, "perfusion"),
    ],
)
def test_other_series_are_set_apart(description: str, made: dict[str, object], reason: str) -> None:
    found = verdict(description, **made)  # type: ignore[arg-type]
    assert (found.status, found.modality, found.reason) == ("apart", None, reason)


WITHOUT = (
    *("sans gado", "sin contraste", "sem contraste", "senza contrasto", "zonder contrast", "utan kontrast"),
    *("uden kontrast", "bez kontrastu", "s/ contraste", "before contrast", "avant gado", "pré contraste", "PRÉ GADO"),
    *("o.KM", "KM-", "GD-", "CE-", "-GD", "\N{EN DASH}GD", "0 GAD", "minus contrast", "not enhanced", "unenhanced"),
    *("contrast: none", "GD not given", "KM nein", "no IV contrast", "ohne i.v. KM", "sans injection de gado"),
    *(
        "v. KM",
        "före kontrast",
        "før kontrast",
        "kontrastsız",
        "kontrastfrei",
        "preGd",
        "S/C",
        "造影前",
        "平扫",
        "非增强",
    ),
)
WITH = (
    *(
        "après injection",
        "con mdc",
        "mKM",
        "m. KM",
        "nach KM",
        "avec gado",
        "c/ contraste",
        "after contrast",
        "+C",
        "C+",
    ),
    *("Dotarem", "Gadovist", "Magnevist", "Prohance", "Omniscan", "Multihance", "Clariscan", "Gadavist", "Dotagraf"),
    *("Artirem", "造影", "增强", "造影後", "GD-DTPA", "- GD", "tra- GD", "1.0 GAD", "1_0_GD", "POST- GD"),
    *("SANS FATSAT GADO", "GADO SANS FS", "post no fs", "post-op post gad"),
)
OPEN = (
    *(
        "+/- GD",
        "\N{PLUS-MINUS SIGN}KM",
        "avec et sans gado",
        "con/sin contraste",
        "mit und ohne KM",
        "pre- and post-contrast",
    ),
    *("nativ + KM", "s kontrastem", "après", "PR? GADO", "PR\N{REPLACEMENT CHARACTER} GADO", "PRÃ© GADO"),
)
SILENT = ("sans FS", "no fs", "contralateral", "HEAD INJURY", "nach OP", "preop", "nach Bestrahlung", "control")


@pytest.mark.parametrize("words", WITHOUT)
def test_a_denial_or_before_beside_contrast_is_without_in_any_language(words: str) -> None:
    found = verdict(f"T1 {words}", **T1_SE)
    assert (found.status, found.modality) == ("taken", T1), found
    assert verdict(f"tra {words}", **T1_SE).modality == T1
    assert verdict(f"T1 {words}", contrast="Gadovist", **T1_SE).status == "ambiguous"


@pytest.mark.parametrize("words", WITH)
def test_an_agent_or_after_is_with_in_any_language(words: str) -> None:
    found = verdict(f"T1 {words}", **T1_SE)
    assert (found.status, found.modality) == ("taken", T1CE), found


@pytest.mark.parametrize("words", OPEN)
def test_both_or_unclear_words_leave_contrast_open(words: str) -> None:
    found = verdict(f"T1 {words}", **T1_SE)
    assert (found.status, found.modality) == ("ambiguous", None), found
    assert "both with and without contrast, or neither clearly" in found.reason


@pytest.mark.parametrize("words", SILENT)
def test_words_about_something_else_say_nothing_of_contrast(words: str) -> None:
    assert verdict(f"T1 {words}", **T1_SE).modality == T1
    assert "nothing says whether" in verdict(f"tra {words}", **T1_SE).reason


def test_fields_of_a_description_are_not_read_across() -> None:
    assert verdict("T1 GADO", "no fs", **T1_SE).modality == T1CE
    assert verdict("T1 sans gado", "T1 gado", **T1_SE).status == "ambiguous"


def test_an_agent_that_the_header_leaves_open_stays_open() -> None:
    assert verdict("T1", contrast="+/- GD", **T1_SE).status == "ambiguous"


def test_a_modality_beyond_the_four_is_taken_when_asked_for() -> None:
    adc = verdict("ADC map")
    assert adc.status == "apart"
    assert verdict("ADC", wanted=(*STANDARD, "adc")) == Verdict("taken", "adc", "named so")
    assert verdict("AX T2", wanted=(T1,), **T2_SE).reason == "t2 is not among the modalities asked for"


@pytest.mark.parametrize(
    "part",
    ["kopf", "schädel", "tête", "crâne", "cabeza", "cérebro", "encefalo", "hersenen", "head_neck", "unknown", "頭部"],
)
def test_a_head_is_a_head_in_any_language(part: str) -> None:
    assert verdict("T2 TSE", **T2_SE, body_part=part).modality == T2


@pytest.mark.parametrize("part", ["lspine", "abdomen", "knie", "sein", "wholebody"])
def test_other_parts_of_the_body_are_set_apart(part: str) -> None:
    assert verdict("T2 TSE", **T2_SE, body_part=part).reason == f"another part of the body ({part})"
