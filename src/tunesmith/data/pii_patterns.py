# ruff: noqa: E501, RUF001 - a pattern is read as one line
"""What personal data looks like: one rule a shape, each with the check that tells it from an ordinary number.

A rule is a kind, a regular expression and a check of what it found. Group 1, where there is one, is the value and the
rest its cue ("account no. ..."). Numbers that carry a check digit must pass it: IBAN (ISO 13616, mod 97), cards (Luhn),
national ids of Spain, Italy, France, Brazil and others. A number without one needs a cue or its country's punctuation.
Names and addresses are shapes of English, German, French, Spanish, Italian and Dutch. Other scripts are not covered.
`names.py` adds names of people; `redact.py` puts the rules to use.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from tunesmith.data.settings import PersonalDataKind as Kind


@dataclass(frozen=True)
class Rule:
    """One shape.

    Attributes:
        kind: What it finds.
        pattern: Where a group exists, group 1 is the value; else the whole match.
        check: Whether the value is what it looks like.
        needs: The text must hold one of these characters, or the pattern is not tried; "0" stands for any digit.
    """

    kind: Kind
    pattern: re.Pattern[str]
    check: Callable[[str], bool] = lambda value: True
    needs: str = "0"


def _digits(value: str) -> list[int]:
    return [int(character) for character in value if character.isdigit() and character.isascii()]


def passes_luhn(value: str) -> bool:
    """Return whether the digits of a value pass the check of card numbers (ISO/IEC 7812-1, annex B)."""
    digits = _digits(value)[::-1]
    return bool(digits) and (sum(digits[::2]) + sum(sum(divmod(2 * digit, 10)) for digit in digits[1::2])) % 10 == 0


_IBAN_LENGTHS = dict(
    pair.split(":")
    for pair in [
        "AD:24",
        "AE:23",
        "AL:28",
        "AT:20",
        "AZ:28",
        "BA:20",
        "BE:16",
        "BG:22",
        "BH:22",
        "BR:29",
        "BY:28",
        "CH:21",
        "CR:22",
        "CY:28",
        "CZ:24",
        "DE:22",
        "DK:18",
        "DO:28",
        "EE:20",
        "EG:29",
        "ES:24",
        "FI:18",
        "FO:18",
        "FR:27",
        "GB:22",
        "GE:22",
        "GI:23",
        "GL:18",
        "GR:27",
        "GT:28",
        "HR:21",
        "HU:28",
        "IE:22",
        "IL:23",
        "IQ:23",
        "IS:26",
        "IT:27",
        "JO:30",
        "KW:30",
        "KZ:20",
        "LB:28",
        "LC:32",
        "LI:21",
        "LT:20",
        "LU:20",
        "LV:21",
        "MC:27",
        "MD:24",
        "ME:22",
        "MK:19",
        "MR:27",
        "MT:31",
        "MU:30",
        "NL:18",
        "NO:15",
        "PK:24",
        "PL:28",
        "PS:29",
        "PT:25",
        "QA:29",
        "RO:24",
        "RS:22",
        "SA:24",
        "SC:31",
        "SE:24",
        "SI:19",
        "SK:24",
        "SM:27",
        "ST:25",
        "SV:28",
        "TL:23",
        "TN:24",
        "TR:26",
        "UA:29",
        "VA:22",
        "VG:24",
        "XK:20",
    ]
)


def is_iban(value: str) -> bool:
    """Return whether a value is an IBAN: its country's length, and 1 modulo 97 (ISO 13616)."""
    plain = re.sub(r"[ -]", "", value).upper()
    if str(len(plain)) != _IBAN_LENGTHS.get(plain[:2]):
        return False
    return int("".join(str(int(character, 36)) for character in plain[4:] + plain[:4])) % 97 == 1


_ISSUERS = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})|(?:5[1-5]\d\d|222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720)\d{12}|3[47]\d{13}|3(?:0[0-5]|[68]\d)\d{11}|35\d{14}|(?:1800|2131|2014|2149)\d{11}|(?:50|5[6-8]|6\d)\d{10,17}"
)
"""Prefixes and lengths of Visa, Mastercard, American Express, Diners Club, JCB, Maestro, Discover and UnionPay."""


