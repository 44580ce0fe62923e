from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from stitchkern.errors import SpecError
from stitchkern.models import load_data

RNG = np.random.default_rng(0)
HWC = RNG.integers(0, 256, (7, 5, 4, 3), dtype=np.uint8)
LABELS = np.arange(7, dtype=np.uint8)


def save(tmp_path: Path, **arrays: Any) -> str:
    path = tmp_path / "data.npz"
    np.savez(path, **arrays)
    return str(path)


def gather(data: Any) -> tuple[torch.Tensor, torch.Tensor]:
    inputs, labels = zip(*data, strict=True)
    return torch.cat(inputs), torch.cat(labels)


def test_bytes_become_floats_batch_by_batch(tmp_path: Path) -> None:
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    data = load_data(save(tmp_path, images=HWC, labels=LABELS), batch_size=3, mean=mean, std=std)
    assert (len(data), data.count, data.batch_size) == (3, 7, 3)
    assert [len(labels) for _, labels in data] == [3, 3, 1]
    for _ in range(2):  # it can be read again
        inputs, labels = gather(data)
        expected = (HWC.transpose(0, 3, 1, 2) / 255 - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
        assert_close(inputs, torch.from_numpy(expected).float())
        assert inputs.dtype == torch.float32
        assert labels.dtype == torch.int64
        assert labels.tolist() == list(range(7))


def test_only_one_batch_is_ever_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = load_data(save(tmp_path, images=HWC, labels=LABELS), batch_size=2)
    sizes: list[int] = []
    convert = np.ascontiguousarray
    monkeypatch.setattr(np, "ascontiguousarray", lambda a, **kw: sizes.append(len(a)) or convert(a, **kw))
    gather(data)
    assert sizes == [2, 2, 2, 1]


@pytest.mark.parametrize(
    ("images", "shape", "scale"),
    [
        (HWC, (7, 3, 5, 4), 255),
        (HWC.transpose(0, 3, 1, 2), (7, 3, 5, 4), 255),
        (HWC.astype(np.float64), (7, 3, 5, 4), 1),
        (HWC.transpose(0, 3, 1, 2).astype(np.float16), (7, 3, 5, 4), 1),
        (HWC[..., 0], (7, 1, 5, 4), 255),
        (HWC[..., :1], (7, 1, 5, 4), 255),
        (HWC[:, :, 0].reshape(7, -1).astype(np.float32), (7, 15), 1),
        (HWC[:, :3], (7, 3, 3, 4), 255),  # both ends could be channels: bytes are stored HWC
        (HWC[:, :3].astype(np.float32), (7, 3, 4, 3), 1),  # and floats CHW
    ],
)
def test_layouts(tmp_path: Path, images: np.ndarray, shape: tuple[int, ...], scale: int) -> None:
    inputs, _ = gather(load_data(save(tmp_path, images=images, labels=LABELS)))
    assert inputs.shape == shape
    assert_close(inputs.double().sum().item() * scale, float(images.sum(dtype=np.float64)), rtol=1e-4, atol=0)
    assert_close(inputs[3].flatten()[0].item() * scale, float(images[3].flatten()[0]), rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("images", "labels", "split"),
    [
        ("images", "labels", None),
        ("x", "y", None),
        ("data", "targets", None),
        ("train_images", "train_labels", None),
        ("train_images", "train_labels", "train"),
        ("x_train", "y_train", "train"),
        ("X", "Y", None),
    ],
)
def test_usual_names_are_found(tmp_path: Path, images: str, labels: str, split: str | None) -> None:
    data = load_data(save(tmp_path, **{images: HWC, labels: LABELS, "classes": LABELS}), split=split)
    assert data.count == 7


def test_split_and_keys_choose(tmp_path: Path) -> None:
    arrays = {"train_images": HWC, "train_labels": LABELS, "test_images": HWC[:2], "test_labels": LABELS[:2]}
    path = save(tmp_path, **arrays, fine=LABELS[::-1])
    assert load_data(path, split="train").count == 7
    assert load_data(path, split="test").count == 2
    assert gather(load_data(path, split="train", labels_key="fine"))[1].tolist() == [6, 5, 4, 3, 2, 1, 0]
    assert gather(load_data(path, images_key="train_images", labels_key="fine"))[1][0] == 6


def test_limit(tmp_path: Path) -> None:
    data = load_data(save(tmp_path, images=HWC, labels=LABELS[:, None]), batch_size=3, limit=4)
    assert (len(data), data.count) == (2, 4)
    assert gather(data)[1].tolist() == [0, 1, 2, 3]
    assert load_data(save(tmp_path, images=HWC, labels=LABELS), limit=100).count == 7


def jpegs(images: np.ndarray) -> dict[str, np.ndarray]:
    image = pytest.importorskip("PIL.Image")
    files = []
    for pixels in images:
        buffer = io.BytesIO()
        image.fromarray(pixels).save(buffer, "JPEG", quality=95)
        files.append(np.frombuffer(buffer.getvalue(), np.uint8))
    return {"jpeg": np.concatenate(files), "offsets": np.cumsum([0, *map(len, files)]), "labels": LABELS}


def test_labels_need_not_be_there(tmp_path: Path) -> None:
    for arrays in ({"images": HWC}, {"images": HWC, "labels": np.full((2, 2), "no labels")}):
        data = load_data(save(tmp_path, **arrays), batch_size=3, limit=5, labelled=False)
        assert (len(data), data.count) == (2, 5) and all(len(batch) == 1 for batch in data)
        assert_close(torch.cat([inputs for (inputs,) in data]), torch.from_numpy(HWC[:5]).movedim(-1, 1) / 255)
    path = save(tmp_path, train_images=HWC, x_test=HWC[:2])
    assert load_data(path, split="test", labelled=False).count == 2
    assert load_data(path, images_key="train_images", labelled=False).count == 7
    with pytest.raises(SpecError, match=r"several splits.*'test', 'train'"):
        load_data(path, labelled=False)
    with pytest.raises(SpecError, match="no images of split 'valid'; it holds 'train_images', 'x_test'"):
        load_data(path, split="valid", labelled=False)
    with pytest.raises(SpecError, match="no images and labels"):
        load_data(path)


def test_jpeg_files_end_to_end(tmp_path: Path) -> None:
    flat = np.broadcast_to(HWC[:, :1, :1], (7, 8, 16, 3)).copy()
    inputs, labels = gather(load_data(save(tmp_path, **jpegs(flat)), batch_size=4))
    assert inputs.shape == (7, 3, 8, 16)
    assert (inputs * 255 - torch.from_numpy(flat).permute(0, 3, 1, 2)).abs().max() < 8
    assert labels.tolist() == list(range(7))


@pytest.mark.parametrize(
    ("arrays", "options", "words"),
    [
        ({"pictures": HWC, "labels": LABELS}, {}, ["no images and labels", "'labels', 'pictures'"]),
        ({"images": HWC}, {}, ["no images and labels; it holds 'images'"]),
        ({"images": HWC, "labels": LABELS}, {"split": "val"}, ["split 'val'", "'images', 'labels'"]),
        (
            {"images": HWC, "labels": LABELS},
            {"images_key": "img"},
            ["no 'img' (images_key)", "'images', 'labels'"],
        ),
        (
            {"a_x": HWC, "a_y": LABELS, "b_x": HWC, "b_y": LABELS},
            {},
            ["several splits", "split=", "'a', 'b'"],
        ),
        ({"images": HWC, "labels": LABELS[:5]}, {}, ["7 images but 5 labels"]),
        ({"images": HWC[:0], "labels": LABELS[:0]}, {}, ["holds no images"]),
        ({"images": HWC, "labels": LABELS / 2}, {}, ["labels must be integers (n,)", "float64"]),
        ({"images": HWC, "labels": np.eye(7, dtype=int)}, {}, ["labels must be integers (n,)", "(7, 7)"]),
        ({"images": HWC.astype(np.int64), "labels": LABELS}, {}, ["images must be uint8 or float", "int64"]),
        (
            {"images": HWC[:, :, 0, 0], "labels": LABELS},
            {"mean": [1, 2]},
            ["mean must have 5 values (or 1); got 2"],
        ),
        ({"images": HWC, "labels": LABELS}, {"std": [1, 1, 1, 1]}, ["std must have 3 values (or 1); got 4"]),
        ({"images": HWC, "labels": LABELS}, {"std": [1, 0, 1]}, ["std must be positive"]),
        ({"images": HWC, "labels": LABELS}, {"std": [1, math.inf, 1]}, ["std must be finite numbers"]),
        ({"images": HWC, "labels": LABELS}, {"mean": [math.nan]}, ["mean must be finite numbers"]),
        ({"images": HWC[:, :0, :0], "labels": LABELS}, {}, ["images must not be empty; each is (3, 0, 0)"]),
        ({"images": np.zeros((7, 0), "f4"), "labels": LABELS}, {}, ["images must not be empty; each is (0,)"]),
        ({"images": HWC, "labels": LABELS}, {"limit": 0}, ["at least 1"]),
        ({"images": HWC, "labels": LABELS}, {"batch_size": 0}, ["batch_size", "at least 1"]),
        ({"jpeg": LABELS, "labels": LABELS}, {}, ["no 'offsets'"]),
        (
            {"jpeg": LABELS, "offsets": LABELS[:2] * 9, "labels": LABELS[:1]},
            {},
            ["offsets must be increasing"],
        ),
        ({"jpeg": LABELS, "offsets": LABELS[:2], "labels": LABELS[:1]}, {}, ["image 0 is not a JPEG"]),
    ],
)
def test_what_an_npz_lacks_is_said(tmp_path: Path, arrays: dict, options: dict, words: list[str]) -> None:
    if any("JPEG" in word for word in words):
        pytest.importorskip("PIL")
    with pytest.raises(SpecError) as caught:
        load_data(save(tmp_path, **arrays), **options)
    for word in words:
        assert word in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"no such data file .*none\.npz"):
        load_data(f"{tmp_path}/none.npz")
    (tmp_path / "text.npz").write_text("no zip")
    with pytest.raises(SpecError, match=r"text\.npz cannot be read as \.npz"):
        load_data(f"{tmp_path}/text.npz")
    with (tmp_path / "array.npz").open("wb") as file:
        np.save(file, HWC)
    with pytest.raises(SpecError, match=r"cannot be read as \.npz: TypeError: it holds one array by itself"):
        load_data(f"{tmp_path}/array.npz")
    whole = Path(save(tmp_path, images=HWC, labels=LABELS)).read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SpecError, match=r"cut\.npz cannot be read"):
        load_data(f"{tmp_path}/cut.npz")
    with pytest.raises(SpecError, match="cannot be read"):
        load_data(save(tmp_path, images=np.array([None, {}]), labels=LABELS[:2]))


