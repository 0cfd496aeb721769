"""Pages that are made from the code before each build: the options of every command, and the public functions."""

from __future__ import annotations

import inspect
import re
from dataclasses import MISSING
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from typer.models import ArgumentInfo

import prudent
import prudent.cli
from prudent.commands.options import COMMANDS, CommonOptions, Field, fields_of

FOLDER = "reference"
COLOUR = re.compile("\x1b\\[[0-9;?]*[A-Za-z]")
ROOMS = {
    "prudent": "The names at the top of the package.",
    "prudent.policies": "Policies over sampled candidates.",
    "prudent.policies.reward_function": "Rewards for trainers.",
    "prudent.evaluation": "Benchmarks and over-optimisation.",
    "prudent.evaluation.statistics": "Intervals and tests.",
    "prudent.theory": "Risks, bounds and certificates under Gaussian reward noise.",
    "prudent.data": "Reading preference pairs, ratings and pools.",
    "prudent.rewards.uncertainty": "What the members' scores say together.",
    "prudent.features.sampling": "Sampling responses.",
}


def cell(text: str) -> str:
    """Text that can stand in a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


def kind(field: Field) -> str:
    """What one value of an option is."""
    if get_origin(field.one) is Literal:
        return ", ".join(f"`{one}`" for one in get_args(field.one))
    words = {bool: "switch", int: "whole number", float: "number", str: "text", Path: "path"}
    return words[field.one] + " (several)" * field.many


def row(field: Field) -> str:
    """One option as a row: flag, value, default, help with bounds."""
    if field.default is MISSING:
        default = "*required*"
    elif field.default in (None, (), False):
        default = ""
    elif field.default is True:
        default = "on"
    else:
        values = field.default if field.many else (field.default,)
        default = "`" + " ".join(f"{one:g}" if isinstance(one, float) else str(one) for one in values) + "`"
    least, most = getattr(field.info, "min", None), getattr(field.info, "max", None)
    bounds = "".join(
        f" {word} {bound:g}." for word, bound in (("At least", least), ("At most", most)) if bound is not None
    )
    name = f"`{field.name.upper()}`" if isinstance(field.info, ArgumentInfo) else f"`{field.flag}`"
    return f"| {name} | {kind(field)} | {default} | {cell(field.info.help or '')}{bounds} |"


def command_page(options: type[CommonOptions]) -> str:
    """Markdown of one command: what it does, an example, its options by panel."""
    about = options.command
    lines = [f"# prudent {about.words}", "", cell(about.help), ""]
    lines += ["```", about.example, "```", ""]
    panels: dict[str, list[Field]] = {"Options": []}
    for field in fields_of(options):
        panels.setdefault(getattr(field.info, "rich_help_panel", None) or "Options", []).append(field)
    for title, found in panels.items():
        lines += [
            f"## {title}",
            "",
            "| option | value | default | |",
            "| --- | --- | --- | --- |",
            *map(row, found),
            "",
        ]
    return "\n".join(lines)


def public(module: Any) -> list[str]:
    """Names that a room exports; of a file without such a list, what is defined in it."""
    listed = getattr(module, "__all__", None)
    if listed is None:
        listed = [n for n, one in vars(module).items() if getattr(one, "__module__", None) == module.__name__]
    found = {name: getattr(module, name) for name in listed if not name.startswith("_")}
    return [name for name, one in found.items() if inspect.isroutine(one) or inspect.isclass(one)]


def api_page(room: str, about: str) -> str:
    """Markdown of one room: every public name with its docstring."""
    module = __import__(room, fromlist=["__all__"])
    lines = [f"# {room}", "", about, "", "```{eval-rst}"]
    for name in sorted(public(module)):
        found = getattr(module, name)
        if inspect.isclass(found) and issubclass(found, Exception):
            lines += [f".. autoexception:: {room}.{name}", ""]
        elif inspect.isclass(found):
            lines += [f".. autoclass:: {room}.{name}", "   :members:", ""]
        else:
            lines += [f".. autofunction:: {room}.{name}", ""]
    return "\n".join([*lines, "```", ""])


def write(app: Any) -> None:
    """Write the pages that are out of date under docs/reference, and remove those of commands that are gone."""
    folder = Path(app.srcdir) / FOLDER
    prudent.cli.built(prudent.cli.NAMES)  # every command's options are declared then
    pages = {f"command-{one.command.words.replace(' ', '-')}.md": command_page(one) for one in COMMANDS}
    pages |= {f"api-{room.replace('.', '-')}.md": api_page(room, about) for room, about in ROOMS.items()}
    for title, start in (("commands", "command-"), ("api", "api-")):
        names = [name.removesuffix(".md") for name in pages if name.startswith(start)]
        heading = "Commands" if start == "command-" else "Python"
        text = "Made from the code: what `--help` shows." if start == "command-" else "Made from the docstrings."
        pages[f"{title}.md"] = "\n".join([f"# {heading}", "", text, "", "```{toctree}", *names, "```", ""])
    for old in folder.glob("*.md"):
        if old.name not in pages:
            old.unlink()
    folder.mkdir(exist_ok=True)
    for name, text in pages.items():
        path = folder / name
        if not path.is_file() or path.read_text("utf-8") != text:
            path.write_text(text, "utf-8")


def docstring(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are plain prose: signs that reStructuredText would read as marks are escaped outside ``literals``."""
    for number, line in enumerate(lines):
        parts = line.split("``")
        parts[::2] = [part.replace("*", "\\*").replace("|", "\\|").replace("_ ", "\\_ ") for part in parts[::2]]
        lines[number] = "``".join(parts)


def uncoloured(app: Any, doctree: Any) -> None:
    """What commands print, without a terminal's colours: kernels force them."""
    from docutils.nodes import Text, literal_block

    for block in doctree.findall(literal_block):
        text = COLOUR.sub("", block.astext())
        if text != block.astext():
            block.rawsource, block["language"], block.children = text, "none", []
            block += Text(text)


def setup(app: Any) -> dict[str, Any]:
    from docutils.nodes import SkipNode
    from sphinx_markdown_builder.translator import MarkdownTranslator

    def star(self: Any, node: Any) -> None:
        """Sphinx sets the * of keyword-only arguments as an abbreviation, which this builder doesn't know."""
        self.add("\\*")
        raise SkipNode

    MarkdownTranslator.visit_abbreviation = star
    app.connect("builder-inited", write)
    app.connect("doctree-read", uncoloured)
    app.connect("autodoc-process-docstring", docstring)
    return {"version": prudent.__version__, "parallel_read_safe": True}
