"""Report private or archaic words in code and docs, with the field's term for each.

    python tools/check_words.py                 # vidqa/, docs/ and README.md
    python tools/check_words.py vidqa/media     # one folder
    python tools/check_words.py --strict        # exit with 1 if anything was found

Identifiers are split at underscores and capitals, so `left_out` is found like "left out". The report is a warning:
a hit may be an honest use of the word. docs/glossary.md defines the terms to use instead.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
SUFFIXES = {".py", ".md", ".toml"}

#: Pattern of a word to avoid -> what to write instead.
WORDS: dict[str, str] = {
    r"beginnings?|begun|begins?": "prefix, prefill; start",
    r"keys and values": "KV cache",
    r"own parts?": "suffix; per-sequence KV",
    r"key heads?|stretch(es)?": "n_kv_heads; KV split",
    r"draws?|drawn": "random samples, RNG stream",
    r"rooms?": "capacity (slots, memory), free space (disk)",
    r"(?<!decimal )(?<!in )(?<!take )(?<!takes )places?(?! holder)": "slots, positions, paths, device placement",
    r"pictures?|stills|still (image|picture|backend|reader)s?|films?|mediums?": "image, video, media item",
    r"learns?|learn(ed|t)": "trainable parameters; trains",
    r"(?<!fine )(?<!fine-)tuned?|tunes": "fine-tune",
    r"whole or absent|absent|wholly|as ever|but for|cannot be had|no matter": "atomic; missing; in plain words",
    r"goes? on|going on|went on": "resumes, continues",
    r"mend(s|ed|ing)?": "repair, fix",
    r"anew": "again, from scratch",
    r"breaks? off|breaking off|broke off|broken off": "interrupt",
    r"twins?": "duplicate",
    r"owed|owes?": "pending",
    r"left out|leaves? out|leaving out": "ignored, skipped, excluded",
    r"known|knows?|knew": "existing; drop `Knows X`",
    r"nights?": "run",
    r"lies?|lay|lying": "is in, is stored in",
    r"tells?|told|telling": "reports, derives, distinguishes",
    r"says?|said|saying": "reports, logs, prints",
    r"look(s|ed|ing)? (at|into)": "inspects, evaluates, reads",
    r"hears?|heard|listens?": "receives",
    r"somebody|nobody|whoever|anybody": "the caller, the user, another process",
    r"behind": "after",
    r"beside": "next to, alongside",
    r"gives?|gave": "returns, yields, takes",
    r"speaks?|spoke|meant|wishes|wants?": "in plain words: prints, expects, requests",
    r"remembers?|forgets?|forgot": "stores, caches; drops",
}
#: Standard phrases, and names in other libraries, that contain one of the words.
ALLOWED = re.compile(
    r"assistant gives|known (issue|bug)s?|lay ?out|what (it|this) means|look(ing)? up|line of business|"
    r"group of pictures|on_train_begin|begin_suppress_tokens|tune_(llm|mm)_\w+",
    re.IGNORECASE,
)
PATTERN = re.compile("|".join(rf"(?P<w{i}>\b(?:{word})\b)" for i, word in enumerate(WORDS)), re.IGNORECASE)
ADVICE = list(WORDS.values())


def hits(path: Path) -> Iterator[tuple[int, str, str]]:
    """Yield (line number, word, advice) for every word to avoid in a file."""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        text = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|_", " ", ALLOWED.sub("", line))
        for match in PATTERN.finditer(text):
            yield number, match.group(), ADVICE[int((match.lastgroup or "w0")[1:])]


def files(places: list[Path]) -> Iterator[Path]:
    """Yield the text files at or below the given paths."""
    for place in places:
        yield from [place] if place.is_file() else sorted(p for p in place.rglob("*") if p.suffix in SUFFIXES)


def main() -> int:
    """Print the report; return 1 under --strict if anything was found."""
    parser = argparse.ArgumentParser(description="Report words that the glossary replaces. A warning, not a failure.")
    parser.add_argument("paths", nargs="*", type=Path, help="files or folders (default: vidqa docs README.md)")
    parser.add_argument("--strict", action="store_true", help="exit with 1 if anything was found")
    parser.add_argument("-q", "--quiet", action="store_true", help="print the total only")
    given = parser.parse_args()
    counts: Counter[str] = Counter()
    for path in files(given.paths or [ROOT / name for name in ("vidqa", "docs", "README.md")]):
        for number, word, advice in hits(path):
            counts[word.lower()] += 1
            if not given.quiet:
                print(f"{path}:{number}: {word} -> {advice}")
    top = ", ".join(f"{word} {n}" for word, n in counts.most_common(8))
    print(f"words to avoid: {counts.total()}" + (f" ({top})" if top else ""))
    return 1 if given.strict and counts else 0


if __name__ == "__main__":
    sys.exit(main())