def _is_card(value: str) -> bool:
    plain = re.sub(r"\D", "", value)
    return _ISSUERS.fullmatch(plain) is not None and len(set(plain)) > 1 and passes_luhn(plain)


def _is_spanish(value: str) -> bool:
    plain = re.sub(r"[ .-]", "", value).upper()
    number = plain[:-1].translate(str.maketrans("XYZ", "012"))
    return number.isdigit() and "TRWAGMYFPDXBNJZSQVHLCKE"[int(number) % 23] == plain[-1]


_ITALIAN_ODD = dict(
    zip("ABCDEFGHIJKLMNOPQRSTUVWXYZ", (1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23), strict=True)
)
_ITALIAN_ODD |= {str(digit): _ITALIAN_ODD["ABCDEFGHIJ"[digit]] for digit in range(10)}


def _is_italian(value: str) -> bool:
    plain = value.upper()
    even = (int(character) if character.isdigit() else ord(character) - 65 for character in plain[1:15:2])
    return chr(65 + (sum(_ITALIAN_ODD[character] for character in plain[0:15:2]) + sum(even)) % 26) == plain[15]


def _is_french(value: str) -> bool:
    plain = re.sub(r"\s", "", value).upper().replace("2A", "19").replace("2B", "18")
    return len(plain) == 15 and plain.isdigit() and 97 - int(plain[:13]) % 97 == int(plain[13:])


def _is_brazilian(value: str) -> bool:
    digits = _digits(value)
    checks = [sum(weight * digit for weight, digit in zip(range(n + 1, 1, -1), digits, strict=False)) * 10 % 11 % 10 for n in (9, 10)]
    return len(digits) == 11 and digits[9:] == checks


def _has_digits(least: int, most: int) -> Callable[[str], bool]:
    return lambda value: least <= len(_digits(value)) <= most


def _i(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE)


# A number is not part of a longer one, of a version (1.2.3) or of a path.
_START, _END = r"(?<![\w./+-])", r"(?![\w/]|[.,-]\d)"

_EMAIL = re.compile(r"(?<![\w./+-])[\w.+'%-]{0,63}\w@\w[\w-]{0,62}(?:\.[\w-]{1,63}){0,8}\.[^\W\d_]{2,}(?![\w@])")
_IBAN = re.compile(rf"{_START}[A-Z]{{2}}\d{{2}}[ -]?(?:[A-Z0-9]{{2,4}}[ -]?){{2,8}}[A-Z0-9]{{1,4}}(?![A-Z0-9])")
_CARD = re.compile(rf"{_START}\d(?:[ -]?\d){{11,18}}{_END}")

_ID_CUE = (
    r"(?:social security|SSN|SS ?#|tax(?:payer)? id|TIN|ITIN|SIN|social insurance|NINO?|national insurance|national (?:id|identity)|identity (?:card|number)|"
    r"ID card|ID (?:number|no)|passport|driv(?:er|ing)['’]?s? licen[cs]e|steuer-?id\w*|steuer(?:liche )?identifikations\w*|sozialversicherungs\w*|personalausweis\w*|reisepass\w*|"
    r"numéro de sécurité sociale|sécurité sociale|NIR|passeport|carte d['’]identité|DNI|NIE|NIF|pasaporte|seguridad social|codice fiscale|passaporto|carta d['’]identità|"
    r"BSN|burgerservicenummer|rijksregisternummer|paspoort\w*|PESEL|CPF|personnummer|AHV|aadhaar|PAN)"
)
_LINK = r"(?:\s*(?:\w{1,12}[.']?\s){0,2}?(?:number|nummer|numéro|número|numero|no\.?|nr\.?|n[°º.]|#|id)?\s*(?:\(\w+\)\s*)?(?:is|was|ist|lautet|est|es|è|reads|ends? (?:in|with)|ending (?:in|with))?\s*[:#=–(-]?\s*)"

