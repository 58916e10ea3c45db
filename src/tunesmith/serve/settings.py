"""Section `serve`: the HTTP door."""

from __future__ import annotations

from pydantic import Field

from tunesmith.section import Section


class ServeSection(Section):
    """The HTTP service."""

    host: str = "127.0.0.1"
    """Address to listen on. Anything but loopback needs an API key."""
    port: int = Field(default=8000, ge=0, le=65535)
    """Port to listen on; 0 takes a free one."""
    api_key_env: str = "TUNESMITH_API_KEY"
    """Environment variable with the API key. Callers send it as `Authorization: Bearer KEY`; unset means no key is asked on loopback."""
    max_request_bytes: int = Field(default=1_000_000, ge=1_000)
    """Larger requests are refused with 413 before they are parsed."""
