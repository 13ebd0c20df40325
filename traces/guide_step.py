"""The guide's MLP, or its CNN: one prediction, then a few training steps.

    python guide_step.py [mlp | cnn]

make.py records it.
"""

import sys

from tinygrad import Context, Tensor, nn


class MLP:
    def __init__(self):
        self.layer1 = nn.Linear(28 * 28, 256)
        self.layer2 = nn.Linear(256, 128)
        self.layer3 = nn.Linear(128, 10)

    def __call__(self, images):
        x = images.flatten(1)
        x = self.layer1(x).relu()
        x = self.layer2(x).relu()
        return self.layer3(x)


class CNN:
    def __init__(self):
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1)
        self.norm1 = nn.BatchNorm(32)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.fc1 = nn.Linear(64 * 7 * 7, 128)
        self.fc2 = nn.Linear(128, 10)

    def __call__(self, images):
        x = self.norm1(self.conv1(images)).relu().max_pool2d()
        x = self.conv2(x).relu().max_pool2d()
        x = self.fc1(x.flatten(1)).relu().dropout(0.3)
        return self.fc2(x)


Tensor.manual_seed(0)
model = CNN() if "cnn" in sys.argv else MLP()
optimizer = nn.optim.Adam(nn.state.get_parameters(model), lr=2e-3)
Tensor.realize(*nn.state.get_parameters(optimizer), *nn.state.get_parameters(model))
images = Tensor.rand(32, 1, 28, 28).realize()
labels = Tensor([i % 10 for i in range(32)]).realize()

scores = model(images).realize()

for _ in range(3):
    with Context(TRAINING=1):
        optimizer.zero_grad()
        loss = model(images).sparse_categorical_crossentropy(labels)
        loss.backward()
        Tensor.realize(loss, *optimizer.schedule_step())
