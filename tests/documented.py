"""Blocks of commands in README and docs."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted((ROOT / 'docs').glob('*.md'))]


def blocks(page, language):
    """Texts of a page's blocks in a language, each with the number of its first line."""
    text = page.read_text()
    for match in re.finditer(rf'^```{language}\n(.*?)^```', text, flags=re.S | re.M):
        yield text[: match.start(1)].count('\n') + 1, match[1]


def lines(block):
    """Commands of a bash block, one each, without comments."""
    for line in re.sub(r'\\\n\s*', ' ', block).splitlines():
        line = re.sub(r'(^|\s)#.*', '', line).strip()
        if line:
            yield line


def words(line):
    """Of a command: what is in optional brackets is given."""
    return shlex.split(re.sub(r'[\[\]]', ' ', line))
