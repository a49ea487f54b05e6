import dataclasses
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from experiments import page
from experiments.page import Chapter, Part, Picture, Section, Table

SVG = (
    '<?xml version="1.0"?>\n<!DOCTYPE svg>\n'
    '<svg xmlns="http://www.w3.org/2000/svg" width="360pt" height="90pt" viewBox="0 0 360 90"><path d="M0 0"/></svg>\n'
)
NASTY = "<b>&'\"</b>"


def section(name="depth", words=""):
    return Section(
        name=name,
        title=f"Title {words}",
        question=f"Does it? {words}",
        prediction=f"It does {words}",
        answer=f"Confirmed within 0.5 of 1.0 {words}. More follows.",
        method=((f"Varied {words}", f"seeds {words}"),),
        commands=(f"python -m experiments.depth 'seed=range(5)' {words}",),
        pictures=(Picture("profile", SVG, f"Caption {words}", f"Reading {words}", f"Failing {words}"),),
        tables=(Table("gains", ("init", "gain"), ((f"he {words}", "1.0"), ("zeros", "nan")), f"Gains {words}"),),
    )


def part(made, name="now", mark="computed now", problem=""):
    return Part(name, mark, "A stated part.", (("Commit", "0123"),), made, problem)


def chapters():
    both = (part(section()), part(section(words="in full"), "published", "from the published records"))
    failed = part(None, problem="ZeroDivisionError: <none>")
    return [Chapter("depth", both), Chapter("cost", (failed,), "There is nothing yet.")]


class Reader(HTMLParser):
    """Reads a page: its tags must close in order; ids, links and texts are kept."""

    VOID = ("meta", "path", "wbr")

    def __init__(self, document):
        super().__init__()
        self.open, self.ids, self.links, self.texts = [], [], [], []
        self.feed(document)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.ids += [attributes["id"]] if "id" in attributes else []
        self.links += [attributes["href"]] if "href" in attributes else []
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, words):
        self.texts.append(words)


