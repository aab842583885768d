"""Text of unknown origin: names and captions that are not valid UTF-8, lines that are not JSON."""

import json


def valid_utf8(text: str) -> str:
    """Remove what UTF-8 cannot hold (the lone surrogates of broken JSON), and NUL characters."""
    return text.encode(errors="ignore").decode().replace("\0", "")


def parse_json_object(text: str | bytes) -> dict:
    """A JSON object, or {} where the text holds none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
