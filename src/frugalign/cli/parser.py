"""Flags from a dataclass. A verb is one module:

    @dataclass
    @defaults(seed=1)                                                              # another default of a shared option
    @notes(model_name_or_path="It writes the greeting.")                           # a sentence more in its help
    class GreetOptions(groups.Seed, groups.Model):                                 # shared options: options/groups.py
        name: str = option(REQUIRED, "Whom to greet.", positional=True)            # `frugalign greet NAME`, or --name NAME
        times: int = option(1, "How often.", COUNT)                                # the kind is the rule for its value
        loud: bool = option(False, "In capitals.")                                 # --loud, --no_loud, --loud true
        words: list[str] = option([], "Words to use.")                             # --words a b, or --words a --words b
        style: Literal["short", "long"] = option("short", "How much to say.")

    COMMAND = Command("greet", "Say hello.", GreetOptions)

    def run(argv: list[str]) -> int:
        options: GreetOptions = parse(COMMAND, argv)   # checked; --help prints and exits 0
        ...                                            # import what is heavy here
        return 0

The dataclass must be light to import: `--help` reads it alone. A verb whose full config needs torch names it by string,

    COMMAND = Command("proxy", "Train a proxy.", ProxyOptions, full="frugalign.methods.proxy_rlhf.config:ProxyConfig")

and `parse` then returns a `ProxyConfig`. Flags that the light class does not have are looked up in the full one, which
`--help_all` lists. Every verb takes `--config FILE.yaml`, and flags override it. Each mistake is one `FrugalignError`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from typing import Any, NoReturn, get_origin, get_type_hints

from frugalign.base.errors import FrugalignError
from frugalign.base.parsing import read_yaml
from frugalign.base.specs import is_url, load_attribute
from frugalign.base.wording import did_you_mean, shown
from frugalign.cli.values import from_text, from_yaml
from frugalign.options.check import check_options
from frugalign.options.declare import section_of
from frugalign.options.hints import choices, describe, list_item, members, scalar

_METAVARS = {int: "INT", float: "FLOAT", str: "TEXT", bool: "BOOL", dict: "JSON"}


@dataclass(frozen=True)
class Command:
    """A verb: its name, a one-sentence summary, its light options and, if it has one, its full config as `module:class`."""

    name: str
    summary: str
    options: type
    full: str | None = None
    epilog: str = ""
    config_first: bool = False
    """Whether the file comes before the flags, without --config: `frugalign study FILE.yaml`."""
    when: str = ""
    """What a form of a verb that has several is given."""
    other_forms: tuple[Command, ...] = ()


def parse(command: Command, argv: Sequence[str]) -> Any:
    """The options from `argv` and its `--config` file, as the command's full config if it has one, else as its options.

    Raises:
        FrugalignError: any mistake in flags or file.
        SystemExit: with 0, after `--help` and `--help_all`.
    """
    if command.config_first and argv and not argv[0].startswith("-"):
        argv = ["--config", *argv]
    if any(word in ("--help", "-h", "--help_all") for word in argv):
        print(help_of(command, every=not any(word in ("--help", "-h") for word in argv)), end="")
        raise SystemExit(0)
    known, unknown = _parser(command, command.options).parse_known_args(list(argv))
    target = command.options
    if command.full is not None:
        target = _full(command)
        if unknown:
            known, unknown = _parser(command, target).parse_known_args(list(argv))
    if unknown:
        raise FrugalignError(_unknown(command, target, unknown[0]))
    given = vars(known)
    config = given.pop("config", None)
    values = (read_config(config, target, command) if config is not None else {}) | given
    if is_url(str(values.get("output_dir", ""))):
        from frugalign.cli.elsewhere import copy_of

        values["output_dir"] = copy_of(values["output_dir"])
    for item in _fields(target):
        if item.name not in values and item.default is MISSING and item.default_factory is MISSING:
            raise FrugalignError(f"{_flag(item)} is missing; `frugalign {command.name} --help` explains it.")
    try:
        options = target(**values)
    except (ValueError, TypeError) as error:  # raised by the config's own __post_init__
        raise FrugalignError(f"{' '.join(str(error).split()).rstrip('.')}.") from error
    if command.full is None:  # a full config has checked itself, and then changed what transformers changes
        check_options(options)
    return options


def help_of(command: Command, *, every: bool = False) -> str:
    """What `--help` prints, or `--help_all` with the inherited flags (`every`)."""
    return _parser(command, _full(command) if every else command.options).format_help()


def read_config(path: str, target: type, command: Command | None = None) -> dict[str, Any]:
    """The YAML mapping in `path`, checked against the fields of `target`.

    `command`: whose options they are, if its other forms may have an unknown key.

    Raises:
        FrugalignError: a missing or broken file, an unknown key, or a value of the wrong type.
    """
    content = read_yaml(path, "config file")
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise FrugalignError(f"The config file {path} is not a mapping of flags to values.")
    hints, known = get_type_hints(target), [item.name for item in _fields(target)]
    values = {}
    for key, value in content.items():
        if key not in known:
            if command is not None and (elsewhere := _of_other_form(command, key)):
                raise FrugalignError(f"In the config file {path}, {key} {elsewhere}")
            raise FrugalignError(
                f"The config file {path} has an unknown key {shown(key)}{did_you_mean(key, known) or '.'}"
            )
        try:
            values[key] = from_yaml(value, hints[key])
        except ValueError as error:
            raise FrugalignError(
                f"In the config file {path}, {key} must be {describe(hints[key])}, not {shown(value)}."
            ) from error
    return values


class _Parser(argparse.ArgumentParser):
    """argparse that raises our errors."""

    command = ""

    def error(self, message: str) -> NoReturn:
        text = " ".join(message.removeprefix("argument ").split())
        raise FrugalignError(f"{text.rstrip('.')} (`frugalign {self.command} --help` lists the flags).")


def _parser(command: Command, target: type) -> _Parser:
    file = "FILE.yaml" if command.config_first else "[--config FILE.yaml]"
    parser = _Parser(
        prog=f"frugalign {command.name}",
        description=command.summary,
        epilog=command.epilog or None,
        allow_abbrev=False,
        add_help=False,
        argument_default=argparse.SUPPRESS,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=36),
        usage=f"frugalign {command.name}{_positionals(target)} {file} [--flag value …]",
    )
    parser.command = command.name
    general = parser.add_argument_group("general")
    general.add_argument(
        "--config", metavar="FILE", help="YAML file with flags as keys. Flags on the command line override it."
    )
    general.add_argument("-h", "--help", action="store_true", help="Show this help.")
    if command.full is not None:
        general.add_argument("--help_all", action="store_true", help="Show the inherited flags too (slower).")
    hints, own = get_type_hints(target), {item.name for item in _fields(command.options)}
    sections: dict[str, argparse._ArgumentGroup] = {}
    for item in _fields(target):
        title = section_of(target, item) or (command.name if item.name in own else "inherited")
        if title not in sections:
            sections[title] = parser.add_argument_group(title)
        _add(sections[title], item, hints[item.name])
    return parser


def _add(group: argparse._ArgumentGroup, item: Field[Any], hint: Any) -> None:
    text = _help(item)
    inner, item_type = scalar(hint), list_item(hint)
    if item.metadata.get("positional"):
        # As a positional and as a flag, so that a config file and the command line can name it.
        group.add_argument(item.name, nargs="?", metavar=item.name.upper(), type=_reader(hint), help=argparse.SUPPRESS)
        group.add_argument(f"--{item.name}", metavar=item.name.upper(), type=_reader(hint), help=text)
    elif inner is bool:
        group.add_argument(f"--{item.name}", nargs="?", const=True, metavar="BOOL", type=_reader(hint), help=text)
        if not item.name.startswith("no_"):
            group.add_argument(
                f"--no_{item.name}", dest=item.name, action="store_const", const=False, help=argparse.SUPPRESS
            )
    elif item_type is not None:
        one_may_do = str in members(hint)  # `str | list[str]`: one word stays text
        action: Any = _OneOrMore if one_may_do else "extend"
        metavar = _METAVARS.get(item_type, "TEXT")
        group.add_argument(
            f"--{item.name}", nargs="+", action=action, metavar=metavar, type=_reader(item_type), help=text
        )
    else:
        allowed = choices(hint)
        metavar = (
            "{" + ",".join(map(str, allowed)) + "}" if allowed else _METAVARS.get(get_origin(inner) or inner, "TEXT")
        )
        group.add_argument(f"--{item.name}", metavar=metavar, type=_reader(hint), help=text)


class _OneOrMore(argparse.Action):
    def __call__(
        self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None
    ) -> None:
        setattr(namespace, self.dest, values[0] if len(values) == 1 else values)


def _reader(hint: Any) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        try:
            return from_text(text, hint)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return read


def _help(item: Field[Any]) -> str:
    text = " ".join(str(item.metadata.get("help", "")).split())
    default = item.default_factory() if item.default_factory is not MISSING else item.default
    if default is MISSING:
        text += " (required)"
    elif default is not None and default is not False and default not in ("", []) and "default" not in text.lower():
        text += f" (default: {getattr(default, 'value', default)})"
    return _escape(text)


def _fields(target: type) -> list[Field[Any]]:
    return [item for item in fields(target) if item.init and not item.name.startswith("_")]


def _flag(item: Field[Any]) -> str:
    return item.name.upper() if item.metadata.get("positional") else f"--{item.name}"


def _positionals(target: type) -> str:
    return "".join(f" {item.name.upper()}" for item in _fields(target) if item.metadata.get("positional"))


def _full(command: Command) -> type:
    if command.full is None:
        return command.options
    full: type = load_attribute(command.full)
    return full


def _escape(text: str) -> str:
    return text.replace("%", "%%")


def _of_other_form(command: Command, name: object) -> str | None:
    """The rest of a sentence about an option that only another form of the verb has; None if none has it."""
    for other in command.other_forms:
        if name in [item.name for item in _fields(other.options)]:
            return f"is for {other.when}, and what is given is {command.when} (`frugalign {command.name} --help` lists the flags of both)."
    return None


def _unknown(command: Command, target: type, word: str) -> str:
    if not word.startswith("-"):
        return f"There is one argument too many, {shown(word)} (`frugalign {command.name} --help` lists the flags)."
    flag = word.split("=", 1)[0]
    if elsewhere := _of_other_form(command, flag.removeprefix("--").removeprefix("no_")):
        return f"{flag} {elsewhere}"
    near = did_you_mean(flag, [f"--{item.name}" for item in _fields(target)])
    return f"There is no flag {shown(flag, quoted=False)}{near} (`frugalign {command.name} --help` lists the flags)."
