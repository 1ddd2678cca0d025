"""The questions, and the stream in which they are asked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from random import Random

from ragopt.demo.corpus import json_lines, read_text
from ragopt.demo.passages import Passage, sentences, words
from ragopt.demo.settings import REPEATED, Settings
from ragopt.errors import InvalidInput

_MANY_WORDS = 14
_LATER = 10  # streams of the same length that follow the first


@dataclass(slots=True)
class Questions:
    """What is asked.

    Args:
        source: Where the questions come from, for people.
        pool: The questions that the stream is drawn from, the likeliest first.
        stream: The questions in the order they are asked.
        later: How the stream goes on by the same draw, for when many ask at once.
        repeated: Questions that are not in the pool; each is asked twice in a row.
        notes: One sentence for everything that was left out.
    """

    source: str
    pool: list[str]
    stream: list[str]
    later: list[str]
    repeated: list[str]
    notes: list[str] = field(default_factory=list)

    @property
    def distinct(self) -> int:
        """Different questions in the stream."""
        return len(set(self.stream))

    @property
    def most_asked(self) -> list[str]:
        """The questions of the stream, the most frequent first."""
        return [question for question, _ in Counter(self.stream).most_common()]


def prepare(settings: Settings, passages: list[Passage]) -> Questions:
    """Collect questions, and draw the stream: the same one for the same settings and corpus.

    Raises:
        InvalidInput: The file of questions cannot be read or holds none.
    """
    notes: list[str] = []
    random = Random(settings.seed)
    given, source = _given(settings, notes)
    made = [each for each in _made(settings.corpus is None, passages) if each not in set(given)]
    random.shuffle(given)
    random.shuffle(made)
    if settings.questions is None:
        # Questions as people ask them come up most.
        candidates = [*given, *made]
        source += f"{', more' if given else 'questions'} made from the passages by template"
    else:
        candidates = given
    # A corpus of a few passages has few questions: half of them are kept for the stream.
    size = max(1, min(settings.distinct, len(candidates) - min(REPEATED, len(candidates) // 2)))
    if settings.questions is not None:
        size = min(settings.distinct, len(candidates))
    pool = candidates[:size]
    repeated = [each for each in [*candidates[size:], *made] if each not in set(pool)]
    stream = draw(pool, (1 + _LATER) * settings.asks, settings.zipf, random)
    return Questions(
        source,
        pool,
        stream[: settings.asks],
        stream[settings.asks :],
        list(dict.fromkeys(repeated))[:REPEATED],
        notes,
    )


def draw(pool: list[str], number: int, exponent: float, random: Random) -> list[str]:
    """Draw questions by Zipf's law: the one of rank r with a chance proportional to r**-s."""
    weights = [rank**-exponent for rank in range(1, len(pool) + 1)]
    return random.choices(pool, weights, k=number)


def _given(settings: Settings, notes: list[str]) -> tuple[list[str], str]:
    if settings.questions is not None:
        found = list(dict.fromkeys(_read(settings.questions, notes)))
        if not found:
            raise InvalidInput(
                f"There is no question in {settings.questions}."
                + (f" {notes[0]}" if notes else ""),
                fix='Give a text file with one in each line, or JSON Lines with "question".',
            )
        return found, f"questions of {settings.questions}"
    if settings.corpus is None:
        text = files("ragopt.demo").joinpath("stdlib_questions.txt").read_text(encoding="utf-8")
        found = text.splitlines()
        return found, f"{len(found)} questions written by hand"
    return [], ""


def _read(path: Path, notes: list[str]) -> Iterator[str]:
    if not path.is_file():
        raise InvalidInput(f"There is no file {path}.", fix="Give a file with questions.")
    text = read_text(path, notes)
    if path.suffix.lower() in (".jsonl", ".ndjson"):
        for row in json_lines(path, text, notes, ("question", "text")):
            value = row.get("question")
            yield str(value if isinstance(value, str) else row["text"]).strip()
    else:
        yield from filter(None, map(str.strip, text.split("\n")))


def _made(of_python: bool, passages: list[Passage]) -> list[str]:
    """Return a question for each document of the corpus, in their order."""
    made: dict[str, None] = {}
    seen: set[str] = set()
    for passage in passages:
        subject = passage.title or _beginning(passage.text)
        if subject and subject not in seen:
            seen.add(subject)
            made[_asked(subject) if of_python else f"What is said about {subject}?"] = None
    return list(made)


def _asked(name: str) -> str:
    # A class or a module is for something; a function does something.
    is_thing = "." not in name or name.rpartition(".")[2][:1].isupper()
    return f"What is {name} for?" if is_thing else f"What does {name} do?"


def _beginning(text: str) -> str:
    """Return the first sentence that says something, cut where it is long."""
    said = [each for each in sentences(text) if len(words(each)) >= 4] or sentences(text)
    first = said[0].rstrip(".!?。！？") if said else ""
    shown = first.split()
    return " ".join(shown[:_MANY_WORDS])[:120]