_ACCOUNT_CUE = (
    r"(?:(?:bank |checking |savings? |current |deposit |credit card |loan |mortgage |brokerage |customer |client |policy |member(?:ship)? |utility )?"
    r"(?:account|acct|a/c)|IBAN|BBAN|routing|ABA|sort code|(?:policy|customer|client|member(?:ship)?|loan|mortgage|claim|contract|file)(?= ?(?:number|no\b|nr\b|#|id\b))|"
    r"konto(?:nummer|nr\.?)?|kundennummer|vertragsnummer|vertrag(?= nr)|bankleitzahl|BLZ|compte(?: bancaire)?|numéro de client|cuenta(?: bancaria)?|conto(?: corrente)?|c/c|rekening(?:nummer)?|klantnummer)"
)

_PHONE_CUE = (
    r"(?:telephone|phone|tel|cell(?:phone)?|mobile|mob|fax|call(?:ed)?(?: me| us| back)?(?: at| on)?|text(?:ed)?(?: me| us)?(?: at| on)|reach(?:ed)?(?: me| us| you)?(?: at| on)|ring(?: me)?(?: on| at)|dial(?:ed)?|"
    r"telefon(?:nummer)?|handy(?:nummer)?|mobil|rufnummer|téléphone|tél|portable|appel(?:er|ez)(?:-moi)?(?: au)?|teléfono|móvil|llam(?:ar|e|arme)(?: al)?|telefono|cellulare|chiam\w+(?: al)?|telefoon(?:nummer)?|mobiel|gsm|whatsapp|hotline)"
)
_PHONE_LINK = r"(?:\s*(?:number|nummer|no\.?|nr\.?|#)?\s*(?:is|was|ist|est|es|è|at|on|unter|au|al)?\s*[:#=.–-]{0,2}\s*)"
_PHONE_BODY = r"(?:\+|00)?\(?\+?\d(?:[ ./()-]{0,2}\d){5,15}(?:\s?(?:x|ext\.?|extension|Durchwahl)\s?\d{1,6})?"

