"""The one gate to every folder with a model: nothing in such a folder is run, followed outside or fetched.

A folder comes from anywhere. `opened_folder` checks it and gives the loaders of other libraries a clean copy in its
place: configurations without what names programs (`auto_map`, kernels), links to the files of the vocabulary and to
safetensors that lie inside the folder, and nothing else. So a `.py`, a pickle or a `custom_generate` is not there for
any loader to find. Of an adapter, the base that it names is opened so, and gets its additions. Starts without torch.
"""

from __future__ import annotations

import json
import math
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from clinkd.records import BadInput

INDEX = ".index.json"  # how the name of a file ends that tells which weights lie where
MODULES = "modules.json"  # of a sentence-transformers folder
OPEN_CLIP = "open_clip_config.json"
ADAPTER = "adapter_config.json"
LOW_RANK = "adapter_model.safetensors"  # the additions of an adapter
ADDITION = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
# Settings of an adapter that say how it was trained, or repeat what the names of its weights tell.
TRAINED_BY = {
    "auto_mapping", "base_model_name_or_path", "exclude_modules", "inference_mode",
    "layers_pattern", "layers_to_transform", "lora_dropout", "megatron_core", "peft_type", "peft_version",
    "qalora_group_size", "revision", "target_modules", "task_type",
}  # fmt: skip
STARTS = (True, False, "gaussian")  # of `init_lora_weights`, which leave the base as it is
EYES = "eyes.safetensors"  # frozen image features of one of our models: no part of its network
# Configurations, which are copied without IGNORED; and vocabularies, whose keys are tokens and no settings.
CONFIGS = re.compile(
    r"(config|generation_config|tokenizer_config|preprocessor_config|processor_config|open_clip_config|"
    r"config_sentence_transformers|sentence_[\w-]+_config|.+\.safetensors\.index)\.json"
)
WORDS = ("vocab.json", "vocab.txt", "merges.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model")
VOCABULARIES = ("tokenizer.json", *WORDS, "special_tokens_map.json", "added_tokens.json", "chat_template.jinja")
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
# Settings that name programs, kernels of a hub, other models or files elsewhere. None changes what weights compute.
IGNORED = re.compile(
    r"auto_map|trust_remote_code|custom_generate|use_kernels|kernel_config|bpe_path|.*_implementation(_internal)?|"
    r".*name_or_path|.*_file"
)
QUANTIZED = ("quantization_config", "compression_config")
PACKED = (".qweight", ".qzeros")  # how names of weights end that are several numbers in one
FULL_PRECISION = "take the release in full precision, or let transformers `dequantize()` the model and save it"
HUB_SCHEMES = ("hf-hub:", "hf_hub:", "local-dir:")
SENTENCE_MODULES = ("Transformer", "Pooling", "Dense", "Normalize")  # what sentence-transformers may build
# What config.json may ask for, next to what its weights have: parts that a model leaves unused keep some defaults. A
# network of such sizes is built without memory, and then its weights do not fit.
COUNTS = ("num_hidden_layers", "num_layers", "n_layer", "layers", "depth")
MOST_LAYERS = 256
MOST = {"image_size": 1 << 14, "max_position_embeddings": 1 << 24, "vocab_size": 1 << 22}
WIDEST = 1 << 18  # of what is named a size, a width, or a number of something
SIZE = re.compile(r".*(size|width|dim|ratio|heads|channels|experts)")
LARGEST = {"preprocessor_config.json": 1 << 26, "processor_config.json": 1 << 26}  # of any number, as of pixels

WEIGHT_TYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}  # as headers and as torch name them

Shapes = Mapping[str, tuple[int, ...]]