SOURCE = """
import torch
calls = []
def generate():
    calls.append(1)
    for i in range(3):
        yield torch.full((4, 2), float(i)), torch.tensor([i] * 4, dtype=torch.int32)
def loader():
    calls.append(1)
    x, y = torch.arange(10.).view(10, 1), torch.arange(10)
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=4)
batches = [(torch.zeros(2, 1), torch.zeros(2, dtype=torch.long))]
def unlabelled(): return [torch.zeros(3, 2)]
def words(): return [{"tokens": torch.arange(12).view(4, 3), "text": list("abcd")}] * 2
def odd(): return [(torch.zeros(3, 2), {"any": 1}, "thing")]
def number(): return 3
def empty(): return [()]
def unplugged():
    yield from generate()
    raise OSError("no\\ndisk")
def gives_up():
    raise SystemExit
    yield
"""


@pytest.fixture
def source(tmp_path: Path) -> str:
    (tmp_path / "source.py").write_text(SOURCE)
    return f"{tmp_path}/source.py"


def test_generators_are_called_afresh_for_each_reading(source: str) -> None:
    data = load_data(f"{source}:generate", limit=6)
    for _ in range(2):
        inputs, labels = gather(data)
        assert inputs[:, 0].tolist() == labels.tolist() == [0, 0, 0, 0, 1, 1]
        assert labels.dtype == torch.int64
    assert data.count is None
    with pytest.raises(TypeError):
        len(data)


