"""What of a text a vocabulary can read: nothing that was written vanishes without a word.

A character that the vocabulary holds is left as it is, so that a text without unknown characters
has exactly the ids that SentencePiece gives it. Of the others,

    compatibility forms, curly quotes and dashes become the plain character, if that one is held;
    invisible ones are left out, and whatever is no letter or digit separates words;
    letters and digits stay, and become the unknown token as in T5.
"""

import re
import unicodedata
from collections.abc import Callable

from gct_jax.errors import InputError

PLAIN = {
    **dict.fromkeys("‘’‚‛′`´ʼ＇", "'"),
    **dict.fromkeys("“”„‟″«»＂", '"'),
    **dict.fromkeys("‐‑‒–—―−﹣－", "-"),
    "…": "...",
    "⁄": "/",
    "×": "x",
    "\N{NO-BREAK SPACE}": " ",
}
# Ordinary punctuation, which means little once it has separated words; the rest is named.
SILENT_CATEGORIES = {"Ps", "Pe", "Pi", "Pf", "Pd", "Pc", "Zs", "Zl", "Zp", "Cc", "Cf"}
SILENT = set(",.;:!'\"/\\*·•¡¿…†‡")
WORD = re.compile(r"[^\W\d_]{2,}")


def readable(text: str, is_known: Callable[[str], bool]) -> tuple[str, list[str]]:
    """The text as the vocabulary can read it, and the symbols left out of it that mean something.

    Args:
      text: any text.
      is_known: whether the vocabulary holds a character or word.
    """
    read: list[str] = []
    lost: list[str] = []
    for character in text:
        if character.isspace() or is_known(character):
            read.append(character)
            continue
        plain = [PLAIN.get(character), unicodedata.normalize("NFKC", character)]
        held = [p for p in plain if p and all(c.isspace() or is_known(c) for c in p)]
        category = unicodedata.category(character)
        if held:
            read.append(held[0])
        elif category[0] in "LNM":
            read.append(character)
        else:
            read.append("" if category == "Cf" else " ")
            if category not in SILENT_CATEGORIES and not SILENT & {character, plain[0]}:
                lost.append(character)
    return "".join(read), list(dict.fromkeys(lost))


def unknown_words(text: str, is_known: Callable[[str], bool]) -> list[str]:
    """The words of a readable text in which something is unknown, each once."""
    return [word for word in dict.fromkeys(text.split()) if not is_known(word)]


def require_words(text: str, is_known: Callable[[str], bool]) -> None:
    """Raise InputError unless a readable text has a word of two known letters, and at most half of
    its letters are unknown."""
    letters = [character for character in text if character.isalpha()]
    unknown = [character for character in letters if not is_known(character)]
    known_text = "".join(c if not c.isalpha() or is_known(c) else " " for c in text)
    if len(unknown) * 2 > len(letters):
        raise InputError(
            f"the model's vocabulary knows {len(letters) - len(unknown)} of the prompt's "
            f"{len(letters)} letters: '{_shortened(text)}'; write it in the language of the "
            "model's reports"
        )
    if not WORD.search(known_text):
        raise InputError(
            f"no word is left of the prompt '{_shortened(text)}'; write for example "
            "'58 years old female: ...'"
        )


def _shortened(text: str, longest: int = 60) -> str:
    text = " ".join(text.split())
    return text if len(text) <= longest else f"{text[: longest - 3]}..."
