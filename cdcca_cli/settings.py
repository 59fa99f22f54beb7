"""Settings: dataclass fields that carry their help, range, unit and the methods they are for.

    @dataclass(frozen=True)
    class SampleSettings:
        passes: int = setting(8, "Number of forward passes with dropout", at_least=1)
        keep: Amount | None = setting(None, "Tokens kept of each frame", parse=parse_amount)

        def __post_init__(self) -> None:
            check(self)

`check` refuses a value out of range. `cdcca_cli.options` makes command-line options from the same
fields, and the README's tables are made from them. A field with `is_tuning` gets no option of its
own: it is given by name, with `--set` or in `cdcca.toml`.

Code below `commands` does not know how an option is spelled. A message names a setting in
backticks (`kl_weight`), and `main` replaces it by the option.
"""

from collections.abc import Callable, Collection
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from cdcca_cli.errors import SettingError, UsageError

NO_DASH = "expected a name on disk; ./- is the file called -"
_LARGEST = 2.0**63  # also where whole numbers of other libraries end
_TRUTHS = {"true": True, "false": False}
_WORDS = {bool: "true or false", int: "a whole number", float: "a number"}


@dataclass(frozen=True)
class Setting:
    """What is known of one field.

    help: one line that is clear by itself, without a full stop.
    usually: the default in words, if it depends on other settings.
    at_least, above, at_most, below: the range of a number, in `unit`.
    parse: from the text of an option to the value; raises ValueError with what was expected.
    methods: the methods that use the setting; None: all of them.
    is_tuning: given with `--set` or in cdcca.toml only.
    option: the name of the option and of the key in cdcca.toml, if it is not the field's.
    short: the option's short form, such as `-n`.
    """

    help: str
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    choices: tuple[str | int, ...] | None = None
    parse: Callable[[str], Any] | None = None
    unit: str = ""
    usually: str = ""
    methods: tuple[str, ...] | None = None
    is_tuning: bool = False
    option: str | None = None
    short: str | None = None

    def line(self, default: Any, *, with_choices: bool = False) -> str:
        """The help, with default, range and methods in brackets."""
        usual = self.usually or ("" if default is None or default is False else str(default))
        notes = [f"default: {usual}"] if usual else []
        bounds = (self.at_least, self.above, self.at_most, self.below)
        if any(bound is not None for bound in bounds) or (with_choices and self.choices):
            notes.append(self.expected())
        if self.methods is not None:
            notes.append(f"for {', '.join(self.methods)}")
        return self.help + (f"  [{'; '.join(notes)}]" if notes else "")

    def expected(self) -> str:
        """The values allowed, in words."""
        if self.choices is not None:
            return f"one of {', '.join(map(str, self.choices))}"
        unit = f" {self.unit}" if self.unit else ""
        if self.at_least is not None and self.at_most is not None:
            return f"{self.at_least:g} to {self.at_most:g}{unit}"
        lower = upper = ""
        if self.at_least is not None:
            lower = f"{self.at_least:g} or more"
        elif self.above is not None:
            lower = f"more than {self.above:g}"
        if self.at_most is not None:
            upper = f"at most {self.at_most:g}"
        elif self.below is not None:
            upper = f"less than {self.below:g}"
        return (", ".join(part for part in (lower, upper) if part) or "a finite number") + unit

    def allows(self, value: Any) -> bool:
        """Whether a value, other than None, is within the range or among the choices."""
        if self.choices is not None:
            return value in self.choices
        if isinstance(value, bool) or not isinstance(value, int | float):
            return True
        return (
            -_LARGEST < value < _LARGEST  # also not NaN
            and (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )


def setting(default: Any, help: str, **known: Any) -> Any:
    """A dataclass field with its `Setting`; `known` are the other fields of that class."""
    return field(default=default, metadata={"setting": Setting(help, **known)})


def described(owner: type) -> dict[str, Setting]:
    """The settings of a dataclass by name, in order; fields without metadata are left out."""
    return {one.name: one.metadata["setting"] for one in fields(owner) if "setting" in one.metadata}


def hints(owner: type) -> dict[str, Any]:
    """The type of each field, without `| None`."""
    return {name: plain_type(hint) for name, hint in get_type_hints(owner).items()}


def defaults(owner: type) -> dict[str, Any]:
    """The default of each field of a dataclass, by name."""
    return {one.name: one.default for one in fields(owner) if one.default is not MISSING}


def check(settings: Any) -> None:
    """Refuse a value out of range. Raises: SettingError for the first one."""
    for name, known in described(type(settings)).items():
        value = getattr(settings, name)
        for one in value if isinstance(value, tuple) else (value,):
            if one is not None and not known.allows(one):
                raise SettingError(name, f"expected {known.expected()}", one)


def refuse_idle(owner: type, method: str, given: Collection[str]) -> None:
    """Refuse a setting that was given and does nothing with this method. Raises: SettingError."""
    for name, known in described(owner).items():
        if name in given and known.methods is not None and method not in known.methods:
            raise SettingError(
                name, f"does nothing with `method` {method}: it is for {', '.join(known.methods)}"
            )


def value_of(owner: type, name: str, text: str) -> Any:
    """The value of a setting for the text of an option.

    Raises: SettingError: no such setting, or no such value.
    """
    known = described(owner).get(name)
    if known is None:
        names = ", ".join(sorted_by_likeness(name, described(owner)))
        raise SettingError(name, f"no such setting: expected one of {names}")
    if not text:
        raise SettingError(name, "expected a value, found an empty one")
    try:
        return known.parse(text) if known.parse else converted(hints(owner)[name], text)
    except SettingError:
        raise
    except UsageError as error:  # of a `parse`: the reason alone
        raise SettingError(name, str(error).partition(": ")[2], text) from None
    except ValueError as error:
        raise SettingError(name, str(error), text) from None


def converted(kind: Any, text: str) -> Any:
    """The value of a type for a text; parts of a tuple are between commas.

    Raises: ValueError with what was expected.
    """
    if get_origin(kind) is tuple:
        return tuple(part.strip() for part in text.split(","))
    if kind is Path and text == "-":
        raise ValueError(NO_DASH)
    try:
        return _TRUTHS[text.strip().lower()] if kind is bool else kind(text)
    except (KeyError, ValueError):
        raise ValueError(f"expected {_WORDS[kind]}") from None


def plain_type(hint: Any) -> Any:
    """A type hint without its `| None`."""
    if get_origin(hint) in (UnionType, Union):
        (hint,) = (part for part in get_args(hint) if part is not type(None))
    return hint


def sorted_by_likeness(name: str, names: Collection[str]) -> list[str]:
    """The names, those that `name` may be a misspelling of first."""
    import difflib

    near = difflib.get_close_matches(name, names, 3)
    return [*near, *(other for other in names if other not in near)]
