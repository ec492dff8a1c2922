"""Whether a text says that a contrast agent was given: file names and DICOM descriptions, in a dozen languages.

Each word becomes a letter for what it means, and patterns are looked for in these letters. A negation, or a word for
"before", denies contrast only beside a contrast word: `sans gado` is without, `sans fat sat gado` is with. What says
both, or neither clearly, is left open: nothing is guessed.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from typing import Literal

Contrast = Literal["with", "without", "open", "silent"]

# What a word means, as one letter: a text becomes a string of letters, in which patterns are looked for.
AGENT = "A"  # contrast, an agent, an injection
LETTER_C = "C"  # `c`: contrast beside `with` or `and` alone
NOT = "N"  # a negation
WITHOUT = "n"  # likewise, and also where it stands alone
BEFORE = "V"
PRE = "v"  # likewise, and also where it stands alone
PLAIN = "P"  # without contrast, by itself
NO_BEHIND = "e"  # behind a contrast word: without it
ENHANCED = "W"  # with contrast, by itself
WITH = "M"
AFTER = "L"
LETTER_S = "s"  # with in Czech (`s kontrastem`), without in Portuguese (`s contraste`)
AND = "J"
UNANSWERED = "U"  # in a field for the agent: no answer, no amount
FILLER = "F"  # what may stand between
TREATMENT = "T"  # operations and the like, which have a before and an after of their own
BOTH = "B"  # +/-
MINUS = "b"  # before a word
ZERO = "Z"
NUMBER = "D"
END = "S"  # of one of several texts
OTHER = "x"

CONTRAST_WORDS = {
    AGENT: "ce gd km mkm mdc mdk pdc civ dota dotarem dotagraf dotagita dotaspin clariscan artirem magnevist magnegita "
    "magnograf prohance omniscan multihance primovist eovist vasovist ablavar optimark elucirem vueway cyclolux "
    "unihance enh ку 造影剤 造影 增强 增強 増強",
    LETTER_C: "c",
    NOT: "no non not none nil minus s/ sans sin sem senza zonder geen utan uden uten ingen bez brez kein keine keinem "
    "keinen nein nicht o nao ne nei nej nie nem nelkul ilman fara niet без не 非 未 无 無 不",
    WITHOUT: "without wo w/o w/out ohne",
    BEFORE: "before avant ante antes prima vor voor v fore før foer innan inden pred przed до",
    PRE: "pre",
    PLAIN: "native nativ nativo nativa natif plain noncon nonc precon prec okm 平扫 単純",
    NO_BEHIND: "oncesi 前 なし 無し",
    ENHANCED: "post postc postcon 後 后",
    WITH: "w w/ with mit m avec con com c/ met med cu",
    AFTER: "nach after apres dopo despues depois efter",
    LETTER_S: "s",
    AND: "and und et y e ed en och og i + / &",
    UNANSWERED: "na n a k unknown unk unbekannt inconnu desconocido ml mg cc saline nacl",
    FILLER: "iv any the of in an agent agents medium media medio mezzo meio produit produto mittel iodinated de di da "
    "do du des d del della administration giving given gegeben used podania",
}
"""The words of each meaning, in a dozen languages."""
PATTERNS = {
    PLAIN: re.compile(r"[ck]ontrast\w*(?:los|frei|less|fri|siz)|unenhanced"),
    AGENT: re.compile(
        r"[ck]ontr(?:as\w*)?|gad\w*|inj(?:e[ck]\w*)?|iniez\w*|inyec\w*|iniek\w*|enhanc\w*|tehoste\w*|контраст\w*"
    ),
    TREATMENT: re.compile(
        r"ops?|oper\w*|surg\w*|c?rt|treat\w*|therap\w*|tx|radio\w*|radiation|chemo\w*|bestrahl\w*|biops\w*|chir\w*"
        r"|resec\w*"
    ),
}
"""Words of a meaning by what they look like; the first that fits."""

_MEANINGS = {word: meaning for meaning, words in CONTRAST_WORDS.items() for word in words.split()}
_DENYING, _CONSENTING = NOT + WITHOUT + BEFORE + PRE, WITH + ENHANCED + AFTER
_HEADS = _DENYING + _CONSENTING
_PREFIXES = tuple(word for word, meaning in _MEANINGS.items() if meaning in _HEADS and len(word) > 1)
_CJK = r"[\u2e80-\u9fff]"
_PHRASES = "|".join(sorted((word for word in _MEANINGS if re.match(_CJK, word)), key=len, reverse=True))
_WORD_ENDS = r"(?![^\W\d_])"
_TOKEN = re.compile(
    rf"""(?P<{BOTH}>\+\s?/\s?-|\+-|-\s?/\s?\+|-\+|±)
    |(?P<{OTHER}>t[12]w?{_WORD_ENDS})
    |w/o(?:ut)?{_WORD_ENDS}|[wsc]/|i\.?v{_WORD_ENDS}
    |(?P<{MINUS}>(?<![^\s_(|])-(?=[^\W\d_]))
    |(?P<{NO_BEHIND}>(?<=[^\W\d_])-(?![^\W_]))
    |(?P<{ZERO}>(?<![^\W_])0(?:[.,]0+)?(?![\d.,]))|(?P<{NUMBER}>\d+(?:[.,]\d+)?)
    |{_PHRASES}|{_CJK}|[^\W\d_\u2e80-\u9fff]+|[+&/]|(?P<{END}>\|)""",
    re.VERBOSE,
)
"""Pieces of a text: words, and signs whose group is what they mean."""

_NAMED = f"[{AGENT}{LETTER_C}]"
_OF_TREATMENT = re.compile(f"[{_HEADS}]{FILLER}*{TREATMENT}")
_SAID_BOTH = re.compile(
    f"(?:[{_CONSENTING}]{AND}+[{_DENYING}{PLAIN}]|{WITH}{AND}*{WITHOUT}"
    f"|[{_DENYING}{PLAIN}]{AND}+[{_CONSENTING}]|{BOTH}){FILLER}*{_NAMED}?"
)
_DENIED = (
    f"(?:[{_DENYING}]|(?<![{NUMBER}{ZERO}]){ZERO}|{MINUS}){FILLER}*{_NAMED}(?:{FILLER}*{AGENT})*"
    f"|{AGENT}*{_NAMED}{NO_BEHIND}"
    f"|{AGENT}[{AGENT}{FILLER}]*[{NOT}{WITHOUT}]{FILLER}*(?={END}|$)"
)
_DENIED_OR_LONE = re.compile(f"{_DENIED}|[{WITHOUT}{PRE}{PLAIN}]")
_DENIED_BESIDE = re.compile(_DENIED)
_GIVEN = re.compile(f"{AGENT}|{ENHANCED}|{LETTER_C}{AND}|{AND}{LETTER_C}|{WITH}{LETTER_C}")
_S_AGENT = re.compile(f"{LETTER_S}{_NAMED}")
_NO_ANSWER = f"{NOT}{WITHOUT}{ZERO}{UNANSWERED}{NO_BEHIND}"
_NO_AGENT = re.compile(f"(?:{FILLER}*[{_NO_ANSWER}][{_NO_ANSWER}{FILLER}{AND}{END}]*)?")
_STRAY_SIGN = re.compile(f"(?<!{_NAMED}){NO_BEHIND}|{MINUS}(?!{_NAMED})")
_PLAIN_SIGNS = str.maketrans({"–": "-", "—": "-", "−": "-", "ı": "i", "ł": "l"})
_UNREADABLE = re.compile(r"[?\ufffd]|\xc3[\x80-\xbf]")
"""Signs that stand for a letter which a text has lost: `PR? GADO` may be before or after."""


@lru_cache(maxsize=10_000)
def contrast_of(text: str, lone: bool = True) -> Contrast:
    """Return whether words tell of contrast, in any of a dozen languages: `open` where they leave it open.

    Args:
        text: A name or a description; `|` parts texts that were written apart.
        lone: Whether a word such as `pre` or `native` denies contrast where no contrast word follows.
    """
    rest, said_both = _SAID_BOTH.subn(OTHER, _OF_TREATMENT.sub(OTHER, _meanings(text)))
    either = _S_AGENT.search(rest)
    rest, without = (_DENIED_OR_LONE if lone else _DENIED_BESIDE).subn(OTHER, rest)
    told = _GIVEN.search(rest)
    after = lone and not told and AFTER in rest
    if either or after or (said_both and not told and not without) or (told and (without or _UNREADABLE.search(text))):
        return "open"
    return "with" if told else "without" if without else "silent"


def names_agent(text: str) -> bool:
    """Tell whether a field for the contrast agent names one, rather than say that there was none."""
    return contrast_of(text) != "without" and not _NO_AGENT.fullmatch(_meanings(text))


def of_treatment(word: str) -> bool:
    """Tell whether a word is of an operation, radiation or drugs."""
    return PATTERNS[TREATMENT].fullmatch(word) is not None


def without_accents(text: str) -> str:
    """Return a text in small letters, without accents and with plain signs."""
    letters = unicodedata.normalize("NFKD", text.lower().translate(_PLAIN_SIGNS))
    return "".join(letter for letter in letters if not unicodedata.combining(letter))


def _meanings(text: str) -> str:
    """Return the letters of a text's words, in their order."""
    words = _TOKEN.finditer(without_accents(text))
    found = "".join(match.lastgroup or _meaning(match[0].replace(".", "")) for match in words)
    return _STRAY_SIGN.sub("", found)


@lru_cache(maxsize=10_000)
def _meaning(word: str) -> str:
    """Return the letter of a word, two of one such as `postgad`, `x` if it is none of the table's."""
    found = _MEANINGS.get(word) or next((letter for letter, form in PATTERNS.items() if form.fullmatch(word)), None)
    if found is None:
        heads = (head for head in _PREFIXES if word.startswith(head))
        beside = ((_MEANINGS[head], _meaning(word.removeprefix(head))) for head in heads)
        found = next((head + rest for head, rest in beside if rest in (AGENT, TREATMENT)), OTHER)
    return found
