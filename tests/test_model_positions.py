"""Position schemes against transformers, a literal per-token reading of the paper, and their own properties."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from clinkd.config import NAMED_POSITIONS, AffinePositions, Layout, ModelConfig, MRopePositions, Positions
from clinkd.model import families
from clinkd.model.families import qwen, scheme_knobs
from clinkd.model.families.portable.qwen2_vl import ClinkdModel
from clinkd.model.folders import opened_folder
from clinkd.model.positions import Affine, MRope, PositionScheme, Sequential, position_scheme, rotary_pairs
from clinkd.records import BadInput

PAD, IMAGE, START, END = 0, 5, 3, 4
STOCK = {
    "text_config": {
        "vocab_size": 64, "hidden_size": 96, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 3, "num_key_value_heads": 3, "initializer_range": 0.2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]},
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": PAD,
    },
    "vision_config": {
        "depth": 2, "embed_dim": 32, "hidden_size": 96, "num_heads": 4, "patch_size": 4, "spatial_merge_size": 2,
        "temporal_patch_size": 2, "mlp_ratio": 2, "initializer_range": 0.2,
    },
    "image_token_id": IMAGE, "video_token_id": 6, "vision_start_token_id": START, "vision_end_token_id": END,
    "tie_word_embeddings": True,
}  # fmt: skip
MEMBERS: tuple[type[Positions], ...] = get_args(get_args(Positions)[0])
SCHEMES: list[tuple[Positions, Layout]] = [
    *((setting, "sections") for setting in NAMED_POSITIONS.values()),
    (NAMED_POSITIONS["tied"], "halves"),
    (MRopePositions(spatial_reset=True), "interleaved"),
    (AffinePositions(stride=1), "interleaved"),
    (AffinePositions(stride=1.5), "sections"),
    (AffinePositions(stride=0.75, gap=1.5, resume="extent"), "sections"),  # text between whole positions, too
    (AffinePositions(stride=1, gap=1, resume="tokens"), "halves"),
]
assert {type(setting) for setting, _ in SCHEMES} == {*MEMBERS} and {layout for _, layout in SCHEMES} == {
    *get_args(Layout)
}
KNOBS = [ModelConfig(base=".", positions=positions, layout=layout) for positions, layout in SCHEMES]
GRIDS = [[(3, 3)], [(2, 4), (4, 2)], [(5, 3)], [(1, 2), (4, 4), (3, 2)], []]


def load_folder(folder: Path, knobs: ModelConfig | None) -> Any:
    with opened_folder(folder, "a model") as opened:
        return families.load_folder(opened, knobs, torch.float32)


def sequence(grids: list[tuple[int, int]], words: int = 4) -> list[int]:
    ids = [1]
    for tall, wide in grids:
        ids += [8, START, *[IMAGE] * (tall * wide), END]
    return [*ids, *range(10, 10 + words)]


def batch_of(rows: list[list[tuple[int, int]]], left: bool = True) -> dict[str, Tensor]:
    """Rows of unequal length, padded; pixel values for every image."""
    lines = [sequence(g, 3 + k) for k, g in enumerate(rows)]
    longest = max(map(len, lines)) + 1  # every row is padded
    pads = [[PAD] * (longest - len(line)) for line in lines]
    ids = torch.tensor([p + line if left else line + p for p, line in zip(pads, lines, strict=True)])
    seen = torch.tensor([[0] * len(p) + [1] * len(n) if left else [1] * len(n) + [0] * len(p)
                         for p, n in zip(pads, lines, strict=True)])  # fmt: skip
    grids = torch.tensor([[1, 2 * h, 2 * w] for row in rows for h, w in row]).view(-1, 3)
    pixels = torch.randn(int(grids.prod(1).sum()), 3 * 2 * 4 * 4, generator=torch.Generator().manual_seed(0))
    return {
        "input_ids": ids, "attention_mask": seen, "mm_token_type_ids": (ids == IMAGE).int(),
        "image_grid_thw": grids, "pixel_values": pixels,
    }  # fmt: skip


@pytest.fixture(scope="module")
def stock() -> Qwen2VLForConditionalGeneration:
    torch.manual_seed(0)
    return Qwen2VLForConditionalGeneration(Qwen2VLConfig(**copy.deepcopy(STOCK))).eval()


@pytest.fixture(scope="module")
def folder(stock: Qwen2VLForConditionalGeneration, tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("stock")
    stock.save_pretrained(path)
    return path


@pytest.mark.parametrize("left", [True, False])
def test_mrope_equals_transformers_exactly(stock, left):
    given = batch_of(GRIDS[:-1], left)
    theirs, their_delta = stock.model.get_rope_index(
        given["input_ids"], given["mm_token_type_ids"], given["image_grid_thw"], attention_mask=given["attention_mask"]
    )
    ours, delta = ClinkdModel.get_rope_index(
        _Shell(MRope()), given["input_ids"], given["mm_token_type_ids"], given["image_grid_thw"],
        attention_mask=given["attention_mask"],
    )  # fmt: skip
    assert torch.equal(ours.long(), theirs)
    if left:  # a cached step follows the last column, which right padding would fill with pads
        assert torch.equal(delta.long(), their_delta)


class _Shell:
    """As much of a ClinkdModel as `get_rope_index` looks at."""

    def __init__(self, scheme: PositionScheme) -> None:
        self.scheme = scheme
        self.config = Qwen2VLConfig(**copy.deepcopy(STOCK))


def literal(grids: list[tuple[int, int]], alpha: float) -> list[tuple[float, float]]:
    """The paper's equations, token by token: (height, width) of each, for `sequence(grids)`; indices from 0."""
    places: list[tuple[float, float]] = [(0, 0)]
    for h, w in grids:
        places += [(places[-1][0] + 1,) * 2, (places[-1][0] + 2,) * 2]
        ell = places[-1][0]
        lam1 = ell + (w * h + 1 - alpha * (h + 1)) / 2
        lam2 = ell + (w * h + 1 - alpha * (w + 1)) / 2
        places += [(alpha * r + lam1, alpha * c + lam2) for r in range(1, h + 1) for c in range(1, w + 1)]
        places.append((ell + w * h + 1,) * 2)
    for _ in range(4):
        places.append((places[-1][0] + 1,) * 2)
    return places


