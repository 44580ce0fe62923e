"""What is fitted on and what is tested on: never the same samples, and always said."""

import numpy as np
import pytest
import torch

from stitchkern.errors import SpecError
from stitchkern.studies.data import Part, fit_and_test


def write_npz(path, **counts):
    """An .npz with one image per label, the label being its place; one split per keyword."""
    arrays = {}
    for split, count in counts.items():
        prefix = "" if split == "all" else f"{split}_"
        arrays[f"{prefix}images"] = np.zeros((count, 1, 2, 2), dtype=np.float32)
        arrays[f"{prefix}labels"] = np.arange(count) + (1000 if split == "test" else 0)
    np.savez(path, **arrays)
    return str(path)


def labels(batches):
    return torch.cat([labels for _, labels in batches]).tolist()


def test_splits_are_found(tmp_path):
    parts = fit_and_test(write_npz(tmp_path / "a.npz", train=10, test=4), batch_size=3)
    assert labels(parts.fit) == list(range(10))
    assert labels(parts.test) == list(range(1000, 1004))
    assert "split 'test'" in parts.note


def test_named_splits(tmp_path):
    data = write_npz(tmp_path / "a.npz", train=10, test=4, valid=5)
    parts = fit_and_test(data, split="valid")
    assert (len(labels(parts.fit)), labels(parts.test)[0]) == (5, 1000)
    parts = fit_and_test(data, test_split="valid")
    assert (len(labels(parts.fit)), len(labels(parts.test))) == (10, 5)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_last_fifth_is_held_out_where_there_is_no_test_part(tmp_path, batch_size):
    parts = fit_and_test(write_npz(tmp_path / "a.npz", all=10), batch_size=batch_size)
    assert labels(parts.fit) == list(range(8)) and labels(parts.test) == [8, 9]
    assert labels(parts.fit) == list(range(8))  # and again
    assert len(list(parts.fit)) == len(parts.fit) and len(list(parts.test)) == len(parts.test)
    assert "no test part" in parts.note and "the last 2 of the 10 samples" in parts.note


def test_held_out_of_the_test_split_when_that_is_fitted_on(tmp_path):
    parts = fit_and_test(write_npz(tmp_path / "a.npz", train=10, test=5), split="test")
    assert labels(parts.fit) == [1000, 1001, 1002, 1003] and labels(parts.test) == [1004]


def test_other_file_for_testing(tmp_path):
    fit, test = write_npz(tmp_path / "a.npz", train=10), write_npz(tmp_path / "b.npz", test=4)
    parts = fit_and_test(fit, test, limit=3)
    assert labels(parts.fit) == [0, 1, 2] and labels(parts.test) == [1000, 1001, 1002]


def test_callables_without_a_length(tmp_path):
    source = tmp_path / "source.py"
    source.write_text(
        "import torch\n"
        "def batches():\n"
        "    for i in range(4):\n"
        "        yield torch.zeros(5, 2), torch.arange(5) + 5 * i\n"
        "def empty():\n"
        "    return iter(())\n"
    )
    parts = fit_and_test(f"{source}:batches")
    assert labels(parts.fit) == list(range(16)) and labels(parts.test) == [16, 17, 18, 19]
    with pytest.raises(TypeError):
        len(parts.fit)
    with pytest.raises(SpecError, match="at least two samples"):
        fit_and_test(f"{source}:empty")
    with pytest.raises(SpecError, match=r"test_data .* gave no batch"):
        fit_and_test(f"{source}:batches", f"{source}:empty")


def test_same_part_twice_is_refused(tmp_path):
    data = write_npz(tmp_path / "a.npz", train=10, test=4)
    with pytest.raises(SpecError, match="both are split 'train'"):
        fit_and_test(data, split="train", test_split="train")
    with pytest.raises(SpecError, match="must not be the part to fit on"):
        fit_and_test("some:callable", "some:callable")


def test_a_single_sample_cannot_be_divided(tmp_path):
    with pytest.raises(SpecError, match="at least two samples"):
        fit_and_test(write_npz(tmp_path / "a.npz", all=1))


def test_parts_slice_nested_inputs():
    batches = [({"a": torch.arange(4), "b": torch.arange(4) * 2}, torch.arange(4))]
    ((inputs, found),) = Part(batches, 1, 3)
    assert inputs["b"].tolist() == [2, 4] and found.tolist() == [1, 2]


SHUFFLED = """
import torch
from torch.utils.data import DataLoader, TensorDataset
data = TensorDataset(torch.randn(50, 2), torch.arange(50))
def shuffled(): return DataLoader(data, batch_size=8, shuffle=True)
def same_labels(): return DataLoader(TensorDataset(data.tensors[0], torch.zeros(50).long()), 8, shuffle=True)
def again():
    order = torch.randperm(50)
    yield from zip(data.tensors[0][order].split(8), data.tensors[1][order].split(8))
def in_order(): return DataLoader(TensorDataset(data.tensors[0] * float("nan"), data.tensors[1]), batch_size=8)
def dropping(): return DataLoader(data, batch_size=8, drop_last=True)
"""


def test_nothing_is_held_out_of_data_in_another_order_each_time(tmp_path):
    source = tmp_path / "source.py"
    source.write_text(SHUFFLED)
    for name in ("shuffled", "same_labels", "again"):
        with pytest.raises(SpecError, match=f"{name}' gives other samples .* give test data, or turn shuffling off"):
            fit_and_test(f"{source}:{name}")
    fit_and_test(f"{source}:shuffled", f"{source}:in_order")  # with test data of its own the order is free
    parts = fit_and_test(f"{source}:in_order")
    assert sorted(labels(parts.fit) + labels(parts.test)) == list(range(50))
    with pytest.raises(SpecError, match="ended after 48 of 50 samples"):
        labels(fit_and_test(f"{source}:dropping").test)


def test_one_file_by_two_paths_is_the_same_part(tmp_path, monkeypatch):
    write_npz(tmp_path / "a.npz", train=10, test=4)
    write_npz(tmp_path / "b.npz", all=10)
    (tmp_path / "source.py").write_text(SHUFFLED)
    monkeypatch.chdir(tmp_path)
    for one, other, split in (
        ("b.npz", "./b.npz", None),
        ("a.npz", f"{tmp_path}/a.npz", "test"),
        ("source.py:in_order", "./source.py:in_order", None),
    ):
        with pytest.raises(SpecError, match="must not be the part to fit on"):
            fit_and_test(one, other, split=split)
    assert labels(fit_and_test("a.npz", "./a.npz").test)[0] == 1000
