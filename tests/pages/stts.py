"""STTS in plain loops, for LeNet-5: 84 hidden units are modelled, then ReLU and the classifier."""

import torch
import torch.nn.functional as F
from torch.optim import SGD, Adam

from dfkd.engine.core import Task
from dfkd.engine.plan import Plan
from dfkd.methods.stts import STTS
from dfkd.nets.lenet import LeNet5
from dfkd.ops.affine import affine, draw_affine
from dfkd.ops.augment import crop_flip
from dfkd.ops.pixels import as_bytes, as_images


def train(task: Task, method: STTS, plan: Plan) -> None:
    T, S, rng, tau = task.teacher.freeze(), task.student, task.runtime.generator, method.temperature
    net = T.net
    if not isinstance(net, LeNet5):
        raise TypeError("this page knows LeNet-5 only")
    w = net.hidden.weight
    w = w / w.norm(dim=1, keepdim=True)  # R = w wᵀ
    transfer_set = torch.empty(0, *task.image_shape, dtype=torch.uint8)
    for _ in range(plan.warmup * method.batches):
        # √σ w e, with e ~ N(0, 1), has the covariance σ R
        s = torch.randn(method.synthesis_batch, w.shape[1], generator=rng) @ w.T * method.sigma**0.5
        y = net.head(torch.relu(s)).detach()
        x = method.init_std * torch.randn(method.synthesis_batch, *task.image_shape, generator=rng)
        x = x.contiguous(memory_format=torch.channels_last).requires_grad_(True)
        pixels = Adam([x], lr=method.lr, fused=True)
        for _ in range(method.steps):
            maps = net.conv3(net.pool2(net.conv2(net.pool1(net.conv1(x)))))
            logits = net.head(torch.relu(net.hidden(maps.flatten(1))))
            log_y, log_p = F.log_softmax(y / tau, dim=1), F.log_softmax(logits / tau, dim=1)
            target = (log_y.exp() * (log_y - log_p)).sum(dim=1).mean() * tau**2
            loss = method.lambda_d * target + method.lambda_a * -maps.abs().mean()
            pixels.zero_grad()
            loss.backward()
            pixels.step()
            with torch.no_grad():
                x.copy_((((x / T.scale + T.mean).clamp(0, 1)) - T.mean) * T.scale)
        transfer_set = torch.cat([transfer_set, as_bytes(x.detach() / T.scale + T.mean)])
    student = SGD(S.net.parameters(), lr=plan.lr, momentum=plan.momentum, weight_decay=plan.weight_decay, fused=True)
    for epoch in range(plan.warmup, plan.warmup + plan.rounds):
        student.param_groups[0]["lr"] = plan.rate(epoch)
        S.train()
        for _ in range(plan.steps):
            images = as_images(transfer_set[torch.randint(len(transfer_set), (plan.batch_size,), generator=rng)])
            turned = affine(images, draw_affine(len(images), rng, method.degrees, method.scale, method.shift))
            moved = crop_flip(turned, rng, method.pad, flip=False)
            noisy = (moved + method.noise * torch.randn(moved.shape, generator=rng)).clamp(0, 1)
            with torch.no_grad():
                t = T(noisy).logits
            log_p = F.log_softmax(S(noisy).logits / tau, dim=1)
            loss = -(F.softmax(t / tau, dim=1) * log_p).sum(dim=1).mean()
            student.zero_grad()
            loss.backward()
            student.step()
        S.eval()
