"""Options: those that several commands share, declared once, and those made from settings.

    def command(how: DistillSettings, on: Runtime, quiet: Quiet = False) -> None: ...

`Expanded` replaces each parameter whose type is a settings dataclass (`cdcca_cli.settings`) by one
option a field, or `--set NAME=VALUE` for tuning settings. All can also be set in cdcca.toml
(`cdcca_cli.config`). Precedence: command line, environment, the command's table, default.

`Command` refuses an empty value, which most often comes from an unset variable, and `-` and
addresses where a `Path` is expected, because only a `str` can name a standard stream or an address.
"""

import inspect
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from functools import update_wrapper
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import typer
from typer.core import TyperCommand

from cdcca_cli import config, settings, streams
from cdcca_cli.errors import SettingError, UsageError
from cdcca_cli.settings import Setting


def choice(names: Sequence[str], help: str, *spelled: str) -> Any:
    """An option that takes one of these names: checked, shown in the help, completed."""
    return typer.Option(
        *spelled,
        help=help,
        metavar=f"<{'|'.join(names)}>",
        autocompletion=completing(names),
        callback=one_of(names),
    )


def one_of(names: Sequence[str]) -> Callable[[typer.CallbackParam, str | None], str | None]:
    """A `callback` for typer: the value must be one of these names."""

    def checked(param: typer.CallbackParam, value: str | None) -> str | None:
        if value is not None and value not in names:
            raise SettingError(param.name or "", f"expected one of {', '.join(names)}", value)
        return value

    checked.names = tuple(names)  # type: ignore[attr-defined]
    return checked


def completing(names: Sequence[str]) -> Callable[[str], list[str]]:
    """An `autocompletion` for typer."""

    def complete(incomplete: str) -> list[str]:
        return [name for name in names if name.startswith(incomplete)]

    return complete


