"""Check docstrings, comments and test names against CONTRIBUTING.md.

Usage: ``python tools/check_language.py [PATH ...]``; the default is src, tests, benchmarks,
examples, tools.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

FOLDERS = ("src", "tests", "benchmarks", "examples", "tools")
MAX_SUMMARY = 79
MAX_TEST_NAME = 60

# Field terms and plain uses that contain a banned word.
ALLOWED = re.compile(r"question marks?|(?:look|looks|looked) like|it is known|twin ax[ei]s", re.I)
BANNED = re.compile(
    r"\b(?:"
    # Machinery is not a person: it returns, raises, computes, copies, waits.
    r"tells?|told|telling|sees|seen|saw|dreams?|dreamt|believes?|believed|asks?|asked|"
    r"doubts?|doubted|doubtful|denies|denied|say|says|said|looks|looked|answers?|answered|"
    r"lives|knows|wants|questions?|"
    # CUDA has streams, tests have references.
    r"lanes?|sight|twins?|"
    r"anew|nobody|somebody|everybody|whoever|apart|beside|"
    r"(?:goes|go) on|(?:of|on) (?:its|their) own|as it is|as they are|is had|comes? by"
    r")\b",
    re.I,
)
RIDDLE = re.compile(r"(?:^|[.:;] )What\b")

WH_WORD = re.compile(r"what|where|when|why|how|who|whose|which|whether", re.I)
THIRD_PERSON = re.compile(
    r"implements|decides|runs|captures|computes|copies|divides|estimates|(?:fine-)?tunes|segments|"
    r"wraps|finds|returns|holds|reads|writes|makes|loads|builds|opens|converts|gives|keeps|draws|"
    r"trains|provides|represents|describes|contains|stands|depends|measures|collects|raises|takes",
    re.I,
)
# First words that are no verb, and endings that no verb of ours has.
NOT_A_VERB = re.compile(
    rf"{WH_WORD.pattern}|an?|the|this|that|these|those|its?|one|two|three|both|all|every|each|any|"
    r"some|most|no|none|nothing|everything|nobody|and|or|as|at|by|for|from|in|into|of|on|per|to|up|"
    r"with|without|along|if|only|same|more|i|we|you|true|false|nan|entry|frame|flow|version|area|"
    r"largest|smallest|number|weighted|size|seconds|averaged|normalised|means|random|static|"
    r"bilinear|pixel|probability|texture|linear|square|absolute|index|memory|file|device|part|"
    r"corners|small|side|detail|independent|euclidean|grey|rgb|"
    r"(?!focus$|bias$).*(?<!s)s|(?!bring$|ring$|string$).*ing|"
    r"(?!function|position|mention|transition).*(?:t|s)ion|.*ness|.*ity",
    re.I,
)


def check_source(source: str, path: str) -> list[str]:
    """Return one line ``path:line: rule`` per violation in a Python file."""
    tree = ast.parse(source)
    found = [
        *_docstring_violations(tree),
        *_word_violations(tree, source),
        *_name_violations(tree),
    ]
    return [f"{path}:{line}: {rule}" for line, rule in sorted(set(found))]


def _docstring_violations(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        text = ast.get_docstring(node)
        if not text:
            continue
        line = node.body[0].lineno
        summary = text.splitlines()[0].strip()
        if len(summary) > MAX_SUMMARY:
            yield line, f"first line has {len(summary)} characters, at most {MAX_SUMMARY}"
        if not summary.endswith("."):
            yield line, "first line does not end with a period"
        first = re.split(r"[\s,:;.]", summary, maxsplit=1)[0]
        if isinstance(node, ast.Module | ast.ClassDef):
            if WH_WORD.fullmatch(first):
                yield line, f"first line starts with {first!r}, not with a noun or a verb"
            if THIRD_PERSON.fullmatch(first):
                yield line, f"first line starts with {first!r}: use the imperative or a noun"
        elif not _may_be_noun(node) and not _is_verb(first):
            yield line, f"first line starts with {first!r}, not with an imperative verb"


def _may_be_noun(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Return whether a docstring may name a thing: properties, fixtures and tests."""
    decorators = " ".join(ast.unparse(d) for d in node.decorator_list)
    return node.name.startswith("test_") or bool(
        re.search(r"property|fixture|\.setter", decorators)
    )


def _is_verb(word: str) -> bool:
    is_word = re.fullmatch(r"[A-Z][a-z]+(?:-[a-z]+)?", word)
    return bool(is_word) and not NOT_A_VERB.fullmatch(word)


def _word_violations(tree: ast.Module, source: str) -> Iterator[tuple[int, str]]:
    for line, text in _prose(tree, source):
        clean = ALLOWED.sub("", re.sub(r"`+[^`]*`+", "X", text))
        # Phrases may be broken over two lines of a docstring.
        lines = clean.splitlines() or [""]
        for offset, own in enumerate(lines):
            both = " ".join(
                [own.strip(), *(part.strip() for part in lines[offset + 1 : offset + 2])]
            )
            for match in BANNED.finditer(both):
                if match.start() < len(own.strip()):
                    yield line + offset, f"banned word {match[0].lower()!r}"
            if RIDDLE.search(own.strip()):
                yield line + offset, "sentence starts with 'What': name the thing"


def _prose(tree: ast.Module, source: str) -> Iterator[tuple[int, str]]:
    """Yield first line number and text of docstrings, comments, error and help texts."""
    for node in ast.walk(tree):
        texts: list[ast.AST] = []
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            texts = [node.value]
        elif isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            texts = [part for argument in node.exc.args for part in ast.walk(argument)]
        elif isinstance(node, ast.keyword) and node.arg == "help":
            texts = list(ast.walk(node.value))
        for part in texts:
            if isinstance(part, ast.Constant) and isinstance(part.value, str):
                yield part.lineno, part.value
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and not re.match(r"#\s*(?:noqa|type:)", token.string):
            yield token.start[0], token.string.lstrip("# ")


def _name_violations(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        is_test = isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
        if is_test and len(node.name) > MAX_TEST_NAME:
            size = len(node.name)
            yield node.lineno, f"test name has {size} characters, at most {MAX_TEST_NAME}"


def main(arguments: list[str]) -> int:
    """Check all Python files of some folders; return the exit status."""
    paths = [Path(argument) for argument in arguments or FOLDERS]
    files = sorted({f for p in paths for f in (p.rglob("*.py") if p.is_dir() else [p])})
    found = [
        violation
        for file in files
        for violation in check_source(file.read_text(encoding="utf-8"), file.as_posix())
    ]
    sys.stdout.writelines(f"{violation}\n" for violation in found)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
