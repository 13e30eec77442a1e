"""A line of text -> Penn Treebank tokens, like the tokenizer of Stanford CoreNLP 3.4.1 with `-lowerCase`.

The rules follow the conventions of the Treebank and that tokenizer's behaviour on some twenty million synthetic lines;
the tests compare the two. At each position all rules are tried: the longest match wins, and ties go to the first rule.
If the pattern of a rule has a group, the group is the token, and the rest of the match is lookahead that counts as
length.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from pipeline.evaluation.ptb.characters import DIGITS, LETTERS, MARKS, SYMBOLS

# Parts of patterns ---------------------------------------------------------------------------------------------------

_SPACE = "[ \t\xa0\u2000-\u200a\u3000]"
_BREAK = "[ \t\xa0\u2000-\u200a\u3000\n\x85]"
_HYPHENS = "\\-_\u058a\u2010\u2011"
_DIGIT = f"[{DIGITS}]"
_LETTER = f"[{LETTERS}]"
_ALNUM = f"[{LETTERS}{DIGITS}]"
_ACCENTED = "&[aeiouAEIOU](?i:acute|grave|uml);"
_ANY_LETTER = f"(?:[{LETTERS}{MARKS}\xad]|{_ACCENTED})"
_ANY_ALNUM = f"(?:[{LETTERS}{MARKS}{DIGITS}\xad]|{_ACCENTED})"
_CURLY = "(?:[\x92\u2019]|(?i:&apos;))"
_APOSTROPHE = f"(?:'|{_CURLY})"
_TICK = f"(?:[`\x91\u2018\u201b]|{_APOSTROPHE})"
_AND = "(?:(?i:&amp;)|&)"

_WORD = f"{_ANY_LETTER}{_ANY_ALNUM}*(?:[.!?]{_ANY_LETTER}{_ANY_ALNUM}*)*"
_NUMBER = f"(?:{_DIGIT}*(?:[.:,\xad\u066b\u066c]{_DIGIT}+)+|{_DIGIT}+)"
_LINKED = f"(?:[dDoOlL]{_TICK}{_ALNUM})?{_ALNUM}+"
_COMPOUND = f"{_LINKED}(?:[{_HYPHENS}]{_LINKED})*"  # x-ray, o'clock, snake_case
_ALLIANCE = rf"[A-Z]+(?:(?:\+|{_AND})[A-Z]+)+"  # AT&T
_INITIALS = r"[A-Za-z](?:\.[A-Za-z])+\."
_HYPHENATED = rf"[A-Za-z0-9][A-Za-z0-9.,\xad]*(?:-(?:{_INITIALS}|[A-Za-z0-9\xad]+))+"  # 1,000-year, U.S.-based
_PHONE = (
    r"(?:\([0-9]{2,3}\)[ \xa0]?|(?:\+\+?)?(?:[0-9]{2,4}[\- \xa0])?[0-9]{2,4}[\- \xa0])"
    r"[0-9]{3,4}[\- \xa0]?[0-9]{3,5}"
)
_NAME = r"[A-Za-z][A-Za-z0-9_:.\-]*"  # in a tag
_ATTRIBUTE = rf""" +{_NAME}(?: *= *(?:"[^"\n]*"|'[^'\n]*'))?"""
_TAG = rf"<(?:[!?][A-Za-z\-][^>\n]*|/{_NAME} *|{_NAME}(?:{_ATTRIBUTE})* */? *)>"
_STOP = r' \t\n"<>|(){}'  # ends an address
_PATH = rf"/[^ \t\n\"<>|()]+[^{_STOP}.!?,\-]"
_SITE = rf"(?:(?i:www)\.(?:[^{_STOP}.!?,]+\.)+[a-zA-Z]{{2,4}}|(?:[^{_STOP}`'.!?,-_$]+\.)+(?i:com|net|org|edu))"
_MAIL = rf"(?:<|(?i:&lt;))?[a-zA-Z0-9][^{_STOP}\xa0]*@(?:[^{_STOP}.\xa0]+\.)*[^{_STOP}.\xa0]+(?:>|(?i:&gt;))?"
_ENDING = "(?i:[msd]|re|ve|ll)"

# Words ---------------------------------------------------------------------------------------------------------------

_TITLES = (
    "adj adm adv alex assoc asst atty attys ave brig capt cf cie cmdr col comdr cpl dept det dr drs elec ens ft gen gov"
    " govs hon insp invt jos lieut lt maj messrs mlle mme mr mrs ms msgr mt natl pfc ph pres prof profs pvt rep reps"
    " rev sen sens sfc sgt spc st ste supt supts treas vs wm"
)
_SHORTENED = (
    "al ala apr ariz assn aug bhd bldg blvd bros calif co colo conn corp cos ct dak dec esq est etc ext feb fla fri ga"
    " inc ind intl jan jr jul jun kan kans ky ltd mar md mich minn mo mon mont neb nev nov oct okla penn plc rd rt sep"
    " sept seq sq sr sys tel tenn thu thurs tue tues univ va vt wed wis wisc wyo"
)
_SHORTENED_NAMES = "ark az del ill la mass miss ore pa tex wash"  # otherwise ordinary words
_SHORTENED_IN_PART = "mfg mtg ppte pptes ppty pptys pte ptes pty ptys"  # in some mixes of upper and lower case only
_NUMBERED = "art ca fig figs no nos op pp prop"  # abbreviations before a number
_JOINED = "cannot gimme gonna gotta lemme wanna"
UNUSUAL = frozenset(" ".join([_TITLES, _SHORTENED, _SHORTENED_NAMES, _SHORTENED_IN_PART, _NUMBERED, _JOINED]).split())
"""Words (lower case) that may be split into several tokens, or keep the full stop that follows them."""
_STARTERS = (
    "A About According Additionally After An As At But Earlier He Her Here However If In It Last Many More Now Once One"
    " Other Our She Since So Some Such That The Their Then There These They This We What When While Yet You"
)
_WITH_APOSTROPHE = "'em 'til 'till 'cause c'est cap'n ol' dunkin' somethin' d' l' j'"
_WITH_STRAIGHT_APOSTROPHE = "c'mon e'er ev'ry li'l nat'l s'mores"
_FILES = (
    "bat bmp c class cgi cpp dll doc docx exe gif gz h htm html jar java jpeg jpg mov mp3 pdf php pl png ppt ps py sql"
    " tar txt wav x xml zip"
)


def _any(words: str) -> str:
    return "(?i:" + "|".join(sorted(words.split(), key=len, reverse=True)) + ")"


def _capitalised(words: str) -> str:
    return "(?:" + "|".join(f"{w[0].upper()}(?i:{w[1:]})" for w in sorted(words.split(), key=len, reverse=True)) + ")"


_SHORT = rf"(?:{_any(_SHORTENED)}|{_capitalised(_SHORTENED_NAMES)}|(?i:p?pt)[ey][sS]?|(?i:ph|ed)\.[dD])\."
_START = rf"{_BREAK}+(?:{_capitalised(_STARTERS)}|M(?i:[rs])\.|{_TAG}){_BREAK}"

# Normalisation of tokens ---------------------------------------------------------------------------------------------

_BRACKETS = {"(": "-LRB-", ")": "-RRB-", "[": "-LSB-", "]": "-RSB-", "{": "-LCB-", "}": "-RCB-"}
_REPLACED = _BRACKETS | {
    **dict.fromkeys("\u201c\x93\xab", "``"),
    **dict.fromkeys('\u201d\x94\xbb"', "''"),
    **dict.fromkeys("\u2018\x91\u201b\u2039", "`"),
    **dict.fromkeys("\u2019\x92\u203a", "'"),
    **dict.fromkeys("\x96\x97\u2013\u2014\u2015", "--"),
    **dict.fromkeys("\x85\u2026", "..."),
    **dict.fromkeys("\x80\xa4\u20a0\u20ac", "$"),
    **{"\xa2": "cents", "\xa3": "#", "\xbc": "1/4", "\xbd": "1/2", "\xbe": "3/4", "\u2153": "1/3", "\u2154": "2/3"},
}
_QUOTES = "[`\u201a\u201e\u201f\u2018\x91\u201b\u2039\u2019\x92\u203a\u201c\x93\xab\u201d\x94\xbb]"


def _unchanged(token: str) -> str:
    return token


def _joined(token: str) -> str:
    """Return the token without soft hyphens, and with plain ampersands."""
    return re.sub("(?i)&amp;", "&", token.replace("\xad", "")) or "-"


def _one_piece(token: str) -> str:
    """Return the token with no-break spaces, so that it stays one token, and with brackets spelled out."""
    return _spelled(token.replace(" ", "\xa0"))


def _spelled(token: str) -> str:
    return token.replace("(", "-LRB-").replace(")", "-RRB-")


def _contraction(token: str) -> str:
    return re.sub("[\x91\u2018\u201b]", "`", re.sub(_CURLY, "'", token))


def _replaced(token: str) -> str:
    return "".join(_REPLACED.get(character, character) for character in token)


def _constant(value: str) -> Callable[[str], str]:
    return lambda token: value


class _Rule(NamedTuple):
    """A kind of token.

    Attributes:
        pattern: a regular expression; at most one of its groups takes part in a match, and is then the token.
        normalise: returns the token for the matched text.
        required: text without which a line can't match. It keeps patterns that scan to the end of the line, from each
            position, away from lines in which they would find nothing.
    """

    pattern: str
    normalise: Callable[[str], str] = _unchanged
    required: str = ""


_RULES = [
    _Rule("(?i:(can)not|(gon)na|(got)ta|(lem)me|(gim)me|(wan)na)"),
    _Rule(_TAG, lambda token: token.replace(" ", "\xa0"), required=">"),
    # Contractions: first the word before the ending, then the ending
    _Rule(f"([A-Za-z\xad]*[A-MO-Za-mo-z]\xad*)[nN]{_TICK}[tT]", _joined),  # do|n't
    _Rule(f"({_WORD}){_APOSTROPHE}{_ENDING}", _joined),  # dog|'s
    _Rule(f"[nN]{_TICK}[tT]", _contraction),
    _Rule(f"('{_ENDING})[^A-Za-z]", _contraction),
    _Rule(f"{_CURLY}{_ENDING}", _contraction),
    _Rule("('[tT])(?i:is|was)"),  # 't|is
    _Rule(f"([yY]{_APOSTROPHE}){_LETTER}"),  # y'|all
    # Words
    _Rule(_WORD, _joined),
    _Rule(_COMPOUND, _joined),
    _Rule(_ALLIANCE, _joined),
    _Rule(r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}(?:\\?/[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}){1,2}"),  # and/or
    _Rule(_any(_WITH_APOSTROPHE).replace("'", _APOSTROPHE)),
    _Rule(_any(_WITH_STRAIGHT_APOSTROPHE)),
    _Rule(f"[A-HJ-XZn]{_TICK}{_LETTER}{{2,}}"),  # G'day
    _Rule(f"{_LETTER}+[aeiouyAEIOUY]{_TICK}[aeiouA-Z]{_LETTER}*"),  # ma'am, Hawai'i
    _Rule(f"{_APOSTROPHE}[nN]{_APOSTROPHE}|{_CURLY}[nN]"),  # rock|'n'|roll
    _Rule(f"('[nN]){_BREAK}"),
    _Rule(f"{_APOSTROPHE}[2-9]0[sS]"),  # '80s
    _Rule(f"({_APOSTROPHE}[0-9]{{2}}){_BREAK}"),
    _Rule(rf"(?i:-[lr][rcs]b-|c\.d\.s|pro-|anti-|s{_AND}p-500|s{_AND}ls)", _joined),
    _Rule(r"[cC]\+\+|[cCfF]#"),
    # Addresses
    _Rule(rf"(?i:https?)://[^{_STOP}]+[^{_STOP}.!?,\-]"),
    _Rule(_SITE, required="."),
    _Rule(_SITE + _PATH, required="."),
    _Rule(_MAIL, required="@"),
    _Rule("@[a-zA-Z_][a-zA-Z_0-9]*"),
    _Rule(f"#{_ANY_LETTER}+"),
    # Numbers
    _Rule(rf"{_DIGIT}{{1,2}}[\-/]{_DIGIT}{{1,2}}[\-/]{_DIGIT}{{2,4}}"),  # 12/25/2013
    _Rule(rf"[\-+]?{_NUMBER}", _joined),
    _Rule(rf"(?:{_DIGIT}{{1,4}}[\- \xa0])?{_DIGIT}{{1,4}}[/\u2044]{_DIGIT}{{1,4}}", _one_piece),  # 1 1/2
    _Rule(r"[A-Z]*\$"),  # US$
    _Rule(_PHONE, _one_piece),
    _Rule(r"(?:(?:\+\+?)?[0-9]{2,4}\.)?[0-9]{2,4}\.[0-9]{3,4}\.[0-9]{3,5}"),  # 650.723.0293
    _Rule("[\u207a\u207b\u208a\u208b]?(?:[\u2070\xb9\xb2\xb3\u2074-\u2079]+|[\u2080-\u2089]+)"),  # raised, lowered
    # Abbreviations
    _Rule(rf"({_any(_NUMBERED)}\.){_BREAK}?{_DIGIT}"),  # No. 5
    _Rule(rf"((?:{_WORD}|{_COMPOUND}|{_ALLIANCE})\.)[,;:\u3001]", _joined),  # any word before ".,"
    _Rule(rf"({_HYPHENATED}\.)[,;:\u3001]", _joined, required="-"),
    _Rule(rf"(?:{_any(_TITLES)}|[mM][ft][gG])\."),
    _Rule(rf"({_SHORT})[\s\S]{{2}}"),
    _Rule(rf"{_INITIALS}|[A-Za-z]\."),
    _Rule(f"({_INITIALS}){_START}"),
    _Rule(rf"([A-Za-z])\.{_START}"),  # vitamin C. The
    _Rule(rf"((?:{_ANY_ALNUM}+\.)+{_any(_FILES)})(?:{_BREAK}|[.?!,])"),  # 1.jpg
    _Rule(_HYPHENATED, _joined, required="-"),
    # Emoticons
    _Rule(r"([<>]?[:;=][\-o*']?[()DPdpO\\{@|\[\]])[^A-Za-z0-9]", _spelled),  # :-)
    _Rule(r"[\-^x=~<>']_[\-^x=~<>']|\([\-^x=~<>'][_.]?[\-^x=~<>']\)|\([\^x=~<>']-[\^x=~<>'`]\)", _spelled),  # (^_^)
    # Punctuation and symbols
    _Rule("(?i:&[mn]dash;|&md;)|-{2,4}", _constant("--")),
    _Rule("(?i:&(?:ht|tl|ur|lr|qc|ql|qr|odq|cdq|#[0-9]+);)"),
    _Rule("(?i:&amp;)", _constant("&")),
    _Rule("(?i:&lt;)", _constant("<")),
    _Rule("(?i:&gt;)", _constant(">")),
    _Rule("&quot;", _constant("''")),
    _Rule("(?i:&quot;)"),
    _Rule("(?i:&apos;)", _constant("'")),
    _Rule("(?i:&nbsp;)", _constant("")),
    _Rule(f"{_SPACE}+", _constant("")),
    _Rule(r"[!?]+|\*+|(?:\\\*)+|_+|@+|#+|<<|>>|''|-{5,}"),
    _Rule(r"\.{3,5}|\.(?: \.){2,4}", _constant("...")),
    _Rule(f"{_QUOTES}{{1,2}}|[{SYMBOLS}]", _replaced),
]

_COMPILED = [(re.compile(rule.pattern), rule.normalise, rule.required) for rule in _RULES]


def tokenize_line(line: str) -> list[str]:
    """Return the tokens of a line in lower case; tokens of phone numbers and tags may contain no-break spaces.

    Args:
        line: text without line separators.
    """
    tokens: list[str] = []
    tokenize_span(line, 0, len(line), tokens)
    return tokens


def tokenize_span(line: str, start: int, stop: int, tokens: list[str]) -> int:
    """Append to `tokens` those that begin at `start` or later, up to the first that ends at `stop` or later.

    Returns:
        the end of the last token.
    """
    text = f"{line}\n\n"  # rules look up to two characters beyond the end of a line
    rules = [(pattern, normalise) for pattern, normalise, required in _COMPILED if required in line]
    while start < stop:
        end = furthest = start
        for pattern, normalise in rules:
            match = pattern.match(text, start)
            if match and match.end() > furthest:
                furthest, end, normalise_longest = match.end(), match.end(match.lastindex or 0), normalise
        if end == start:  # a character that belongs to no token
            start += 1
            continue
        if token := normalise_longest(text[start:end]):
            tokens.append(token.lower() if "\u03a3" not in token else _lower_greek(token))
        start = end
    return start


def _lower_greek(token: str) -> str:
    """Return a token with a capital sigma in lower case; in Java a word continues after digits, hyphens and stops."""
    lowered = []
    for part in re.split("([!?])", token):
        cased = [i for i, letter in enumerate(part) if letter.lower() != letter.upper()]
        end = cased[-1] if len(cased) > 1 and part[cased[-1]] == "\u03a3" else len(part)
        lowered += [
            part[:end].replace("\u03a3", "\u03c3").lower(),
            "\u03c2" * (end < len(part)),
            part[end + 1 :].lower(),
        ]
    return "".join(lowered)