def run(scheme: PositionScheme, grids: list[tuple[int, int]]) -> Tensor:
    ids = torch.tensor([sequence(grids)])
    return scheme.positions(ids == IMAGE, torch.arange(ids.shape[1])[None], torch.tensor(grids).view(-1, 2))[:, 0]


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.7, 2.0])
@pytest.mark.parametrize("grids", [[(3, 3)], [(4, 4), (3, 5)], [(2, 3), (6, 4), (5, 5)]])
def test_tied_equals_the_papers_equations(grids, alpha):
    assert torch.allclose(run(Affine(alpha), grids)[1:].T, torch.tensor(literal(grids, alpha)), atol=1e-5)


@pytest.mark.parametrize("grid", [(3, 3), (4, 4), (4, 6), (7, 5)])
def test_tied_gaps_are_equal_on_both_sides(grid):
    found = run(Affine(2.0), [grid])
    image = found[1:, 3:-5]
    text_before, text_after = found[1:, 2], found[1:, -5]
    assert torch.equal(image.amin(1) - text_before, text_after - image.amax(1))
    assert (image.amin(1) > text_before).all()
    assert torch.equal(text_after, torch.full((2,), 2.0 + grid[0] * grid[1] + 1))


def test_tied_indices_are_integers_exactly_when_the_patch_count_is_odd():
    for h in range(2, 8):
        for w in range(2, 8):
            if 2 * (max(h, w) - 1) < h * w + 1:
                whole = bool((run(Affine(2.0), [(h, w)]) % 1 == 0).all())
                assert whole == (h * w % 2 == 1)