def strings(value):
    """Yield all texts that a section holds."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from strings(item)
    else:
        for field in dataclasses.fields(value):
            if field.name not in ("name", "svg"):
                yield from strings(getattr(value, field.name))


def test_everything_a_section_says_is_on_the_page_and_escaped():
    made = section(words=NASTY)
    document = page.render("A note.", [Chapter("depth", (part(made),))])
    shown = "".join(Reader(document).texts)
    for words in strings(made):
        assert words in shown
    assert "<b>" not in document
    assert "A stated part." in shown
    assert "0123" in shown


def test_a_page_needs_nothing_else():
    document = page.render("A note.", chapters())
    assert not re.search(
        r"<(script|link|img|iframe|object|embed)|\bsrc=|@import|@font-face|url\((?!#)|javascript:", document
    )
    assert re.findall(r"https?://[^\"]+", document) == ["http://www.w3.org/2000/svg"] * 2


def test_every_link_leads_to_one_place():
    found = Reader(page.render("A note.", chapters()))
    assert len(set(found.ids)) == len(found.ids)
    assert {link.removeprefix("#") for link in found.links} <= set(found.ids)
    for place in ("answers", "depth", "depth-now", "depth-published", "depth-now-profile", "depth-published-gains"):
        assert f"#{place}" in found.links


def test_the_same_data_is_the_same_page():
    code = (
        "import sys; sys.path.insert(0, 'tests/experiments'); import test_page; from experiments import page; "
        "sys.stdout.write(page.render('A note.', test_page.chapters()))"
    )
    root = page.STYLE.parents[1]
    pages = {
        subprocess.run(
            [sys.executable, "-c", code], cwd=root, env={"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert pages == {page.render("A note.", chapters()).encode()}


def test_the_first_table_has_the_answers():
    document = page.render("A note.", chapters())
    rows = document[document.index("id='answers'") : document.index("</table>")]
    shown = [words.strip() for words in Reader(f"<table {rows}</table>").texts if words.strip()]
    assert shown == [
        *("Experiment", "Question", "Answer"),
        *("Title", "Does it?"),
        *("Confirmed within 0.5 of 1.0 .", "computed now"),
        *("Confirmed within 0.5 of 1.0 in full.", "from the published records"),
        *("cost", "No answer: it failed, see there.", "computed now"),
    ]


def test_parts_that_answer_alike_share_a_line():
    same = (part(section()), part(section(), "published", "from the published records"))
    document = page.render("A note.", [Chapter("depth", same)])
    rows = document[: document.index("</table>")]
    assert rows.count("Confirmed") == 1
    assert "computed now" in rows
    assert "from the published records" in rows


def test_a_question_is_asked_once_unless_it_differs():
    same = (part(section()), part(section(), "published", "from the published records"))
    assert page.render("", [Chapter("depth", same)]).count("<dt>Prediction</dt>") == 1
    assert page.render("", chapters()).count("<dt>Prediction</dt>") == 2


def test_a_part_that_failed_says_so():
    document = page.render("A note.", chapters())
    alert = document[document.index("role='alert'") :]
    assert "ZeroDivisionError: &lt;none&gt;" in alert
    assert "There is nothing yet." in alert


def test_a_figure_is_labelled_and_scales():
    element = page.inline(SVG, 'Gains & "more"')
    assert element.startswith('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 360 90" role="img"')
    assert 'aria-label="Gains &amp; &quot;more&quot;"' in element
    assert "--natural:360pt" in element
    assert " width=" not in element
    assert element.endswith('<path d="M0 0"/></svg>')


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("set `init=he` & go", "set <code>init=he</code> &amp; go"),
        ("`<x>`", "<code>&lt;x&gt;</code>"),
        ("one ` alone", "one ` alone"),
    ],
)
def test_text(words, shown):
    assert page.text(words) == shown


def test_paragraphs():
    assert page.paragraphs("one\ntwo\n\n three \n\n") == "<p>one\ntwo</p>\n<p>three</p>"
    assert page.paragraphs("one", "note") == "<p class='note'>one</p>"
    assert page.paragraphs("") == ""


@pytest.mark.parametrize(
    ("words", "first"),
    [
        ("Refuted. It grows.", "Refuted."),
        ("The gain is 0.57 (0.5 to 0.6), of 0.58. Then more", "The gain is 0.57 (0.5 to 0.6), of 0.58."),
        ("Does it? Yes.", "Does it?"),
        ("No full stop\n\nAnother paragraph", "No full stop"),
        ("Inconclusive", "Inconclusive"),
    ],
)
def test_first_sentence(words, first):
    assert page.first_sentence(words) == first


@pytest.mark.parametrize(
    ("cell", "right"),
    [
        ("0.5774", True),
        ("1.2e-30", True),
        ("-3", True),
        ("[0.51, 0.62]", True),
        ("5.3x", True),
        ("2 %", True),
        ("nan", True),
        ("4/5", True),
        ("", True),
        ("tanh", False),
        ("he, 4", False),
        ("banana", False),
        ("model_depth", False),
    ],
)
def test_columns_of_numbers_stand_right(cell, right):
    table = Table("gains", ("gain",), (("1",), (cell,)), "Gains")
    made = dataclasses.replace(section(), tables=(table,))
    document = page.render("", [Chapter("depth", (part(made),))])
    assert ("<th scope='col' class=number>gain</th>" in document) == right
    assert ("<td class=number>1</td>" in document) == right


def test_only_an_interval_leaves_the_line_of_its_number():
    table = Table("gains", ("gain",), (("0.57 [0.51, 0.62]",), ("2 %",)), "Gains")
    made = dataclasses.replace(section(), tables=(table,))
    document = page.render("", [Chapter("depth", (part(made),))])
    assert "<td class=number>0.57 <wbr>[0.51, 0.62]</td>" in document
    assert "<td class=number>2 %</td>" in document


def test_columns_of_long_texts_may_break():
    table = Table("checks", ("key", "what"), (("a", "x" * (page.LONG + 1)), ("b", "y")), "Checks")
    made = dataclasses.replace(section(), tables=(table,))
    document = page.render("", [Chapter("depth", (part(made),))])
    assert "<td>b</td><td class=long>y</td>" in document


def test_a_row_that_does_not_fit_its_table_is_refused():
    made = dataclasses.replace(section(), tables=(Table("gains", ("a", "b"), (("1",),), ""),))
    with pytest.raises((IndexError, ValueError)):
        page.render("", [Chapter("depth", (part(made),))])
