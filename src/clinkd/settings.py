"""How `config` works: knobs as YAML, `--set`, unknown names, help, identity, and trees of older versions."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from clinkd.records import BadInput
from clinkd.spelling import LOOSE, find_near

MAX_BYTES, MAX_DEPTH, MAX_VALUES = 1 << 20, 40, 10_000  # of a YAML file: a recipe with its comments has 20 kB, 6, 400
MAX_WHOLE = 2**53  # above it a whole number is not the same in JSON and in tensors


def knob(
    default: Any, what: str, *, paper: Any = None, speed_only: bool = False, words: Mapping[str, Knobs] | None = None
) -> Any:
    """A field with its meaning.

    `paper` is the paper's value; `speed_only` keeps the knob out of a stage's identity; `words` are names of whole
    groups, which may be given instead of their members.
    """
    extra = {"paper": paper, "speed_only": speed_only, "words": words or {}}
    return Field(default=default, description=what, json_schema_extra=extra)


class Knobs(BaseModel):
    """A group of knobs, frozen. Unknown keys are refused by `load`, with the nearest name.

    `renamed` maps names of knobs in older versions to the names of today (with dots below the group); `from_older`
    reads a stored group of an older version.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    renamed: ClassVar[Mapping[str, str]] = {}

    def identity(self) -> dict[str, Any]:
        """The knobs that decide the result: all but those that change only speed. Plain JSON values."""
        values: dict[str, Any] = {}
        for name, info in type(self).model_fields.items():
            if not _extra(info).get("speed_only"):
                value = getattr(self, name)
                values[name] = value.identity() if isinstance(value, Knobs) else _plain(value)
        return values

    @classmethod
    def from_older(cls, tree: Mapping[str, Any]) -> dict[str, Any]:
        """A stored tree of this group with today's names of its knobs."""
        return {cls.renamed.get(name, name): value for name, value in tree.items()}


K = TypeVar("K", bound=Knobs)


def _extra(info: FieldInfo) -> Mapping[str, Any]:
    return info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: group.identity() for name, group in value.items()}
    return str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value


def change_knobs(config: K, **knobs: Any) -> K:
    """The group with some knobs changed, checked whole. Raises ValueError if a rule between knobs is broken.

    What was not given before is not given now, for rules that ask for it.
    """
    return type(config).model_validate({**{name: getattr(config, name) for name in config.model_fields_set}, **knobs})


# -- files and settings -----------------------------------------------------------------------------------------------


def load(path: Path, root: type[K]) -> K:
    """The config in a YAML file; knobs it does not name keep their defaults. Raises BadInput naming file and knob.

    Relative paths inside count from the current folder, and `~` is the home folder.
    """
    path = Path(path).expanduser()
    return _validate(root, _read(path), f"{path}: ")


def load_stored(path: Path, root: type[K], strict: bool = False) -> tuple[K, list[str]]:
    """The config that a run stored, perhaps by an older version, and the names of the knobs that this one lacks.

    These are left out; if `strict`, they are refused with the nearest name.
    """
    return validate_stored(_read(path), root, f"{path}: ", strict)


def validate_stored(tree: Mapping[str, Any], root: type[K], where: str, strict: bool = False) -> tuple[K, list[str]]:
    """As `load_stored`, of a tree that was read from `where`."""
    unknown: list[str] = []
    return _validate(root, read_older_tree(tree, root, None if strict else unknown), where), unknown