Output = Annotated[
    str | None, typer.Option("--output", "-o", help="File to write; - is standard output")
]
Force = Annotated[
    bool, typer.Option("--force", help="Replace the usual file, the one written without -o")
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print nothing but errors on stderr")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout")]
BatchSize = Annotated[int, typer.Option(min=1, help="Number of questions answered at once")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of all random choices")]
Device = Annotated[
    str | None, typer.Option("--device", "-m", help="Device folder", envvar="CDCCA_DEVICE")
]
Student = Annotated[
    str | None,
    typer.Option(help="Mirror: the cloud's copy of the device folder", envvar="CDCCA_STUDENT"),
]
Base = Annotated[
    str | None,
    typer.Option(
        help="Mirror: the device folder that the adaptation was made from", envvar="CDCCA_STUDENT"
    ),
]
# `config.teacher` reads the variable, because a method that needs no teacher must ignore it.
_TEACHER = "CDCCA_TEACHER"
_TEXTS = "expected text in quotes, or a list of texts"
Teacher = Annotated[
    str | None,
    typer.Option(
        help="Large model: a checkpoint folder, a hub id, an address (https://host/v1#model) or a "
        f"file of answers  [env var: {_TEACHER}]"
    ),
]
Shards = Annotated[
    list[str] | None,
    typer.Argument(help="Token shards of sample  [default: stdin]", show_default=False),
]


def no_dash(param: typer.CallbackParam, value: Any) -> Any:
    """A `callback` for typer: files, folders or addresses, but no standard stream."""
    if value == "-" or (isinstance(value, list) and "-" in value):
        raise SettingError(param.name or "", settings.NO_DASH, "-")
    return value


Anchors = Annotated[
    list[str] | None,
    typer.Option(
        help="Shards of source frames, where the student is held to its first answers (repeatable)",
        callback=no_dash,
    ),
]
FramesOperand = Annotated[
    str,
    typer.Argument(
        help="Folder of images, an image, a manifest, an annotation file or a video",
        show_default=False,
        callback=no_dash,
    ),
]
LiveOperand = Annotated[
    str,
    typer.Argument(
        help="Folder of images, an image, a manifest, an annotation file, a video, the address of "
        "a stream (rtsp://...) or a camera (/dev/video0)",
        show_default=False,
        callback=no_dash,
    ),
]
Images = Annotated[Path | None, typer.Option(help="Folder that image names are relative to")]
Prompt = Annotated[
    str | None, typer.Option(help="Question to ask of every frame instead of its own")
]
Task = Annotated[str | None, choice(("vqa", "caption"), "Keep only the questions of this task")]
Sign = Annotated[
    list[Path] | None,
    typer.Option(help="Private key to sign with (repeatable)", envvar="CDCCA_SIGN"),
]
Strict = Annotated[
    bool, typer.Option("--strict", help="Stop at the first frame or shard that cannot be used")
]


@dataclass(frozen=True)
class Only:
    """Options for some settings of a dataclass; the others come from the table of a command."""

    table: str
    names: tuple[str, ...] = ()


class _Part:
    """One parameter of a command whose type is a settings dataclass."""

    def __init__(self, owner: type, command: str, only: Only | None) -> None:
        self.owner, self.command, self.is_whole = owner, command, only is None
        self.table = command if only is None else only.table
        self.settings = settings.described(owner)
        self.names = {self.option(name): name for name in self.settings}
        self.tuning = [name for name, known in self.settings.items() if known.is_tuning]
        own = [name for name, known in self.settings.items() if not known.is_tuning]
        self.with_option = tuple(own) if only is None else only.names

    def option(self, name: str) -> str:
        """The name of a field's option, with underscores."""
        known = self.settings.get(name)
        return name if known is None else (known.option or name)

    def parameters(self) -> Iterator[inspect.Parameter]:
        """The options, as parameters of a command; the default None means not given."""
        hints, usual = settings.hints(self.owner), settings.defaults(self.owner)
        for name in self.with_option:
            known, kind, option = self.settings[name], hints[name], self.option(name)
            info = typer.Option(
                *(spelled for spelled in (_spelled(option), known.short) if spelled),
                help=known.help if kind is bool else known.line(usual.get(name)),
                metavar=None if kind is bool else _metavar(known, kind),
                show_default=False,
                autocompletion=completing([str(one) for one in known.choices or ()]),
            )
            hint: Any = bool if kind is bool else list[str] if self.repeats(name) else str
            yield _parameter(option, Annotated[hint | None, info])

    def repeats(self, name: str) -> bool:
        """Whether an option is given once for each value: that of a tuple whose default is ()."""
        return settings.defaults(self.owner).get(name) == ()

    def value(self, name: str, given: Any) -> Any:
        """The value of a setting for what an option or cdcca.toml gives. Raises: SettingError."""
        if not self.repeats(name):
            return settings.value_of(self.owner, name, config.as_text(given))
        given = [given] if isinstance(given, str) else given
        if not isinstance(given, list) or not all(one and isinstance(one, str) for one in given):
            raise SettingError(name, _TEXTS, config.as_text(given))
        return tuple(given)

    def build(self, given: Mapping[str, Any], toml: config.Toml) -> Any:
        """The dataclass, from texts by option or setting name, and from the table. UsageError."""
        found: dict[str, Any] = {}
        tables: dict[str, str] = {}  # where each value of cdcca.toml comes from
        for table in (self.table, self.command):
            for option, value in toml.tables.get(table, {}).items():
                name = self.names.get(option)
                if name is None or (table != self.table and name not in self.with_option):
                    continue
                try:
                    found[name] = self.value(name, value)
                except SettingError as error:
                    raise toml.refusal(table, option, error.reason, value) from None
                tables[name] = table
        for name in (*self.with_option, *(self.tuning if self.is_whole else ())):
            if (option := self.option(name)) in given:
                found[name] = self.value(name, given[option])
                tables.pop(name, None)
        # With a method from the command line, settings of other methods in the table are no error.
        chosen = any(name in given for name in settings.selectors(self.owner))
        counted = found.keys() - (tables if chosen else {})
        try:
            made = self.owner(**found)
            settings.refuse_idle(made, counted)
        except SettingError as error:
            if (source := tables.get(error.name)) is None:
                raise
            raise toml.refusal(source, self.option(error.name), error.reason, error.value) from None
        return made

    def help(self) -> str:
        """The tuning settings, a line each."""
        usual, width = settings.defaults(self.owner), max(map(len, self.tuning))
        return "\n".join(
            f"{name:<{width}}  {self.settings[name].line(usual.get(name), with_choices=True)}"
            for name in self.tuning
        )


class Expanded:
    """A command with its settings replaced by options, for typer to call."""

    def __init__(self, command: Callable[..., Any], name: str) -> None:
        update_wrapper(self, command)
        self.command, self.name = command, name
        self.parts: dict[str, _Part] = {}
        self.own: dict[str, inspect.Parameter] = {}  # options that are declared by hand
        shown: list[inspect.Parameter] = []
        parameters = inspect.signature(command, eval_str=True).parameters
        for parameter in parameters.values():
            hint, *notes = _without_annotated(parameter.annotation)
            if isinstance(hint, type) and is_dataclass(hint):
                only = next((note for note in notes if isinstance(note, Only)), None)
                part = self.parts[parameter.name] = _Part(hint, name, only)
                # An operand or option declared by hand, or of another part, takes the place of one.
                names = {*parameters, *(one.name for one in shown)}
                shown += [one for one in part.parameters() if one.name not in names]
            else:
                self.own[parameter.name] = parameter
                shown.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
        if self.tuned:
            shown.append(_parameter("set", self._set_option()))
        self.__signature__ = inspect.Signature(shown)
        self.__annotations__ = {parameter.name: parameter.annotation for parameter in shown}

    def __call__(self, **values: Any) -> Any:
        words = values.pop("set", None) or []
        given = {name: value for name, value in values.items() if value is not None}
        if "help" in words:
            streams.emit("\n".join(part.help() for part in self.tuned))
            return None
        given |= self._set_values(words)
        built = {name: part.build(given, config.current()) for name, part in self.parts.items()}
        return self.command(**{name: values[name] for name in self.own}, **built)

    @property
    def tuned(self) -> list[_Part]:
        """The settings that `--set` takes values of."""
        return [part for part in self.parts.values() if part.is_whole and part.tuning]

    def _set_option(self) -> Any:
        """The type of the parameter for `--set`."""
        names = [name for part in self.tuned for name in part.tuning]
        option = typer.Option(
            metavar="NAME=VALUE",
            help="Setting that tunes one method (repeatable); help: print all of them",
            autocompletion=completing([*(f"{name}=" for name in names), "help"]),
        )
        return Annotated[list[str] | None, option]

    def _set_values(self, words: Sequence[str]) -> dict[str, str]:
        """The values of `--set NAME=VALUE`, by name. Raises: SettingError."""
        owners = {name: part.owner for part in self.tuned for name in part.tuning}
        known = {option: name for part in self.tuned for option, name in part.names.items()}
        found = {}
        for word in words:
            name, equals, value = word.partition("=")
            if not equals:
                raise SettingError("set", "expected NAME=VALUE, or help", word)
            if name in known and known[name] not in owners:
                raise SettingError("set", f"expected `{name}`, an option of its own", word)
            if name not in owners:
                raise SettingError("set", settings.no_such("setting", name, list(owners)), word)
            settings.value_of(owners[name], name, value)
            found[name] = value
        return found

    @property
    def tables(self) -> set[str]:
        """The tables of cdcca.toml that this command reads."""
        return {self.name, *(part.table for part in self.parts.values())}

    def names(self) -> list[str]:
        """The names allowed in this command's table: its options and its tuning settings."""
        found = [name for name, parameter in self.own.items() if _is_option(parameter)]
        for part in self.parts.values():
            found += [part.option(name) for name in part.with_option]
            found += part.tuning if part.is_whole else []
        return found

    def defaults(self, toml: config.Toml) -> dict[str, Any]:
        """The table's values of the options that are declared by hand. Raises: UsageError."""
        found = {}
        for name, value in toml.tables.get(self.name, {}).items():
            parameter = self.own.get(name)
            if parameter is not None and (name != "teacher" or not os.environ.get(_TEACHER)):
                try:
                    found[name] = _checked(parameter, value)
                except ValueError as error:
                    raise toml.refusal(self.name, name, str(error), value) from None
        return found

    def spelling(self) -> dict[str, str]:
        """How a user writes each setting of this command."""
        found = {}
        for name, parameter in self.own.items():
            found[name] = _declared(name, parameter) if _is_option(parameter) else name.upper()
        for part in self.parts.values():
            for name in part.settings:
                option = part.option(name)
                if name in part.with_option:
                    words = _spelled(option)
                elif part.is_whole:
                    words = f"--set {option}"
                else:
                    words = f"{option} of [{part.table}] in {config.TOML}"
                found.setdefault(name, words)
                found.setdefault(option, words)
        return found | {"set": _spelled("set")}


def _parameter(name: str, hint: Any) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=None, annotation=hint)


