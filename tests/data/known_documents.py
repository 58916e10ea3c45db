"""Documents made from a structure that the test knows, in each format that the readers read, and scans of them."""

import html
import io
import random
import re
from collections import Counter
from email.message import EmailMessage

import numpy as np
from fpdf import FPDF
from PIL import Image, ImageFilter

WORDS = sorted(
    set(
        re.findall(
            r"\w+",
            """
account bank borrower branch card charge claim clause client company contract credit customer date debt deposit fee form fund holder
income interest invoice issue ledger letter limit loan margin market month mortgage notice office order owner party payment period
policy price product rate record report return review risk sale section service share statement supply tax term total transfer value
""",
        )
    )
)

# (kind, content): a heading has (level, text), a list its items, a table its rows, key_value its pairs.
STRUCTURE = [
    ("heading", (1, "Yearly Statement")),
    ("paragraph", "This statement tells what the account did over the whole year. It was made for the client and for nobody else. "
     "Ask the branch when a charge is not clear, and keep the letter with the contract."),
    ("heading", (2, "1. Movements")),
    ("table", [["Month", "Deposits", "Charges"], ["January", "1,200.50", "12.00"], ["February", "980.00", "7.25"], ["March", "1,431.10", "9.80"]]),
    ("heading", (2, "2. What to do")),
    ("paragraph", "There are three things that the holder of the account should look at before the end of the month, in any order that suits."),
    ("list", ["check each charge", "sign the notice", "return the form to the branch"]),
    ("heading", (2, "3. Particulars")),
    ("key_value", [("Account number", "4711-0815"), ("Opened on", "12 May 2019"), ("Branch", "North Quay")]),
    ("paragraph", "The bank thanks the client for the trust that was shown, and will write again when the next period is over and all is booked."),
]  # fmt: skip
LEVEL_SIZES = {1: 18, 2: 13}


def sentence(draw, n_words=12):
    return " ".join(draw.choices(WORDS, k=n_words)).capitalize() + "."


def prose(seed, n_sentences=5):
    draw = random.Random(seed)
    return " ".join(sentence(draw) for _ in range(n_sentences))


def new_pdf():
    pdf = FPDF(format="letter", unit="pt")
    pdf.set_margin(54)
    pdf.set_auto_page_break(True, 54)
    pdf.add_page()
    return pdf


def as_pdf(structure=STRUCTURE, encrypted=False):
    pdf = new_pdf()
    if encrypted:
        pdf.set_encryption(owner_password="owner", user_password="user")
    for kind, content in structure:
        write(pdf, kind, content)
    return bytes(pdf.output())


def write(pdf, kind, content):
    next_line = {"new_x": "LMARGIN", "new_y": "NEXT"}
    pdf.set_font("Helvetica", "", 10)
    if kind == "heading":
        pdf.set_font("Helvetica", "B", LEVEL_SIZES[content[0]])
        pdf.cell(0, 26, content[1], **next_line)
    elif kind == "paragraph":
        pdf.multi_cell(0, 14, content, **next_line)
    elif kind == "list":
        for item in content:
            pdf.cell(0, 14, f"- {item}", **next_line)
    elif kind == "key_value":
        for key, value in content:
            pdf.cell(120, 14, f"{key}:")
            pdf.cell(0, 14, value, **next_line)
    else:
        with pdf.table(line_height=16) as table:
            for cells in content:
                row = table.row()
                for cell in cells:
                    row.cell(cell)
    pdf.ln(12)


def two_columns_pdf(columns):
    pdf = new_pdf()
    pdf.set_font("Times", "", 10)
    for number, paragraphs in enumerate(columns):
        pdf.set_xy(54 + 264 * number, 54)
        for text in paragraphs:
            pdf.set_x(54 + 264 * number)
            pdf.multi_cell(240, 13, text, new_x="LEFT", new_y="NEXT")
            pdf.ln(10)
    return bytes(pdf.output())


def as_docx(structure=STRUCTURE):
    import docx

    document = docx.Document()
    for kind, content in structure:
        if kind == "heading":
            document.add_heading(content[1], content[0])
        elif kind == "paragraph":
            document.add_paragraph(content)
        elif kind == "list":
            for item in content:
                document.add_paragraph(item, style="List Bullet")
        else:
            rows = [[f"{key}:", value] for key, value in content] if kind == "key_value" else content
            table = document.add_table(len(rows), len(rows[0]))
            for at, row in enumerate(rows):
                for to, cell in enumerate(row):
                    table.cell(at, to).text = cell
    out = io.BytesIO()
    document.save(out)
    return out.getvalue()