def _read(path: Path) -> dict[Any, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        text = data.decode()
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file; `clinkd recipe demo > {path.name}` writes one to edit") from None
    except IsADirectoryError:
        raise BadInput(f"{path}: a folder, where a YAML file is wanted") from None
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not a text file in UTF-8 (byte {error.start})") from None
    if len(data) > MAX_BYTES:
        raise BadInput(f"{path}: more than {MAX_BYTES:,} bytes, which no recipe has; check the path")
    tree = _parse_yaml(text, str(path))
    if not isinstance(tree, dict):
        raise BadInput(f"{path}: knobs as `name: value` are wanted; `clinkd recipe demo` prints a whole file")
    return tree


def override(config: K, settings: Iterable[str]) -> K:
    """The config with `settings`, each "a.b=VALUE" with VALUE in YAML, applied in order, then checked whole.

    As with `change_knobs`, what was not given before is not given now. Raises BadInput for an unknown knob (with the
    nearest name), a wrong value, or a knob of a stage that is left out.
    """
    tree = _dump_given(config)
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or not name.strip():
            raise BadInput(f"--set {setting}: NAME=VALUE is wanted, for example --set distill.kd_weight=0.25")
        _apply_setting(type(config), tree, name.strip(), text.strip())
    return _validate(type(config), tree)


def _dump_given(config: Knobs) -> dict[str, Any]:
    """The tree of the knobs that were given, and the tags of unions."""
    tags = [name for name, info in type(config).model_fields.items() if _is_tag(info)]
    return {name: _dump_value(value) for name, value in config if name in config.model_fields_set or name in tags}


def _dump_value(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _dump_value(group) for name, group in value.items()}
    return _dump_given(value) if isinstance(value, Knobs) else value


def dump(config: Knobs) -> dict[str, Any]:
    """Every knob as plain JSON values; its class loads it back equal."""
    return config.model_dump(mode="json")


# -- identity, and trees of older versions ----------------------------------------------------------------------------


def read_older_tree(
    tree: Mapping[str, Any], group: type[Knobs], unknown: list[str] | None, prefix: str = ""
) -> dict[str, Any]:
    """A stored tree with today's names. Knobs that no longer exist are left out, and their names go into `unknown`;
    without such a list they stay."""
    values: dict[str, Any] = {}
    for name, value in group.from_older(tree).items():
        info = group.model_fields.get(name)
        if info is None and unknown is not None:
            unknown.append(f"{prefix}{name}")
        elif info is None:
            values[name] = value
        elif isinstance(value, Mapping) and (inner := _group(info, value)):
            values[name] = read_older_tree(value, inner, unknown, f"{prefix}{name}.")
        elif isinstance(value, Mapping) and (inner := _named_group(info)):
            values[name] = {
                n: read_older_tree(v, inner, unknown, f"{prefix}{name}.{n}.") if isinstance(v, Mapping) else v
                for n, v in value.items()
            }
        else:
            values[name] = value
    return values


def complete(tree: Mapping[str, Any], group: type[Knobs]) -> dict[str, Any]:
    """A tree as of `Knobs.identity`, perhaps a part of one or of an older version, with every knob that decides.

    A knob that is missing, or null although it may not be, gets its default. Keys that are no knobs stay.
    """
    values = dict(group.from_older(tree))
    for name, info in group.model_fields.items():
        if _extra(info).get("speed_only"):
            values.pop(name, None)
            continue
        value = values.get(name)
        if name not in values or (value is None and not _nullable(info)):
            default = info.default
            value = default.identity() if isinstance(default, Knobs) else _plain(default)
        if isinstance(value, str) and value in _extra(info).get("words", {}):
            value = _extra(info)["words"][value].identity()
        inner = _group(info, value)
        values[name] = complete(value, inner) if inner and isinstance(value, Mapping) else value
    return values


def without_defaults(tree: Mapping[str, Any], group: type[Knobs]) -> dict[str, Any]:
    """A complete tree without the knobs that equal their defaults: a new knob that does nothing does not change it.

    The tag that tells the members of a union apart (a literal of one value) always stays. Different trees stay
    different: a group is compared as a whole with the default of its field.
    """
    values: dict[str, Any] = {}
    for name, value in tree.items():
        info = group.model_fields.get(name)
        default = info.default if info else None
        if info is None or _is_tag(info):
            values[name] = value
        elif inner := (_group(info, value) if isinstance(value, Mapping) else None):
            shortened = without_defaults(value, inner)
            same = isinstance(default, Knobs) and shortened == without_defaults(default.identity(), type(default))
            values |= {} if same else {name: shortened}
        elif value != (_plain(default) if not isinstance(default, Knobs) else default):
            values[name] = value
    return values


def _nullable(info: FieldInfo) -> bool:
    return NoneType in get_args(_bare_type(info.annotation))


def _is_tag(info: FieldInfo) -> bool:
    return get_origin(info.annotation) is Literal and len(get_args(info.annotation)) == 1


# -- help -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Knob:
    """One knob of a config, for people to read: `name` with dots, what it `wants`, the paper's value or None."""

    name: str
    value: Any
    what: str
    wants: str
    paper: Any
    speed_only: bool

    @property
    def is_group(self) -> bool:
        """Whether knobs follow that are its members."""
        return isinstance(self.value, Knobs) or (isinstance(self.value, dict) and bool(self.value))


def panel(config: Knobs, prefix: str = "") -> Iterator[Knob]:
    """All knobs in order, a group (its `value` is a Knobs, or a dict of them by name) before its members; a stage that
    is left out is None."""
    for name, info in type(config).model_fields.items():
        value = getattr(config, name)
        yield Knob(
            name=prefix + name,
            value=value,
            what=info.description or "",
            wants=_spell_wanted(info),
            paper=_plain(_extra(info).get("paper")),
            speed_only=bool(_extra(info).get("speed_only")),
        )
        if isinstance(value, Knobs):
            yield from panel(value, f"{prefix}{name}.")
        for member, group in value.items() if isinstance(value, dict) else ():
            yield Knob(f"{prefix}{name}.{member}", group, "", A_GROUP, None, False)
            yield from panel(group, f"{prefix}{name}.{member}.")


def recipe_text(config: Knobs, heading: str = "") -> str:
    """The config as YAML to copy and edit. Above each knob are its meaning, choices and the paper's value.

    Loading the text gives an equal config.
    """
    lines = [f"# {line}".rstrip() for line in heading.splitlines()]
    for knob_ in panel(config):
        depth = knob_.name.count(".")
        indent, name = "  " * depth, knob_.name.rpartition(".")[2]
        group = knob_.is_group
        about = [knob_.what] if knob_.what else []
        about += [knob_.wants] if not group or knob_.wants != A_GROUP else []
        about += [f"paper: {_spell(knob_.paper)}"] if knob_.paper is not None else []
        about += ["changes speed only"] if knob_.speed_only else []
        if depth == 0 and lines:
            lines.append("")
        lines += textwrap.wrap("; ".join(about), 110, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}#   ")
        lines.append(f"{indent}{name}:" + ("" if group else f" {_spell(knob_.value)}"))
    return "\n".join(lines) + "\n"


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What differs in two plain trees (as of `identity` or `dump`), in words, in the order of `ours`. A knob that one
    of them lacks is null there."""
    lines: list[str] = []
    for name in [*ours, *(n for n in theirs if n not in ours)]:
        mine, other = ours.get(name), theirs.get(name)
        if isinstance(mine, Mapping) and isinstance(other, Mapping):
            lines += differences(mine, other, f"{prefix}{name}.")
        elif isinstance(mine, Mapping) or isinstance(other, Mapping):
            where = "here and not there" if mine is None else "there and not here"
            lines.append(f"{prefix}{name} is left out {where}")
        elif mine != other:
            lines.append(f"{prefix}{name} is {_spell(mine)} here and {_spell(other)} there")
    return lines


# -- checks, in our own words -----------------------------------------------------------------------------------------


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # libyaml: ten times as fast
    """Refuses a key that is given twice; YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a list or group, not a name", key.start_mark)
            if key.value in keys:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} stands twice", key.start_mark)
            keys.add(key.value)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


