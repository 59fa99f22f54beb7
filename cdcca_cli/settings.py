"""Settings: dataclass fields that carry their help, range, unit and the methods they are for.

    @dataclass(frozen=True)
    class SampleSettings:
        passes: int = setting(8, "Number of forward passes with dropout", at_least=1)

        def __post_init__(self) -> None:
            check(self)

`cdcca_cli.options` makes command-line options from these fields, and the README's tables are made
from them. A field with `is_tuning` is set only by `--set` or in `cdcca.toml`. Messages name a
setting in backticks (`kl_weight`), which `main` replaces by the option.
"""

import operator
from collections.abc import Callable, Collection
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from cdcca_cli import remote
from cdcca_cli.errors import SettingError, UsageError

NO_DASH = "expected a name on disk; ./- is the file called -"
_LARGEST = 2.0**63  # also where whole numbers of other libraries end
_BOUNDS: dict[str, tuple[Callable[[float, float], bool], str]] = {
    "at_least": (operator.ge, "{:g} or more"),
    "above": (operator.gt, "more than {:g}"),
    "at_most": (operator.le, "at most {:g}"),
    "below": (operator.lt, "less than {:g}"),
}
_TRUTHS = {"true": True, "false": False}
_WORDS = {bool: "true or false", int: "a whole number", float: "a number"}


@dataclass(frozen=True)
class Setting:
    """What is known of one field.

    help: one line that is clear by itself, without a full stop.
    usually: the default in words, if it depends on other settings.
    at_least, above, at_most, below: the range of a number, in `unit`.
    parse: from an option's text to the value; raises ValueError with what was expected.
    methods: the methods that use the setting; None: all of them.
    option, short: the option's name (and key in cdcca.toml) if not the field's; short form: `-n`.
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
        """The help, with default, range, methods and, if asked for, the choices in brackets."""
        is_plain = default is None or default is False or default == ()
        usual = self.usually or ("" if is_plain else str(default))
        notes = [f"default: {usual}"] if usual else []
        if self._bounds() or (with_choices and self.choices):
            notes.append(self.expected())
        if self.methods is not None:
            notes.append(f"for {', '.join(self.methods)}")
        return self.help + (f"  [{'; '.join(notes)}]" if notes else "")

    def _bounds(self) -> dict[str, float]:
        """The limits that are set, by field."""
        found = {name: getattr(self, name) for name in _BOUNDS}
        return {name: bound for name, bound in found.items() if bound is not None}

    def expected(self) -> str:
        """The values allowed, in words."""
        if self.choices is not None:
            return f"one of {', '.join(map(str, self.choices))}"
        unit = f" {self.unit}" if self.unit else ""
        if self.at_least is not None and self.at_most is not None:
            return f"{self.at_least:g} to {self.at_most:g}{unit}"
        words = [_BOUNDS[name][1].format(bound) for name, bound in self._bounds().items()]
        return (", ".join(words) or "a finite number") + unit

    def allows(self, value: Any) -> bool:
        """Whether a value, other than None, is within the range or among the choices."""
        if self.choices is not None:
            return value in self.choices
        if isinstance(value, bool) or not isinstance(value, int | float):
            return True
        if not -_LARGEST < value < _LARGEST:  # also NaN
            return False
        return all(_BOUNDS[name][0](value, bound) for name, bound in self._bounds().items())


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


def as_json(made: Any) -> dict[str, Any]:
    """The settings of a dataclass as JSON has them; what is no number or list becomes text."""
    return {name: _as_json(getattr(made, name)) for name in described(type(made))}


def _as_json(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_as_json(one) for one in value]
    return value if value is None or isinstance(value, bool | int | float) else str(value)


def check(settings: Any) -> None:
    """Refuse a value out of range. Raises: SettingError for the first one."""
    for name, known in described(type(settings)).items():
        value = getattr(settings, name)
        for one in value if isinstance(value, tuple) else (value,):
            if one is not None and not known.allows(one):
                raise SettingError(name, f"expected {known.expected()}", one)


def selectors(owner: type) -> tuple[str, ...]:
    """The settings whose values `Setting.methods` lists: `method`, or the class's SELECTOR."""
    return tuple(getattr(owner, "SELECTOR", ("method",)))


def refuse_idle(made: Any, given: Collection[str]) -> None:
    """Refuse a setting that was given and does nothing with the methods of `made`.

    Raises: SettingError.
    """
    methods = {name: getattr(made, name) for name in selectors(type(made)) if hasattr(made, name)}
    for name, known in described(type(made)).items():
        if name in given and known.methods and not {*known.methods} & {*methods.values()}:
            # Of several selectors those count that have one of the methods among their choices.
            allowed, settings = {*known.methods}, described(type(made))
            idle = " and ".join(
                f"`{one}` {method}"
                for one, method in methods.items()
                if len(methods) == 1 or allowed & {*(settings[one].choices or ())}
            )
            words = ", ".join(known.methods)
            raise SettingError(name, f"does nothing with {idle}: it is for {words}")


def value_of(owner: type, name: str, text: str) -> Any:
    """The value of a setting for the text of an option. Raises: SettingError."""
    known = described(owner).get(name)
    if known is None:
        raise SettingError(name, no_such("setting", name, described(owner)))
    if not text:
        raise SettingError(name, "expected a value that is not empty")
    try:
        return known.parse(text) if known.parse else converted(hints(owner)[name], text)
    except SettingError:
        raise
    except UsageError as error:  # of a `parse`: the reason alone
        raise SettingError(name, str(error).partition(": ")[2], text) from None
    except ValueError as error:
        raise SettingError(name, str(error), text) from None


def converted(kind: Any, text: str) -> Any:
    """The value of a type for a text; commas separate the parts of a tuple. Raises: ValueError."""
    if get_origin(kind) is tuple:
        return tuple(part.strip() for part in text.split(","))
    if kind is Path and (reason := no_path(text)):
        raise ValueError(reason)
    try:
        return _TRUTHS[text.strip().lower()] if kind is bool else kind(text)
    except (KeyError, ValueError):
        raise ValueError(f"expected {_WORDS[kind]}") from None


def no_path(text: str) -> str:
    """Why a setting that takes a `Path` refuses this; empty if it does not."""
    return NO_DASH if text == "-" else remote.NOT_HERE if remote.is_address(text) else ""


def plain_type(hint: Any) -> Any:
    """A type hint without its `| None`."""
    if get_origin(hint) in (UnionType, Union):
        (hint,) = (part for part in get_args(hint) if part is not type(None))
    return hint


def no_such(what: str, name: str, names: Collection[str]) -> str:
    """Why `name` is refused: the names allowed, those that it may be a misspelling of first."""
    import difflib

    near = difflib.get_close_matches(name, names, 3)
    shown = [*near, *(other for other in names if other not in near)][:5]
    more = ", ..." if len(names) > len(shown) else ""
    return f"no such {what}: expected one of {', '.join(shown)}{more}"
