"""Instructions with their responses, from the Hugging Face hub."""

from typing import Any

from limbeck.data.random import derive, permutation
from limbeck.data.text import TextData, check_share, prompts_and_responses, read_tokenizer
from limbeck.errors import LimbeckError, nearest, require
from limbeck.models.text_task import TextTask


def instructions(
    seed: int,
    dataset: str,
    tokenizer: str,
    train_split: str = "train",
    test_split: str = "test",
    column: str = "messages",
    template: str = "<|user|>\n{prompt}\n<|assistant|>\n",
    length: int = 2048,
    response_length: int | None = 512,
    mask_prompt: bool = False,
    validation: float = 0.01,
) -> TextData:
    """The first exchange of every conversation: a prompt and its response; longer ones are left out.

    Args:
        seed: seed of the run: which conversations are held out for validation.
        dataset: name on the Hugging Face hub, or a local folder that the datasets library reads.
        tokenizer: a file tokenizer.json, or a repository of the hub that holds one.
        train_split: split to train on.
        test_split: split for the final numbers.
        column: column of the conversations, lists of {role: user or assistant, content: text}.
        template: what is written around a prompt; the response follows.
        length: tokens of the longest row.
        response_length: tokens of the longest response; null for any.
        mask_prompt: whether only responses are to be predicted.
        validation: share of the training split that is held out.

    Raises:
        LimbeckError: the data set, a split or the column is missing, or nothing is short enough.
    """
    if "{prompt}" not in template:
        raise LimbeckError(f"template is {template!r}; it must hold {{prompt}}")
    task = TextTask(read_tokenizer(tokenizer), length)
    library = require("datasets", extra="datasets")
    try:
        splits = library.load_dataset(dataset)
    # The library, the hub and the HTTP library below it raise errors of any kind.
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        raise LimbeckError(f"datasets cannot open {dataset!r}: {reason}") from error
    train, test = (
        _exchanges(_split(splits, name, dataset), column, template, f"{dataset}, split {name}")
        for name in (train_split, test_split)
    )
    order = permutation(derive(seed, "validation"), len(train))
    count = check_share(validation, len(train))
    return prompts_and_responses(
        [train[at] for at in sorted(order[count:].tolist())],
        [train[at] for at in sorted(order[:count].tolist())],
        test,
        task=task,
        mask_prompt=mask_prompt,
        response_length=response_length,
    )


def _split(splits: Any, name: str, dataset: str) -> Any:
    if name not in splits:
        raise LimbeckError(f"{dataset} has no split {name!r}; it has {', '.join(splits)}.{nearest(name, splits)}")
    return splits[name]


def _exchanges(table: Any, column: str, template: str, where: str) -> list[tuple[str, str]]:
    if column not in table.column_names:
        known = ", ".join(table.column_names)
        raise LimbeckError(f"{where} has no column {column!r}; it has {known}.{nearest(column, table.column_names)}")
    found = []
    for row, messages in enumerate(table[column]):
        try:
            # Some conversations begin with what the system is told.
            first = next(at for at, message in enumerate(messages) if message["role"] == "user")
            prompt, response = messages[first]["content"], messages[first + 1]["content"]
        except (StopIteration, IndexError, KeyError, TypeError):
            raise LimbeckError(f"{where}, row {row}: expected messages of a user and an assistant") from None
        found.append((template.replace("{prompt}", prompt), response))
    return found