def _parse_yaml(text: str, place: str) -> Any:
    """The value of a text in YAML. Raises BadInput, its message after `place`, for any text that gives none."""
    try:
        _demand_small(text)
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        why = _explain_yaml_error(error)
    except Exception as error:  # of its readers of numbers and dates, which raise what Python raises
        why = textwrap.shorten(str(error).partition(";")[0], 120)
    raise BadInput(f"{place}: not valid YAML: {why}")


def _demand_small(text: str) -> None:
    """Raise YAMLError for more values, aliases unfolded, or more groups within each other than a recipe may have."""
    sizes: dict[str | None, int] = {}  # values below each anchor
    around: list[tuple[str | None, int]] = []  # the anchors of the open groups, and the values before them
    total = 0
    for event in yaml.parse(text, Loader=_Loader):  # unlike `load` it does not call itself for each group
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, before = around.pop()
            sizes[anchor] = total - before
        elif isinstance(event, yaml.AliasEvent):
            if any(anchor == event.anchor for anchor, _ in around):
                raise yaml.YAMLError(f"*{event.anchor} stands within itself")
            total += sizes.get(event.anchor, 1)
        elif isinstance(event, yaml.NodeEvent):
            total += 1
            if isinstance(event, yaml.CollectionStartEvent):
                around.append((event.anchor, total))
        if len(around) > MAX_DEPTH or total > MAX_VALUES:
            raise yaml.YAMLError(f"more than {MAX_DEPTH} groups within each other, or {MAX_VALUES:,} values")