# Possessive quantifiers (*+) where words repeat: nothing is tried twice, so that no text takes long.
_CAP = r"[A-ZÀ-ÖØ-Þ][\w'’.-]{0,40}+"
_SUFFIX = (
    r"(?:Street|St|Avenue|Ave|Av|Road|Rd|Boulevard|Blvd|Lane|Ln|Drive|Dr|Court|Ct|Place|Pl|Square|Sq|Terrace|Ter|Way|Wy|Parkway|Pkwy|Circle|Cir|Trail|Trl|Highway|Hwy|Close|Crescent|Cres|"
    r"Gardens?|Gdns|Grove|Grv|Mews|Row|Walk|Hill|Hills?|Alley|Aly|Plaza|Plz|Loop|Pike|Turnpike|Tpke|Path|Pass|Point|Pt|Ridge|Rdg|Run|Shores?|Springs?|Station|Stream|Summit|Track|Tunnel|Union|"
    r"Valleys?|Via|Viaduct|Views?|Villages?|Ville|Vista|Wall|Wells?|Bayou|Beach|Bend|Bluffs?|Bottom|Branch|Bridge|Brooks?|Burgs?|Bypass|Camp|Canyon|Cape|Causeway|Centers?|Circles|Cliffs?|Club|"
    r"Common|Corners?|Course|Courts|Coves?|Creek|Crest|Crossing|Crossroad|Curve|Dale|Dam|Divide|Drives|Estates?|Expressway|Extensions?|Falls?|Ferry|Fields?|Flats?|Fords?|Forest|Forges?|Forks?|Fort|"
    r"Freeway|Gateway|Glens?|Greens?|Groves|Harbors?|Haven|Heights|Hollow|Inlet|Islands?|Isle|Junctions?|Keys?|Knolls?|Lakes?|Land|Landing|Lights?|Loaf|Locks?|Lodge|Mall|Manors?|Meadows?|Mills?|"
    r"Mission|Motorway|Mount|Mountains?|Neck|Orchard|Oval|Overpass|Parks?|Parkways|Passage|Pines?|Plains?|Port|Ports|Prairie|Radial|Ramp|Ranch|Rapids?|Rest|Ridges|River|Roads|Route|Rue|Shoals?|"
    r"Skyway|Spur|Squares|Stravenue|Throughway|Trace|Trafficway|Trailer|Underpass|Unions|Walks|Ways|junction|Arcade|Quay|Wharf|Broadway|Parade|Esplanade|Concourse)"
)
_UNIT = r"(?:[,\n]?\s*(?:Apt|Apartment|Suite|Ste|Unit|Flat|Floor|Room|#)\.?\s?[\w-]{1,6})"
_ZIP = r"\d{5}(?:-\d{4})?"
_CITY = r"(?:S(?:t|te|an|anta)\. )?[A-ZÀ-ÖØ-Þ'’][\w'’/-]{0,40}+(?:(?:[ -]|(?<=['’]))(?:[A-ZÀ-ÖØ-Þ][\w'’/-]{0,40}+|de|d['’]|de['’]|la|le|les|sur|sous|del|di|am|an|der|den|upon|in|ob|al|en|a|con|nel|nell['’]|sul|sull['’]|y|los|las|'t)){0,4}"
_STATE = r"(?:[A-Z]{2}|[A-Z][a-z]+(?: [A-Z][a-z]+)?)"
_POSTCODE_GB = r"[A-Z]{1,2}\d[A-Z\d]? ?\d[A-Z]{2}"
_TAIL_EN = rf"(?:{_UNIT}?(?:\s*[,\n]\s*|\s+in\s+){_CITY}\s*[,\n]?\s*(?:{_STATE},?\s+{_ZIP}|{_POSTCODE_GB}|[A-Z]\d[A-Z] ?\d[A-Z]\d|[A-Z]{{2,3}},?\s+\d{{4}})\b)"
_TAIL_EU = (
    rf"(?:\s*[,\n-]?\s*(?:[A-Z]{{1,2}}-)?\d{{4,5}}\s?(?:[A-Z]{{2}}\b)?[,\s]\s*{_CITY}(?:\s\([A-Z]{{2}}\))?"  # 10115 Berlin
    rf"|\s*[,\n]\s*{_CITY},?\s\d{{5}}\b)"  # Madrid, 28014
)
_LOWER = r"(?i:(?:(?:de la|de los|de las|del|della|delle|dei|degli|des|du|de|di|da|dos|do|la|le|les|san|van de|van der|van|von|der|am|an der|zum|zur|im|den|het|ter)(?!\w)|de l['’]|d['’]|l['’]))"
_STREET_NAME = rf"(?:(?:{_LOWER}\s?){{0,4}}+{_CAP}(?:[ ](?:{_LOWER}\s?){{0,4}}+{_CAP}){{0,4}})"
_NUMBER = r"\d{1,5}(?:\s?(?:[a-zA-Z]|bis|ter)\b)?(?:[/-]\d{1,4}[a-z]?)?"

_UNIT_EU = r"(?:,?\s(?i:piso|puerta|apto?\.?|planta|bajo|escalera|esc\.?|edificio|piano|appartamento|app\.|interno|int\.|scala)\s?[\w.º]{1,5}\b(?: \d{1,3}\b)?)"

