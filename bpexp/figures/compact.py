"""A smaller file for the same picture: an SVG as matplotlib writes it, without what a reader cannot see.

Ids that nothing refers to, groups without attributes, line breaks and comments go; a style is written once and has a
name; lengths are rounded to a hundredth of a point, and of a line of many points those that lie on it go.
"""

import base64
import io
import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from xml.etree import ElementTree as Xml
from xml.sax.saxutils import escape

import numpy as np
from PIL import Image

ON_THE_LINE = 5
"""Hundredths of a point that a left-out point may lie beside the line of a path."""

LETTERS = 26
MOST_COLOURS, OPAQUE = 256, 255
COMMANDS = re.compile(r"([MLQCz])([^MLQCz]*)")
NUMBER = re.compile(r"-?\d+\.\d+(?:e-?\d+)?")
REFERENCE = re.compile(r"#([\w.-]+)")
NAMESPACE, LINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}href"

Point = tuple[int, int]


def compact(text: str, prefix: str) -> str:
    """Return an SVG that looks the same; every id and class in it starts with `prefix`."""
    root = Xml.fromstring(text)
    parents = {child: parent for parent in root.iter() for child in parent}
    for element in root.iter():
        element.tag = element.tag.removeprefix(NAMESPACE)
        if LINK in element.attrib:
            element.set("href", element.attrib.pop(LINK))
        element.tail = None
        if element.tag != "style":
            element.text = None
    drop_blanks(root, parents)
    definitions = gather_definitions(root, parents)
    style_markers(root)
    shorten_ids(root, prefix)
    for element in root.iter():
        shorten_attributes(element, glyph="transform" in element.attrib)
    root[:] = [definitions, *(one for child in root if child is not definitions for one in without_groups(child))]
    share_clips(root)
    name_styles(root, definitions, prefix)
    root.attrib["xmlns"] = NAMESPACE.strip("{}")
    return f"{write(root)}\n"


def drop_blanks(root: Xml.Element, parents: dict[Xml.Element, Xml.Element]) -> None:
    """Drop paths that draw nothing, as that of a blank between words, and what refers to them."""
    blanks = [path for path in root.iter("path") if not path.get("d")]
    names = {f"#{path.get('id')}" for path in blanks}
    for element in [*blanks, *(use for use in root.iter("use") if use.get("href") in names)]:
        parents[element].remove(element)


def gather_definitions(root: Xml.Element, parents: dict[Xml.Element, Xml.Element]) -> Xml.Element:
    """Move what is only referred to into one element, and return it."""
    first, *others = root.iter("defs")
    for element in others:
        first.extend(element)
        parents[element].remove(element)
    return first


def style_markers(root: Xml.Element) -> None:
    """Give a marker's style to its definition, where all that refer to it have the same."""
    uses = defaultdict(list)
    for use in root.iter("use"):
        uses[use.get("href", "").removeprefix("#")].append(use)
    for path in root.iter("path"):
        own = uses.get(path.get("id", ""), [])
        styles = {use.get("style") for use in own}
        if len(styles) == 1 and (style := styles.pop()):
            path.set("style", style)
            for use in own:
                del use.attrib["style"]


def shorten_ids(root: Xml.Element, prefix: str) -> None:
    """Drop ids that nothing refers to, and number the others, the most used first."""
    counts = Counter(
        name for element in root.iter() for value in element.attrib.values() for name in REFERENCE.findall(value)
    )
    names = [element.get("id") for element in root.iter() if element.get("id") in counts]
    ordered = sorted(dict.fromkeys(filter(None, names)), key=lambda name: -counts[name])
    short = {name: f"{prefix}{letters(place)}" for place, name in enumerate(ordered)}
    for element in root.iter():
        name = element.attrib.pop("id", None)
        if name in short:
            element.set("id", short[name])
        for key in ("href", "clip-path", "style"):
            value = element.get(key)
            if value is not None and "#" in value and not value.startswith("data:"):
                element.set(key, REFERENCE.sub(lambda found: f"#{short.get(found[1], found[1])}", value))


def letters(place: int) -> str:
    """Return a short name of a place: a to z, ba, bb, ..."""
    rest, last = divmod(place, LETTERS)
    return (letters(rest) if rest else "") + chr(ord("a") + last)


