"""Recognised words -> a PDF page with each word in its place, for the layout code that reads PDF pages.

What the layout is seen by must be there and nothing that misleads: one size a line, one beginning for words that stand
under each other, the ruled lines. The page is never drawn. All lengths are PDF points from the top left.

What this does not do: keep the looks of the page; fonts, colours and bold type are not known.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from itertools import count, groupby, pairwise
from statistics import median
from typing import NamedTuple

from tunesmith.data.blocks import Box, Rule, Word


def typeset(words: Sequence[Word], rules: Sequence[Rule], width: float, height: float) -> tuple[bytes, dict[int, str]]:
    """Write the page.

    Args:
        words: In any order.
        rules: Ruled lines.
        width: Of the page.
        height: Of the page.

    Returns:
        The PDF, and for `str.translate` what to put back in the texts read from it.
    """
    shown, restore = _shown([word.text for word in words])
    placed = _placed([word._replace(text=text) for word, text in zip(words, shown, strict=True)])
    return _page(placed, rules, width, height), restore


def _shown(texts: Sequence[str]) -> tuple[list[str], dict[int, str]]:
    """Return words as they are drawn, and what to put back afterwards.

    PDFium writes out ligatures and the like, and knows no characters beyond the first 65,536: they are drawn as letters of a
    script (Vai) that the page does not have; private characters would be taken for a broken font. It also takes words as they
    are seen, so those that run from right to left are drawn from their end.
    """
    letters = sorted({letter for text in texts for letter in text})
    odd = [letter for letter in letters if ord(letter) > 0xFFFF or unicodedata.normalize("NFKC", letter) != letter or unicodedata.category(letter) == "Co"]
    free = (chr(code) for code in range(0xA500, 0xA60D) if chr(code) not in letters)
    stand_in = dict(zip(odd, free, strict=False))
    table = str.maketrans(stand_in)
    shown = [text[::-1] if all(unicodedata.bidirectional(letter) in ("R", "AL", "NSM") for letter in text) else text for text in texts]
    return [text.translate(table) for text in shown], {ord(drawn): letter for letter, drawn in stand_in.items()}


class _Set(NamedTuple):
    """A word as it is set: in a size that its line shares, on its line's foot."""

    text: str
    x0: float
    x1: float
    foot: float
    size: float


def _placed(words: Sequence[Word]) -> list[_Set]:
    """Give words the size of their line, and its foot.

    A box ends where its letters end, and `on` is lower than `up` or `go`: the size follows from the height by what letters
    there are. Sizes within an eighth of the most common one become it, because noise would otherwise look like headings.
    """
    rows: list[list[Word]] = []
    for word in sorted(words, key=lambda each: (each.box.y0 + each.box.y1, each.box.x0)):
        row = next((row for row in reversed(rows[-8:]) if _same_line(row[-1].box, word.box)), None)
        if row is None:
            rows.append([word])
        else:
            row.append(word)
    if not rows:
        return []
    measured = [_size_and_foot(row) for row in rows]
    letters = [sum(len(word.text) for word in row) for row in rows]
    common = _weighted_median([size for size, _ in measured], letters)
    made: list[_Set] = []
    opening: list[int] = []
    for row, (size, foot) in zip(rows, measured, strict=True):
        even = common if abs(size / common - 1) < 1 / 8 else size
        row.sort(key=lambda each: each.box.x0)
        opening += [len(made) + at for at, word in enumerate(row) if at == 0 or word.box.x0 - row[at - 1].box.x1 > 1.2 * even]
        made += [_Set(word.text, word.box.x0, end, foot, even) for word, end in zip(row, _ends(row, _SPACE * even), strict=True)]
    return _aligned(made, opening)


_SPACE = 0.25  # font sizes between two words: at 0.13 they are read as one, at 0.2 some are


def _ends(row: Sequence[Word], space: float) -> list[float]:
    """Return where each word of a line ends, from left to right: before the next one by a space, which tight or justified lines lack."""
    ends = [word.box.x1 for word in row]
    for at, (word, after) in enumerate(pairwise(row)):
        if 0 <= after.box.x0 - word.box.x1 < space:
            ends[at] = max(after.box.x0 - space, (word.box.x0 + word.box.x1) / 2)
    return ends


def _aligned(words: list[_Set], opening: Sequence[int]) -> list[_Set]:
    """Let runs of words that begin within a point and a half of each other begin at one place.

    A box begins where the ink does, which is further right for a B than for an A; columns are seen by equal beginnings.
    """
    start = previous = float("-inf")
    for at in sorted(opening, key=lambda each: words[each].x0):
        x0 = words[at].x0
        if x0 - previous > 1.5 or x0 - start > 3:
            start = x0
        previous = x0
        words[at] = words[at]._replace(x0=start)
    return words


_LOW, _TALL, _DEEP = 0.52, 0.72, 0.21  # heights of x, of b, and the depth of p, in font sizes; near enough for common fonts


def _size_and_foot(row: Sequence[Word]) -> tuple[float, float]:
    if len({(word.box.y0, word.box.y1) for word in row}) == 1:  # an engine that knows lines only
        row = [Word("".join(word.text for word in row), row[0].box)]
    sizes, feet = [], []
    for word in row:
        deep = _DEEP if re.search(r"[gjpqyQ,;()\[\]|/@$]", word.text) else 0.0
        tall = _TALL if re.search(r"[A-Zbdfhklti0-9()\[\]|/@$&!?]", word.text) else _LOW
        size = max((word.box.y1 - word.box.y0) / (tall + deep), 1.0)
        if re.search(r"\w", word.text):  # a dash or a dot says nothing of its size
            sizes.append(size)
            feet.append(word.box.y1 - deep * size)
    whole = max(row[0].box.y1 - row[0].box.y0, 1.0)
    return (median(sizes), median(feet)) if sizes else (whole, row[0].box.y1)


