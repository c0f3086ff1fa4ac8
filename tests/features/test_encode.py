"""Features are those of the whole picture by a network in evaluation mode, computed here picture by picture."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsup.features.encode import embed, encode
from selfsup.features.writer import write_features
from selfsup.task import Batch

SIZE, STORE, SAMPLES = 8, 14, 7
CPU = torch.device("cpu")


class Pictures:
    """Pictures of many shapes at the top left of a square; what is beside them is noise that nobody may look at."""

    kind, data = "image", SimpleNamespace(image_size=SIZE, noun="images")
    samples, labels = SAMPLES, np.array([0, -1, 1, 1, 0, -1, 0])

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.image = torch.randint(0, 256, (SAMPLES, 3, STORE, STORE), dtype=torch.uint8, generator=generator)
        self.box = torch.tensor([[14, 14], [14, 9], [9, 14], [8, 8], [5, 6], [13, 4], [3, 3]])

    def gather(self, ids: Tensor) -> Batch:
        ids = torch.as_tensor(ids)
        return {"id": ids, "image": self.image[ids], "box": self.box[ids]}


class Network(nn.Module):
    """Both of its layers do something else in training."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop = nn.BatchNorm2d(3), nn.Dropout(0.5)
        self.norm.running_mean, self.norm.running_var = torch.tensor([0.2, 0.4, 0.6]), torch.tensor([0.5, 1.0, 2.0])

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"pooled": self.drop(self.norm(images)).flatten(1)}


def expected() -> np.ndarray:
    """The largest centred square of each picture, resized, and the batch norm's formula. [N D]"""
    pictures, rows = Pictures(), []
    for image, (height, width) in zip(pictures.image, pictures.box.tolist(), strict=True):
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        square = image[None, :, top : top + side, left : left + side].double() / 255
        square = F.interpolate(square, (SIZE, SIZE), mode="bilinear", antialias=True)[0].numpy()
        mean, variance = np.array([0.2, 0.4, 0.6]), np.array([0.5, 1.0, 2.0])
        rows.append((square - mean[:, None, None]) / np.sqrt(variance + 1e-5)[:, None, None])
    return np.stack(rows).reshape(SAMPLES, -1)


@pytest.mark.parametrize("training", [True, False])
def test_features_are_those_of_whole_pictures(training, tmp_path):
    network, pictures = Network().train(training), Pictures()
    before = [x.clone() for x in network.buffers()]
    path = tmp_path / "test.npy"
    write_features(network, pictures, CPU, path, "test")
    network.train(training)
    found = {"swept": encode(network, pictures, CPU).numpy(), "written": np.load(path)}
    for name, features in found.items():
        np.testing.assert_allclose(features, expected(), atol=1e-5, err_msg=name)
    assert network.training == training, "as it was before"
    assert all(torch.equal(x, y) for x, y in zip(before, network.buffers(), strict=True))


def test_embeddings_are_those_of_labelled_pictures():
    """For a reading of kNN, whose caller has put the network into evaluation mode."""
    features, labels = embed(Network().eval(), Pictures(), CPU, most=SAMPLES)
    labelled = np.flatnonzero(Pictures.labels >= 0)
    np.testing.assert_allclose(features, expected()[labelled], atol=1e-5)
    np.testing.assert_array_equal(labels, Pictures.labels[labelled])