def test_loaders_and_lists_are_used_as_they_are(source: str) -> None:
    data = load_data(f"{source}:loader")
    assert (len(data), data.count, data.batch_size) == (3, 10, 4)
    assert gather(data)[1].tolist() == gather(data)[1].tolist() == list(range(10))
    limited = load_data(f"{source}:loader", limit=5)
    assert (len(limited), limited.count) == (2, 5)
    assert gather(limited)[1].tolist() == list(range(5))
    assert len(load_data(f"{source}:batches")) == 1


def test_callables_need_no_labels(source: str) -> None:
    for name, shapes in (("unlabelled", [(3, 2)]), ("generate", [(4, 2), (1, 2)]), ("odd", [(3, 2)])):
        data = load_data(f"{source}:{name}", limit=5, labelled=False)
        for _ in range(2):
            assert [tuple(inputs.shape) for (inputs,) in data] == shapes
    (first,), (second,) = load_data(f"{source}:words", limit=5, labelled=False)
    assert first["tokens"].shape == (4, 3) and second["tokens"].tolist() == [[0, 1, 2]]
    with pytest.raises(SpecError, match="must yield tensors, alone or before labels; it yielded a tuple"):
        list(load_data(f"{source}:empty", labelled=False))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("loader", {"mean": [0.5], "split": "test"}, r"mean, split apply to \.npz data only"),
        ("number", {}, "gives a int; it must give an iterable of"),
        ("unlabelled", {}, r"must yield \(inputs, labels\) .* yielded a Tensor"),
        ("unplugged", {}, "source.py:unplugged': reading it raised OSError: no$"),
        ("gives_up", {}, "reading it raised SystemExit$"),
        ("laoder", {}, "has no 'laoder'; nearest: loader"),
        ("loader@x", {}, "without '@x'"),
    ],
)
def test_callables_that_do_not_give_data(source: str, name: str, options: dict, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        list(load_data(f"{source}:{name}", **options))
    with pytest.raises(SpecError, match=r"must be an \.npz file or file_or_module:callable"):
        load_data("images.npy")
