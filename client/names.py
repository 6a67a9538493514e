"""Names of files and labels on one line of a terminal."""

import os


def printable(text: str) -> str:
    """The text with line breaks, control characters and undecodable bytes escaped, as `ls -b` does."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else _escape(each) for each in text)


def _escape(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # a byte of a name that is no UTF-8
        return "".join(f"\\x{byte:02x}" for byte in os.fsencode(character))
    return character.encode("unicode_escape").decode()