class LoraFolder(NamedTuple):
    """A folder with a LoRA adapter, and the folder of its base. The additions are `scale` * B @ A, of rank `rank`."""

    folder: Path
    base: Path
    rank: int
    scale: float

    def additions(self) -> dict[str, tuple[Any, Any]]:
        """A [R, in] and B [out, R] by the name of the layer. Raises BadInput for weights that are something else."""
        from safetensors.torch import load_file

        path = self.folder / LOW_RANK
        factors: dict[str, dict[str, Any]] = {}
        for name, tensor in load_file(path).items():
            match = ADDITION.fullmatch(name)
            if not match or tensor.ndim != 2 or tensor.shape["AB".index(match[2])] != self.rank:
                raise BadInput(f"{path}: {name} {[*tensor.shape]} is no LoRA of rank {self.rank} of a linear layer")
            if not tensor.isfinite().all():
                raise BadInput(f"{path}: tensor {name} holds NaN or infinite numbers; copy it there again")
            factors.setdefault(match[1], {})[match[2]] = tensor
        if lone := next((layer for layer, pair in factors.items() if len(pair) < 2), None):
            raise BadInput(f"{path}: of {lone} there is only lora_A or lora_B; copy the file there again")
        return {layer: (pair["A"], pair["B"]) for layer, pair in factors.items()}


def read_lora(folder: Path) -> LoraFolder | None:
    """The adapter in a folder; None if there is none.

    Raises BadInput, naming the base that is wanted, where that is no folder here; and for an adapter that is more than
    plain LoRA.
    """
    path = folder / ADAPTER
    if not path.exists():
        return None
    demand_inside(folder, path)
    settings = _read_object(path)
    named = str(settings.get("base_model_name_or_path") or "")
    base = Path(named).expanduser()
    if not named or not base.is_dir():
        raise BadInput(
            f"{path}: an adapter of the base {named!r}, which is no folder here; fetch that base, and put the path of "
            "its folder there as base_model_name_or_path"
        )
    more = {key for key, value in settings.items() if value and key not in TRAINED_BY}
    more -= {"r", "lora_alpha", "use_rslora", *({"bias"} if settings.get("bias") == "none" else ())}
    more -= {"init_lora_weights"} if settings.get("init_lora_weights", True) in STARTS else set()
    if settings.get("peft_type") != "LORA" or more:
        kind = f"{min(more)}={settings[min(more)]!r}" if more else f"peft_type={settings.get('peft_type')!r}"
        raise BadInput(
            f"{path}: {kind}: only plain LoRA is merged here; merge it by peft (`merge_and_unload`), save that, and "
            "give its folder"
        )
    rank, alpha = settings.get("r"), settings.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float):
        raise BadInput(f"{path}: r={rank!r}, lora_alpha={alpha!r}: two numbers are wanted; copy the file there again")
    _refuse_pickles(folder, str(folder), LOW_RANK)
    demand_inside(folder, folder / LOW_RANK)
    read_header(folder / LOW_RANK)
    return LoraFolder(folder, base, rank, alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank))


def base_of(folder: Path) -> Path:
    """The folder of a whole model: of the base, where there is an adapter. Raises BadInput as `read_lora`."""
    lora = read_lora(folder)
    return lora.base if lora else folder


