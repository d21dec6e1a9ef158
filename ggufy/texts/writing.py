"""Which kinds of writing a text holds, and which a model speaks, told by simple rules. Pure but for `shares_read`.

A text is taken line by line. A line is code in a fenced block of Markdown, or if most of the five lines around it
that are not empty look like code: they end in a brace or a semicolon, assign, call, define, import, open a tag. All
other letters belong to their writing system; Han characters to Japanese where there is a kana for at most twenty of
them. Latin letters are English if one of twelve words is a common English one: of the line, or of the five lines
around a short one. Digits, signs and blanks go with the letters of their line.

Shares are of bytes of UTF-8, since these go with tokens better than characters do: of World's vocabulary, a token is
3.9 bytes of English and 3.0 of Chinese, where it is 3.9 and 1.0 characters.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ggufy.core.writing import NAMES, WritingShare

Counts = np.ndarray[Any, np.dtype[np.int64]]  # one number a line
BYTES_A_TOKEN = 4  # of World's vocabulary, rounded up
_CHUNK = 512  # tokens, as llama-imatrix and llama-perplexity read them
#: What models with World's vocabulary speak: of its tokens with letters, 78 % are Latin and 13 % Chinese.
WORLD_SPEAKS = ("latin", "chinese")
_LEAST_TOKENS, _LEAST_SHARE = 100, 0.1  # of a vocabulary, for a writing system that it was made for
_KANA = "\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f"
_HAN = "\u2e80-\u2fdf\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_LETTERS = {
    "latin": re.compile("[A-Za-z\u00aa\u00b5\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u1e00-\u1eff]+"),
    "chinese": re.compile(f"[{_HAN}]+"),
    "japanese": re.compile(f"[{_KANA}]+"),
    "korean": re.compile("[\u1100-\u11ff\u3130-\u318f\uac00-\ud7af]+"),
    "cyrillic": re.compile("[\u0400-\u052f]+"),
    "arabic": re.compile("[\u0600-\u06ff\u0750-\u077f\ufb50-\ufdff\ufe70-\ufefc]+"),
}
_BYTES = {"latin": 1, "cyrillic": 2, "arabic": 2}  # of a letter in UTF-8; of the others 3
_ENGLISH = re.compile(
    r"\b(?:the|and|that|this|with|are|from|which|you|it|have|not|of|to|by|be|for|if|can|will|has)\b", re.IGNORECASE
)
_SHORT = 20  # words of a line that is judged with those around it
_CODE = re.compile(
    r"""(?:.*[;{}]|[\])},;]+)\s*$                                       # ends a statement, or a block
    | (?:def|class|fn|func|function|struct|enum|interface)\s+\w+\s*[({:<]
    | (?:import|using|package)\s+[\w.*{]+(?:\s+(?:as|from)\s.*)?;?\s*$
    | from\s+[\w.]+\s+import\b | \#\s*(?:include|define|if)
    | (?:if|elif|for|while|with|try|except|finally|else|switch|match|case)\b.*:\s*$ | (?:if|for|while|switch)\s*\(
    | (?:return|raise|yield|assert|let|const|var|public|private|static|async|await)\s+\S+(?:\s*[=(.;].*)?$
    | [\w.,\[\]'"* ]+\s(?:[-+*/|&:]?=|:=|<-)\s\S                         # assigns
    | [\w.]+\(.*\)[;,]?\s*$                                             # calls
    | </?\w[^>]*> | @\w+ | >>>\s | \$\s\w | "[^"]*"\s*:\s               # markup, decorators, terminals, JSON
    | (?:SELECT|INSERT|UPDATE|CREATE|FROM|WHERE)\s.*""",
    re.VERBOSE,
)
_AROUND = 5  # lines that decide together
_MOST, _PIECES = 2 << 20, 64  # characters that are looked at, and in how many pieces: 0.5 s a megabyte
# ISO 639 codes of languages -> their writing system; all others are written in Latin letters, or not known.
_LANGUAGES = {"zh": "chinese", "ja": "japanese", "ko": "korean"}
_LANGUAGES |= dict.fromkeys("ru uk bg sr be mk kk mn".split(), "cyrillic") | dict.fromkeys(
    "ar fa ur".split(), "arabic"
)
_LANGUAGES |= dict.fromkeys("en de fr es it pt nl pl cs sv da no fi tr vi id ro hu".split(), "latin")


def shares_of(text: str) -> tuple[WritingShare, ...]:
    """The kinds of writing of which a text has at least half a percent, the largest share first.

    Of a text of more than 2 Mi characters, 64 pieces that are spread evenly stand for the whole.
    """
    lines = [line for line in _sample(text).splitlines() if line.strip()]
    found: defaultdict[str, float] = defaultdict(float)
    for line, code, english in zip(lines, _code_lines(lines), _english_lines(lines), strict=True):
        size = len(line.encode(errors="replace"))
        letters = {"code": 1} if code else _letters(line)
        if english and "latin" in letters:
            letters["english"] = letters.pop("latin")
        for kind, count in letters.items():
            found[kind] += size * count / sum(letters.values())
    total = sum(found.values())
    shares = (WritingShare(kind=kind, percent=round(100 * found[kind] / total)) for kind in NAMES if found[kind])
    return tuple(sorted((one for one in shares if one.percent), key=lambda one: -one.percent))


def shares_read(path: Path, chunks: int) -> tuple[WritingShare, ...]:
    """The same of what is read of a text: about as many bytes as so many chunks of 512 tokens have; 0: all of it."""
    with path.open("rb") as file:
        data = file.read(chunks * _CHUNK * BYTES_A_TOKEN or -1)
    return shares_of(data.decode(errors="ignore"))


def systems_of_vocabulary(tokens: Iterable[bytes]) -> tuple[str, ...]:
    """The writing systems that a vocabulary was made for: each has at least 100 of its tokens, and one of ten that
    have letters. A vocabulary of bytes and short pieces tells none."""
    found: Counter[str] = Counter()
    for token in tokens:
        found.update(_letters(token.decode(errors="ignore")).keys() - {"other"})
    least = max(_LEAST_TOKENS, _LEAST_SHARE * sum(found.values()))
    return tuple(system for system in _LETTERS if found[system] >= least)


def systems_of_metadata(metadata: Mapping[str, Any]) -> tuple[str, ...]:
    """The same of the languages that the metadata of a GGUF names, as far as they are known here."""
    languages = metadata.get("general.languages")
    codes = [str(code)[:2].lower() for code in languages] if isinstance(languages, list) else []
    found = {_LANGUAGES[code] for code in codes if code in _LANGUAGES}
    return tuple(system for system in _LETTERS if system in found)


def _letters(line: str) -> dict[str, int]:
    """Bytes of letters by writing system, other for further ones; a line without any letters is other."""
    if line.isascii():
        return {"latin": 1} if _LETTERS["latin"].search(line) else {"other": 1}
    counts = {system: sum(map(len, letters.findall(line))) for system, letters in _LETTERS.items()}
    counts["other"] = max(0, sum(map(str.isalpha, line)) - sum(counts.values()))
    one, other = ("japanese", "chinese") if 20 * counts["japanese"] >= counts["chinese"] else ("chinese", "japanese")
    counts[one] += counts.pop(other) if counts["japanese"] else 0
    found = {system: count * _BYTES.get(system, 3) for system, count in counts.items() if count}
    return found or {"other": 1}


def _sample(text: str) -> str:
    if len(text) <= _MOST:
        return text
    starts = (number * len(text) // _PIECES for number in range(_PIECES))
    return "\n".join(text[start : start + _MOST // _PIECES] for start in starts)


def _around(values: Counts) -> Counts:
    """The sums over the lines around each."""
    return np.convolve(values, np.ones(min(_AROUND, len(values)), dtype=np.int64), "same")


def _english_lines(lines: list[str]) -> list[bool]:
    """Which of these lines would be English, if they are Latin."""
    if not lines:
        return []
    words = np.array([len(line.split()) for line in lines], dtype=np.int64)
    common = np.array([len(_ENGLISH.findall(line)) for line in lines], dtype=np.int64)
    english = np.where(words < _SHORT, 12 * _around(common) >= _around(words), 12 * common >= words)
    return [bool(one) for one in english]


def _code_lines(lines: list[str]) -> list[bool]:
    """Which of these lines, none of them empty, are code."""
    if not lines:
        return []
    looks = np.array([bool(_CODE.match(line.lstrip())) for line in lines], dtype=np.int64)
    code = [bool(most) for most in 2 * _around(looks) > _around(np.ones_like(looks))]
    fenced = False
    for number, line in enumerate(lines):
        fence = line.lstrip().startswith("```")
        code[number] = code[number] or fenced or fence
        fenced ^= fence
    return code
