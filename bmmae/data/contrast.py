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

CONTRAST_WORDS = {
    # contrast, agents, injection
    "A": "ce gd km mkm mdc mdk pdc civ dota dotarem dotagraf dotagita dotaspin clariscan artirem magnevist magnegita "
    "magnograf prohance omniscan multihance primovist eovist vasovist ablavar optimark elucirem vueway cyclolux "
    "unihance enh ку 造影剤 造影 增强 增強 増強",
    "C": "c",
    # a negation; small letter: also where it stands alone
    "N": "no non not none nil minus s/ sans sin sem senza zonder geen utan uden uten ingen bez brez kein keine keinem "
    "keinen nein nicht o nao ne nei nej nie nem nelkul ilman fara niet без не 非 未 无 無 不",
    "n": "without wo w/o w/out ohne",
    # before; likewise
    "V": "before avant ante antes prima vor voor v fore før foer innan inden pred przed до",
    "v": "pre",
    # without, by itself
    "P": "native nativ nativo nativa natif plain noncon nonc precon prec okm 平扫 単純",
    # behind a contrast word: without
    "e": "oncesi 前 なし 無し",
    # with, by itself; beside a contrast word; after
    "W": "post postc postcon 後 后",
    "M": "w w/ with mit m avec con com c/ met med cu",
    "L": "nach after apres dopo despues depois efter",
    # with in Czech (`s kontrastem`), without in Portuguese (`s contraste`)
    "s": "s",
    # and
    "J": "and und et y e ed en och og i + / &",
    # in a field for the agent: no answer, no amount
    "U": "na n a k unknown unk unbekannt inconnu desconocido ml mg cc saline nacl",
    # what may stand between
    "F": "iv any the of in an agent agents medium media medio mezzo meio produit produto mittel iodinated de di da do "
    "du des d del della administration giving given gegeben used podania",
}
"""A letter for each meaning. A text becomes a string of these letters, in which patterns are looked for."""
AGENT = re.compile(
    r"[ck]ontr(?:as\w*)?|gad\w*|inj(?:e[ck]\w*)?|iniez\w*|inyec\w*|iniek\w*|enhanc\w*|tehoste\w*|контраст\w*"
)
AGENTLESS = re.compile(r"[ck]ontrast\w*(?:los|frei|less|fri|siz)|unenhanced")
TREATMENT = re.compile(
    r"op|ops|oper\w*|surg\w*|c?rt|treat\w*|therap\w*|tx|radio\w*|radiation|chemo\w*|bestrahl\w*|biops\w*|chir\w*|resec\w*"
)
CJK = r"[\u2e80-\u9fff]"

_CODES = {word: code for code, words in CONTRAST_WORDS.items() for word in words.split()}
_PREFIXES = tuple(word for word, code in _CODES.items() if code in "NnVvWML" and len(word) > 1)
_PHRASES = "|".join(sorted((word for word in _CODES if re.match(CJK, word)), key=len, reverse=True))
# Named groups are letters themselves: B both, b and e a minus before and behind a word, Z zero, S the end of a text.
_TOKEN = re.compile(
    r"(?P<B>\+\s?/\s?-|\+-|-\s?/\s?\+|-\+|±)|(?P<x>t[12]w?(?![^\W\d_]))|w/o(?:ut)?(?![^\W\d_])|[wsc]/|i\.?v(?![^\W\d_])"
    r"|(?P<b>(?<![^\s_(|])-(?=[^\W\d_]))|(?P<e>(?<=[^\W\d_])-(?![^\W_]))"
    r"|(?P<Z>(?<![^\W_])0(?:[.,]0+)?(?![\d.,]))|(?P<D>\d+(?:[.,]\d+)?)"
    rf"|{_PHRASES}|{CJK}|[^\W\d_\u2e80-\u9fff]+|[+&/]|(?P<S>\|)"
)
_OF_TREATMENT = re.compile("[NnVvWML]F*T")
_BOTH = re.compile("(?:[MWL]J+[NnVvP]|MJ*n|[NnVvP]J+[MWL]|B)F*[AC]?")
_DENIED = "(?:[NnVv]|(?<![DZ])Z|b)F*[AC](?:F*A)*|A*[AC]e|A[AF]*[Nn]F*(?=S|$)"
_WITHOUT = {False: re.compile(_DENIED), True: re.compile(f"{_DENIED}|[nvP]")}
_WITH = re.compile(r"A|W|CJ|JC|MC")
_NO_AGENT = re.compile("(?:F*[NnZUe][NnZUeFJS]*)?")
_PLAIN = str.maketrans({"–": "-", "—": "-", "−": "-", "ı": "i", "ł": "l"})
_UNREADABLE = re.compile(r"[?\ufffd]|\xc3[\x80-\xbf]")
"""Signs that stand for a letter which a text has lost: `PR? GADO` may be before or after."""


@lru_cache(maxsize=10_000)
def contrast_of(text: str, lone: bool = True) -> Contrast:
    """Return whether words tell of contrast, in any of a dozen languages: `open` where they leave it open.

    Args:
        text: A name or a description; `|` parts texts that were written apart.
        lone: Whether a word such as `pre` or `native` denies contrast where no contrast word follows.
    """
    rest, said_both = _BOTH.subn("x", _OF_TREATMENT.sub("x", _codes(text)))
    either = re.search("s[AC]", rest)
    rest, without = _WITHOUT[lone].subn("x", rest)
    told = _WITH.search(rest)
    after = lone and not told and "L" in rest
    if either or after or (said_both and not told and not without) or (told and (without or _UNREADABLE.search(text))):
        return "open"
    return "with" if told else "without" if without else "silent"


def names_agent(text: str) -> bool:
    """Tell whether a field for the contrast agent names one, rather than say that there was none."""
    return contrast_of(text) != "without" and not _NO_AGENT.fullmatch(_codes(text))


def _codes(text: str) -> str:
    letters = unicodedata.normalize("NFKD", text.lower().translate(_PLAIN))
    plain = "".join(letter for letter in letters if not unicodedata.combining(letter))
    codes = "".join(match.lastgroup or _code(match[0].replace(".", "")) for match in _TOKEN.finditer(plain))
    return re.sub("(?<![AC])e|b(?![AC])", "", codes)


@lru_cache(maxsize=10_000)
def _code(word: str) -> str:
    """Return the letter of a word, two of one such as `postgad`, `x` if it is none of the table's."""
    patterns = {"P": AGENTLESS, "A": AGENT, "T": TREATMENT}
    found = _CODES.get(word) or next((code for code, pattern in patterns.items() if pattern.fullmatch(word)), None)
    if found is None:
        heads = (head for head in _PREFIXES if word.startswith(head))
        found = next((_CODES[head] + code for head in heads if (code := _code(word.removeprefix(head))) in "AT"), "x")
    return found
