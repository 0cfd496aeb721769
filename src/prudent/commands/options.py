"""Options declared once: a frozen dataclass a command, from which its command line, its YAML and its Python call come.

A field is ``name: Annotated[type, option(help)] = default``; a tuple is an option that may be given several times, and
``tuple[float, ...]`` takes commas too. ``command`` ties the class to the function that runs it (``run(options) ->
dict``) and the one that prints the result for a person (``show(result, options)``); both are named as
``module:function``, so that a wrong option is refused before any model library is imported.
"""

from __future__ import annotations

import contextlib
import difflib
import inspect
import math
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    NamedTuple,
    Self,
    TypeVar,
    Union,
    dataclass_transform,
    get_args,
    get_origin,
    get_type_hints,
)

import typer
from typer.models import ArgumentInfo

from prudent.data.records import brief
from prudent.errors import PrudentError

DEFAULT_MODEL = "smollm2"  # that of features.models, which imports torch
LARGEST = 2**63  # beyond it a whole number fits no array and no clock
MOST_TOKENS, MANY = 1_000_000, 10_000  # limits of a text's length, and of members, repetitions and the like
HOW = ("out", "overwrite", "as_json", "config", "seed")  # how a run is written; the manifest keeps the seed beside
READING = "Reading"  # panel
SOURCE = "a file or a hub id"  # marks options whose values are files where they look like one
ABOVE_ZERO = "a number above zero"  # marks options whose values are
FILES = (".jsonl", ".json", ".parquet", ".csv", ".tsv", ".arrow", ".gz", ".zst", ".feather", ".txt")


def option(help: str, *names: str, panel: str | None = None, **more: Any) -> Any:
    """An option in an ``Annotated`` hint: its help, names other than the field's, a panel, what typer.Option takes."""
    return typer.Option(*names, help=help, rich_help_panel=panel, **more)


class Field(NamedTuple):
    """One option: hint without marks, what typer shows of it, default (MISSING where it is required), marks."""

    name: str
    hint: Any
    info: Any
    default: Any
    marks: tuple[Any, ...] = ()

    @property
    def flag(self) -> str:
        """Its name on the command line, as in --max-length."""
        if isinstance(self.info, ArgumentInfo):
            return str(self.info.metavar or self.name.upper())
        # In Annotated the first declaration stands where typer's default does.
        given = (getattr(self.info, "default", None), *(getattr(self.info, "param_decls", None) or ()))
        declared = [text for text in given if isinstance(text, str) and text.startswith("--")]
        return declared[0].split("/")[0] if declared else f"--{self.name.replace('_', '-')}"

    @property
    def key(self) -> str:
        """Name in YAML and in Python: that of the flag."""
        return self.name if isinstance(self.info, ArgumentInfo) else self.flag[2:].replace("-", "_")

    @property
    def one(self) -> Any:
        """Type of one value: without None and without the tuple."""
        hint = self.hint
        if get_origin(hint) in (Union, types.UnionType):
            hint = next(part for part in get_args(hint) if part is not type(None))
        return get_args(hint)[0] if get_origin(hint) is tuple else hint

    @property
    def many(self) -> bool:
        """Whether it may be given several times."""
        return get_origin(self.hint) is tuple


