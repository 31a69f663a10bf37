"""The Trainer of docs/DISTILLATION.md runs as it stands, and follows plain autograd."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import Qwen2Config, Qwen2ForCausalLM, TrainingArguments

TEXT = (Path(__file__).parents[1] / "docs" / "DISTILLATION.md").read_text()


def model(seed: int, width: int = 32) -> Qwen2ForCausalLM:
    torch.manual_seed(seed)
    size = {"hidden_size": width, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return Qwen2ForCausalLM(Qwen2Config(vocab_size=90, num_key_value_heads=2, tie_word_embeddings=False, **size))


def examples() -> list[dict[str, list[int]]]:
    dice = torch.Generator().manual_seed(0)
    ids = torch.randint(90, (8, 12), generator=dice)
    labels = ids.clone()
    for row, asked in enumerate((4, 7, 2, 9, 5, 3, 8, 6)):
        labels[row, :asked] = -100
    return [{"input_ids": i.tolist(), "labels": t.tolist()} for i, t in zip(ids, labels, strict=True)]


def test_the_trainer_of_the_page_distils_as_the_formula_says(tmp_path: Path) -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```", TEXT, re.M | re.S)
    body = block[block.index("    def compute_loss") :].splitlines()
    assert len(body) <= 11  # "about ten lines" is a promise
    found: dict[str, Any] = {}
    exec(block, found)
    student, teacher = model(0), model(1, 64).eval()
    plain = model(0)
    arguments = TrainingArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=2, gradient_accumulation_steps=2, num_train_epochs=2,
        learning_rate=0.1, optim="sgd", lr_scheduler_type="constant", max_grad_norm=0.0, report_to=[], use_cpu=True,
        save_strategy="no", disable_tqdm=True, logging_strategy="no", remove_unused_columns=False,
    )  # fmt: skip
    distiller = found["Distiller"](model=student, args=arguments, train_dataset=examples(), data_collator=collated)
    distiller.teacher = teacher
    distiller.model_accepts_loss_kwargs = True
    order: list[list[list[int]]] = []
    original = distiller.compute_loss

    def watched(model: Any, inputs: dict[str, torch.Tensor], *rest: Any, **named: Any) -> torch.Tensor:
        order.append(inputs["input_ids"].tolist())
        loss: torch.Tensor = original(model, inputs, *rest, **named)
        return loss

    distiller.compute_loss = watched
    distiller.train()
    assert len(order) == 8
    labels_of = {tuple(e["input_ids"]): e["labels"] for e in examples()}
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    for step in range(4):
        rows = [ids for batch in order[2 * step : 2 * step + 2] for ids in batch]
        ids = torch.tensor(rows)
        labels = torch.tensor([labels_of[tuple(r)] for r in rows])[:, 1:]
        kept = labels != -100
        logits = plain(ids).logits[:, :-1][kept]
        with torch.no_grad():
            goal = (teacher(ids).logits[:, :-1][kept] / 2).log_softmax(-1)
        ce = F.cross_entropy(logits, labels[kept], reduction="sum")
        kl = F.kl_div((logits / 2).log_softmax(-1), goal, reduction="sum", log_target=True)
        optimizer.zero_grad()
        ((ce + 0.5 * 4 * kl) / 1.5 / kept.sum()).backward()
        optimizer.step()
    for (name, ours), theirs in zip(student.named_parameters(), plain.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=2e-5), name
        assert not torch.equal(theirs, dict(model(0).named_parameters())[name]), name


def collated(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    return {key: torch.tensor([row[key] for row in rows]) for key in rows[0]}
