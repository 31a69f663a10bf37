"""What the card of an exported model says of loading it: which program can, how, and which cannot."""

from __future__ import annotations

from clinkd.model.exported.served import has_code, makes_squares, needs_code
from clinkd.model.families import TINY
from clinkd.model.vlm import VisionLanguageModel

_TRANSFORMERS = """```python
from PIL import Image
from transformers import {imports}

model = AutoModelForImageTextToText.from_pretrained(FOLDER{model})
processor = AutoProcessor.from_pretrained(FOLDER{processor})
image = Image.open("scan.png").convert("RGB")
turn = {{"role": "user", "content": [
    {{"type": "image", "image": image}}, {{"type": "text", "text": "Where is the liver?"}}]}}
inputs = processor.apply_chat_template(
    [turn], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt")
tokens = model.generate(**inputs)[:, inputs["input_ids"].shape[1]:]
{reading}
```"""
_CODE = (
    "The `.py` files of this folder (Apache-2.0) run only where you say `trust_remote_code=True`: read them first. "
    "They need torch, transformers and Pillow."
)
_STOCK = (
    "The stock `{}`; {}, which resamples a grey level off here and there: the third call takes the pixels of training."
)
_VIDEOS = "its processor needs torchvision (tried with 0.28)"
_IMAGES = "its processor takes torchvision where that is installed"
_WITH_PIXELS = "AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor"
_EXACT_PIXELS = ')\nprocessor.image_processor = AutoImageProcessor.from_pretrained(FOLDER, backend="pil"'
_TRUST = ", trust_remote_code=True"
_READ_BY_CODE = """answer = processor.post_process_image_text_to_text(tokens)[0]
words, boxes = processor.read_boxes(answer, image.size)  # boxes in pixels; spell_boxes writes those of a question"""
_READ_MARKS = "answer = processor.batch_decode(tokens, skip_special_tokens=False)[0]  # the marks of boxes are special"
_READ_TEXT = "answer = processor.batch_decode(tokens, skip_special_tokens=True)[0]  # boxes stand in it as text"
_CLINKD = """With ClinkD (it is on no package index: get its repository, and run `pip install .` in it):

```python
import clinkd

model = clinkd.load(FOLDER)
answer = model.ask("scan.png", "Where is the liver?")
print(answer.text, answer.boxes)
```"""
_EYES = (
    "In the place of pixels it gets features of EfficientNet-Lite0, trained on photographs (ImageNet), from "
    "`eyes.safetensors` (Apache-2.0; `eyes.LICENSE`). A new image needs no other package than ClinkD's own."
)
_DOUBLED = (
    "Positions are doubled (`rope_step` 2) and frequencies halved (`factor` 2): the same angles to the bit, and every "
    "position is a whole number. A token of text is a step of 2."
)


_VLLM = (
    "by ClinkD's plugin, installed beside it; not run in vLLM: the positions, tables and turns of the plugin were "
    "compared with this model's code, no more. It takes the stock processor of images"
)


def describe_loading(model: VisionLanguageModel, doubled: bool = False) -> list[str]:
    """Lines of the card: the ways to load the model, those that were tried and those that are not possible."""
    stock, code = model.is_stock, has_code(model)
    torchvision = _VIDEOS if model.family.videos else _IMAGES
    way = _CODE if code else _STOCK.format(model.family.stock_class.__name__, torchvision)
    read = _READ_MARKS if model.codec.special_tokens else _READ_TEXT
    lines = []
    if code or not needs_code(model):
        lines += [
            f"With transformers (tried with 5.23). {way}",
            "",
            _TRANSFORMERS.format(
                imports="AutoModelForImageTextToText, AutoProcessor" if code else _WITH_PIXELS,
                model="" if stock else _TRUST,
                processor=_TRUST if code else _EXACT_PIXELS,
                reading=_READ_BY_CODE if code else read,
            ),
            "",
        ]
    lines += [_CLINKD, "", *([_EYES, ""] if model.images.eyes else []), *([_DOUBLED, ""] if doubled else [])]
    lines += ["| program | this folder |", "|---|---|"]
    lines += [f"| {program} | {words} |" for program, words in _list_programs(model).items()]
    return lines


def _list_programs(model: VisionLanguageModel) -> dict[str, str]:
    square = ", and images must be made square before, as `grids.py` does it" if makes_squares(model) else ""
    if not model.is_stock:
        return {
            "transformers": "by the code in it" if has_code(model) else "no: ClinkD is needed",
            "vLLM": _VLLM + square
            if model.family is TINY and not model.images.eyes
            else "no: its classes have no such positions",
            "GGUF (llama.cpp, Ollama)": "not possible with these positions",
        }
    return {
        "transformers": "by the stock class" + ("; images by the code in it" if makes_squares(model) else ""),
        "vLLM": f"not run in vLLM; it is of a stock type{square}",
        "GGUF (llama.cpp, Ollama)": f"convert it with llama.cpp's tool; not tried{square}",
    }