class ModelFolder(NamedTuple):
    """A checked folder. `path`: the clean copy, for loaders; `name`: how errors name the folder.

    `lora`: the adapter that was given; then the folder is that of its base.
    """

    folder: Path
    path: Path
    name: str
    lora: LoraFolder | None = None

    def network(self, cls: Any, **settings: Any) -> tuple[Any, dict[str, Any]]:
        """The network of a class of transformers, with an adapter merged in, and its report on missing and unexpected
        keys.

        Raises BadInput as `refuse_pickles` and `demand_finite`.
        """
        self.refuse_pickles()
        network, report = cls.from_pretrained(
            self.path, output_loading_info=True, use_safetensors=True, local_files_only=True, trust_remote_code=False,
            **settings,
        )  # fmt: skip
        self.demand_finite(network)
        if self.lora:
            from clinkd.model.adapters import merge_additions

            merge_additions(network, self.lora.additions(), self.lora.scale, str(self.lora.folder))
        return network, report

    def refuse_pickles(self, wanted: str = "model.safetensors") -> None:
        """Raises BadInput if all weights are pickles, which can run any program when opened, or there are none."""
        if not any(self.path.glob("*.safetensors")):
            _refuse_pickles(self.folder, self.name, wanted)

    def tokenizer(self, cls: Any = None) -> Any:
        """The tokenizer, of the class that the folder names if transformers has it.

        Raises BadInput where there is none, or one in a form that transformers cannot turn into a fast one.
        """
        from transformers import AutoTokenizer

        words = [name for name in WORDS if (self.path / name).is_file()]
        is_fast = (self.path / "tokenizer.json").is_file()
        if not is_fast and not words:
            raise BadInput(
                f"{self.name}: no tokenizer there; copy tokenizer.json and tokenizer_config.json of its release"
            )
        try:
            return (cls or AutoTokenizer).from_pretrained(self.path, local_files_only=True, trust_remote_code=False)
        except (ValueError, OSError, KeyError, TypeError, AttributeError, ImportError) as error:
            if is_fast:
                raise
            raise BadInput(
                f"{self.name}: no tokenizer.json there, and {', '.join(words)} cannot be read without it "
                f"({first_line(error)}); copy tokenizer.json of the release, or write it in that folder: python -c "
                "\"from transformers import AutoTokenizer as A; A.from_pretrained('.').save_pretrained('.')\""
            ) from None

    def processor(self, cls: Any) -> Any:
        """The image processor, of a given class. Raises BadInput where it names no way of resampling that there is."""
        from PIL import Image

        processor = cls.from_pretrained(self.path, local_files_only=True, trust_remote_code=False)
        try:
            Image.Resampling(processor.resample)
        except ValueError:
            raise BadInput(
                f"{self.folder / 'preprocessor_config.json'}: resample is {processor.resample!r}; one of Pillow's "
                "numbers is wanted (2 bilinear, 3 bicubic), that with which the model was trained"
            ) from None
        return processor

    def eyes(self) -> tuple[dict[str, Any], dict[str, str]]:
        """The tensors in the file of EYES, and what the file says of itself. Raises BadInput where it is missing, or
        holds NaN or infinite numbers."""
        from safetensors import safe_open

        if not (self.path / EYES).is_file():
            raise BadInput(
                f"{self.name}: {EYES} is missing, by which this model sees; copy the whole folder there again"
            )
        with safe_open(self.path / EYES, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            about = file.metadata() or {}
        if name := find_not_finite(tensors):
            raise BadInput(f"{self.folder / EYES}: tensor {name} holds NaN or infinite numbers; copy it there again")
        return tensors, about

    def pick_weights(self, rename: Callable[[str], str | None]) -> dict[str, Any]:
        """Weights by their new names, from all files; those that get none are not read."""
        from safetensors import safe_open

        weights = {}
        for path in sorted(self.path.glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - not a mapping
                    if new_name := rename(name):
                        weights[new_name] = file.get_tensor(name)
        return weights

    def demand_finite(self, network: Any) -> None:
        """Raises BadInput, with file and tensor, where a weight of a loaded network is NaN or infinite."""
        name = find_not_finite(network.state_dict())
        # four bits do not show it
        file = self._find_not_finite() if name or getattr(network, "is_quantized", False) else None
        if name or file:
            raise BadInput(
                f"{file or f'{self.name}: weight {name}'} holds NaN or infinite numbers: no answer "
                "can come of it; copy the folder there again, or take weights from before the training that spoilt them"
            )

    def _find_not_finite(self) -> str | None:
        """The first file and tensor with numbers that are not finite."""
        from safetensors import safe_open

        for file in sorted(self.path.rglob("*.safetensors")):
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 - not a mapping
                    if not opened.get_tensor(name).isfinite().all():
                        return f"{self.folder / file.relative_to(self.path)}: tensor {name}"
        return None


def find_not_finite(tensors: Mapping[str, Any]) -> str | None:
    """The name of the first tensor with a number that is NaN or infinite; of a sharded one, in this process's part."""
    for name, tensor in tensors.items():
        part = tensor.to_local() if hasattr(tensor, "to_local") else tensor
        # a sum is finite for next to all sound tensors, and much cheaper than a look at each number
        if part.is_floating_point() and not part.sum().isfinite() and not part.isfinite().all():
            return name
    return None


def _refuse_pickles(folder: Path, name: str, wanted: str) -> None:
    """Raises BadInput where the file that is wanted is missing: with the way out if there are pickles in its place."""
    if (folder / wanted).is_file():
        return
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLES)
    stem = wanted.partition(".")[0]  # optimisers and the like lie beside weights
    weights = [n for n in pickles if n.startswith((stem, f"pytorch_{stem}"))] or pickles[:1]
    if not weights:
        raise BadInput(f"{name}: no weights there; {wanted} is wanted")
    code = (
        "import torch, safetensors.torch as s; "
        f"w = [torch.load(f, map_location='cpu', weights_only=True) for f in {weights}]; "
        f"s.save_file({{k: v.clone() for p in w for k, v in p.items()}}, '{wanted}', {{'format': 'pt'}})"
    )
    more = f", as are {len(weights) - 1} more files," if len(weights) > 1 else ","
    raise BadInput(
        f"{name}: {weights[0]} is a pickle{more} which can run any program when it is opened, and is not read; in that "
        f'folder, turn the weights into {wanted}: python -c "{code}"'
    )


@contextmanager
def opened_folder(folder: Path, what: str, knob: str = "", adapters: bool = False) -> Iterator[ModelFolder]:
    """The folder of a model, checked, for the loaders in the block. `what`: the kind of model, for errors.

    `adapters`: whether it may be that of a LoRA adapter; its base is opened then, and `network` merges it.

    Raises BadInput, before any weight is opened, for a file that is a link to outside, an index that names anything but
    safetensors of the folder, an adapter, quantized weights, weights that are cut or are no safetensors, and sizes in
    config.json that the weights do not have; and in place of whatever a loader in the block raises.
    """
    name = f"{knob}={folder}" if knob else str(folder)
    if lora := read_lora(folder) if adapters else None:
        folder = lora.base
        name = f"{name} (an adapter of {folder})"
    files = _list_files(folder)
    with tempfile.TemporaryDirectory(prefix="clinkd-") as scratch:
        copy = Path(scratch)
        _copy_clean(folder, files, copy)
        try:
            yield ModelFolder(folder, copy, name, lora)
        except BaseException as error:
            if isinstance(error, BadInput) or not (isinstance(error, Exception) or is_panic(error)):
                raise
            text = first_line(error).replace(str(copy), str(folder))
            raise BadInput(f"{name}: cannot be read as {what} ({type(error).__name__}: {text})") from error


def is_panic(error: BaseException) -> bool:
    """Whether the tokenizers library gave up; what it raises then is no Exception."""
    return type(error).__name__ == "PanicException"


def first_line(error: BaseException) -> str:
    """The first line of an error that says something."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


# -- files -------------------------------------------------------------------------------------------------------------


def _list_files(folder: Path) -> list[Path]:
    """The files that a loader may see, each checked to be a plain file of the folder."""
    if (folder / ADAPTER).exists():
        raise BadInput(
            f"{folder / ADAPTER}: an adapter is not read; merge it into its base (peft: `merge_and_unload`), save "
            "that, and give its folder"
        )
    parts = [folder, *(folder / part for part in _list_parts(folder))]
    files = [
        path
        for part in dict.fromkeys(parts)
        if part.is_dir()
        for path in sorted(part.iterdir())
        if path.suffix == ".safetensors" or path.name in (*VOCABULARIES, MODULES) or CONFIGS.fullmatch(path.name)
    ]
    for path in files:
        demand_inside(folder, path)
    return files


def demand_inside(folder: Path, path: Path) -> None:
    """Raises BadInput unless `path` is a plain file of the folder, or of the store beside it in a cache of the hub."""
    target, whole = path.resolve(), folder.resolve()
    stores = [whole, *([whole.parents[1] / "blobs"] if whole.parent.name == "snapshots" else [])]
    if not any(target.is_relative_to(store) for store in stores):
        raise BadInput(f"{path}: leads out of the folder, to {target}; put the file itself there")
    if not target.is_file():
        raise BadInput(f"{path}: is no plain file; put the file itself there")


def _list_parts(folder: Path) -> list[str]:
    """The subfolders of a sentence-transformers folder. Raises BadInput for a module that is not one of its own."""
    if not (folder / MODULES).exists():
        return []
    demand_inside(folder, folder / MODULES)
    modules = _read_json(folder / MODULES)
    if not isinstance(modules, list) or not all(isinstance(m, dict) for m in modules):
        raise BadInput(f"{folder / MODULES}: holds no list of modules; copy the file there again")
    parts = []
    for module in modules:
        kind, part = str(module.get("type")), str(module.get("path") or "")
        if not kind.startswith("sentence_transformers.") or kind.rpartition(".")[2] not in SENTENCE_MODULES:
            raise BadInput(
                f"{folder / MODULES}: module {kind!r} is not read; {', '.join(SENTENCE_MODULES)} of "
                "sentence_transformers are"
            )
        if PurePosixPath(part).is_absolute() or ".." in PurePosixPath(part).parts:
            raise BadInput(f"{folder / MODULES}: path {part!r} leads out of the folder")
        parts.append(part)
    return parts


def _copy_clean(folder: Path, files: list[Path], copy: Path) -> None:
    """Fill a folder with clean configurations and links to the other files, after a look at all of them."""
    for path in files:
        if path.name.endswith(INDEX):
            _check_index(path)
    contents = {path: read_config(path) for path in files if CONFIGS.fullmatch(path.name)}
    for path in files:
        if path.suffix == ".json" and path not in contents and path.name != MODULES:
            _read_object(path)
    headers = {path: read_header(path) for path in files if path.suffix == ".safetensors"}
    for path, names in headers.items():
        if any(name.endswith(PACKED) for name in names):
            raise BadInput(f"{path}: holds weights of GPTQ or AWQ; {FULL_PRECISION}")
    for part in {path.parent for path in headers}:
        shapes = {name: shape for path in headers if path.parent == part for name, shape in headers[path].items()}
        for name in ("config.json", OPEN_CLIP):
            if config := contents.get(part / name):
                _refuse_absurd(part / name, config, shapes)
    for path, settings in contents.items():
        for where, _, number in _numbers(settings):
            if number > (most := LARGEST.get(path.name, math.inf)):
                raise BadInput(f"{path}: {where}={number} is more than {most}, the most that is read")
    for path in files:
        target = copy / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path in contents:
            target.write_text(json.dumps(contents[path]), encoding="utf-8")
        else:
            target.symlink_to(path.resolve())


def _check_index(path: Path) -> None:
    """Raises BadInput where an index names anything but safetensors beside it."""
    weights = _read_object(path).get("weight_map")
    if not isinstance(weights, dict):
        raise BadInput(f"{path}: holds no weight_map; copy the file there again")
    for name in dict.fromkeys(map(str, weights.values())):
        if PurePosixPath(name).name != name or "\\" in name:
            raise BadInput(f"{path}: names {name!r}, which is not a file of the folder; put all weights in the folder")
        if not name.endswith(".safetensors"):
            raise BadInput(
                f"{path}: names {name!r}, and only safetensors are read: other files of weights can run any program "
                "when they are opened; save the model anew as safetensors"
            )
        if not (path.parent / name).exists():
            raise BadInput(f"{path}: names {name!r}, which is not there; copy the folder there again")


def read_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of all weights in the safetensors of a folder, by name, from the headers of its files.

    Raises BadInput as `read_header`, and for a file that is a link to outside.
    """
    files = sorted(folder.glob("*.safetensors"))
    for path in files:
        demand_inside(folder, path)
    return {name: shape for path in files for name, shape in read_header(path).items()}


def read_weight_type(folder: Path) -> str | None:
    """The type of most numbers in the safetensors of a folder: float32, bfloat16 or float16; None for any other.

    It stands in the headers: config.json may say another, and says what a loader is to make of the weights.
    """
    from safetensors import safe_open

    counts: Counter[str] = Counter()
    for path in sorted(folder.glob("*.safetensors")):
        shapes = read_header(path)
        with safe_open(path, framework="np") as file:
            for name, shape in shapes.items():
                counts[file.get_slice(name).get_dtype()] += math.prod(shape)
    return WEIGHT_TYPES.get(max(counts, key=counts.__getitem__, default=""))


def read_header(path: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of the weights in a file, by name. Raises BadInput if it is cut, or is no safetensors file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise BadInput(f"{path}: its weights are cut or broken, or no safetensors ({error}); copy it anew") from None


# -- configurations ----------------------------------------------------------------------------------------------------


def read_config(path: Path) -> dict[str, Any]:
    """The settings in a file of JSON without those that are ignored.

    Raises BadInput if there is no JSON object, or where it asks for quantized weights or for a model of a hub.
    """
    settings: dict[str, Any] = _clean(path, _read_object(path))
    return settings


def _read_object(path: Path) -> dict[str, Any]:
    value = _read_json(path)
    if not isinstance(value, dict):
        raise BadInput(f"{path}: holds no JSON object; copy the file there again")
    return value


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"{path} is not JSON: {first_line(error)}; copy the file there again") from None


def _clean(path: Path, value: Any) -> Any:
    """A value of JSON without the settings that are ignored, at any depth."""
    if isinstance(value, list):
        return [_clean(path, inner) for inner in value]
    if isinstance(value, str) and path.name == OPEN_CLIP and value.startswith(HUB_SCHEMES):
        raise BadInput(f"{path}: names {value!r}, and nothing is fetched; put that model's own settings there")
    if not isinstance(value, dict):
        return value
    for key in QUANTIZED:
        if value.get(key):
            raise BadInput(
                f"{path}: {key}: quantized weights ({_name_method(value[key])}) are not read; {FULL_PRECISION}"
            )
    return {key: _clean(path, inner) for key, inner in value.items() if not IGNORED.fullmatch(key)}


def _name_method(settings: Any) -> str:
    """How weights were quantized, as a configuration says it."""
    method = settings.get("quant_method") if isinstance(settings, dict) else None
    return str(method or "of an unnamed method")


def _refuse_absurd(path: Path, config: Mapping[str, Any], shapes: Shapes) -> None:
    """Raises BadInput for a size that the weights cannot have: it would fill the memory, or build for hours."""
    widest = max((side for shape in shapes.values() for side in shape), default=0)
    for where, key, number in _numbers(config):
        if key in COUNTS:
            most = max(len(shapes), MOST_LAYERS)
        elif SIZE.fullmatch(key):
            most = max(widest, MOST.get(key, WIDEST))
        else:
            most = MOST.get(key, 1 << 31)
        if number > most:
            raise BadInput(
                f"{path}: {where}={number} is more than its weights can have; config.json and the weights are to be of "
                "one model"
            )


def _numbers(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str, float]]:
    """The numbers of a configuration, with their dotted names and the last part of these."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{key}.")
        elif isinstance(value, int | float) and math.isfinite(value):
            yield prefix + key, key, value
