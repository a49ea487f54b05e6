"""What an experiment says in a report, as data, and the page that shows it: one HTML file that needs nothing else.

Texts are plain: they are escaped, words between backticks are set as code, an empty line starts a paragraph. The same
data gives the same page, byte for byte.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Picture:
    """A figure with its words: the caption, what it says to someone in a hurry, what a failing plot would look like."""

    name: str
    svg: str
    caption: str
    reading: str
    failing: str


@dataclass(frozen=True)
class Table:
    """A table of texts."""

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str


@dataclass(frozen=True)
class Section:
    """What one experiment asked, expected and found, and how.

    `answer` starts with a sentence that can stand alone: the page's first table shows it. `method` has pairs of what
    and how: varied, averaged over, fixed, measured on, intervals. `commands` are the exact command lines that
    reproduce it.
    """

    name: str
    title: str
    question: str
    prediction: str
    answer: str
    method: tuple[tuple[str, str], ...]
    commands: tuple[str, ...]
    pictures: tuple[Picture, ...]
    tables: tuple[Table, ...]


@dataclass(frozen=True)
class Part:
    """A section as it was made once: by this run, or from records.

    `name` is the part's word in anchors, `mark` says where its numbers come from, `extent` what was computed, `origin`
    has pairs of what and which: commit, seeds, packages. Where it could not be made there is a `problem` in place of a
    section.
    """

    name: str
    mark: str
    extent: str
    origin: tuple[tuple[str, str], ...]
    section: Section | None
    problem: str = ""


@dataclass(frozen=True)
class Chapter:
    """An experiment on the page: its parts, and a note where one is missing."""

    name: str
    parts: tuple[Part, ...]
    note: str = ""

    @property
    def sections(self) -> list[Section]:
        return [part.section for part in self.parts if part.section is not None]

    @property
    def title(self) -> str:
        return self.sections[0].title if self.sections else self.name


STYLE = Path(__file__).with_name("page.css")
LONG = 24
"""Characters of a cell that may be broken."""

TITLE = "bpexp: the challenges of backpropagation"
ABOUT = (
    "Why is a deep network hard to train by backpropagation, and what helps? Each experiment asks one question, states"
    " what theory predicts before it measures, and gives an answer, which may be that the prediction is refuted."
)
HOW_TO_READ = (
    "Every experiment gives its question and its prediction first, then the answer.",
    'Under a figure, "In a hurry" says what it shows, and "If it failed" what it would look like if the prediction'
    " were wrong or the code broken: compare before you believe.",
    '"Method" says what was varied, what was averaged over and what stayed fixed; an answer holds for the fixed values'
    " alone.",
    "The mark of a part says whether its numbers were computed by this run or come from the published records. The"
    " commands under it make them again.",
)


def render(note: str, chapters: Sequence[Chapter]) -> str:
    """Return the page; `note` says what was computed for it."""
    header = (
        f"<header>\n<h1>{text(TITLE)}</h1>\n<p class='about'>{text(ABOUT)}</p>\n{paragraphs(note, 'note')}\n"
        f"{_headlines(chapters)}\n<h2 id='how-to-read'>How to read this page</h2>\n{_listed(map(text, HOW_TO_READ))}\n"
        "</header>"
    )
    body = "\n".join(_chapter(chapter) for chapter in chapters)
    style = STYLE.read_text(encoding="utf-8")
    return (
        "<!DOCTYPE html>\n<html lang='en'>\n<head>\n<meta charset='utf-8'>\n"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>\n"
        f"<title>{text(TITLE)}</title>\n<style>\n{style}</style>\n</head>\n"
        f"<body>\n<div class='page'>\n{header}\n{_contents(chapters)}\n<main>\n{body}\n</main>\n</div>\n"
        "</body>\n</html>\n"
    )


def text(words: str) -> str:
    """Return words as HTML: escaped, and set as code between backticks."""
    return re.sub(r"`([^`\n]+)`", r"<code>\1</code>", html.escape(words))


def paragraphs(words: str, style: str = "") -> str:
    """Return words as paragraphs, which an empty line parts."""
    start = f"<p class='{style}'>" if style else "<p>"
    found = [block.strip() for block in re.split(r"\n\s*\n", words)]
    return "\n".join(f"{start}{text(block)}</p>" for block in found if block)


def anchor(*names: str) -> str:
    """Return the id of a place on the page."""
    return re.sub(r"[^\w-]+", "-", "-".join(name for name in names if name))


def first_sentence(words: str) -> str:
    """Return a text up to its first full stop that ends a sentence."""
    return re.split(r"(?<=[.!?])\s+(?=[A-Z0-9`])|\n\s*\n", words.strip(), maxsplit=1)[0]


def _listed(items: Iterable[str]) -> str:
    return "<ul>\n" + "".join(f"<li>{item}</li>\n" for item in items) + "</ul>"


def _pairs(pairs: Iterable[tuple[str, str]], style: str) -> str:
    rows = "".join(f"<div><dt>{text(what)}</dt><dd>{text(how)}</dd></div>\n" for what, how in pairs)
    return f"<dl class='{style}'>\n{rows}</dl>" if rows else ""


def _headlines(chapters: Sequence[Chapter]) -> str:
    rows = "".join(_headline(chapter) for chapter in chapters)
    head = "".join(f"<th scope='col'>{name}</th>" for name in ("Experiment", "Question", "Answer"))
    return f"<table class='headlines' id='answers'>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody>\n</table>"


def _headline(chapter: Chapter) -> str:
    """Return the row of an experiment; parts that answer in the same words share a line."""
    marks: dict[str, list[str]] = {}
    for part in chapter.parts:
        answer = first_sentence(part.section.answer) if part.section is not None else "No answer: it failed, see there."
        marks.setdefault(answer, []).append(f"<span class='mark {part.name}'>{text(part.mark)}</span>")
    answers = "".join(f"<p>{text(answer)} {' '.join(spans)}</p>" for answer, spans in marks.items())
    question = first_sentence(chapter.sections[0].question) if chapter.sections else ""
    link = f"<a href='#{anchor(chapter.name)}'>{text(chapter.title)}</a>"
    return f"<tr><th scope='row'>{link}</th><td>{text(question)}</td><td>{answers}</td></tr>\n"


def _contents(chapters: Sequence[Chapter]) -> str:
    items = []
    for chapter in chapters:
        places = [
            f"<a href='#{anchor(chapter.name, part.name)}'>{text(_capital(part.mark))}</a>" for part in chapter.parts
        ]
        inner = f"\n{_listed(places)}" if len(places) > 1 else ""
        items.append(f"<a href='#{anchor(chapter.name)}'>{text(chapter.title)}</a>{inner}")
    top = ["<a href='#answers'>Answers</a>", "<a href='#how-to-read'>How to read</a>"]
    return f"<nav aria-label='Contents'>\n<h2>Contents</h2>\n{_listed([*top, *items])}\n</nav>"


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]


def _heading(level: int, place: str, words: str) -> str:
    link = f"<a class='anchor' href='#{place}' aria-label='Link to this place'>#</a>"
    return f"<h{level} id='{place}'>{text(words)} {link}</h{level}>"


def _chapter(chapter: Chapter) -> str:
    blocks = [_heading(2, anchor(chapter.name), chapter.title)]
    first = chapter.sections[0] if chapter.sections else None
    if first is not None:
        blocks.append(_asked(first))
    blocks += [_part(chapter.name, part, first) for part in chapter.parts]
    if chapter.note:
        blocks.append(paragraphs(chapter.note, "note"))
    return "<section class='chapter'>\n" + "\n".join(blocks) + "\n</section>"


def _asked(section: Section) -> str:
    return _pairs([("Question", section.question), ("Prediction", section.prediction)], "asked")


def _part(chapter: str, part: Part, first: Section | None) -> str:
    blocks = [_heading(3, anchor(chapter, part.name), _capital(part.mark)), paragraphs(part.extent, "extent")]
    if part.section is None:
        blocks += [
            "<div class='problem' role='alert'>\n<p>This part could not be made:</p>",
            _lines(part.problem),
            "</div>",
        ]
    else:
        blocks += _found(anchor(chapter, part.name), part.section, first or part.section)
    blocks.append(_pairs(part.origin, "facts origin"))
    return f"<section class='part {html.escape(part.name)}'>\n" + "\n".join(blocks) + "\n</section>"


def _found(place: str, section: Section, first: Section) -> list[str]:
    """Return what a section found and how; what it asked only where it is not what the chapter's `first` asked."""
    same = (section.question, section.prediction) == (first.question, first.prediction)
    blocks = [] if same else [_asked(section)]
    blocks.append(f"<div class='answer'><h4>Answer</h4>\n{paragraphs(section.answer)}</div>")
    blocks += [_figure(place, number, picture) for number, picture in enumerate(section.pictures, 1)]
    blocks += [_table(place, number, table) for number, table in enumerate(section.tables, 1)]
    if section.method:
        blocks.append(f"<h4>Method</h4>\n{_pairs(section.method, 'facts')}")
    if section.commands:
        blocks += ["<h4>Make it again</h4>", *map(_lines, section.commands)]
    return blocks


