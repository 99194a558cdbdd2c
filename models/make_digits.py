"""Make digits.onnx, a convolutional classifier of handwritten digits, and its calibration and test data.

    pip install -e .[models]
    python models/make_digits.py

Trained on the 8x8 digits of scikit-learn, enlarged to 32x32. The graph has what a quantizer meets in real vision
models: BatchNormalization left unfolded, residual Adds with and without a projection, a depthwise convolution between
two ReLU6, global average pooling, a linear head. One thread and fixed seeds: the same releases of torch and
scikit-learn on the same kind of processor give the same weights.
"""

# mypy: allow-subclassing-any, allow-untyped-calls, no-warn-return-any

from pathlib import Path

import numpy as np
import onnxruntime
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional

HERE = Path(__file__).resolve().parent
SIDE = 32  # pixels
EPOCHS = 20
BATCH = 64
TEST_SAMPLES = 450
CALIBRATION_SAMPLES = 200


def conv(inputs: int, outputs: int, size: int, *, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution without bias, then BatchNormalization: [n, inputs, h, w] -> [n, outputs, h/stride, w/stride]."""
    layer = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs))


class Residual(nn.Module):
    """relu(body(x) + shortcut(x)), as in ResNet."""

    def __init__(self, body: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """[n, c, h, w] -> the shape that body gives."""
        return functional.relu(self.body(x) + self.shortcut(x))


def digits_network() -> nn.Sequential:
    """Pixels in [0, 1], [n, 1, 32, 32] -> logits [n, 10]."""
    stem = nn.Sequential(conv(1, 32, 3), nn.ReLU())
    projected = Residual(
        body=nn.Sequential(conv(32, 64, 3, stride=2), nn.ReLU(), conv(64, 64, 3)),
        shortcut=conv(32, 64, 1, stride=2),
    )
    depthwise = nn.Sequential(
        conv(64, 128, 1), nn.ReLU6(), conv(128, 128, 3, stride=2, groups=128), nn.ReLU6(), conv(128, 128, 1)
    )
    identity = Residual(body=conv(128, 128, 3), shortcut=nn.Identity())
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))
    return nn.Sequential(stem, projected, depthwise, identity, head)


def load_data() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training pixels, test pixels (float32 [n, 1, 32, 32] in [0, 1]), training labels, test labels (int64 [n])."""
    images, labels = load_digits(return_X_y=True)
    small = torch.from_numpy(images).float().reshape(-1, 1, 8, 8)
    large = functional.interpolate(small, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
    pixels = large.round() / 16  # the 17 grey levels of the originals, so that the committed files stay small
    train, test = train_test_split(np.arange(len(labels)), test_size=TEST_SAMPLES, stratify=labels, random_state=0)
    targets = torch.from_numpy(labels).long()
    return pixels[train], pixels[test], targets[train], targets[test]


def shifted(pixels: Tensor) -> Tensor:
    """The batch moved by up to three pixels each way: augmentation for training."""
    down, right = (int(n) for n in torch.randint(-3, 4, (2,)))
    return torch.roll(pixels, shifts=(down, right), dims=(2, 3))


def train(network: nn.Module, pixels: Tensor, labels: Tensor) -> None:
    """Adam with a one-cycle learning rate; leaves the network in inference mode."""
    steps = EPOCHS * -(-len(labels) // BATCH)
    optimizer = torch.optim.AdamW(network.parameters(), lr=4e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
    network.train()
    for epoch in range(EPOCHS):
        batches = torch.randperm(len(labels)).split(BATCH)
        total = 0.0
        for rows in batches:
            loss = functional.cross_entropy(network(shifted(pixels[rows])), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(f"epoch {epoch + 1}: mean loss {total / len(batches):.4f}")
    network.eval()


def export(network: nn.Module, path: Path) -> None:
    """Write the network as ONNX with a symbolic batch.

    torch's newer exporter folds BatchNormalization by itself and writes the pooling as ReduceMean. Most vision models
    in circulation come from the older one; without the folding that it does for inference they look like this.
    """
    torch.onnx.export(
        network,
        (torch.zeros(2, 1, SIDE, SIDE),),
        path,
        input_names=["pixels"],
        output_names=["logits"],
        dynamic_axes={"pixels": {0: "batch"}, "logits": {0: "batch"}},
        opset_version=17,
        training=torch.onnx.TrainingMode.PRESERVE,
        dynamo=False,
    )


def check(network: nn.Module, path: Path, pixels: Tensor, labels: Tensor) -> None:
    """Hold ONNX Runtime to the logits and the accuracy of torch, for several batch sizes."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    with torch.no_grad():
        expected = network(pixels).numpy()
    for batch in (1, 3, len(labels)):
        (logits,) = session.run(None, {"pixels": pixels[:batch].numpy()})
        np.testing.assert_allclose(logits, expected[:batch], rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(logits.argmax(1), expected.argmax(1))
    accuracy = (logits.argmax(1) == labels.numpy()).mean()
    print(f"{path.name}: accuracy {accuracy:.4f} on {len(logits)} test images, the same as torch")


def main() -> None:
    """Train, export, check, and write the data beside the model."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    train_pixels, test_pixels, train_labels, test_labels = load_data()
    network = digits_network()
    train(network, train_pixels, train_labels)
    export(network, HERE / "digits.onnx")
    check(network, HERE / "digits.onnx", test_pixels, test_labels)
    np.savez_compressed(HERE / "digits_calibration.npz", pixels=train_pixels[:CALIBRATION_SAMPLES].numpy())
    np.savez_compressed(HERE / "digits_test.npz", pixels=test_pixels.numpy(), labels=test_labels.numpy())


if __name__ == "__main__":
    main()