def shorten_attributes(element: Xml.Element, *, glyph: bool) -> None:
    """Round numbers, and write paths and images in fewer letters; a glyph's path is in units of its own."""
    for name in ("x", "y", "width", "height"):
        if name in element.attrib and element.tag != "svg":
            element.set(name, NUMBER.sub(lambda found: short_number(float(found[0])), element.attrib[name]))
    if element.tag == "path":
        element.set("d", shorten_path(element.attrib["d"], 0 if glyph else ON_THE_LINE))
    if "transform" in element.attrib:
        element.set("transform", shorten_transform(element.attrib["transform"]))
        moved = re.fullmatch(r"translate\(([-\d.]+)(?: ([-\d.]+))?\)", element.attrib["transform"])
        if moved and element.tag == "use" and "x" not in element.attrib and "y" not in element.attrib:
            del element.attrib["transform"]
            element.attrib |= {name: value for name, value in zip("xy", moved.groups(), strict=True) if value}
    if element.tag == "use":
        for name in ("x", "y"):
            if element.get(name) == "0":
                del element.attrib[name]
    if element.tag == "image":
        element.set("href", shorten_image(element.attrib["href"]))


def short_number(value: float, digits: int = 2) -> str:
    """Return a number with a few digits behind the point, and no letter that it does without."""
    text = f"{value:.{digits}f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    text = re.sub(r"^(-?)0\.", r"\1.", text)
    return "0" if text in {"-0", ""} else text


def shorten_transform(value: str) -> str:
    """Round the numbers of a transform: moves to a hundredth, all else to six digits."""
    parts = []
    for name, inner in re.findall(r"(\w+)\(([^)]*)\)", value):
        digits = 2 if name == "translate" else 6
        numbers = [short_number(float(number), digits) for number in re.split(r"[ ,]+", inner.strip())]
        if name == "translate" and len(numbers) > 1 and numbers[1] == "0":
            numbers.pop()
        parts.append(f"{name}({' '.join(numbers)})")
    return "".join(parts) if parts else value


def shorten_image(href: str) -> str:
    """Write an image of at most 256 colours as places in their list: the same picture, bit for bit."""
    head, _, data = href.partition(",")
    data = "".join(data.split())
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGBA"))
    height, width, _ = pixels.shape
    colours, places = np.unique(pixels[:, :, :3].reshape(-1, 3), axis=0, return_inverse=True)
    if len(colours) <= MOST_COLOURS and (pixels[:, :, 3] == OPAQUE).all():
        small = Image.fromarray(places.astype(np.uint8).reshape(height, width))
        small.putpalette(colours.ravel().tolist())
        buffer = io.BytesIO()
        small.save(buffer, "png", optimize=True)
        data = min(data, base64.b64encode(buffer.getvalue()).decode(), key=len)
    return f"{head},{data}"


def shorten_path(path: str, tolerance: int) -> str:
    """Return a path with relative commands; of a line of more than two points those within `tolerance` of it go."""
    out: list[str] = []
    at = start = (0, 0)
    line: list[Point] = []

    def finish() -> None:
        nonlocal at
        kept = thin(line, tolerance) if tolerance and line else line
        for before, after in itertools.pairwise(kept):
            out.append(step(after[0] - before[0], after[1] - before[1]))
        line.clear()

    for name, inner in COMMANDS.findall(path):
        numbers = [round(100 * float(number)) for number in inner.split()]
        points = list(zip(numbers[::2], numbers[1::2], strict=True))
        if name == "L":
            line.extend(points if line else [at, *points])
            at = points[-1]
            continue
        finish()
        if name == "M":
            out.append(command("M" if not out else "m", [points[0]] if not out else [minus(points[0], at)]))
            at = start = points[0]
        elif name == "z":
            out.append("z")
            at = start
        else:
            out.append(command(name.lower(), [minus(point, at) for point in points]))
            at = points[-1]
    finish()
    return join_commands(out)


def minus(a: Point, b: Point) -> Point:
    return a[0] - b[0], a[1] - b[1]


def step(x: int, y: int) -> str:
    """Return the command of a straight step."""
    if y == 0:
        return f"h{hundredths(x)}"
    return f"v{hundredths(y)}" if x == 0 else command("l", [(x, y)])


def command(name: str, points: Iterable[Point]) -> str:
    return name + pack(hundredths(value) for point in points for value in point)


def hundredths(value: int) -> str:
    return short_number(value / 100)


def pack(numbers: Iterable[str]) -> str:
    """Join numbers with the fewest letters between them that keep them apart."""
    text, last = "", ""
    for number in numbers:
        apart = not last or number.startswith("-") or (number.startswith(".") and "." in last)
        text += number if apart else f" {number}"
        last = number
    return text