def _lines(words: str) -> str:
    return f"<pre>{html.escape(words)}</pre>"


def _figure(place: str, number: int, picture: Picture) -> str:
    here = anchor(place, picture.name)
    words = _pairs([("In a hurry", picture.reading), ("If it failed", picture.failing)], "reading")
    return (
        f"<figure id='{here}'>\n<div class='card' tabindex='0'>{inline(picture.svg, picture.caption)}</div>\n"
        f"<figcaption><a href='#{here}'>Figure {number}</a> {text(picture.caption)}</figcaption>\n{words}\n</figure>"
    )


def inline(svg: str, label: str) -> str:
    """Return an SVG file as an element of the page: no prolog, a label, and a width that gives way."""
    opening, rest = svg[svg.index("<svg") :].strip().split(">", 1)
    width = re.search(r"\swidth=\"([\d.]+)(pt|px)?\"", opening)
    natural = f"{width[1]}{width[2] or 'px'}" if width else "100%"
    opening = re.sub(r"\s(width|height|style|role)=\"[^\"]*\"", "", opening)
    return f'{opening} role="img" aria-label="{html.escape(label)}" style="--natural:{natural}">{rest}'


def _table(place: str, number: int, table: Table) -> str:
    here = anchor(place, table.name)
    kinds = [_kind([row[index] for row in table.rows]) for index in range(len(table.columns))]
    head = "".join(_cell("th scope='col'", words, kind) for words, kind in zip(table.columns, kinds, strict=True))
    rows = "".join(
        "<tr>" + "".join(_cell("td", words, kind) for words, kind in zip(row, kinds, strict=True)) + "</tr>\n"
        for row in table.rows
    )
    return (
        f"<div class='table' id='{here}'>\n"
        f"<p class='caption'><a href='#{here}'>Table {number}</a> {text(table.caption)}</p>\n"
        f"<div class='scroll' tabindex='0' role='region' aria-label='{text(table.name)}'>\n"
        f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody>\n</table>\n</div>\n</div>"
    )


def _kind(column: Sequence[str]) -> str:
    """Return how a column is set: numbers stand right, and long texts may break anywhere."""
    if all(map(_is_number, column)):
        return "number"
    return "long" if max(map(len, column)) > LONG else ""


def _is_number(words: str) -> bool:
    """Return whether a cell reads as a number, with an interval or a unit of one sign perhaps."""
    return not re.search(r"[^\W\d_]", re.sub(r"\d[eExX]|\b(nan|inf)\b", "", words))


def _cell(tag: str, words: str, kind: str) -> str:
    shown = text(words)
    if kind == "number":
        shown = re.sub(r" (?=[\[(])", " <wbr>", shown)  # only an interval may stand on a line of its own
    return f"<{tag}{f' class={kind}' if kind else ''}>{shown}</{tag.split()[0]}>"