def _explain_yaml_error(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return " ".join(str(error).split())


def _validate(root: type[K], tree: dict[Any, Any], place: str = "") -> K:
    """The config of a tree. Raises BadInput, its message after `place`, for unknown knobs and wrong values."""
    try:
        _check_names(root, root, tree, "")
        return root.model_validate(tree)
    except BadInput as error:
        raise BadInput(f"{place}{error}") from None
    except ValidationError as error:
        troubles = []
        for e in error.errors():
            name, info = _find_knob(root, e["loc"])
            # a rule between knobs has its own message; other errors of pydantic are put into our words
            own_rule = e["type"] == "value_error"
            troubles.append(
                _name_group(name, str(e["ctx"]["error"])) if own_rule else _explain_wrong_value(name, e["input"], info)
            )
        raise BadInput(place + "; ".join(dict.fromkeys(troubles))) from None


def _name_group(group: str, rule: str) -> str:
    """The message of a rule, with the name of its group in front, unless it names its knobs in full."""
    return rule if not group or f"{group}." in rule else f"{group}: {rule}"


def _check_names(root: type[Knobs], model: type[Knobs], tree: Mapping[Any, Any], prefix: str) -> None:
    for key, value in tree.items():
        info = _find_field(root, model, key, prefix)
        group = _group(info, value)
        if group is not None and isinstance(value, Mapping):
            _check_names(root, group, value, f"{prefix}{key}.")
        elif (inner := _named_group(info)) and isinstance(value, Mapping):
            for name, member in value.items():
                _check_names(root, inner, member if isinstance(member, Mapping) else {}, f"{prefix}{key}.{name}.")
        elif isinstance(value, int) and abs(value) > MAX_WHOLE:
            shown = f"a number of {len(str(abs(value)))} digits"
            raise BadInput(f"{prefix}{key}: {shown} given, {_spell_wanted(info)} wanted, of 15 digits at most")
        elif isinstance(value, bool) and bool not in _list_types(info):  # Python would take true for 1
            raise BadInput(_explain_wrong_value(f"{prefix}{key}", value, info))


def _find_field(root: type[Knobs], model: type[Knobs], key: Any, prefix: str) -> FieldInfo:
    """The field of a knob. Raises BadInput with the nearest name if the group has no such knob."""
    if info := model.model_fields.get(key):
        return info
    key = textwrap.shorten(str(key), 60)
    if key in model.renamed:
        raise BadInput(f"{prefix}{key}: now called {prefix}{model.renamed[key]}")
    hint = f"{prefix.rstrip('.')} has" if prefix else "a run has"
    hint = f"{hint} {', '.join(model.model_fields)}"
    every = {name.rpartition(".")[2]: name for name in reversed(list(_list_names(root)))}
    if near := find_near(key, model.model_fields, LOOSE):
        hint = f"did you mean {prefix}{near}?"
    elif (elsewhere := find_near(key, every)) and every[elsewhere] != prefix + key:
        hint = f"did you mean {every[elsewhere]}?"
    raise BadInput(f"{prefix}{key}: no such knob; {hint}")


def _list_names(model: type[Knobs], prefix: str = "") -> Iterator[str]:
    for name, info in model.model_fields.items():
        yield prefix + name
        for group in _list_groups(info):
            yield from _list_names(group, f"{prefix}{name}.")


def _apply_setting(root: type[Knobs], tree: dict[str, Any], name: str, text: str) -> None:
    model, prefix, member = root, "", None
    *groups, last = name.split(".")
    for key in groups:
        info = member or _find_field(root, model, key, prefix)
        if not _list_groups(info) and not _named_group(info):
            raise BadInput(f"{name}: {prefix}{key} is a single knob, with nothing under it")
        # an earlier setting, or none, may have given only a part: the rest has its defaults
        if key not in tree:
            tree[key] = _dump_value(info.default)
        if tree[key] is None:
            stage = f"{prefix}{key}"
            raise BadInput(f"{name}: {stage} is left out here (null); bring it in first with --set {stage}={{}}")
        if isinstance(tree[key], str) and (named := _extra(info).get("words", {}).get(tree[key])):
            tree[key] = _dump_given(named)
        if not isinstance(tree[key], dict):
            raise BadInput(_explain_wrong_value(f"{prefix}{key}", tree[key], info))
        model, member = _group(info, tree[key]) or model, _member(info)
        prefix, tree = f"{prefix}{key}.", tree[key]
    tree[last] = _parse_value(name, text, member or _find_field(root, model, last, prefix))


def _parse_value(name: str, text: str, info: FieldInfo) -> Any:
    value = _parse_yaml(text, f"{name}={textwrap.shorten(text, 60)}")
    kinds = _list_types(info)
    if value is not None and not isinstance(value, str) and (str in kinds or Path in kinds):
        return text  # a name or folder such as 2026 is text, too
    if tuple in kinds and isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return value


def _bare_type(annotation: Any) -> Any:
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _list_members(annotation: Any) -> list[Any]:
    """The types a knob may have, with their bounds, without None."""
    bare = _bare_type(annotation)
    parts = get_args(bare) if get_origin(bare) in (Union, UnionType) else (bare,)
    return [part for part in parts if part is not NoneType]


def _list_types(info: FieldInfo) -> list[Any]:
    return [get_origin(_bare_type(member)) or _bare_type(member) for member in _list_members(info.annotation)]


def _list_groups(info: FieldInfo) -> list[type[Knobs]]:
    """The groups of knobs that a field may hold: none, one, or the members of a union."""
    return [m for m in _list_types(info) if isinstance(m, type) and issubclass(m, Knobs)]


def _group(info: FieldInfo, value: Any) -> type[Knobs] | None:
    """The group that reads `value`: the member of a union that has its tag, else the group of the field's default."""
    groups = _list_groups(info)
    if len(groups) < 2:
        return groups[0] if groups else None
    tag = info.discriminator
    assert isinstance(tag, str), "members of a union of groups are told apart by a tag"
    kind = value.get(tag) if isinstance(value, Mapping) else None
    return next((g for g in groups if g.model_fields[tag].default == kind), type(info.default))


def _named_group(info: FieldInfo) -> type[Knobs] | None:
    """The group that a field holds several times, each by a name."""
    return get_args(info.annotation)[1] if get_origin(info.annotation) is dict else None


def _member(info: FieldInfo) -> FieldInfo | None:
    """What stands under each name of such a field."""
    group = _named_group(info)
    return FieldInfo(annotation=group, default=group()) if group else None


A_GROUP = "a group of knobs"


def _spell_wanted(info: FieldInfo) -> str:
    words = [
        _spell_type(_bare_type(part)) + _spell_bounds(get_args(part)[1:]) for part in _list_members(info.annotation)
    ]
    if named := _extra(info).get("words"):
        words = [" | ".join(named), A_GROUP]
    text = " or ".join(dict.fromkeys(words))
    if any(getattr(bound, "pattern", None) for bound in info.metadata):
        text = "a folder's name of letters, digits and . _ -"
    return text + _spell_bounds(info.metadata) + (" or null" if _nullable(info) else "")


def _spell_bounds(metadata: Iterable[Any]) -> str:
    """The limits of a number in the metadata of its type, in words."""
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    limits = [
        f"{sign} {limit if isinstance(limit, int) else f'{limit:g}'}"
        for data in metadata
        for bound in getattr(data, "metadata", [data])
        for key, sign in signs.items()
        if (limit := getattr(bound, key, None)) is not None
    ]
    return f" {' and '.join(limits)}" if limits else ""


def _spell_type(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " | ".join(str(choice) for choice in get_args(kind))
    if get_origin(kind) is dict:
        return "groups of knobs by name"
    if get_origin(kind) is tuple:
        return f"a list of {_spell_type(_bare_type(get_args(kind)[0]))}"
    if isinstance(kind, type) and issubclass(kind, Knobs):
        return A_GROUP
    return {bool: "true or false", int: "a whole number", float: "a number", Path: "a path"}.get(kind, "text")


def _find_knob(root: type[Knobs], location: tuple[int | str, ...]) -> tuple[str, FieldInfo | None]:
    """The name and the field of the knob of an error, whose location may end inside a list or name a union's member."""
    model: type[Knobs] | None = root
    names: list[str] = []
    info: FieldInfo | None = None
    for part in location:
        if model is not None and part in model.model_fields:
            names.append(str(part))
            info = model.model_fields[str(part)]
            model = _group(info, None)
        elif info is not None and (member := _member(info)):
            names.append(str(part))
            info, model = member, _group(member, None)
        elif info is not None and isinstance(info.discriminator, str):
            model = _group(info, {info.discriminator: part})
        else:
            break
    return ".".join(names), info


def _explain_wrong_value(name: str, value: Any, info: FieldInfo | None) -> str:
    assert info is not None, f"an error outside every knob: {name}"
    return f"{name}: {textwrap.shorten(_spell(value), 60)} given, {_spell_wanted(info)} wanted"


def _spell(value: Any) -> str:
    """A value as YAML on one line."""
    plain = value.model_dump(mode="json") if isinstance(value, Knobs) else _plain(value)
    try:
        text = yaml.safe_dump(plain, default_flow_style=True, width=10**6, allow_unicode=True, sort_keys=False)
    except yaml.YAMLError:
        return str(value)
    return text.removesuffix("...\n").strip()
