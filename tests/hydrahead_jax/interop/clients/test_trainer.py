"""Trains with transformers' Trainer: padded or padding-free rows, checkpointing, accumulation."""

import copy

import pytest

from tests.hydrahead_jax.interop.clients.tiny import assert_close, load, logits, tokens
from tests.hydrahead_jax.interop.with_torch import torch, transformers

pytest.importorskip("accelerate", reason="accelerate is not installed: Trainer needs it")

LENGTHS = (40, 17, 70, 23)


def texts(count: int = 8) -> list[dict]:
    rows = (tokens(1, LENGTHS[i % len(LENGTHS)], seed=i)[0].tolist() for i in range(count))
    return [{"input_ids": row, "labels": row} for row in rows]


def pad_right(texts: list[dict]) -> dict:
    length = max(len(text["input_ids"]) for text in texts)
    batch = {"input_ids": [], "labels": [], "attention_mask": []}
    for text in texts:
        ids, gap = text["input_ids"], length - len(text["input_ids"])
        batch["input_ids"].append(ids + [0] * gap)
        batch["labels"].append(ids + [-100] * gap)
        batch["attention_mask"].append([1] * len(ids) + [0] * gap)
    return {name: torch.tensor(rows) for name, rows in batch.items()}


def train(model, tmp_path, *, collator=pad_right, steps=1, **options):
    """Trains with Trainer and returns the loss of each step."""
    settings = {
        "output_dir": str(tmp_path),
        "max_steps": steps,
        "per_device_train_batch_size": 4,
        "learning_rate": 5e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "train_sampling_strategy": "sequential",
    }
    trainer = transformers.Trainer(
        model=model,
        args=transformers.TrainingArguments(**settings | options),
        train_dataset=texts(),
        data_collator=collator,
    )
    trainer.train()
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def mean_loss(model, rows: list[dict]) -> torch.Tensor:
    """Returns the mean loss over all predicted tokens; each row is run by itself."""
    total, count = 0.0, 0
    for row in rows:
        ids = torch.tensor([row["input_ids"]])
        predicted = model(ids).logits[:, :-1].log_softmax(-1)
        total = total - predicted.gather(-1, ids[:, 1:, None]).sum()
        count += ids.shape[1] - 1
    return total / count


def test_trainer_takes_the_steps_of_a_hand_written_loop(model, tmp_path):
    by_hand = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=5e-3)
    expected = []
    for step in range(2):
        loss = mean_loss(by_hand, texts()[4 * step : 4 * step + 4])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        expected.append(loss.item())
    losses = train(model, tmp_path, steps=2, optim="sgd")
    assert losses == pytest.approx(expected, abs=1e-4)
    for (name, weight), other in zip(model.named_parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(weight, other, atol=1e-5, rtol=0, msg=name)


def test_the_loss_falls(model, tmp_path):
    losses = train(model, tmp_path, steps=12)
    assert losses[-1] < 0.9 * losses[0]


# The older name of the setting works with all supported versions, with a warning in the newest.
@pytest.mark.filterwarnings("ignore:.gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_no_step(folder, tmp_path, reentrant):
    plain, checkpointed = load(folder), load(folder)
    expected = train(plain, tmp_path, steps=2)
    actual = train(
        checkpointed,
        tmp_path,
        steps=2,
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": reentrant},
    )
    assert actual == pytest.approx(expected, abs=1e-6)
    for weight, other in zip(plain.parameters(), checkpointed.parameters(), strict=True):
        assert_close(weight, other)


def test_accumulated_gradients_count_each_token_alike(folder, tmp_path):
    """Trainer hands over the number of items of the whole step; rows differ in length."""
    at_once, in_parts = load(folder), load(folder)
    expected = train(at_once, tmp_path)
    actual = train(in_parts, tmp_path, per_device_train_batch_size=1, gradient_accumulation_steps=4)
    assert actual == pytest.approx(expected, abs=1e-4)
    for weight, other in zip(at_once.parameters(), in_parts.parameters(), strict=True):
        torch.testing.assert_close(weight, other, atol=1e-4, rtol=0)


@pytest.mark.parametrize("flash_args", [False, True])
def test_padding_free_rows_have_the_loss_of_padded_ones(model, flash_args):
    """All texts share one row; position ids mark their borders, or lengths as kernels want them."""
    rows = texts(4)
    flatten = transformers.DataCollatorWithFlattening(
        return_tensors="pt", return_flash_attn_kwargs=flash_args, return_position_ids=True
    )
    batch = flatten(copy.deepcopy(rows))
    assert batch["input_ids"].shape == (1, sum(LENGTHS))
    padded = model.train()(**pad_right(rows))
    packed = model(**batch)
    assert packed.loss.item() == pytest.approx(padded.loss.item(), abs=1e-5)
    starts = torch.tensor([0, *LENGTHS]).cumsum(0)
    for index, (start, length) in enumerate(zip(starts, LENGTHS, strict=False)):
        actual = packed.logits[0, start : start + length]
        assert_close(actual, padded.logits[index, :length])
    grads = [
        torch.autograd.grad(out.loss, model.model.embed_tokens.weight)[0]
        for out in (padded, packed)
    ]
    assert_close(*grads)


def test_trainer_with_padding_free_rows(folder, tmp_path):
    packed, padded = load(folder), load(folder)
    flatten = transformers.DataCollatorWithFlattening(return_tensors="pt")
    actual = train(packed, tmp_path, collator=flatten, steps=2)
    assert actual == pytest.approx(train(padded, tmp_path, steps=2), abs=1e-4)


def test_trainer_evaluates_and_saves(folder, model, tmp_path):
    trainer = transformers.Trainer(
        model=model,
        args=transformers.TrainingArguments(
            output_dir=str(tmp_path / "run"),
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            dataloader_pin_memory=False,
            per_device_eval_batch_size=4,
        ),
        eval_dataset=texts(4),
        data_collator=pad_right,
        compute_metrics=lambda result: {"width": result.predictions.shape[-1]},
    )
    metrics = trainer.evaluate()
    assert metrics["eval_width"] == 97  # logits alone, without the cache
    assert metrics["eval_loss"] == pytest.approx(mean_loss(model, texts(4)).item(), abs=1e-4)
    trainer.save_model(str(tmp_path / "saved"))
    batch = tokens(1, 40)
    again = logits(load(tmp_path / "saved"), batch)
    torch.testing.assert_close(again, logits(load(folder), batch), atol=0, rtol=0)