def join_commands(commands: Iterable[str]) -> str:
    """Join commands; the name of one like the last is left out."""
    text, last = "", ""
    for one in commands:
        name, rest = one[0], one[1:]
        if name == last and name not in "Mmz":
            number = re.split(r"[ a-z-]", text)[-1]
            apart = rest.startswith("-") or (rest.startswith(".") and "." in number)
            text += rest if apart else f" {rest}"
        else:
            text += one
        last = name
    return text


def thin(points: list[Point], tolerance: int) -> list[Point]:
    """Return a line's points without those that lie within a distance of what is left (Douglas and Peucker, 1973)."""
    keep = {0, len(points) - 1}
    spans = [(0, len(points) - 1)]
    while spans:
        first, last = spans.pop()
        far, place = max(distances(points, first, last), default=(0.0, 0))
        if far > tolerance:
            keep.add(place)
            spans += [(first, place), (place, last)]
    return [point for place, point in enumerate(points) if place in keep]


def distances(points: list[Point], first: int, last: int) -> Iterator[tuple[float, int]]:
    """Yield how far each point between two is from the straight line between them, and its place."""
    (x0, y0), (x1, y1) = points[first], points[last]
    dx, dy = x1 - x0, y1 - y0
    square = dx * dx + dy * dy
    for place in range(first + 1, last):
        x, y = points[place][0] - x0, points[place][1] - y0
        along = min(1.0, max(0.0, (x * dx + y * dy) / square)) if square else 0.0
        yield ((x - along * dx) ** 2 + (y - along * dy) ** 2) ** 0.5, place


def without_groups(element: Xml.Element) -> list[Xml.Element]:
    """Return an element, or what is in it where it is a group that says nothing."""
    if element.tag != "defs":
        element[:] = [one for child in element for one in without_groups(child)]
    if element.tag != "g":
        return [element]
    if not element.attrib:
        return list(element)
    if len(element) == 1 and set(element.attrib) == {"transform"} and set(element[0].attrib) == {"href"}:
        element[0].set("transform", element.attrib["transform"])
        return [element[0]]
    return [element] if len(element) else []


def share_clips(root: Xml.Element) -> None:
    """Put neighbours that are cut by the same frame into one group that is."""
    shared: list[Xml.Element] = []
    for child in root:
        clip = child.get("clip-path") if "transform" not in child.attrib else None
        if clip and shared and shared[-1].tag == "g" and shared[-1].attrib == {"clip-path": clip}:
            group = shared[-1]
        elif clip:
            group = Xml.Element("g", {"clip-path": clip})
            shared.append(group)
        else:
            shared.append(child)
            continue
        if child.tag == "g" and set(child.attrib) == {"clip-path"}:
            group.extend(child)
        else:
            del child.attrib["clip-path"]
            group.append(child)
    root[:] = shared


def name_styles(root: Xml.Element, definitions: Xml.Element, prefix: str) -> None:
    """Write each style once, as a class."""
    styled = [element for element in root.iter() if "style" in element.attrib]
    counts = Counter(short_style(element.attrib["style"]) for element in styled)
    names = {style: f"{prefix}{letters(place)}" for place, (style, _) in enumerate(counts.most_common())}
    for element in styled:
        element.set("class", names[short_style(element.attrib.pop("style"))])
    rules = "".join(f".{name}{{{style}}}" for style, name in names.items())
    sheet = next(definitions.iter("style"))
    sheet.text = re.sub(r":\s+|;\s+", lambda found: found[0].strip(), sheet.text or "") + rules
    sheet.attrib.clear()


def short_style(style: str) -> str:
    """Return a style without blanks, zeros and halves of colours that it does without."""
    style = re.sub(r"([:;])\s+", r"\1", style.strip().removesuffix(";"))
    style = re.sub(r"#(\w)\1(\w)\2(\w)\3\b", r"#\1\2\3", style)
    style = style.replace("stroke-dashoffset:0;", "").removesuffix(";stroke-dashoffset:0")
    return NUMBER.sub(lambda found: short_number(float(found[0]), 3), style)


def write(element: Xml.Element) -> str:
    """Return an element as text."""
    attributes = "".join(f' {name}="{escape(value)}"' for name, value in element.attrib.items())
    inner = escape(element.text or "") + "".join(map(write, element))
    return f"<{element.tag}{attributes}>{inner}</{element.tag}>" if inner else f"<{element.tag}{attributes}/>"
