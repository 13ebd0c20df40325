"""The guide's MLP: one prediction, then a few training steps. Recorded by traces/make.py."""

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


Tensor.manual_seed(0)
model = MLP()
optimizer = nn.optim.Adam(nn.state.get_parameters(model), lr=2e-3)
Tensor.realize(*nn.state.get_state_dict(optimizer).values(), *nn.state.get_parameters(model))
images = Tensor.rand(32, 1, 28, 28).realize()
labels = Tensor([i % 10 for i in range(32)]).realize()

scores = model(images).realize()

for _ in range(3):
    with Context(TRAINING=1):
        optimizer.zero_grad()
        loss = model(images).sparse_categorical_crossentropy(labels)
        loss.backward()
        Tensor.realize(loss, *optimizer.schedule_step())
