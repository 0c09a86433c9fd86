"""Text for people: counts, quantities, and texts with control characters shown instead of obeyed."""

import unicodedata

# Control characters, lone surrogates, separators of lines and paragraphs; and what turns the direction of writing.
_HIDDEN = frozenset({"Cc", "Cs", "Zl", "Zp"})
_DIRECTION = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def counted(number: int, noun: str) -> str:
    """Says how many of something there are, such as ``1 round`` and ``2 rounds``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def quantity(value: float, unit: str, digits: int = 3) -> str:
    """Writes a number with its unit, to so many digits at least: seconds ("s") and bytes ("B") in what suits them."""
    if unit == "s" and value >= 120:
        value, unit = (value / 60, "min") if value < 7200 else (value / 3600, "h")
    elif unit == "B":
        value, unit = (value / 1e9, "GB") if value >= 1e8 else (value / 1e6, "MB")
    whole = value >= 10**digits - 0.5  # else its last digits would become zeros, or an exponent
    return f"{value:,.0f} {unit}" if whole else f"{value:.{digits}g} {unit}"


def visible(text: str) -> str:
    """Returns the text with escapes such as ``\\x1b`` in place of control characters; ends of lines stay."""
    if text.isprintable():
        return text
    return "".join(_escape(character) if _is_hidden(character) else character for character in text)


def _is_hidden(character: str) -> bool:
    if character == "\n":
        return False
    return unicodedata.category(character) in _HIDDEN or character in _DIRECTION


def _escape(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