def test_tied_refuses_an_image_that_overlaps_its_text():
    with pytest.raises(BadInput, match=r"image 2 .*1 x 9.*model\.positions\.stride"):
        run(Affine(2.0), [(3, 3), (1, 9)])
    run(Affine(1.0), [(1, 9)])  # at stride 1 a row is plain text


def test_gap_is_stock_with_wider_steps():
    grids = [(3, 2), (2, 2)]
    stock, gap = run(MRope(), grids), run(Affine(1.0, 2.0, "extent"), grids)
    image = torch.tensor(sequence(grids)) == IMAGE
    steps = (gap - stock)[0].tolist()
    turns = [1 if image[i] != image[i - 1] else 0 for i in range(1, len(image))]
    assert steps == [0, *torch.tensor(turns).cumsum(0).tolist()]


def test_sequential_counts_every_token():
    assert torch.equal(
        run(Sequential(), [(2, 3), (4, 4)]), torch.arange(len(sequence([(2, 3), (4, 4)]))).float().expand(3, -1)
    )


def test_spatial_reset_starts_each_image_at_zero():
    grids = [(3, 2), (2, 4)]
    reset, stock = run(MRope(spatial_reset=True), grids), run(MRope(), grids)
    image = torch.tensor(sequence(grids)) == IMAGE
    assert torch.equal(reset[0], stock[0]) and torch.equal(reset[:, ~image], stock[:, ~image])
    assert reset[1:, image].min() == 0 and reset[1, image].max() == 2 and reset[2, image].max() == 3


def test_image_tokens_must_fit_the_grids():
    with pytest.raises(BadInput, match="5 image tokens .* but 6 patches"):
        MRope().positions(torch.ones(1, 5, dtype=torch.bool), torch.arange(5)[None], torch.tensor([[2, 3]]))


WORKED = {  # one image of 2 x 3 patches behind the text positions 0, 1, 2: (height, width), then the text behind
    "tied": ([4.5, 4.5, 4.5, 6.5, 6.5, 6.5], [3.5, 5.5, 7.5, 3.5, 5.5, 7.5], 9, 5.5),
    "gap": ([4, 4, 4, 5, 5, 5], [4, 5, 6, 4, 5, 6], 8, 4),
    "mrope": ([3, 3, 3, 4, 4, 4], [3, 4, 5, 3, 4, 5], 6, 3),
    "native": ([3, 3, 3, 4, 4, 4], [3, 4, 5, 3, 4, 5], 6, 3),
    "sequential": ([3, 4, 5, 6, 7, 8], [3, 4, 5, 6, 7, 8], 9, None),
}


@pytest.mark.parametrize("name", NAMED_POSITIONS)
def test_a_named_setting_places_two_by_three_patches_as_its_row_says(name):
    places = run(position_scheme(NAMED_POSITIONS[name], qwen.NATIVE), [(2, 3)])
    height, width, behind, time = WORKED[name]
    assert places[1, 3:9].tolist() == height and places[2, 3:9].tolist() == width
    assert places[:, 9].tolist() == [behind] * 3 and places[:, :3].tolist() == [[0, 1, 2]] * 3
    assert time is None or places[0, 3:9].tolist() == [time] * 6


def test_text_goes_on_behind_every_patch_whatever_the_scheme():
    for setting, _ in SCHEMES:
        scheme = position_scheme(setting, qwen.NATIVE)
        reset = getattr(scheme, "spatial_reset", False)
        for grid in [(3, 3), (4, 4), (2, 3)]:
            places = run(scheme, [grid])
            image, behind = places[:, 3 : 3 + grid[0] * grid[1]], places[0, 3 + grid[0] * grid[1]]
            assert (image[:1] if reset else image).max() < behind, setting