def _without_annotated(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) is Annotated else (hint,)


def _info(parameter: inspect.Parameter) -> Any:
    """Typer's declaration of a parameter."""
    return next(iter(_without_annotated(parameter.annotation)[1:]), None)


def _declared(name: str, parameter: inspect.Parameter) -> str:
    info = _info(parameter)
    spelled = [one for one in (info.default, *(info.param_decls or ())) if isinstance(one, str)]
    return next((one for one in spelled if one.startswith("--")), _spelled(name))


def _is_option(parameter: inspect.Parameter) -> bool:
    return type(_info(parameter)).__name__ == "OptionInfo"


def _spelled(name: str) -> str:
    return "--" + name.replace("_", "-")


def _metavar(known: Setting, kind: Any) -> str:
    if known.choices is not None:
        more = ",..." if get_origin(kind) is tuple else ""
        return f"<{'|'.join(map(str, known.choices))}{more}>"
    if known.parse is not None or not isinstance(kind, type):
        return "<value>"
    return f"<{kind.__name__.lower()}>"


def _checked(parameter: inspect.Parameter, value: Any) -> Any:
    """A value of cdcca.toml for a parameter. Raises: ValueError with what was expected."""
    kind = settings.plain_type(_without_annotated(parameter.annotation)[0])
    info = _info(parameter)
    if get_origin(kind) is list:
        value = [value] if isinstance(value, str) else value
        if isinstance(value, list) and all(isinstance(one, str) and one for one in value):
            for one in value if get_args(kind) == (Path,) else ():
                settings.converted(Path, one)
            return value
        raise ValueError(_TEXTS)
    if kind in (str, Path) and not isinstance(value, str):
        raise ValueError("expected text in quotes")
    found = settings.converted(kind, config.as_text(value))
    names = getattr(info.callback, "names", None)
    if names is not None and found not in names:
        raise ValueError(f"expected one of {', '.join(names)}")
    least = getattr(info, "min", None)
    if least is not None and found < least:
        raise ValueError(f"expected {least} or more")
    return found


class Command(TyperCommand):
    """A command that refuses empty values, and `-` and addresses where they have no meaning."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not ctx.resilient_parsing:
            given, _, _ = self.make_parser(ctx).parse_args(args=list(args))
            for param in self.params:
                self._check(param, given.get(param.name or ""))
        return super().parse_args(ctx, args)

    def _check(self, param: Any, raw: Any) -> None:
        words = raw if isinstance(raw, list | tuple) else [raw]
        name = max(param.opts, key=len) if param.opts[0].startswith("-") else param.name.upper()
        if "" in words:
            raise UsageError(f"{name}: expected a value, found an empty one (an unset variable?)")
        if _takes_path(self.callback, param.name):
            for word in filter(None, words):
                if reason := settings.no_path(word):
                    raise UsageError(f"{name} {word}: {reason}")

    def invoke(self, ctx: Any) -> Any:
        """Run with stdout kept for data; help has been printed before this."""
        streams.claim_stdout()
        return super().invoke(ctx)


def _takes_path(callback: Any, name: str) -> bool:
    hint = inspect.signature(callback).parameters[name].annotation
    kind = settings.plain_type(_without_annotated(hint)[0])
    return kind is Path or get_args(kind) == (Path,)