_ADDRESSES = (
    # 12 Long Hill Road, Apt 4, Springfield, IL 62701
    re.compile(rf"(?<![\w./-])\d{{1,6}}[A-Z]?(?:-\d{{1,4}})?,? (?:[NSEW]\.?[EW]?\.? )?(?:(?:{_CAP}|\d{{1,3}}(?:st|nd|rd|th)) ){{1,4}}{_SUFFIX}\b\.?(?: (?:North|South|East|West|[NSEW]{{1,2}}))?\.?{_UNIT}?{_TAIL_EN}?", re.UNICODE),
    # 12 Anything, Springfield, IL 62701: without a word for the street, city, state and ZIP must follow
    re.compile(rf"(?<![\w./-])\d{{1,6}}[A-Z]? (?:{_CAP} ?){{1,4}}{_UNIT}?{_TAIL_EN}"),
    # 12 Anything, City, 62701
    re.compile(rf"(?<![\w./-])\d{{1,6}}[A-Z]? (?:{_CAP} ?){{1,4}}{_UNIT}?\s*[,\n]\s*{_CITY}\s*[,\n]\s*{_ZIP}(?!\w)"),
    # the house of a British address: Flat 3, Mill lane, Port Ann, SW1A 1AA
    re.compile(rf"(?:(?:Flat|Studio|Unit|Apartment|House)\s\w{{1,5}}|\d{{1,5}}[A-Za-z]?)[,\n]?\s+(?:[\w'’.-]+ ){{0,3}}[\w'’.-]+(?:[,\n]\s*[A-Z][\w'’ -]{{1,30}}){{1,3}}[,\n ]\s*{_POSTCODE_GB}\b"),
    re.compile(rf"(?<!\w)(?:PO|P\.O\.|Post Office) Box \d{{1,7}}(?:[,\n]\s*{_CITY}[, ]+{_STATE},? {_ZIP})?", re.IGNORECASE),
    re.compile(rf"(?:(?:PSC \d+,? Box|Unit \d+,? Box) \d+|US[NSCGA]{{1,3}}V? {_CAP})[,\n ]\s*(?:APO|FPO|DPO),? (?:AA|AE|AP),? {_ZIP}"),
    # Lange Straße 5, 10115 Berlin; Kerkstraat 12, 1012 AB Amsterdam
    re.compile(rf"(?<!\w)(?:{_CAP}[ -]){{0,3}}(?:[A-ZÄÖÜ][\w-]{{0,40}}(?:stra(?:ß|ss)e|str\.|weg|platz|allee|gasse|ring|damm|ufer|straat|laan|plein|steeg|gracht|kade|dreef|singel|markt|steig|hof|park|berg|baan|pad|state|dijk|wal)|Stra(?:ß|ss)e|Str\.|Weg|Platz|Allee|Gasse|Ring|Damm|Ufer)\s{_NUMBER}{_TAIL_EU}?(?!\w)"),
    # anything with a number, then a postal code and a city: Zum Alten Markt 7, 50667 Köln
    re.compile(rf"(?<!\w){_STREET_NAME},?\s(?:{_NUMBER}(?:/\d{{1,3}})?|s/n\.?){_UNIT_EU}?\s*[,\n]\s*(?:[A-Z]{{1,2}}-)?\d{{4,5}}\s?(?:[A-Z]{{2}})?[ ,]\s?{_CITY}(?:\s\([A-Z]{{2}}\))?"),
    # 12 bis, rue de la Paix, 75002 Paris
    re.compile(rf"(?<![\w./-])\d{{1,4}}(?:\s?(?:bis|ter|[a-zA-Z])\b)?,?\s(?:rue|r\.|avenue|av\.?|boulevard|boul\.|bd|place|pl\.|chemin|impasse|allées?|quai|cours|route|passage|square|sentier|ruelle|villa|faubourg|venelle|Rue|Avenue|Boulevard|Place|Chemin|Impasse|Allée|Quai|Cours|Route|Passage|Sentier|Venelle|Via|Viale|Piazza|Corso|Largo|Vicolo|Strada)\s{_STREET_NAME}{_TAIL_EU}?"),
    # 12 Anything, 75002 Paris
    re.compile(rf"(?<![\w./-])\d{{1,5}}(?:\s?(?:bis|ter|[a-zA-Z])\b)?,?\s{_STREET_NAME}\s*[,\n]\s*\d{{5}} {_CITY}"),
    re.compile(rf"(?<!\w)(?:rue|avenue|boulevard|place|chemin|impasse|allée|quai|route)\s{_STREET_NAME}{_TAIL_EU}"),
    # Calle de Alcalá 12, 28014 Madrid; Via Roma 3, 00184 Roma
    re.compile(rf"(?<!\w)(?:Calle|C/|C\.|Pasadizo|Avenida|Avda\.?|Av\.|Plaza|Paseo|P\.º|Ronda|Camino|Carretera|Glorieta|Callejón|Pasaje|Acceso|Alameda|Rambla|Urbanización|Vial|Cañada|Cuesta|Via|Viale|Piazza|Piazzale|Corso|Largo|Vicolo|Strada|Borgo|Contrada|Stretto|Incrocio|Canale|Rotonda|Rua|Travessa|Praça|Largo)\s?{_STREET_NAME}(?:,?\s(?:n[.º°]\s?)?{_NUMBER}){_UNIT_EU}?{_TAIL_EU}?"),
)  # fmt: skip

