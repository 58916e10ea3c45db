# ruff: noqa: E501 - a letter is read as one line
"""Letters with personal data in known places, from generators that share nothing with one another.

The rules were tuned on values of Faker and of mimesis. What is reported are values of two others, the JavaScript
libraries chance 1.1.13 and fakerator 0.3.6 (both MIT; kept in `redaction_values.json`, drawn once), in letters of their
own that were written before the rules met them. The first measurement of both together, rules alone, was a recall of 0.955.
Then missed addresses of fakerator were looked at, and units and cities in addresses repaired; of chance no text was looked
at, but its figures by kind led to a missing prefix of cards. So fakerator is no longer unseen, and chance nearly. All letters are by the author of the rules: real ones will differ.
Numbers that are no personal data (dates, amounts, orders, versions) stand between them. A text is (text, spans); a span
is (start, end, kind), in characters.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path

Span = tuple[int, int, str]
Text = tuple[str, list[Span]]

FAKER_LETTERS = {
    "en": (
        "My name is {name} and I opened account number {account} on 03/14/2021. Nobody answered my e-mail from {email}.",
        "Dear Sir or Madam,\nplease send the new contract to {address} by May 5. You can call me at {phone}.\nKind regards,\n{name}",
        "On 2023-02-11 a charge of $1,250.00 appeared on card {card}. I reported it, order 4471-22, version 2.10.1 of the app. {name}, {email}",
        "They asked {name} for the social security number {national_id} again, although it was on file since 1998.",
        "The IBAN is {iban}. We moved to {address}. Phone: {phone}",
        "I spoke with {name} twice. He promised a refund of 340.55 within 10 business days to {iban}, but it never came.",
    ),
    "de": (
        "Mein Name ist {name}, ich wohne in {address}. Bitte rufen Sie mich unter {phone} an.",
        "Die Lastschrift über 49,90 EUR vom 12.03.2022 ging von {iban} ab. Mit freundlichen Grüßen,\n{name}",
        "Frau {name} erreicht man per E-Mail: {email}. Kontonummer {account}.",
    ),
    "fr": (
        "Je m'appelle {name} et j'habite {address}. Mon téléphone : {phone}",
        "Le virement de 120,00 € du 3 mars 2021 depuis {iban} n'est pas arrivé. Cordialement,\n{name}",
    ),
    "es": ("Me llamo {name} y vivo en {address}. Teléfono: {phone}", "El cargo de 35,20 € en la cuenta {iban} es un error. Saludos,\n{name}, {email}"),
    "it": (
        "Mi chiamo {name} e abito in {address}. Telefono: {phone}",
        "L'addebito di 18,00 € su {iban} è sbagliato. {name}, {email}, codice fiscale {national_id}",
    ),
    "nl": ("Mijn naam is {name} en ik woon op {address}. Telefoon: {phone}", "De afschrijving van 12,50 euro van {iban} klopt niet. Groeten,\n{name}, {email}"),
}
MIMESIS_LETTERS = {
    "en": (
        "Last week the branch manager, {name}, closed my savings account ({account}) without a word. Write to {email} or ring {phone} after 6 pm.",
        "Subject: wrong statement\n\nThe statement of 30 June 2024 shows 3 fees of 35.00 each. It went to {address}, where I no longer live.\n\nYours faithfully\n{name}",
        "Customer: {name}\nEmail: {email}\nPhone: {phone}\nAddress: {address}\nCard: {card}\nTicket 88213, opened 2024-11-02 09:15",
        "A man who said he was {name} from your fraud team wanted the number of my card, {card}, and its expiry 09/27.",
        "For the tax form you need my SSN, {national_id}. {name} has a copy; it was sent on 1 February together with invoice 20-4431.",
        "Please transfer the remaining 2,310.80 to IBAN {iban}, held by {name}, and confirm to {email}.",
        "I have been a customer since 2009. My loan account {account} was sold in 2019 and the new servicer, 1st Choice LLC, wants 412.17 a month. {name} signed for it.",
        "Call {phone} and ask for {name}.",
    ),
    "de": (
        "Der Vertrag läuft auf {name}, geboren 1971. Neue Anschrift ab 1. Juli: {address}. Rückfragen: {phone} oder {email}.",
        "Bitte überweisen Sie die 1.200,00 Euro auf das Konto {iban}. Kontoinhaber: {name}",
        "{name} hat am 24.12.2023 mit der Karte {card} bezahlt, 3 Artikel, Rechnung 2023-1187.",
    ),
    "fr": (
        "Madame {name} a déménagé le 15 juin 2022. Nouvelle adresse : {address}. Joignable au {phone}.",
        "Merci de rembourser 89,99 € sur le compte {iban} ouvert au nom de {name}. Contact : {email}",
    ),
    "es": ("La señora {name} se mudó el 2 de mayo. Nueva dirección: {address}. Móvil: {phone}", "Devuelvan los 60,00 € a la cuenta {iban}, a nombre de {name}. Correo: {email}"),
    "it": ("Il signor {name} ha cambiato casa il 4 aprile. Nuovo indirizzo: {address}. Cellulare: {phone}", "Rimborsate 75,00 € sul conto {iban} intestato a {name}. Scrivete a {email}"),
    "nl": ("Mevrouw {name} is op 3 maart verhuisd. Nieuw adres: {address}. Mobiel: {phone}", "Stort 45,00 euro terug op rekening {iban} op naam van {name}. Mail naar {email}"),
}  # fmt: skip

REPORTED_LETTERS = {
    "en": (
        "To whom it may concern,\n\nI closed my account no. {account} in branch 12 last autumn, yet $15.99 was taken on 9/30/2022 again.\n\nThank you,\n{name}\n{address}",
        "{name} from collections left four messages on {phone} about a debt of 1,904.22 that is not mine. The file says case 2021-000417.",
        "Hello, my new e-mail address is {email}. The old one stopped working in 2020. Best, {name}",
        "I gave the agent the last payment with card number {card} and got receipt 55-1029. My wife, {name}, was with me.",
        "Social Security Number: {national_id}\nFull name: {name}\nMailing address: {address}\nDaytime phone: {phone}",
        "Wire 8,000.00 to {iban} before Friday. The beneficiary is {name}; questions to {email} or {phone}.",
        "We live at {address}, and the letter of 4 April 2019 never came. {name} next door got it.",
        "Whoever applied for this loan used my SSN ({national_id}) and my cell {phone}. I never met {name}.",
    ),
    "de": (
        "Guten Tag,\nseit dem 1.10.2021 wohne ich nicht mehr in {address}. Die Rechnung über 89,00 EUR bitte an {email}.\nViele Grüße\n{name}",
        "Herr {name} bittet um Rückruf: Telefon {phone}, am besten nach 17 Uhr.",
        "Der Betrag von 312,40 EUR ging an {iban} statt an meine Schwester {name}.",
    ),
    "fr": (
        "Monsieur {name} demeurant {address} conteste le prélèvement de 42,00 € du 5 janvier 2023.",
        "Vous pouvez m'écrire à {email} ou m'appeler au {phone}. Bien cordialement,\n{name}",
        "Notre client, {name}, n'a rien reçu sur son compte {iban}.",
    ),
    "es": ("Mi nombre es {name} y mi domicilio es {address}. Mi teléfono es {phone}.", "Ingresen 210,00 € en {iban}. Un saludo,\n{name}\n{email}"),
    "it": ("Sono {name} e vivo in {address}. Potete chiamarmi al {phone}.", "Il bonifico di 99,00 € è partito da {iban} il 3 maggio. Cordiali saluti,\n{name}\n{email}"),
}  # fmt: skip


def fill(template: str, value: Callable[[str], str]) -> Text:
    """Put values into a template and note where they stand."""
    text, spans = "", []
    for part in re.split(r"(\{\w+\})", template):
        if part.startswith("{"):
            found = value(part[1:-1]).strip()
            spans.append((len(text), len(text) + len(found), part[1:-1]))
            text += found
        else:
            text += part
    return text, spans


def iban(country: str, draw: random.Random) -> str:
    """Return an IBAN with its right check digits; written in groups of four half of the time."""
    lengths = {"de": 18, "fr": 23, "es": 20, "it": 23, "nl": 14, "en": 18}
    code = {"en": "GB"}.get(country, country.upper())
    bban = "".join(draw.choices("0123456789", k=lengths[country]))
    if country in ("en", "nl"):
        bban = "".join(draw.choices("ABCDEFGHJKLMNPRSTUVW", k=4)) + bban[4:]
    if country == "it":
        bban = draw.choice("ABCDEFGHIJ") + bban[1:]
    check = 98 - int("".join(str(int(character, 36)) for character in f"{bban}{code}00")) % 97
    plain = f"{code}{check:02d}{bban}"
    return " ".join(plain[at : at + 4] for at in range(0, len(plain), 4)) if draw.random() < 0.5 else plain


def faker_texts(n: int, seed: int) -> list[Text]:
    """Letters with values of Faker in eight locales."""
    from faker import Faker

    locales = {"en": ("en_US", "en_GB", "en_US"), "de": ("de_DE",), "fr": ("fr_FR",), "es": ("es_ES",), "it": ("it_IT",), "nl": ("nl_NL",)}
    fakers = {name: Faker(name) for names in locales.values() for name in names}
    draw = random.Random(seed)
    for faker in fakers.values():
        faker.seed_instance(seed)
    texts = []
    for _ in range(n):
        language = draw.choice(("en", "en", "en", *FAKER_LETTERS))
        locale = draw.choice(locales[language])
        faker = fakers[locale]

        def value(kind: str, faker=faker, language=language, locale=locale) -> str:
            match kind:
                case "name":
                    return f"{faker.first_name()} {faker.last_name()}"
                case "phone":
                    return faker.phone_number()
                case "email":
                    return faker.email()
                case "address":
                    return faker.address() if draw.random() < 0.5 else faker.address().replace("\n", ", ")
                case "card":
                    number = faker.credit_card_number()
                    return number if draw.random() < 0.5 else " ".join(number[at : at + 4] for at in range(0, len(number), 4))
                case "iban":
                    return faker.iban()
                case "account":
                    return faker.bban() if language == "en" and draw.random() < 0.3 else str(draw.randrange(10**7, 10**11))
                case _:
                    return faker.ssn()

        texts.append(fill(draw.choice(FAKER_LETTERS[language]), value))
    return texts


def mimesis_texts(n: int, seed: int) -> list[Text]:
    """Letters with values of mimesis in eight locales; IBANs and SSNs, which it lacks, are drawn here, with check digits."""
    from mimesis import Address, Locale, Payment, Person

    locales = {"en": (Locale.EN, Locale.EN_GB, Locale.EN), "de": (Locale.DE,), "fr": (Locale.FR,), "es": (Locale.ES,), "it": (Locale.IT,), "nl": (Locale.NL,)}
    every = [locale for names in locales.values() for locale in names]
    people = {locale: Person(locale, seed=seed) for locale in every}
    addresses = {locale: Address(locale, seed=seed) for locale in every}
    payment = Payment(seed=seed)
    draw = random.Random(seed)
    texts = []
    for _ in range(n):
        language = draw.choice(("en", "en", "en", *MIMESIS_LETTERS))
        locale = draw.choice(locales[language])
        person, place = people[locale], addresses[locale]

        def value(kind: str, person=person, place=place, language=language, locale=locale) -> str:
            match kind:
                case "name":
                    return person.full_name()
                case "phone":
                    return person.telephone()
                case "email":
                    return person.email()
                case "address":
                    separator = draw.choice(("\n", ", "))
                    if locale == Locale.EN:
                        return f"{place.address()}{separator}{place.city()}, {place.state(abbr=True)} {place.postal_code()}"
                    if locale == Locale.EN_GB:
                        return f"{place.address()}{separator}{place.city()}{separator}{place.postal_code()}"
                    return f"{place.address()}{separator}{place.postal_code()} {place.city()}"
                case "card":
                    return payment.credit_card_number()
                case "iban":
                    return iban(language, draw)
                case "account":
                    return str(draw.randrange(10**7, 10**11))
                case _:
                    return f"{draw.randrange(1, 666):03d}-{draw.randrange(1, 100):02d}-{draw.randrange(1, 10_000):04d}"

        texts.append(fill(draw.choice(MIMESIS_LETTERS[language]), value))
    return texts


def letters_of(library: str, n: int, seed: int) -> list[Text]:
    """Letters with values of chance or fakerator in the languages that it has; IBANs and accounts are drawn here."""
    kept = json.loads((Path(__file__).parent / "redaction_values.json").read_text(encoding="utf-8"))
    languages = {locale[:2] for locale, kinds in kept[library].items() if {"name", "address", "phone", "email"} <= kinds.keys()}
    letters = {language: REPORTED_LETTERS[language] for language in sorted(languages)}
    draw = random.Random(seed)
    texts = []
    for _ in range(n):
        language = draw.choice(("en", "en", "en", *letters))
        pools = [kinds for locale, kinds in kept[library].items() if locale.startswith(language)]

        def value(kind: str, pools=pools, language=language) -> str:
            if kind == "iban":
                return iban(language, draw)
            if kind == "account":
                return str(draw.randrange(10**7, 10**11))
            if not any(kind in kinds for kinds in pools):  # fakerator draws no cards and no social security numbers
                pools = [kept["chance"]["en"]]
            return draw.choice(draw.choice([kinds[kind] for kinds in pools if kind in kinds]))

        texts.append(fill(draw.choice(letters[language]), value))
    return texts
