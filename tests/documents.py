"""What README and docs say to run: the Python of every page, and every command, with where it stands."""

import re
import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "examples" / "README.md",
    ROOT / "examples" / "jetson.md",
    ROOT / "groupmix_sam" / "pretrained" / "README.md",
]
SHELL = ("", "bash", "console", "sh", "shell")  # an indented block has no language
SKIP = re.compile(r"<!-- test: skip, (.+?) -->")


class Block(NamedTuple):
    """A block of code: its language, text and first line, and whether `<!-- test: skip, why -->` stands above it."""

    language: str
    text: str
    line: int
    skipped: bool


class Command(NamedTuple):
    """A command's line, its words as a shell would split them, and whether its block is skipped."""

    line: int
    words: list[str]
    skipped: bool


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def parsed(page: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8"))


def blocks(page: Path) -> Iterator[Block]:
    skipped = False
    for token in parsed(page):
        if token.type == "html_block":
            assert "test:" not in token.content or SKIP.match(token.content), f"{name(page)}: {token.content}"
            skipped = SKIP.match(token.content) is not None
            continue
        if token.type in ("fence", "code_block") and token.map is not None:
            yield Block(token.info.strip(), token.content, token.map[0] + (2 if token.type == "fence" else 1), skipped)
        skipped = False


def python(page: Path) -> str:
    """Return all Python of a page as one script in which each line has the number that it has in the page."""
    lines: list[str] = []
    for block in blocks(page):
        if block.language == "python" and not block.skipped:
            lines += [""] * (block.line - 1 - len(lines)) + block.text.splitlines()
    return "\n".join(lines)


def commands(page: Path) -> list[Command]:
    found = []
    for block in blocks(page):
        if block.language not in SHELL:
            continue
        for line, row in enumerate(block.text.replace("\\\n", " ").splitlines(), block.line):
            for command in row.removeprefix("$ ").split(" && "):
                words = shlex.split(command, comments=True)
                while words and re.match(r"[A-Z_]+=", words[0]):  # what goes into the environment
                    words = words[1:]
                if ">" in words:
                    words = words[: words.index(">")]
                if words:
                    found.append(Command(line, words, block.skipped))
    return found


def inline(page: Path) -> Iterator[Token]:
    """Yield the tokens within a page's text."""

    def walk(tokens: list[Token]) -> Iterator[Token]:
        for token in tokens:
            yield token
            yield from walk(token.children or [])

    yield from walk(parsed(page))


def code_spans(page: Path) -> Iterator[str]:
    """Yield what stands in backticks in the page's text."""
    return (token.content for token in inline(page) if token.type == "code_inline")


def options(page: Path) -> set[str]:
    """Return every option that is named in the page's text."""
    return {option for span in code_spans(page) for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", span)}


def links(page: Path) -> Iterator[str]:
    """Yield where the page's links and images lead to, but for other sites."""
    for token in inline(page):
        target = token.attrGet("href") or token.attrGet("src")
        if isinstance(target, str) and "://" not in target:
            yield target


def anchors(page: Path) -> set[str]:
    """Return the page's headings as links name them."""
    tokens = parsed(page)
    texts = [after.content for token, after in pairwise(tokens) if token.type == "heading_open"]
    return {re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-") for text in texts}
