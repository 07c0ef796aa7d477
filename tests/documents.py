"""What README and docs say to run: the Python of every page, and every command, with where it stands."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "examples" / "README.md",
    ROOT / "examples" / "jetson.md",
]
SHELL = ("", "bash", "console", "sh", "shell")  # an indented block has no language


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> Iterator[tuple[str, str, int]]:
    """Yield each block's language, text and first line."""
    for token in MarkdownIt("commonmark").parse(page.read_text(encoding="utf-8")):
        if token.type in ("fence", "code_block") and token.map is not None:
            yield token.info.strip(), token.content, token.map[0] + (2 if token.type == "fence" else 1)


def python(page: Path) -> str:
    """Return all Python of a page as one script in which each line has the number that it has in the page."""
    lines: list[str] = []
    for language, text, line in blocks(page):
        if language == "python":
            lines += [""] * (line - 1 - len(lines)) + text.splitlines()
    return "\n".join(lines)


def commands(page: Path) -> list[tuple[int, list[str]]]:
    """Return each command of a page's blocks, as a shell would split it, with its line."""
    found = []
    for language, text, start in blocks(page):
        if language not in SHELL:
            continue
        for line, row in enumerate(text.replace("\\\n", " ").splitlines(), start):
            for command in row.removeprefix("$ ").split(" && "):
                words = shlex.split(command, comments=True)
                while words and re.match(r"[A-Z_]+=", words[0]):  # what goes into the environment
                    words = words[1:]
                if ">" in words:
                    words = words[: words.index(">")]
                if words:
                    found.append((line, words))
    return found


def code_spans(page: Path) -> Iterator[str]:
    """Yield what stands in backticks in the page's text."""

    def walk(tokens: list[Token]) -> Iterator[str]:
        for token in tokens:
            if token.type == "code_inline":
                yield token.content
            yield from walk(token.children or [])

    yield from walk(MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8")))


def options(page: Path) -> set[str]:
    """Return every option that is named in the page's text."""
    return {option for span in code_spans(page) for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", span)}