def _same_line(one: Box, other: Box) -> bool:
    shared = min(one.y1, other.y1) - max(one.y0, other.y0)
    return shared > 0.5 * min(one.y1 - one.y0, other.y1 - other.y0)


def _weighted_median(values: Sequence[float], weights: Sequence[int]) -> float:
    half, seen = sum(weights) / 2, 0
    for value, weight in sorted(zip(values, weights, strict=True)):
        seen += weight
        if seen >= half:
            return value
    return values[-1]


def _page(words: Sequence[_Set], rules: Sequence[Rule], width: float, height: float) -> bytes:
    """Write a PDF of one page with each word in its place.

    It is set in Helvetica, stretched to the width of each word. A character that is
    not ASCII borrows the code of one that is, because PDFium leaves out words whose characters the font cannot draw; what it
    means is in the font's table. Fonts have 94 codes, so there are as many fonts as that takes.
    """
    codes = _codes({letter for word in words for letter in word.text})
    drawn = ["0.5 w"]
    drawn += [f"{rule.x0:.2f} {height - rule.y0:.2f} m {rule.x1:.2f} {height - rule.y1:.2f} l S" for rule in rules]
    drawn.append("BT")
    for word in words:
        natural = sum(_WIDTHS[codes[letter][1] - 33] for letter in word.text) / 1000 * word.size
        stretch = 100 * max(word.x1 - word.x0, 0.1) / max(natural, 0.1)
        drawn.append(f"{stretch:.2f} Tz 1 0 0 1 {word.x0:.2f} {height - word.foot:.2f} Tm")
        for font, run in groupby(word.text, key=lambda letter: codes[letter][0]):
            drawn.append(f"/F{font} {word.size:.2f} Tf <{''.join(f'{codes[letter][1]:02x}' for letter in run)}> Tj")
    drawn.append("ET")
    n_fonts = 1 + max((font for font, _ in codes.values()), default=0)
    fonts = "".join(f"/F{font} {5 + 2 * font} 0 R" for font in range(n_fonts))
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        f"<</Type/Page/Parent 2 0 R/MediaBox[0 0 {width:.2f} {height:.2f}]/Contents 4 0 R/Resources<</Font<<{fonts}>>>>>>".encode("ascii"),
        _stream("\n".join(drawn)),
    ]
    widths = " ".join(map(str, _WIDTHS))
    for font in range(n_fonts):
        table = 6 + 2 * font
        objects.append(f"<</Type/Font/Subtype/Type1/BaseFont/Helvetica/FirstChar 33/LastChar 126/Widths[{widths}]/ToUnicode {table} 0 R>>".encode("ascii"))
        objects.append(_stream(_unicode_table({code: letter for letter, (where, code) in codes.items() if where == font})))
    out, offsets = bytearray(b"%PDF-1.7\n"), []
    for number, body in enumerate(objects, start=1):
        offsets.append(len(out))
        out += b"%d 0 obj\n" % number + body + b"\nendobj\n"
    start = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1) + b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    return bytes(out + b"trailer\n<</Size %d/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, start))


_WIDTHS = [int(width) for width in re.findall(r"\d+", """
278 355 556 556 889 667 191 333 333 389 584 278 333 278 278 556 556 556 556 556 556 556 556 556 556 278 278 584 584 584 556 1015
667 667 722 722 667 611 778 722 278 500 667 556 833 722 778 667 778 722 667 611 722 667 944 667 667 611 278 278 278 469 556 333
556 556 500 556 556 278 556 556 222 222 500 222 833 556 556 556 556 333 500 278 556 500 722 500 500 500 334 260 334 584""")]  # fmt: skip
"""Of Helvetica's characters 33 to 126, in thousandths of the size: as they are, so that no gap inside a word looks like a space."""


def _codes(letters: set[str]) -> dict[str, tuple[int, int]]:
    """Return character -> font and code: ASCII as it is, the others in what is left, letters and digits first."""
    codes = {letter: (0, ord(letter)) for letter in letters if "!" <= letter <= "~"}
    usual = sorted(range(33, 127), key=lambda code: (not chr(code).isalnum(), code))
    free = ((font, code) for font in count() for code in usual if font or chr(code) not in codes)
    return codes | dict(zip(sorted(letters - codes.keys()), free, strict=False))


def _unicode_table(letters: dict[int, str]) -> str:
    """Write what the codes of a font mean."""
    mapped = [f"<{code:02x}> <{letter.encode('utf-16-be', 'replace').hex()}>" for code, letter in sorted(letters.items())]
    rows = "\n".join(mapped)
    return f"""/CIDInit /ProcSet findresource begin
12 dict begin
begincmap
/CMapName /Words def
/CMapType 2 def
1 begincodespacerange
<00> <ff>
endcodespacerange
{len(mapped)} beginbfchar
{rows}
endbfchar
endcmap
end
end"""


def _stream(content: str) -> bytes:
    body = content.encode("ascii")
    return b"<</Length %d>>\nstream\n" % len(body) + body + b"\nendstream"
