"""The formulas of docstrings, which are TeX, as a line of plain text: pages must need nothing from elsewhere."""

from __future__ import annotations

import re
import unicodedata
from collections import deque

_SYMBOLS = {
    "alpha": "α", "pi": "π", "lambda": "λ", "rho": "ρ", "phi": "φ", "sigma": "σ", "Sigma": "Σ", "sum": "Σ", "prod": "Π",
    "|": "‖", "lVert": "‖", "rVert": "‖", "langle": "⟨", "rangle": "⟩", "{": "{", "}": "}",
    "cap": "∩", "cup": "∪", "in": "∈", "le": "≤", "ge": "≥", "neq": "≠", "cdot": "·", "times": "×", "circ": "∘",
    "infty": "∞", "ell": "ℓ", "dots": "…", "odot": "∘", "top": "ᵀ",
    "qquad": "; ", "quad": " ", " ": " ", ",": " ", ";": " ", "!": "", "left": "", "right": "", "textstyle": "",
}  # fmt: skip
_ACCENTS = {"hat": "\u0302", "bar": "\u0304", "tilde": "\u0303"}
_WRAPPERS = ("mathrm", "mathbf", "text", "operatorname")
_ALONE = re.compile(r"[‖|√]?[\w.*²ᵀ\u0300-\u036f]+[‖|]?")
_TOKEN = re.compile(r"\\[A-Za-z]+|\\.|\s+|[A-Za-z]+|\d+|.", re.S)


def plain(tex: str) -> str:
    """The formula in one line: fractions with a slash, roots with √, indices after _ and exponents after ^."""
    text = _group(deque(_TOKEN.findall(tex)), whole=True)
    text = re.sub(r"\s+", " ", text).replace("-", "−")
    text = re.sub(r"([(⟨]) | (?=[,;)_^])", r"\1", text)
    return unicodedata.normalize("NFC", re.sub(r"([,;])[ ;]*;", r"\1", text).strip())


def _group(tokens: deque[str], *, whole: bool = False) -> str:
    """Up to the brace that closes it."""
    parts: list[str] = []
    while tokens:
        token = tokens.popleft()
        if token == "}" and not whole:
            break
        parts.append(_one(token, tokens))
    return "".join(parts)


def _one(token: str, tokens: deque[str]) -> str:
    if token == "{":
        return _group(tokens)
    if token in "_^":
        inner = _argument(tokens)
        if token == "^" and inner in ("2", "ᵀ"):
            return "²" if inner == "2" else inner
        before_a_letter = tokens and re.match(r"\w|\\(?!rangle)[A-Za-z]", tokens[0])
        return token + _together(inner) + (" " if before_a_letter else "")
    if not token.startswith("\\"):
        return token
    name = token[1:]
    if name in ("frac", "tfrac", "dfrac"):
        above, below = (_together(_argument(tokens)) for _ in range(2))
        after = next((t for t in tokens if not t.isspace()), "}")
        return f"{above} / {below}" if after in ("}", ")", ",", "=", "+", "-", ".") else f"({above} / {below})"
    if name == "sqrt":
        return f"√{_together(_argument(tokens))}"
    if name in _ACCENTS:
        inner = _argument(tokens)
        return inner + _ACCENTS[name]
    if name in _WRAPPERS:
        inner = _argument(tokens)
        return f" {inner} " if name == "operatorname" else inner
    if re.fullmatch(r"[bB]ig{1,2}[lr]?", name):
        return ""
    return _SYMBOLS.get(name, f"{name} ")


def _argument(tokens: deque[str]) -> str:
    """The next group, or the next sign: of a word or number that is its first."""
    while tokens and tokens[0].isspace():
        tokens.popleft()
    token = tokens.popleft() if tokens else ""
    if token[:1].isalnum() and len(token) > 1:
        tokens.appendleft(token[1:])
        token = token[0]
    return _one(token, tokens)


def _together(text: str) -> str:
    text = text.strip()
    return text if _ALONE.fullmatch(text) else f"({text})"
