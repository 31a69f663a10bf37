"""Write docs/reference: knobs, verbs, the HTTP API and the Python API, from the program itself.

python -m docs.reference
"""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import clinkd
from clinkd.cli import _parser
from clinkd.config import NAMED_POSITIONS, RunConfig, SpecialistConfig
from clinkd.serving.app import Served, create
from clinkd.serving.asking import RequestHandler
from clinkd.serving.decoding import Decoders
from clinkd.serving.engine import Engine
from clinkd.serving.limits import ServerLimits
from clinkd.settings import A_GROUP, Knobs, override, panel

FOLDER = Path(__file__).parent / "reference"
NOTE = "<!-- Written by `python -m docs.reference`; change the program, not this page. -->"


def spell_cell(value: object) -> str:
    """Text for a cell of a table."""
    return " ".join(str(value).split()).replace("|", "\\|").replace("<", "&lt;")


def write_table(head: list[str], rows: list[list[object]]) -> Iterator[str]:
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield "| " + " | ".join(map(spell_cell, row)) + " |"
    yield ""


def spell_value(value: Any) -> str:
    """A value of a knob, as `--set` takes it."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(spell_value, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


# ---- knobs ----------------------------------------------------------------------------------------------------------


def write_knobs() -> Iterator[str]:
    """Every group of knobs, once: a training has the same knobs wherever it stands."""
    yield "# Knobs"
    yield ""
    yield "Every knob of a run: `--set NAME=VALUE`, or a line of the YAML that `clinkd recipe NAME` prints. A name is"
    yield "that of its group, a dot and its own. Defaults are those of a bare run; recipes have others. `null` leaves a"
    yield "stage or a group out; where that is the default, `--set GROUP={}` brings it in first."
    yield ""
    whole = bring_in_groups(RunConfig())
    groups: dict[type[Knobs], list[str]] = {RunConfig: [""]}
    for knob in panel(whole):
        if isinstance(knob.value, Knobs):
            groups.setdefault(type(knob.value), []).append(knob.name)
    groups |= {type(setting): ["model.positions"] for setting in NAMED_POSITIONS.values()}
    groups |= {SpecialistConfig: ["teachers.NAME"]}
    for group, places in groups.items():
        yield from write_group(group, places, whole)


def bring_in_groups(config: RunConfig) -> RunConfig:
    """The config with each group that is left out in it."""
    while absent := [k.name for k in panel(config) if k.value is None and A_GROUP in k.wants]:
        config = override(config, [f"{absent[0]}={{}}"])
    return config


def write_group(group: type[Knobs], places: list[str], whole: RunConfig) -> Iterator[str]:
    named = [f"`{place}`" for place in places]
    yield f"## {', '.join(named) if places != [''] else 'A run'}"
    yield ""
    yield inspect.cleandoc(group.__doc__ or "")
    yield ""
    rows: list[list[object]] = []
    for knob in panel(group()):
        if "." not in knob.name:
            default = f"`{spell_value(knob.value)}`" if not isinstance(knob.value, Knobs) else "a group"
            meaning = "; ".join(filter(None, (knob.what, knob.wants, "changes speed only" * knob.speed_only)))
            rows.append([f"`{knob.name}`", default, meaning, "" if knob.paper is None else spell_value(knob.paper)])
    yield from write_table(["knob", "default", "meaning and values", "paper"], rows)
    values = {knob.name: knob.value for knob in panel(whole)}
    for place in places:
        for knob in panel(group()):
            value = values.get(f"{place}.{knob.name}", knob.value)
            if "." not in knob.name and value != knob.value and not isinstance(value, Knobs) and len(places) > 1:
                yield f"The default of `{place}.{knob.name}` is `{spell_value(value)}`."
                yield ""


# ---- verbs ----------------------------------------------------------------------------------------------------------


def write_verbs() -> Iterator[str]:
    yield "# Verbs"
    yield ""
    yield "What `clinkd VERB --help` says. Flags are never shortened. Wrong input gives one line and exit status 2, a"
    yield "fault of the program 1, Ctrl-C 130."
    yield ""
    parser = _parser()
    for verb in parser._list_verbs():
        yield f"## {verb.prog}"
        yield ""
        yield verb.description or ""
        yield ""
        actions = [a for a in verb._actions if a.dest != "help"]
        yield "```text"
        yield " ".join([verb.prog, *(s for a in actions if not a.option_strings and (s := spell_place(a))), "[flags]"])
        yield "```"
        yield ""
        rows = [[f"`{spell_flag(a)}`", spell_help(a)] for a in actions]
        yield from write_table(["argument", "meaning"], rows)
        for example in (verb.epilog or "").removeprefix("example: ").split("; "):
            yield f"    {example}"
        yield ""


def spell_place(action: argparse.Action) -> str:
    name = str(action.metavar or action.dest.upper())
    return {"?": f"[{name}]", "+": f"{name} ...", "*": f"[{name} ...]"}.get(str(action.nargs), name)


def spell_flag(action: argparse.Action) -> str:
    if not action.option_strings:
        return str(action.metavar or action.dest.upper())
    takes_value = action.nargs != 0
    value = action.metavar or (" | ".join(map(str, action.choices)) if action.choices else action.dest.upper())
    return action.option_strings[-1] + (f" {value}" if takes_value else "")


def spell_help(action: argparse.Action) -> str:
    return (action.help or "") + (" (required)" if action.required and action.option_strings else "")


# ---- the HTTP API ---------------------------------------------------------------------------------------------------


def describe_api() -> dict[str, Any]:
    """The OpenAPI description of a server that has corrections to show, too."""
    limits = ServerLimits()

    def open_no_model() -> Any:
        raise AssertionError("a description asks nothing")

    class Review:
        rounds = (1,)

    handler = RequestHandler(Engine(open_no_model, limits), Decoders(limits), limits)
    review: Any = Review()
    worklist: Any = object()  # not asked either
    return create(Served("RUN", handler, None, review, worklist)).openapi()


def write_api() -> Iterator[str]:
    api = describe_api()
    yield "# HTTP API"
    yield ""
    yield f"{api['info']['summary']} {api['info']['description']} A running server gives the same as `/openapi.json`."
    yield "How to use it: [SERVING.md](../SERVING.md#the-api)."
    yield ""
    for path, methods in api["paths"].items():
        for method, route in methods.items():
            yield from write_route(f"{method.upper()} {path}", route)
    failures = {status: r["description"] for p in api["paths"].values() for m in p.values() for status, r in
                m["responses"].items() if status not in ("200", "422")}  # fmt: skip
    yield "## Errors"
    yield ""
    yield "Each has the body `Failure`."
    yield ""
    yield from write_table(["status", "when"], [[status, why] for status, why in sorted(failures.items())])
    yield "## Bodies"
    yield ""
    for name, schema in api["components"]["schemas"].items():
        if name not in ("HTTPValidationError", "ValidationError"):
            yield from write_schema(name, schema)


def write_route(title: str, route: Mapping[str, Any]) -> Iterator[str]:
    yield f"## {title}"
    yield ""
    yield " ".join(route.get("description", "").split())
    yield ""
    rows: list[list[object]] = [[p["name"], spell_schema(p["schema"])] for p in route.get("parameters", ())]
    body = route.get("requestBody", {}).get("content", {})
    rows += [[f"body, {kind}", spell_schema(of["schema"])] for kind, of in body.items()]
    reply = route["responses"]["200"].get("content", {})
    rows += [[f"reply, {kind}", spell_schema(of.get("schema", {}))] for kind, of in reply.items()]
    yield from write_table(["", "type"], rows)


def write_schema(name: str, schema: Mapping[str, Any]) -> Iterator[str]:
    yield f"### {name}"
    yield ""
    yield from ([" ".join(schema["description"].split()), ""] if "description" in schema else [])
    required = schema.get("required", ())
    rows: list[list[object]] = [
        [f"`{field}`" + ("" if field in required else " (optional)"), spell_schema(of), of.get("description", "")]
        for field, of in schema.get("properties", {}).items()
    ]
    if rows:
        yield from write_table(["field", "type", "meaning"], rows)
    else:
        yield from (spell_schema(schema), "")


def spell_schema(schema: Mapping[str, Any]) -> str:
    """The type that a JSON schema describes, in words."""
    if "$ref" in schema:
        return f"`{schema['$ref'].rpartition('/')[2]}`"
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return " or ".join(dict.fromkeys(spell_schema(part) for part in schema[key]))
    if "const" in schema:
        return f'"{schema["const"]}"'
    if "enum" in schema:
        return " | ".join(f'"{value}"' for value in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {spell_schema(schema.get('items', {}))}"
    return str(schema.get("type", "anything"))


# ---- the Python API -------------------------------------------------------------------------------------------------


def write_python() -> Iterator[str]:
    yield "# Python API"
    yield ""
    yield inspect.cleandoc(clinkd.__doc__ or "")
    yield ""
    yield "Wrong input raises `clinkd.BadInput`, a `ValueError` of one line."
    yield ""
    for name in sorted(n for n in clinkd.__all__ if not n.startswith("_")):
        member = getattr(clinkd, name)
        yield from (
            write_class(name, member) if inspect.isclass(member) else write_function(f"clinkd.{name}", member, "##")
        )


def write_function(name: str, function: Callable[..., Any], marks: str) -> Iterator[str]:
    yield f"{marks} {name}"
    yield ""
    yield "```python"
    yield f"{name.rpartition('.')[2]}{spell_signature(function)}"
    yield "```"
    yield ""
    yield inspect.cleandoc(function.__doc__ or "")
    yield ""


def spell_signature(function: Callable[..., Any]) -> str:
    """The signature without self; annotations as they are written."""
    signature = inspect.signature(function)
    kept = [p.replace(annotation=Spelled(p.annotation)) for p in signature.parameters.values() if p.name != "self"]
    return str(signature.replace(parameters=kept, return_annotation=Spelled(signature.return_annotation)))


class Spelled:
    """An annotation that is shown without quotes."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