RULES: tuple[Rule, ...] = (
    Rule("email", _EMAIL, needs="@"),
    Rule("iban", _IBAN, is_iban),
    Rule("card", _CARD, _is_card),
    Rule("national_id", re.compile(rf"{_START}(?!000|666)(?:\d{{3}}-(?!00)\d\d-|\d{{3}} (?!00)\d\d )(?!0000)\d{{4}}{_END}")),
    Rule("national_id", re.compile(rf"{_START}(?:[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z]) ?\d\d ?\d\d ?\d\d ?[A-D]{_END}")),
    Rule("national_id", re.compile(rf"{_START}(?:\d{{8}}|[XYZ]-?\d{{7}}|\d\d\.\d{{3}}\.\d{{3}})[ -]?[A-Z]{_END}"), _is_spanish),
    Rule("national_id", _i(rf"{_START}[A-Z]{{6}}\d\d[A-EHLMPR-T]\d\d[A-Z]\d{{3}}[A-Z]{_END}"), _is_italian),
    Rule("national_id", re.compile(rf"{_START}[12] ?\d\d ?(?:[0-3]\d|4[0-2]) ?(?:\d\d|2[AB]) ?\d{{3}} ?\d{{3}} ?\d\d{_END}"), _is_french),
    Rule("national_id", re.compile(rf"{_START}\d{{3}}\.\d{{3}}\.\d{{3}}-\d\d{_END}"), _is_brazilian),
    Rule("national_id", re.compile(rf"{_START}756\.\d{{4}}\.\d{{4}}\.\d\d{_END}")),
    Rule("national_id", re.compile(rf"(?i:\b{_ID_CUE}\b{_LINK})([A-Z]{{0,4}}[ .-]?\d[\dA-Z]*(?:[ ./-][A-Z]{{0,3}}\d[\dA-Z]*){{0,6}}(?:[ -][A-Z])?)(?![\w-])"), _has_digits(5, 18)),
    *(Rule("address", pattern) for pattern in _ADDRESSES),
    Rule("account", re.compile(rf"(?i:\b{_ACCOUNT_CUE}\b{_LINK})((?:[A-Z]{{1,6}}[- ]?)?\d[\dA-Z]*(?:[ -][A-Z]{{0,3}}\d[\dA-Z]*){{0,8}})(?![\w-])"), _has_digits(4, 30)),
    Rule("account", re.compile(rf"{_START}\d\d-\d\d-\d\d[ ,]{{1,2}}\d{{8}}{_END}")),
    Rule("phone", re.compile(r"(?<![\w./+-])(?:\+|(?<!\d )00)[1-9]\d{0,3}(?:[ ./-]?\(?0?\)?[ ./-]?\d|[ ./()-]{1,2}\d){6,13}(?:\s?(?:x|ext\.?)\s?\d{1,6})?(?![\w])"), _has_digits(8, 19)),
    Rule("phone", re.compile(rf"(?<![\w./+-])(?:1[ .-])?(?:\(\d{{3}}\)[ .-]?|\d{{3}}[.-])\d{{3}}[.-]\d{{4}}(?:\s?(?:x|ext\.?)\s?\d{{1,6}})?{_END}")),
    Rule("phone", re.compile(rf"(?<![\w./+-])(?<!\d )\(?0\d{{1,5}}\)?[ /-]{{1,3}}\d{{2,8}}(?:[ -]\d{{2,6}}){{0,4}}{_END}"), _has_digits(9, 14)),
    Rule("phone", re.compile(rf"(?<![\w./+-])(?<!\d )0\d(?:[ .-]?\d\d){{4}}{_END}")),
    Rule("phone", re.compile(rf"(?<![\w./+-])(?<!\d )0\d{{9,10}}{_END}")),
    Rule("phone", re.compile(rf"(?<![\w./+-])[6-9]\d{{2}}(?: \d{{3}} \d{{3}}| \d\d \d\d \d\d){_END}")),
    Rule("phone", _i(rf"\b{_PHONE_CUE}\b\.?{_PHONE_LINK}({_PHONE_BODY})(?![\w])"), _has_digits(6, 19)),
)  # fmt: skip