def test_stride_and_gap_count_apart():
    """METHOD's table of the tie taken apart, on one image of h x w patches behind l = 2."""
    for h, w in [(2, 3), (3, 3), (4, 2)]:
        stride = run(Affine(2.0, 1.0, "extent"), [(h, w)])
        assert stride[1, 3] == stride[2, 3] == 3 and stride[0, 3 + h * w] == 2 + 2 + 2 * (max(h, w) - 1)
        gap = run(Affine(1.0, "equal", "tokens"), [(h, w)])
        assert gap[1, 3] == 2 + (w * h + 1) / 2 - (h - 1) / 2 and gap[0, 3 + h * w] == 2 + w * h + 1
        stock = run(Affine(1.0, 1.0, "extent"), [(h, w)])
        assert torch.equal(stock, run(MRope(), [(h, w)]))


@pytest.mark.parametrize("gap", ["equal", 0.5, 1.0, 3.0])
@pytest.mark.parametrize("stride", [0.5, 1.0, 2.0, 3.5])
def test_an_image_is_refused_exactly_where_a_patch_would_not_stand_between_its_text(stride, gap):
    for grid in [(1, 4), (2, 3), (3, 3), (5, 2), (6, 6)]:
        span, longest = grid[0] * grid[1], max(grid)
        first = (span + 1) / 2 - stride * (longest - 1) / 2 if gap == "equal" else gap
        fits = first > 0 and first + stride * (longest - 1) < span + 1
        try:
            places = run(Affine(stride, gap, "tokens"), [grid])[1:, 3:-5]
        except BadInput:
            assert not fits
        else:
            assert fits and places.min() > 2 and places.max() < 2 + span + 1


def test_text_behind_an_extent_never_overlaps():
    for stride in (0.5, 3.0, 7.0):
        places = run(Affine(stride, 0.25, "extent"), [(2, 5)])
        assert places[:, 3:13].min() > 2 and places[1:, 3:13].max() < places[0, 13]


def test_every_member_has_a_scheme_to_which_all_its_knobs_go():
    for member in MEMBERS:
        scheme = position_scheme(member(), qwen.NATIVE)
        knobs = {name: value for name, value in member() if name != "kind"}
        assert {name: getattr(scheme, name) for name in knobs} == knobs
        for name, value in knobs.items():
            other = {"gap": 2.5, "resume": "extent"}.get(name, not value if isinstance(value, bool) else 0.25)
            changed = member(**{name: other, **({"gap": 2.5} if name == "resume" else {})})
            assert getattr(position_scheme(changed, qwen.NATIVE), name) == other


def test_layouts_share_out_every_pair():
    assert rotary_pairs("sections", (0, 1, 2), 16, (4, 6, 6)).axis_P == (0,) * 4 + (1,) * 6 + (2,) * 6
    assert rotary_pairs("interleaved", (1, 2), 6, (2, 2, 2)).axis_P == (1, 2) * 3
    assert rotary_pairs("interleaved", (0, 1, 2), 8, (2, 3, 3)).axis_P == (0, 1, 2, 0, 1, 2, 0, 1)
    halves = rotary_pairs("halves", (1, 2), 8, (2, 3, 3))
    assert halves.axis_P == (1,) * 4 + (2,) * 4
    assert halves.exponent_P == (0, 0.25, 0.5, 0.75) * 2  # the paper: base^(-2i / d_half)
    with pytest.raises(BadInput, match="even number"):
        rotary_pairs("halves", (1, 2), 7, (2, 2, 3))


@pytest.mark.parametrize("positions", ["mrope", "native"])
def test_hub_weights_load_completely(stock, folder, positions):
    knobs = ModelConfig(positions=positions, layout="sections")
    ours = load_folder(folder, knobs).eval()
    assert families.FAMILIES[0].is_stock(ours.config)
    given = batch_of(GRIDS[:-1])
    with torch.no_grad():
        assert torch.equal(ours(**given).logits, stock(**given).logits)