@dataclass(frozen=True, kw_only=True)
class CommonOptions:
    """What every command takes."""

    command: ClassVar[Command]
    given: ClassVar[frozenset[str]] = frozenset()  # fields that were named, even at their default; ``build`` sets them
    seed: Annotated[int, option("Seed of every random choice below this command.", "--seed", min=0)] = 0
    as_json: Annotated[bool, option("Print one strict JSON object on stdout and nothing else there.", "--json")] = False
    config: Annotated[Path | None, option("YAML file of option names and values.", "--config")] = None

    def chosen(self) -> dict[str, Any]:
        """What was chosen, by name, as a manifest keeps it: without where and how it is written, and without seed."""
        return {name: value for name, value in asdict(self).items() if name not in HOW}

    @classmethod
    def presets(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Values, by field name, that stand in for the defaults where ``given`` options ask for it."""
        return {}

    def changed(self) -> dict[str, Any]:
        """Flags of the options that were named or aren't at their default, and the values."""
        found = [(field, getattr(self, field.name)) for field in fields_of(type(self))]
        return {f.flag: value for f, value in found if value != f.default or f.name in self.given}

    def unusable(self, flags: Iterable[str], why: str) -> list[str]:
        """A problem for each of these flags that was given: ``why`` says what doesn't use it."""
        return [f"{why} doesn't use {flag}; leave it out" for flag in self.changed() if flag in set(flags)]

    def problems(self) -> list[str]:
        """What is wrong with these options together; a command adds its own."""
        return []

    def checked(self) -> Self:
        """The options, or PrudentError naming everything that can't be used. Imports nothing heavy."""
        problems = [text for field in fields_of(type(self)) for text in faults(field, getattr(self, field.name))]
        problems += self.problems()
        if problems:
            raise PrudentError("; ".join(problems))
        out = getattr(self, "out", None)
        if out is not None and hasattr(self, "overwrite"):
            from prudent.runs import refuse_used

            refuse_used(out, self.overwrite)
        return self


@dataclass(frozen=True, kw_only=True)
class RowOptions(CommonOptions):
    """Options of a command that reads rows."""

    column: Annotated[
        tuple[str, ...], option("OURS=THEIRS, for example prompt=question.", "--column", panel=READING)
    ] = ()

    @property
    def columns(self) -> dict[str, str]:
        """The file's name of each of our columns that it names otherwise."""
        return pairs("--column", self.column, "OURS=THEIRS, for example prompt=question")

    def problems(self) -> list[str]:
        """What is wrong with these options, one sentence each; empty where nothing is."""
        return said(lambda: self.columns)


@dataclass(frozen=True, kw_only=True)
class PairOptions(RowOptions):
    """Options of a command that reads preference pairs."""

    without_prompt: Annotated[
        Literal["refuse", "shared", "empty"],
        option(
            "Pairs without a prompt: refuse, shared (what both texts begin with is the prompt) or empty (none).",
            panel=READING,
        ),
    ] = "refuse"


OUT_HELP = "Folder to write; it appears whole or not at all."
Overwrite = Annotated[bool, option("Replace a finished run that is in --out.", "--overwrite")]


@dataclass(frozen=True, kw_only=True)
class RunOptions(CommonOptions):
    """Options of a command that writes a run folder."""

    out: Annotated[Path, option(OUT_HELP, "--out")]
    overwrite: Overwrite = False


@dataclass(frozen=True, kw_only=True)
class OptionalRun(CommonOptions):
    """A run folder only where it is asked for."""

    out: Annotated[Path | None, option("Run folder to write: JSON, items, tables, report.html.", "--out")] = None
    overwrite: Overwrite = False


@dataclass(frozen=True, kw_only=True)
class ResumableOptions(CommonOptions):
    """Options of a command that goes on where it stopped when it is given again."""

    out: Annotated[Path, option(OUT_HELP, "--out")]


# Options that several commands have.
Images = Annotated[bool, option("Write PNG and SVG of each chart.")]
ModelName = Annotated[str, option("Language model: smollm2 (embedded), a folder or a hub id.", "--model")]
Pooling = Annotated[str, option("Features: last, mean or last+mean token states.", "--pooling")]
MaxLength = Annotated[int, option("Longest conversation in tokens.", "--max-length", min=1, max=MOST_TOKENS)]
Dtype = Annotated[str | None, option("Precision of the language model; by default what is fast.", "--dtype")]
FEATURES = "Features"  # panel
Encoder = Annotated[str, option("Language model that gives the features.", panel=FEATURES)]
EncoderPooling = Annotated[str, option("Token states: last, mean or last+mean.", panel=FEATURES)]
EncoderLength = Annotated[int, option("Longest text in tokens.", min=8, max=MOST_TOKENS, panel=FEATURES)]
EncoderDtype = Annotated[str | None, option("Precision of language models; by default what is fast.", panel=FEATURES)]
LanguageModel = Annotated[
    str | None, option("Language model to use in place of the one named in the folder (same weights).")
]
ScorerLength = Annotated[
    int | None,
    option(
        "Longest text in tokens for a classifier, by default its context and 2,048 at most; a folder of prudent "
        "fit has its own.",
        "--max-length",
        min=8,
        max=MOST_TOKENS,
    ),
]
ModelDtype = Annotated[str | None, option("Precision of the language model: float32, bfloat16.")]
OnError = Annotated[Literal["raise", "skip"], option("Bad rows: raise (list all and stop) or skip (drop, counted).")]
MaxPairs = Annotated[int | None, option("Use at most so many pairs, drawn at random.", "--max-pairs", min=2)]
MaxTestPairs = Annotated[
    int | None, option("Use at most so many test pairs, drawn at random.", "--max-test-pairs", min=2)
]


class Command(NamedTuple):
    """A command: its words (``evaluate validity``), what runs and shows it, help, example, what to do after Ctrl-C."""

    words: str
    run: str
    show: str
    help: str
    example: str
    interrupted: str


COMMANDS: list[type[CommonOptions]] = []
O = TypeVar("O", bound=CommonOptions)  # noqa: E741


@dataclass_transform(kw_only_default=True, frozen_default=True)
def command(
    words: str, run: str, show: str = "", interrupted: str = "nothing half-written is left"
) -> Callable[[type[O]], type[O]]:
    """Class decorator: these are the options of the command ``words``; makes the class a frozen dataclass, whose
    docstring is the command's help and ends in ``Example: ...``."""

    def declare(options: type[O]) -> type[O]:
        options = dataclass(frozen=True, kw_only=True)(options)
        help, _, example = inspect.cleandoc(options.__doc__ or "").partition("\n\nExample: ")
        options.command = Command(words, run, show, help, example, interrupted)
        COMMANDS.append(options)
        return options

    return declare


def fields_of(options: type[CommonOptions]) -> list[Field]:
    """Every option, the command's own first, those that all commands share last."""
    hints = get_type_hints(options, include_extras=True)
    found = []
    for field in fields(options):
        hint, *marks = get_args(hints[field.name])
        default = field.default if field.default_factory is MISSING else field.default_factory()
        info = next(mark for mark in marks if hasattr(mark, "param_decls"))
        found.append(Field(field.name, hint, info, default, tuple(marks)))
    owners = {name: index for index, owner in enumerate(options.__mro__) for name in inspect.get_annotations(owner)}
    return sorted(found, key=lambda field: owners[field.name])


def pairs(flag: str, entries: Iterable[str], form: str) -> dict[str, str]:
    """``NAME=VALUE`` texts as a mapping; PrudentError for another text and for a name that is given twice."""
    found: dict[str, str] = {}
    for entry in entries:
        left, _, right = entry.partition("=")
        if not left or not right:
            raise PrudentError(f"{flag} {entry!r}: give {form}")
        if left in found:
            raise PrudentError(f"{flag} names {left!r} twice; keep one")
        found[left] = right
    return found


def number_or_cv(flag: str, text: str | None) -> float | str | None:
    """A positive number, or the word "cv", or nothing; PrudentError for another text."""
    if text is None or text == "cv":
        return text
    with contextlib.suppress(ValueError):
        if 0 < float(text) < math.inf:
            return float(text)
    raise PrudentError(f'{flag} is {text!r}, must be "cv" or a positive number')


def time_of(flag: str, text: str) -> float:
    """Seconds of a time such as 60s, 10m or 1h; PrudentError for another text."""
    with contextlib.suppress(ValueError, KeyError, IndexError):
        seconds = float(text[:-1]) * {"s": 1, "m": 60, "h": 3600}[text[-1]]
        if 0 < seconds < math.inf:
            return seconds
    raise PrudentError(f"{flag} is {text!r}, must be a time such as 60s, 10m or 1h")


def numbers(flag: str, text: str) -> tuple[int, ...]:
    """Whole numbers from 1 on, separated by commas; PrudentError for another text."""
    with contextlib.suppress(ValueError):
        found = tuple(int(part) for part in text.split(",") if part.strip())
        if found and min(found) >= 1:
            return found
    raise PrudentError(f"{flag} is {text!r}; give whole numbers from 1 on, separated by commas")


def said(*checks: Callable[[], Any]) -> list[str]:
    """What these calls raise as PrudentError."""
    found = []
    for check in checks:
        try:
            check()
        except PrudentError as error:
            found.append(str(error))
    return found


def faults(field: Field, value: Any) -> list[str]:
    """What is wrong with one option's value: out of bounds, not a choice, not there."""
    found = []
    for one in value if field.many else () if value is None else (value,):
        least, most = getattr(field.info, "min", None), getattr(field.info, "max", None)
        if least is not None and not one >= least:
            found.append(f"{field.flag} is {one}, it must be at least {least}")
        if most is not None and not one <= most:
            found.append(f"{field.flag} is {one}, the limit is {most}")
        if get_origin(field.one) is Literal and one not in get_args(field.one):
            found.append(f"{field.flag} is {one!r}, must be one of {', '.join(get_args(field.one))}")
        if field.one is float and not math.isfinite(one):
            found.append(f"{field.flag} is {one}, it must be a finite number")
        elif ABOVE_ZERO in field.marks and not one > 0:
            found.append(f"{field.flag} is {one:g}, it must be above 0")
        missing = field.info.exists if isinstance(one, Path) else SOURCE in field.marks and str(one).endswith(FILES)
        if missing and not Path(one).exists():
            found.append(f"{field.flag} {one} is not there")
    return found


def typed(field: Field, value: Any) -> Any:
    """A value from YAML or Python as the option's type; PrudentError where it is of another."""
    if value is None and type(None) in get_args(field.hint):
        return None
    if field.many:
        values = value if isinstance(value, (list, tuple)) else [value]
        if field.one is float:
            values = [n for one in values for n in (one.replace(",", " ").split() if isinstance(one, str) else [one])]
        return tuple(_one(field, part) for part in values)
    return _one(field, value)


def _one(field: Field, value: Any) -> Any:
    wanted, plain = field.one, isinstance(value, (str, int, float)) and not isinstance(value, bool)
    if isinstance(value, int) and abs(value) >= LARGEST and wanted in (int, float):
        raise PrudentError(f"{field.flag} is {brief(value)}, the limit is {LARGEST - 1}")
    if isinstance(wanted, type) and wanted is not float and isinstance(value, wanted) and (plain or wanted is bool):
        return value
    if wanted is float and plain:  # 1e-4 is a text in YAML
        with contextlib.suppress(ValueError):
            return float(value)
    elif wanted is Path and isinstance(value, (str, Path)):
        return Path(value)
    elif (wanted is str or get_origin(wanted) is Literal) and (plain or isinstance(value, Path)):
        return str(value)
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", Path: "a path"}
    kind = words.get(wanted) or f"one of {', '.join(map(str, get_args(wanted)))}"
    raise PrudentError(f"{field.flag} is {str(value)[:60]!r}, must be {kind}")


def build(options: type[O], given: Mapping[str, Any]) -> O:
    """Checked options from values by name; PrudentError lists near names for one that is unknown."""
    values = named(options, given)
    made = options(**{**options.presets(values), **values})
    object.__setattr__(made, "given", frozenset(values))
    return made.checked()


def named(options: type[CommonOptions], given: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Typed values by field name, from names as the command line or the class has them."""
    known = {name: field for field in fields_of(options) for name in (field.name, field.key)}
    values = {}
    for name, value in given.items():
        key = str(name).replace("-", "_")
        if key not in known:
            near = difflib.get_close_matches(key, known, n=3, cutoff=0.5) or sorted(known)
            who = where + options.command.words
            raise PrudentError(f"{who} has no option {str(name)[:60]!r}; near: {', '.join(near)}")
        values[known[key].name] = typed(known[key], value)
    missing = [field.flag for field in fields_of(options) if field.default is MISSING and field.name not in values]
    if missing and not where:
        raise PrudentError(f"{options.command.words} needs {', '.join(missing)}")
    return values
