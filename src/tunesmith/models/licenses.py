"""What a licence lets one do, in short: a first sieve, no advice. A licence that is not known here is unknown, never allowed.

SPDX identifiers where there are some; model licences by the names that their publishers use.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Use = Literal["commercial", "research"]
Answer = Literal["yes", "conditions", "no", "unknown"]


@dataclass(frozen=True)
class License:
    """A licence.

    Attributes:
        name: As it is known.
        commercial: Whether commercial use is allowed.
        note: What to look at.
    """

    name: str
    commercial: Answer
    note: str = ""

    def allows(self, use: Use) -> Answer:
        """Whether the use is allowed; what allows commerce allows research, and so do licences that exclude commerce."""
        if use == "research" and self.commercial in ("yes", "no"):
            return "yes"
        return self.commercial


_PERMISSIVE = ("Apache-2.0", "MIT", "BSD-2-Clause", "BSD-3-Clause", "ISC", "CC0-1.0", "CC-BY-4.0", "Unlicense", "CDLA-Permissive-2.0")
_SHARE_ALIKE = ("CC-BY-SA-4.0", "GPL-3.0", "LGPL-3.0", "AGPL-3.0", "MPL-2.0")
_NO_COMMERCE = ("CC-BY-NC-4.0", "CC-BY-NC-SA-4.0", "CC-BY-NC-ND-4.0")

_KNOWN = {
    **{name.lower(): License(name, "yes") for name in _PERMISSIVE},
    **{name.lower(): License(name, "conditions", "what is derived must be shared under the same terms") for name in _SHARE_ALIKE},
    **{name.lower(): License(name, "no") for name in _NO_COMMERCE},
    "llama2": License("Llama 2 Community License", "conditions", "acceptable use policy; not for over 700 million monthly users; not to improve other models"),
    "llama3": License("Llama 3 Community License", "conditions", "acceptable use policy; not for over 700 million monthly users; name begins with Llama 3"),
    "llama3.1": License("Llama 3.1 Community License", "conditions", "acceptable use policy; not for over 700 million monthly users; name begins with Llama"),
    "llama3.2": License("Llama 3.2 Community License", "conditions", "as Llama 3.1; the multimodal models not for people and companies in the EU"),
    "llama3.3": License("Llama 3.3 Community License", "conditions", "acceptable use policy; not for over 700 million monthly users; name begins with Llama"),
    "llama4": License("Llama 4 Community License", "conditions", "as Llama 3.1; not for people and companies in the EU"),
    "gemma": License("Gemma Terms of Use", "conditions", "prohibited use policy, which must be passed on with what is derived; Google may restrict use"),
    "qwen": License("Qwen License", "conditions", "not for over 100 million monthly users without a licence of their own"),
    "qwen-research": License("Qwen Research License", "no"),
    "mrl": License("Mistral Research License", "no"),
    "mnpl": License("Mistral Non-Production License", "no"),
    "deepseek": License("DeepSeek License", "conditions", "use restrictions that must be passed on"),
    "openrail": License("OpenRAIL", "conditions", "use restrictions that must be passed on"),
    "bigscience-bloom-rail-1.0": License("BigScience RAIL 1.0", "conditions", "use restrictions that must be passed on"),
    "falcon-llm-license": License("Falcon LLM License", "conditions", "acceptable use policy; hosting needs a licence of its own"),
}
_ALIASES = {
    "apache 2.0": "apache-2.0",
    "apache license 2.0": "apache-2.0",
    "apache software license": "apache-2.0",
    "mit license": "mit",
    "bsd license": "bsd-3-clause",
    "gemma terms of use": "gemma",
    "llama 3.1 community license": "llama3.1",
    "llama 3.2 community license": "llama3.2",
    "bigcode-openrail-m": "openrail",
    "creativeml-openrail-m": "openrail",
}


def license_of(name: str | None) -> License:
    """Return what is known of a licence by its name; case does not matter."""
    spelled = (name or "").strip().lower()
    found = _KNOWN.get(_ALIASES.get(spelled, spelled))
    return found or License(name or "unknown", "unknown", "read it; it is not known here" if spelled and spelled != "unknown" else "none was stated")


def stated_license(folder: Path) -> str | None:
    """Return the licence that a model's folder states: in source.json, in its card's front matter, or by the first lines of its LICENSE.

    Of a GGUF file in place of a folder: what its own field says.
    """
    if folder.suffix == ".gguf":
        from gguf import GGUFReader

        field = GGUFReader(folder).get_field("general.license")
        return str(field.contents()) if field else None
    if (file := folder / "source.json").is_file():
        stated = json.loads(file.read_text(encoding="utf-8")).get("license")
        if stated and stated != "unknown":
            return str(stated)
    if (file := folder / "README.md").is_file():
        front = re.match(r"---\n(.*?)\n---", file.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
        stated = re.search(r"^license(?:_name)?:\s*['\"]?([\w.+-]+)", front.group(1), re.MULTILINE) if front else None
        if stated:
            return stated.group(1)
    for file in sorted(folder.glob("LICENSE*")):
        head = file.read_text(encoding="utf-8", errors="replace")[:600]
        for pattern, name in (
            ("Apache License", "Apache-2.0"),
            ("MIT License", "MIT"),
            (r"Gemma Terms", "gemma"),
            (r"LLAMA 3\.1", "llama3.1"),
            (r"LLAMA 3\.2", "llama3.2"),
        ):
            if re.search(pattern, head):
                return name
    return None