def as_html(structure=STRUCTURE):
    parts = []
    for kind, content in structure:
        if kind == "heading":
            parts.append(f"<h{content[0]}>{html.escape(content[1])}</h{content[0]}>")
        elif kind == "paragraph":
            first, _, rest = html.escape(content).partition(" ")
            parts.append(f"<div><p><b>{first}</b> {rest}</p></div>")
        elif kind == "list":
            parts.append("<ul>" + "".join(f"<li>{html.escape(item)}" for item in content) + "</ul>")
        elif kind == "key_value":
            parts.append("<dl>" + "".join(f"<dt>{key}<dd>{value}" for key, value in content) + "</dl>")
        else:
            rows = ("".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in content)
            parts.append("<table>" + "".join(f"<tr>{row}</tr>" for row in rows) + "</table>")
    head = "<!DOCTYPE html><html><head><title>Bank</title><style>p {color: red}</style></head><body>"
    return (head + "\n".join(parts) + "<script>let a = 1;</script></body></html>").encode()


def as_text(structure=STRUCTURE):
    parts = []
    for kind, content in structure:
        if kind == "heading":
            parts.append("#" * content[0] + " " + content[1])
        elif kind == "paragraph":
            parts.append(content)
        elif kind == "list":
            parts.append("\n".join(f"- {item}" for item in content))
        elif kind == "key_value":
            parts.append("\n".join(f"{key}: {value}" for key, value in content))
    return "\n\n".join(parts).encode()


def as_mail(body="One paragraph.\n\nAnother one.", html_body=None, attachments=()):
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = "Ann <ann@example.org>", "bo@example.org", "A question about the charge"
    message["Date"] = "Mon, 02 Mar 2026 10:00:00 +0000"
    if body is not None:
        message.set_content(body)
    if html_body is not None:
        if body is None:
            message.set_content(html_body, subtype="html")
        else:
            message.add_alternative(html_body, subtype="html")
    for name, content in attachments:
        message.add_attachment(content, maintype="application", subtype="octet-stream", filename=name)
    return message.as_bytes()


def picture_of(pdf, page=0, resolution=200):
    import pypdfium2

    document = pypdfium2.PdfDocument(pdf)
    image = document[page].render(scale=resolution / 72).to_pil().convert("L")
    document.close()
    return image


def as_scan(pdf, *, lean=0.7, quarters=0, noise=10.0, blur=0.7, quality=60, seed=0, page=0, resolution=200):
    """A page as a scanner gives it: leaning, blurred, noisy, packed as JPEG; `quarters` turns it counterclockwise."""
    image = picture_of(pdf, page, resolution).rotate(lean, resample=Image.Resampling.BICUBIC, fillcolor=255)
    image = image.filter(ImageFilter.GaussianBlur(blur)) if blur else image
    pixels = np.asarray(image, dtype=np.float32) + np.random.default_rng(seed).normal(0, noise, (image.height, image.width))
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).rotate(90 * quarters, expand=True)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality, dpi=(resolution, resolution))
    return out.getvalue()


def scan_pdf(jpeg, width=612, height=792):
    """A PDF whose one page is a picture."""
    pdf = FPDF(unit="pt", format=(width, height))
    pdf.set_auto_page_break(False)
    pdf.add_page()
    pdf.image(io.BytesIO(jpeg), 0, 0, width, height)
    return bytes(pdf.output())


def png(image):
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def word_recall(found, wanted):
    """Share of the wanted words that are found, each as often as it is wanted."""
    got, want = Counter(found.split()), Counter(wanted.split())
    return sum(min(count, got[word]) for word, count in want.items()) / max(1, sum(want.values()))


def text_of_structure(structure=STRUCTURE):
    """All words of a structure."""
    parts = []
    for kind, content in structure:
        if kind == "heading":
            parts.append(content[1])
        elif kind == "paragraph":
            parts.append(content)
        elif kind == "list":
            parts += content
        elif kind == "key_value":
            parts += [f"{key}: {value}" for key, value in content]
        else:
            parts += [" ".join(row) for row in content]
    return " ".join(parts)


def labelled_folder(root):
    """Write root/in: documents of four kinds, one of them broken, in folders named by their label. Return root."""
    files = {f"yes/{number}.txt": (prose(number) + " Write to ann.example@mail.example.").encode() for number in range(16)}
    files |= {f"no/{number}.txt": prose(100 + number).encode() for number in range(16)}
    files |= {"yes/a.pdf": as_pdf(), "yes/b.docx": as_docx(), "no/c.html": as_html(), "no/d.pdf": as_pdf()[:-500]}
    for name, raw in files.items():
        path = root / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(raw)
    return root