def write_class(name: str, kind: type[Any]) -> Iterator[str]:
    yield f"## clinkd.{name}"
    yield ""
    yield inspect.cleandoc(kind.__doc__ or "")
    yield ""
    if issubclass(kind, Knobs):
        yield "Its fields are the [knobs](knobs.md) of a run."
        yield ""
        return
    fields = {f: t for f, t in inspect.get_annotations(kind).items() if not f.startswith("_")}
    rows: list[list[object]] = [[f"`{field}`", f"`{kind_}`", ""] for field, kind_ in fields.items()]
    rows += [
        [f"`{n}`", f"`{inspect.signature(p.fget).return_annotation}`", inspect.cleandoc(p.fget.__doc__ or "")]
        for n, p in vars(kind).items()
        if isinstance(p, property) and p.fget and not n.startswith("_")
    ]
    if rows:
        yield from write_table(["attribute", "type", "meaning"], rows)
    for method, function in vars(kind).items():
        if inspect.isfunction(function) and not method.startswith("_"):
            yield from write_function(f"{name}.{method}", function, "###")


PAGES: Mapping[str, Callable[[], Iterator[str]]] = {
    "knobs.md": write_knobs, "verbs.md": write_verbs, "http.md": write_api, "python.md": write_python,
}  # fmt: skip


def write_page(name: str) -> str:
    """The text of a page of the reference."""
    title, *lines = PAGES[name]()
    text = "\n".join([title, "", NOTE, *lines])
    return re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n"


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for page in PAGES:
        (FOLDER / page).write_text(write_page(page), encoding="utf-8")