@pytest.mark.parametrize("positions", NAMED_POSITIONS)
def test_interleaved_leaves_text_as_the_pretrained_model_has_it(stock, folder, positions):
    ours = load_folder(folder, ModelConfig(positions=positions, layout="interleaved")).eval()
    ids = torch.arange(7, 40)[None]
    with torch.no_grad():
        assert torch.equal(ours(ids).logits, stock(ids).logits)


@pytest.mark.parametrize("knobs", KNOBS, ids=lambda k: f"{k.positions.name}-{k.layout}")
def test_cached_decoding_equals_a_full_forward(folder, knobs):
    model = load_folder(folder, knobs).eval()
    given = batch_of(GRIDS[:-1])
    made = model.generate(
        **given, max_new_tokens=6, min_new_tokens=6, do_sample=False, output_logits=True, return_dict_in_generate=True,
        suppress_tokens=[IMAGE, 6], pad_token_id=PAD,
    )  # fmt: skip
    new = made.sequences[:, given["input_ids"].shape[1] :]
    whole = dict(given)
    whole["input_ids"] = made.sequences
    whole["attention_mask"] = torch.cat([given["attention_mask"], torch.ones_like(new)], 1)
    whole["mm_token_type_ids"] = torch.cat([given["mm_token_type_ids"], torch.zeros_like(new, dtype=torch.int)], 1)
    with torch.no_grad():
        full = model(**whole).logits[:, -new.shape[1] - 1 : -1]
    assert (torch.stack(made.logits, 1) - full).abs().max() <= 1e-5 * max(1.0, full.abs().max().item())


@pytest.mark.parametrize("knobs", KNOBS, ids=lambda k: f"{k.positions.name}-{k.layout}")
def test_beam_search_with_several_images_equals_one_by_one(folder, knobs):
    model = load_folder(folder, knobs).eval()
    search = {"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False,
              "suppress_tokens": [IMAGE, 6], "pad_token_id": PAD}  # fmt: skip
    rows = GRIDS[:-1]
    given = batch_of(rows)
    together = model.generate(**given, **search)[:, -5:]
    ends = torch.tensor([sum(4 * h * w for h, w in row) for row in rows]).cumsum(0).tolist()
    images = torch.tensor([len(row) for row in rows]).cumsum(0).tolist()
    for k in range(len(rows)):
        keep = given["attention_mask"][k].bool()
        alone = {name: given[name][k, keep][None] for name in ("input_ids", "attention_mask", "mm_token_type_ids")}
        alone["pixel_values"] = given["pixel_values"][(ends[k - 1] if k else 0) : ends[k]]
        alone["image_grid_thw"] = given["image_grid_thw"][(images[k - 1] if k else 0) : images[k]]
        assert torch.equal(together[3 * k : 3 * k + 3], model.generate(**alone, **search)[:, -5:])


@pytest.mark.parametrize("knobs", KNOBS, ids=lambda k: f"{k.positions.name}-{k.layout}")
def test_a_saved_model_comes_back_with_its_scheme(folder, knobs, tmp_path):
    model = load_folder(folder, knobs).eval()
    model.save_pretrained(tmp_path)
    back = load_folder(tmp_path, None).eval()
    assert scheme_knobs(back.config) == knobs  # stored whole
    given = batch_of(GRIDS[:-1])
    with torch.no_grad():
        assert torch.equal(model(**given).logits, back(**given).logits)


def test_the_stock_class_cannot_take_our_checkpoint(folder, tmp_path, monkeypatch):
    load_folder(folder, ModelConfig(positions="tied")).save_pretrained(tmp_path)
    with pytest.raises(BadInput, match="positions of its own"):
        Qwen2VLForConditionalGeneration.from_pretrained(tmp_path)
    monkeypatch.delitem(ROPE_INIT_FUNCTIONS, qwen.ROPE_TYPE)  # as where this package is not imported
    with pytest.raises(KeyError, match="clinkd"):
        Qwen2VLForConditionalGeneration.from_pretrained(tmp_path)
